"""Recipes: YAML merged with `key=value` overrides, checked against a schema, errors told in one line.

OmegaConf merges and interpolates, pydantic validates; this file only joins them and words the complaint.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from herd.base.errors import ConfigError


class Section(BaseModel):
    """A part of a recipe: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=BaseModel)


def load_yaml(path: Path, overrides: Sequence[str] = (), *, known: Path | None = None) -> dict[str, Any]:
    """Read a YAML file, apply `a.b=value` overrides and resolve interpolations. Raises ConfigError.

    `extends: NAME` lays the file over NAME.yaml beside it, or else in the folder `known`, key by key; lists are
    replaced as a whole.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    tree = _tree(path, (), known)
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not key:
            raise ConfigError(f"override {override!r} is not of the form key=value")
        try:
            # read as a value of the file would be: plain YAML 1.1 takes 1e6 for text
            read = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)
            assert isinstance(read, dict)
            OmegaConf.update(tree, key, read["value"], force_add=True)
        except (
            YAMLError,
            OmegaConfBaseException,
            ValueError,
            IndexError,
            AttributeError,
            TypeError,
        ) as error:
            raise ConfigError(f"override {override!r} can't be applied ({_one_line(error)})") from None
    try:
        resolved = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _tree(path: Path, above: tuple[Path, ...], known: Path | None) -> Any:
    """Read a file and what it extends; `above` are the files that extend it."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if path in above:
        raise ConfigError(f"{path}: extends itself, by way of {', '.join(file.stem for file in above)}")
    try:
        tree = OmegaConf.create(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not readable as YAML ({_one_line(error)})") from None
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values")
    if "extends" not in tree:
        return tree
    name = f"{tree.pop('extends')}.yaml"
    bases = [path.with_name(name), *([known / name] if known else [])]
    # a file may lie over the known one of its own name
    base = next((base for base in bases if base.is_file() and base != path), bases[0])
    if not base.is_file():
        names = sorted(file.stem for file in known.glob("*.yaml")) if known else []
        more = f", nor a recipe of that name ({', '.join(names)})" if names else ""
        raise ConfigError(f"{path}: extends {base.stem!r}, but there is no {base}{more}")
    return OmegaConf.merge(_tree(base, (*above, path), known), tree)


def validate(schema: type[S], values: Mapping[str, Any], *, where: str) -> S:
    """Build `schema` from plain values. Raises ConfigError naming each bad key, its place and the nearest known key."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        complaints = [_complaint(schema, item) for item in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(complaints)) from None


def _complaint(schema: type[BaseModel], item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = list(_known_keys(schema, item["loc"][:-1]))
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.4)
        place = ".".join(str(part) for part in item["loc"][:-1]) or "the top level"
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {str(item['loc'][-1])!r} at {place}; {hint}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{path}: {message} (got {item['input']!r:.80})" if path else message


def _known_keys(schema: type[BaseModel], path: Sequence[Any]) -> Iterator[str]:
    current: Any = schema
    for part in path:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = _model_within(current.model_fields[part].annotation)
        # an index or a dictionary key stays within the model found in the container's annotation
    if isinstance(current, type) and issubclass(current, BaseModel):
        yield from current.model_fields


def _model_within(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_within(part)) is not None), None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
