"""The recipe of a herd: one schema for everything `herd raise` does, every default filled in. No torch."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from herd.base.config import Section, load_yaml, validate
from herd.base.emissions import EnergyConfig
from herd.base.errors import ConfigError
from herd.data.curate import CurateConfig
from herd.data.meadow import MeadowConfig
from herd.distill.config import check_cut
from herd.model.config import ModelConfig, RopeScaling, Shape
from herd.parallel.config import ParallelConfig
from herd.runtime.config import RuntimeConfig
from herd.stages.long_context import LongContextConfig
from herd.train.config import CheckpointConfig, FaultsConfig, OptimConfig, TrainConfig, WatchConfig

RECIPES = Path(__file__).parents[1] / "recipes"


class SiblingConfig(Shape):
    """A sibling's shape, and where its distillation starts: `random` weights, or `pruned` from the flagship's."""

    init: Literal["random", "pruned"] = "random"

    def shape(self) -> dict[str, Any]:
        """Return the shape alone, which is all that the control (`alone/NAME`) and a built model depend on."""
        return self.model_dump(exclude={"init"})


class DistilConfig(TrainConfig):
    """Siblings learn from the teacher's `top_k` log-probabilities, with weight `share` against the next token."""

    top_k: int = 16
    share: float = 0.7
    watch: WatchConfig | None = None


class EpochConfig(Section):
    """Training over examples in memory: `epochs` passes."""

    epochs: float
    context: int
    batch_tokens: int = 4096
    accumulate: int = Field(1, ge=1)
    optim: OptimConfig
    watch: WatchConfig | None = None


class DpoConfig(Section):
    """Preference optimisation: beta and the next-token term as in section 4.1.4."""

    epochs: float = 1.0
    context: int
    batch_pairs: int = 16
    accumulate: int = Field(1, ge=1)
    beta: float = 0.1
    nll: float = 0.2
    optim: OptimConfig
    watch: WatchConfig | None = None


class GuardTrainConfig(EpochConfig):
    """The guard model starts from the base of `sibling`."""

    sibling: str


class TokenizerConfig(Section):
    """Learn `vocab_size` tokens (256 of them special) on a balanced sample, or take the tokenizer at `path`.

    With a `floor`, languages whose sample gets fewer characters a token than that count more, until none does.
    """

    path: str | None = None
    vocab_size: int = 2304
    merge_digits: bool = False
    sample_megabytes: float = 1.0
    floor: float | None = Field(None, gt=0)


class EvalConfig(Section):
    """Which tasks run; None means all that the corpus offers. `slots` requests decode together."""

    tasks: tuple[str, ...] | None = None
    slots: int = 64


class Recipe(Section):
    """Everything that decides what a run makes. `corpus` is 'meadow', a path, or 'hf:owner/name'.

    `flagship` is a shape, or a path to a model to start from (which is kept as `flagship_path`): its weights, its
    tokenizer. `layout` says how dialogs are laid out (tokenizer/layout.py); what it leaves out is Llama 3.1's.
    `parallel` is the mesh of every training step, unless `meshes` has one for it ('long-context', 'distil/small'):
    they say how a herd is raised, not what comes of it, and may change from one attempt to the next.
    """

    name: str
    seed: int = 0
    corpus: str = "meadow"
    dialogs: str | None = None
    preferences: str | None = None
    meadow: MeadowConfig = MeadowConfig()
    curate: CurateConfig = CurateConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    layout: dict[str, Any] = Field(default_factory=dict)
    flagship: Shape | None = None
    flagship_path: str | None = None
    siblings: dict[str, SiblingConfig]
    pretrain: TrainConfig
    long_context: LongContextConfig
    anneal: TrainConfig
    distil: DistilConfig
    sft: EpochConfig
    dpo: DpoConfig
    guard: GuardTrainConfig
    eval: EvalConfig = EvalConfig()
    energy: EnergyConfig = EnergyConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    parallel: ParallelConfig | Literal["auto"] = ParallelConfig()
    meshes: dict[str, ParallelConfig | Literal["auto"]] = Field(default_factory=dict)
    checkpoints: CheckpointConfig = CheckpointConfig()
    faults: FaultsConfig = FaultsConfig()

    @model_validator(mode="before")
    @classmethod
    def _other_spellings(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("flagship"), str):
            values = values | {"flagship": None, "flagship_path": values["flagship"]}
        if isinstance(values, dict) and "checkpoint_seconds" in values:  # its name in 0.1, in the recipes of old runs
            seconds = values["checkpoint_seconds"]
            values = {key: value for key, value in values.items() if key != "checkpoint_seconds"}
            values["checkpoints"] = {"seconds": seconds} | (values.get("checkpoints") or {})
        return values

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        if (self.flagship is None) == (self.flagship_path is None):
            raise ValueError("flagship: give a shape (dim, n_layers, ...) or a path to a model")
        if self.guard.sibling not in self.siblings:
            raise ValueError(f"guard.sibling {self.guard.sibling!r} is not one of the siblings {list(self.siblings)}")
        for name, sibling in self.siblings.items():
            if name == "flagship" or not name.isidentifier():
                raise ValueError(f"sibling name {name!r}: use a plain word other than 'flagship'")
            if sibling.init == "pruned" and self.flagship is not None:
                check_cut(self.flagship, sibling, where=f"siblings.{name}")
        return self

    def model_config_of(self, model: str, *, vocab_size: int, stages: int | None = None) -> ModelConfig:
        """Return the full shape of 'flagship' or a sibling after so many long-context stages (None: after all)."""
        start, reach = self._imported(), self.reach(stages)
        if reach is not None:
            context, scaling = reach["max_positions"], RopeScaling.model_validate(reach["rope_scaling"])
        elif start is not None:
            context, scaling = start.max_positions, start.rope_scaling
        else:
            context, scaling = self.pretrain.context, None
        shape = self.flagship if model == "flagship" else self.siblings[model]
        if shape is None:
            assert start is not None
            return start.model_copy(update={"rope_scaling": scaling, "max_positions": context})
        if start is not None and isinstance(shape, SiblingConfig) and shape.init == "pruned":
            check_cut(start, shape, where=f"siblings.{model}")
        return ModelConfig(
            **shape.model_dump(include=set(Shape.model_fields)),
            vocab_size=vocab_size,
            rope_scaling=scaling,
            max_positions=context,
        )

    def reach(self, stages: int | None = None) -> dict[str, Any] | None:
        """Return the positions and the RoPE scaling after so many long-context stages, if any changed them.

        A model that was made elsewhere keeps its own where nothing is trained.
        """
        own = self.flagship_path is not None
        passed = [stage for stage in self.long_context.stages[:stages] if stage.steps > 0 or not own]
        if not passed:
            return None
        return {"max_positions": passed[-1].context, "rope_scaling": passed[-1].rope_scaling.model_dump()}

    def _imported(self) -> ModelConfig | None:
        """Return the shape of the model at `flagship_path`."""
        if self.flagship_path is None:
            return None
        from herd.model.weights import load_config
        from herd.stages.models import find_model, refuse_quantised

        folder = find_model(Path(self.flagship_path))
        refuse_quantised(folder)
        return load_config(folder)


def load_recipe(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe by its name in herd/recipes or as a YAML path, with `key=value` overrides. Raises ConfigError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise ConfigError(f"no recipe {name!r}: name one of {known}, or give a path to a YAML file")
    values = load_yaml(path, list(overrides), known=RECIPES)
    return validate(Recipe, values, where=str(path if path.parent != RECIPES else name))
