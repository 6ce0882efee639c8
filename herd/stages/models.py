"""Opening models for use: a run, one of its models, or anyone's Hugging Face or Meta folder, all the same way."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from herd.base.errors import ConfigError, DataError, RunError
from herd.base.hazards import PROMPT_HAZARDS
from herd.base.messages import Dialog, Message
from herd.engine.backend import Backend
from herd.engine.engine import Engine
from herd.engine.vllm import VLLMBackend
from herd.eval.subject import answers
from herd.guard.classifier import Guard
from herd.guard.shield import Shield
from herd.model.config import ModelConfig
from herd.model.published import recognise
from herd.model.quant import NumberFormat
from herd.model.transformer import Transformer
from herd.model.weights import is_model, is_quantised, load_config, load_model
from herd.runtime.device import Machine
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.codec import DialogCodec
from herd.tokenizer.hf_files import load_tokenizer, read_chat_template
from herd.tokenizer.layout import LAYOUT_FILE, PUBLISHED_TEMPLATE, Layout, layout_from_json
from herd.tokenizer.rendering import compare_template


@dataclass(frozen=True)
class ModelFolder:
    """One model: its folder, and everything beside its weights."""

    path: Path
    config: ModelConfig
    tokenizer: Tokenizer
    layout: Layout

    @cached_property
    def codec(self) -> DialogCodec:
        """The dialog codec that this model speaks."""
        return DialogCodec(self.tokenizer, self.layout)

    @property
    def run(self) -> Path | None:
        """The run folder that the model belongs to, if any."""
        return next((place for place in self.path.parents if (place / "recipe.yaml").is_file()), None)

    @property
    def name(self) -> str:
        """What to call it: its path within its run, or its folder's name."""
        return str(self.path.relative_to(self.run)) if self.run else self.path.resolve().name

    @property
    def slug(self) -> str:
        """A file name for it, such as meadow-flagship-instruct."""
        run = f"{self.run.resolve().name}-" if self.run else ""
        return run + self.name.replace("/", "-")


def find_model(path: Path) -> Path:
    """Return the model folder that a path means: itself, or the most finished model of a run or of RUN/flagship.

    Raises RunError saying what was looked for.
    """
    for part in ("", "instruct", "base", "flagship/instruct", "flagship/base"):
        if is_model(path / part):
            return path / part
    if not path.is_dir():
        raise RunError(f"{path}: no such folder")
    if (path / "recipe.yaml").is_file():
        raise RunError(f"{path}: no model there yet; run `herd raise` on this run folder first")
    raise DataError(
        f"{path}: not a model: neither config.json with .safetensors (Hugging Face) nor params.json with "
        "consolidated.NN.pth (Meta) nor a run folder"
    )


def refuse_quantised(folder: Path) -> None:
    """Raise ConfigError where a model that is to be trained is quantised."""
    if is_quantised(folder):
        raise ConfigError(f"{folder}: its weights are quantised, and training needs the original ones")


def open_folder(path: Path) -> ModelFolder:
    """Open a path (see `find_model`) with its tokenizer and dialog layout. Raises HerdError when they don't fit."""
    folder = find_model(path)
    config, tokenizer = load_config(folder), load_tokenizer(folder)
    if tokenizer.n_vocab != config.vocab_size:
        raise ConfigError(
            f"{folder}: the tokenizer has {tokenizer.n_vocab} ids and the model's embedding {config.vocab_size} rows; "
            "they belong to different models"
        )
    return ModelFolder(folder, config, tokenizer, _layout(folder, config, tokenizer))


def _layout(folder: Path, config: ModelConfig, tokenizer: Tokenizer) -> Layout:
    """Return the layout in a folder's dialog.json; else the one of its published kind that its template agrees with."""
    path = folder / LAYOUT_FILE
    if path.is_file():
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not JSON ({error})") from None
        return layout_from_json(row, where=str(path))
    plain = Layout(tool_prompt="none")
    template = read_chat_template(folder)
    if template is not None and compare_template(template, DialogCodec(tokenizer, plain)) is None:
        return plain
    scaled = config.rope_scaling is not None or not recognise(config)
    return PUBLISHED_TEMPLATE if scaled else plain


def open_engine(
    folder: Path,
    machine: Machine,
    *,
    slots: int,
    tokenizer: Tokenizer | None = None,
    quant: NumberFormat | None = None,
    draft: str | None = None,
) -> Engine:
    """Load a model folder into an engine, in the machine's number format. Raises RunError when it isn't there.

    tokenizer: what stop strings are looked for with. quant: the number format of the weights instead (`load_model`).
    draft: who drafts (see `open_draft`).
    """
    if not is_model(folder):
        raise RunError(f"{folder}: no model there yet; run `herd raise` on this run folder first")
    model = load_model(folder, dtype=machine.dtype, device=machine.device, quant=quant)
    # a GPU's matrix units want more rows at once than a processor's
    chunk = 2048 if machine.device.type == "cuda" else 512
    return Engine(
        model,
        max_running=slots,
        prefill_chunk=chunk,
        tokenizer=tokenizer,
        keep_weights=False,
        draft=open_draft(draft, folder, machine, quant=quant) if draft else None,
    )


def open_draft(
    name: str, folder: Path, machine: Machine, *, quant: NumberFormat | None = None
) -> Transformer | Literal["ngram"]:
    """Open who drafts for the model in `folder`: "ngram", a sibling of its run by name, or a model folder.

    quant: its weights' number format. A base model gets the sibling's base model. Raises HerdError where there is none,
    or it has another tokenizer.
    """
    if name == "ngram":
        return "ngram"
    siblings = [place / "siblings" for place in folder.resolve().parents if (place / "recipe.yaml").is_file()]
    known = next((place / name for place in siblings if (place / name).is_dir()), None)
    if known is None and not Path(name).is_dir():
        names = sorted(path.name for place in siblings[:1] for path in place.glob("*"))
        raise RunError(f"no draft {name!r}; give {', '.join(['ngram', *names])}, or a model folder")
    place = find_model(known or Path(name))
    if known and is_model(known / folder.name):
        place = known / folder.name
    if load_tokenizer(place).fingerprint != load_tokenizer(folder).fingerprint:
        raise ConfigError(f"{place} can't draft for {folder}: their tokenizers differ")
    return load_model(place, dtype=machine.dtype, device=machine.device, quant=quant)


def open_vllm(model: ModelFolder, machine: Machine, *, slots: int) -> VLLMBackend:
    """Load a Hugging Face directory into vLLM, in the machine's number format. Raises HerdError."""
    if not (model.path / "config.json").is_file():
        raise ConfigError(f"{model.path}: vLLM reads Hugging Face directories; `herd import` or `export` writes one")
    dtype = str(machine.dtype).removeprefix("torch.")
    return VLLMBackend(model.path, tokenizer=model.tokenizer, dtype=dtype, max_running=slots)


def open_guard(folder: Path, machine: Machine, *, slots: int = 4) -> Guard:
    """Load a guard model: one of herd's, or a Llama Guard 3, which is asked in its own words. Raises HerdError."""
    model = open_folder(folder)
    official = not (model.path / LAYOUT_FILE).is_file()
    small = any("1B" in name for name in recognise(model.config))
    hazards = {code: name for code, name in PROMPT_HAZARDS.items() if not (small and code == "S14")}
    engine = open_engine(model.path, machine, slots=slots)
    return Guard(engine, model.codec, form="official" if official else "compact", hazards=hazards)


def open_shield(run: Path, engine: Backend, codec: DialogCodec, machine: Machine, *, max_tokens: int = 64) -> Shield:
    """Return the run's guard around an engine."""
    guard = open_guard(run / "guard", machine, slots=64)

    def generate(dialogs: Sequence[Dialog]) -> list[Message]:
        return answers(engine, codec, dialogs, max_tokens=max_tokens)

    return Shield(guard, generate)
