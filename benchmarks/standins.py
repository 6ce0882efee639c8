"""What `benchmarks/gpu.py` puts in the place of pydantic and tiktoken where a machine has PyTorch alone.

Enough to build a `ModelConfig` from right values and no more: nothing is checked, no text is tokenised.
"""

import importlib.util
import inspect
import sys
from types import ModuleType
from typing import Any


class _BaseModel:
    model_fields: dict[str, Any]

    def __init_subclass__(cls) -> None:
        cls.model_fields = {
            name: getattr(part, name, None)
            for part in reversed(cls.__mro__)
            for name in inspect.get_annotations(part)
            if name not in ("model_config", "model_fields")
        }

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(self.model_fields | values)

    def model_dump(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def model_copy(self, *, update: dict[str, Any]) -> Any:
        return type(self)(**self.__dict__ | update)


def remove(names: list[str]) -> None:
    """Take them away again: other libraries would take them for the real ones."""
    for name in names:
        del sys.modules[name]


def install() -> list[str]:
    """Put stand-ins in the place of what is missing; return the names."""
    missing = [name for name in ("pydantic", "tiktoken") if importlib.util.find_spec(name) is None]
    for name in missing:
        sys.modules[name] = ModuleType(name)
    if "pydantic" in missing:
        contents = {
            "BaseModel": _BaseModel,
            "ConfigDict": dict,
            "Field": lambda *args, **options: options.get("default"),
            "ValidationError": ValueError,
            "model_validator": lambda **options: lambda method: method,
        }
        sys.modules["pydantic"].__dict__.update(contents)
    return missing
