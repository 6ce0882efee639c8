"""Recipes: what is wrong is named with its place and the nearest right word, in one line, exit status 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field

from herd.base.config import Section, load_yaml, validate
from herd.base.errors import ConfigError
from herd.stages.recipe import Recipe
from tests.conftest import TOY


class Leaf(Section):
    learning_rate: float = 1e-3
    warmup_steps: int = 2


class Tree(Section):
    name: str = "x"
    leaf: Leaf = Leaf()
    many: dict[str, Leaf] = Field(default_factory=dict)
    rows: tuple[Leaf, ...] = ()
    perhaps: Leaf | None = None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nam": "y"}, "here: unknown key 'nam' at the top level; did you mean 'name'?"),
        ({"leaf": {"learning_rat": 1}}, "here: unknown key 'learning_rat' at leaf; did you mean 'learning_rate'?"),
        ({"many": {"a": {"warmup": 1}}}, "here: unknown key 'warmup' at many.a; did you mean 'warmup_steps'?"),
        ({"rows": [{}, {"wamup_steps": 1}]}, "here: unknown key 'wamup_steps' at rows.1; did you mean 'warmup_steps'?"),
        ({"perhaps": {"warmup_step": 1}}, "here: unknown key 'warmup_step' at perhaps; did you mean 'warmup_steps'?"),
        ({"zzz": 1}, "here: unknown key 'zzz' at the top level; known keys: name, leaf, many, rows, perhaps"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_the_nearest(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Tree, values, where="here")
    assert str(caught.value) == message


def test_all_complaints_come_at_once_and_show_the_value() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Tree, {"nam": 1, "leaf": {"warmup_steps": "many"}}, where="f.yaml")
    text = str(caught.value)
    assert "unknown key 'nam'" in text
    assert "leaf.warmup_steps:" in text
    assert "(got 'many')" in text
    assert "\n" not in text


def test_sections_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Leaf().learning_rate = 2.0


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: x\nleaf: {learning_rate: 0.5, warmup_steps: 3}\nmany: {a: {warmup_steps: '${leaf.warmup_steps}'}}\n"
    )
    return path


def test_overrides_reach_nested_keys_and_interpolations_follow(recipe: Path) -> None:
    values = load_yaml(recipe, ["leaf.warmup_steps=7", "many.b.learning_rate=1e-2", "name=a=b"])
    tree = validate(Tree, values, where="r")
    assert tree.leaf == Leaf(learning_rate=0.5, warmup_steps=7)
    assert tree.many == {"a": Leaf(warmup_steps=7), "b": Leaf(learning_rate=0.01)}
    assert tree.name == "a=b"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e6", 1_000_000),
        ("3", 3),
        ("null", None),
        ("[1, two]", [1, "two"]),
        ("{a: 1}", {"a": 1}),
        ("yes it is", "yes it is"),
    ],
)
def test_an_override_is_read_as_the_file_would_be(recipe: Path, text: str, value: object) -> None:
    assert load_yaml(recipe, [f"leaf.warmup_steps={text}"])["leaf"]["warmup_steps"] == value
    recipe.write_text(f"leaf: {{warmup_steps: {text}}}\n")
    assert load_yaml(recipe)["leaf"]["warmup_steps"] == value


def test_a_file_lies_over_the_one_it_extends(recipe: Path) -> None:
    recipe.with_name("b.yaml").write_text("extends: r\nmany: {b: {learning_rate: 2.0}}\nrows: [{}]\n")
    over = recipe.with_name("c.yaml")
    over.write_text("extends: b\nleaf: {warmup_steps: 9}\nrows: [{warmup_steps: 1}, {}]\n")
    tree = validate(Tree, load_yaml(over, ["name=y"]), where="c")
    assert tree.leaf == Leaf(learning_rate=0.5, warmup_steps=9)
    assert tree.many == {"a": Leaf(warmup_steps=9), "b": Leaf(learning_rate=2.0)}
    assert (tree.rows, tree.name) == ((Leaf(warmup_steps=1), Leaf()), "y")


def test_a_file_of_ones_own_may_extend_a_known_one_by_its_name(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    over = tmp_path / "mine" / recipe.name  # of the same name, too
    over.write_text(f"extends: {recipe.stem}\nname: z\n")
    assert load_yaml(over, known=recipe.parent) == load_yaml(recipe) | {"name": "z"}
    over.write_text("extends: nothing\n")
    with pytest.raises(ConfigError, match=rf"nothing.yaml, nor a recipe of that name \({recipe.stem}"):
        load_yaml(over, known=recipe.parent)


@pytest.mark.parametrize(
    ("text", "complaint"), [("extends: c\n", "c.yaml: extends itself, by way of c"), ("extends: z\n", "no .*z.yaml")]
)
def test_what_cannot_be_extended_is_named(recipe: Path, text: str, complaint: str) -> None:
    over = recipe.with_name("c.yaml")
    over.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_yaml(over)


@pytest.mark.parametrize("override", ["leaf", "=3", "leaf.warmup_steps=[1"])
def test_a_bad_override_is_quoted(recipe: Path, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(recipe, [override])
    assert repr(override) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "a: ${nowhere}\n"])
def test_a_broken_file_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["meadow", "pretrain.optim.learning_rat=1"],
            ["'learning_rat'", "pretrain.optim", "'learning_rate'", "meadow"],
        ),
        (["meadow", "sede=1"], ["'sede'", "the top level", "'seed'"]),
        (["nowhere"], ["'nowhere'", "meadow"]),
    ],
)
def test_the_command_line_exits_with_2_and_one_line(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    command = [sys.executable, "-m", "herd", "raise", *arguments, "--run", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=120, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "run").exists()


def test_the_recipe_of_an_old_run_still_reads() -> None:
    toy = load_yaml(TOY)
    old = {key: value for key, value in toy.items() if key != "checkpoints"} | {"checkpoint_seconds": 7.5}
    recipe = validate(Recipe, old, where="recipe.yaml")
    assert recipe.checkpoints.seconds == 7.5
    assert recipe.model_dump(mode="json").keys().isdisjoint({"checkpoint_seconds"})
