"""Optional libraries of this package: found, or refused in one line that says what to install."""

import importlib
import importlib.util
from types import ModuleType

from herd.base.errors import HerdError


def require(module: str, *, purpose: str, install: str = "herd[data]") -> ModuleType:
    """Import an optional library. Raises HerdError naming what to install when it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise  # something else is broken: say what
        extra = " needs the `data` extra" if install == "herd[data]" else f" needs `{install}`"
        raise HerdError(f"{purpose}{extra}: pip install '{install}'") from None


def available(module: str) -> bool:
    """Say whether an optional library can be imported, without importing more than its parents."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
