"""Imports point down: the floor table, held against every import statement under herd/, wherever it stands."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# package: floor: what it may import. The table of docs/architecture.md; change both, with the reason there.
TABLE = """
base      |  0 |
runtime   |  1 | base
data      |  2 | base
tokenizer |  3 | base data
model     |  4 | base runtime
parallel  |  5 | base runtime model
train     |  6 | base runtime tokenizer model parallel
engine    |  6 | base runtime tokenizer model parallel
tools     |  7 | base runtime tokenizer model engine
guard     |  7 | base runtime tokenizer model engine
distill   |  8 | base runtime tokenizer model parallel train engine
align     |  8 | base runtime data tokenizer model parallel train engine tools guard
eval      |  9 | base data tokenizer engine tools guard
card      | 10 | base
plan      | 10 | base runtime model parallel train
serve     | 10 | base tokenizer engine tools guard
"""
ANYTHING = {"stages", "recipes", "cli", "__main__"}
MAY_BE_LAZY = {"stages", "cli", "__main__"}  # for start-up time only


@dataclass(frozen=True)
class Rule:
    """One row of the table."""

    floor: int
    may: frozenset[str]


def _rules() -> dict[str, Rule]:
    rows = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines()]
    return {name: Rule(int(floor), frozenset(may.split())) for name, floor, may in rows}


RULES = _rules()


@dataclass(frozen=True)
class Import:
    """One imported module of herd: where it is asked for, and whether inside a function."""

    module: str
    line: int
    lazy: bool

    @property
    def package(self) -> str:
        """The package on a floor, '' for herd itself."""
        return self.module.partition(".")[2].partition(".")[0]


def imports_of(source: str, module: str, *, is_package: bool) -> Iterator[Import]:
    """Yield every import of herd in a module's source: absolute, relative, lazy, under TYPE_CHECKING, by importlib."""
    tree = ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
    inside = {id(child) for function in functions for child in ast.walk(function)}
    for node in ast.walk(tree):
        for name in _names(node, module, is_package):
            if name.split(".")[0] == "herd":
                yield Import(name, getattr(node, "lineno", 0), id(node) in inside)


def _names(node: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = node.module or ""
        if node.level:
            parts = module.split(".")
            parts = parts[: len(parts) - node.level + is_package]
            start = ".".join([*parts, start] if start else parts)
        # `from herd import data` names the package in the alias; `from herd.data import X` doesn't
        yield from (f"{start}.{alias.name}" for alias in node.names) if start == "herd" else (start,)
    elif isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0] if node.args else None
        if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
            yield str(first.value)


def sources() -> Iterator[tuple[str, Path]]:
    """Yield (package, file) of every Python file of herd; the package of `herd/__main__.py` is '__main__'."""
    for file in sorted((ROOT / "herd").rglob("*.py")):
        parts = file.relative_to(ROOT / "herd").parts
        yield (parts[0] if len(parts) > 1 else file.stem), file


def found(file: Path) -> list[Import]:
    """Return herd's imports in one file."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    return list(imports_of(file.read_text(), ".".join(parts[:-1] if is_package else parts), is_package=is_package))


def test_every_package_stands_on_a_floor() -> None:
    here = {package for package, _ in sources()} - {"__init__"}
    assert here <= set(RULES) | ANYTHING


def test_the_table_itself_points_down() -> None:
    for name, rule in RULES.items():
        for other in rule.may:
            assert RULES[other].floor < rule.floor, f"{name} may import {other}, which isn't below it"
    assert "train" not in RULES["engine"].may
    assert not {"train", "distill", "align"} & RULES["eval"].may


@pytest.mark.parametrize("package", RULES)
def test_imports_point_down(package: str) -> None:
    rule = RULES[package]
    wrong = [
        f"{file.relative_to(ROOT)}:{found_import.line} imports {found_import.module}"
        for owner, file in sources()
        if owner == package
        for found_import in found(file)
        if found_import.package not in {package, "", "__version__", *rule.may}
    ]
    assert not wrong, f"{package} may import {', '.join(sorted(rule.may)) or 'nothing'}"


def test_lazy_imports_are_for_start_up_time_only() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{found_import.line} imports {found_import.module}"
        for package, file in sources()
        if package not in MAY_BE_LAZY
        for found_import in found(file)
        if found_import.lazy and found_import.package != package
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("import herd.train.loop", "herd.train.loop"),
        ("from herd.train import loop", "herd.train"),
        ("from herd import train", "herd.train"),
        ("from ..train import loop", "herd.train"),
        ("from .. import train", "herd.train"),
        ("from . import sampler", "herd.engine"),
        ("def f():\n    from herd.train import loop", "herd.train"),
        ("if TYPE_CHECKING:\n    from herd.train.loop import fit", "herd.train.loop"),
        ("importlib.import_module('herd.train')", "herd.train"),
    ],
)
def test_no_form_of_import_is_overlooked(source: str, wanted: str) -> None:
    (only,) = imports_of(source, "herd.engine.engine", is_package=False)
    assert only.module == wanted
    assert only.lazy == source.startswith("def")


def test_relative_imports_of_a_package_start_at_itself() -> None:
    (only,) = imports_of("from .engine import Engine", "herd.engine", is_package=True)
    assert only.module == "herd.engine.engine"
