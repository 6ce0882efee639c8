"""A conversation with one model of a run: what `herd chat` says, without the terminal."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from herd.base.config import validate
from herd.base.errors import RunError
from herd.base.messages import Dialog, Message
from herd.base.run import RunFolder
from herd.engine.backend import Backend
from herd.engine.request import Request, Sampling
from herd.guard.classifier import Guard, Verdict
from herd.guard.shield import REFUSAL
from herd.model.quant import NumberFormat
from herd.runtime.config import RuntimeConfig
from herd.runtime.device import set_up
from herd.stages.models import open_engine, open_folder, open_guard
from herd.stages.recipe import Recipe
from herd.stages.sft import folder_of
from herd.tokenizer.bpe import StreamDecoder
from herd.tokenizer.codec import DialogCodec


@dataclass
class Conversation:
    """The turns so far. `guard` judges what is said to the model and what it says."""

    name: str
    engine: Backend
    codec: DialogCodec
    base: bool
    guard: Guard | None
    messages: list[Message] = field(default_factory=list)
    _sampling: Sampling = field(default_factory=Sampling)

    def sampling(self, *, temperature: float, max_tokens: int, seed: int) -> None:
        """Choose how tokens are picked from here on."""
        self._sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed)

    def greeting(self) -> str:
        """Return one line that says what one is talking to."""
        guard = "guard on" if self.guard else "no guard"
        mode = "continues your text" if self.base else guard
        return f"{self.name} ({mode}); an empty line ends"

    def reset(self) -> None:
        """Forget the turns so far."""
        self.messages.clear()

    def say(self, text: str) -> Iterator[str]:
        """Yield the answer piece by piece, and keep both turns."""
        if self.base:
            yield from self._stream(self.codec.tokenizer.encode(text, bos=True))
            return
        self.messages.append(Message("user", text))
        if (verdict := self._judge()) and not verdict.safe:
            self.messages.append(Message("assistant", REFUSAL))
            yield f"{REFUSAL} [{_named(verdict)}]"
            return
        ids: list[int] = []
        yield from self._stream(self._prompt(), ids)
        answer = self.codec.parse(ids)
        self.messages.append(answer)
        if answer.tool_calls:
            return
        if (verdict := self._judge()) and not verdict.safe:
            self.messages[-1] = Message("assistant", REFUSAL)
            yield f"\n      [withdrawn: {_named(verdict)}]"

    def _prompt(self) -> list[int]:
        """Return the dialog's ids, the oldest turns left out until an answer fits."""
        room = self.engine.capacity - min(self._sampling.max_tokens, self.engine.capacity // 2)
        messages = list(self.messages)
        ids = self.codec.prompt(Dialog(tuple(messages)))
        while len(ids) > room and len(messages) > 2:
            messages = messages[2:]
            ids = self.codec.prompt(Dialog(tuple(messages)))
        return ids

    def _stream(self, prompt: list[int], ids: list[int] | None = None) -> Iterator[str]:
        stop = frozenset(self.codec.tokenizer.stop_ids)
        decoder = StreamDecoder(self.codec.tokenizer)
        for token in self.engine.stream(Request(tuple(prompt), self._sampling, stop)):
            if ids is not None:
                ids.append(token.id)
            if token.id not in stop:
                yield decoder.push(token.id)
        yield decoder.flush()

    def _judge(self) -> Verdict | None:
        return self.guard.classify([self.messages])[0] if self.guard else None


def _named(verdict: Verdict) -> str:
    return f"guard: {', '.join(verdict.hazards) or 'unsafe'}, p = {verdict.p_unsafe:.2f}"


def open_conversation(
    path: Path,
    *,
    sibling: str | None = None,
    base: bool = False,
    guarded: bool = True,
    guard: Path | None = None,
    quant: NumberFormat | None = None,
    draft: str | None = None,
) -> Conversation:
    """Open a model of a run folder, or any model folder, with the guard at `guard` or that of the run, and a draft.

    quant: the number format of the model's weights, not the guard's. Raises RunError naming what the run has.
    """
    runtime = RuntimeConfig()
    if (path / "recipe.yaml").is_file():
        recipe = validate(Recipe, RunFolder(path).read_recipe(), where=str(path / "recipe.yaml"))
        runtime, path = recipe.runtime, path / _chosen(path, recipe, sibling=sibling, base=base)
    elif sibling is not None:
        raise RunError(f"{path}: one model, not a run with siblings; leave out --sibling")
    model, machine = open_folder(path), set_up(runtime)
    if guard is None and model.run is not None and (model.run / "guard/config.json").exists():
        guard = model.run / "guard"
    opened = open_guard(guard, machine) if guard is not None and guarded and not base else None
    engine = open_engine(model.path, machine, slots=1, quant=quant, draft=draft)
    return Conversation(model.name, engine, model.codec, base, opened)


def _chosen(run: Path, recipe: Recipe, *, sibling: str | None, base: bool) -> str:
    if sibling is not None and sibling not in recipe.siblings:
        raise RunError(f"no sibling {sibling!r} in {run}; there are {', '.join(recipe.siblings)}")
    model = folder_of(sibling or "flagship")
    name = f"{model}/{'base' if base else 'instruct'}"
    if not base and not (run / name / "config.json").exists() and (run / model / "base").exists():
        raise RunError(f"{run}: no instruct model (this run had no dialogs); use --base")
    return name
