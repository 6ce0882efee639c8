"""What an exported directory must show before it gets its name: the same numbers, words and ids as its source.

weights    every tensor, bit for bit after the change of number format
logits     of every place of the probe texts          greedy    the tokens that follow them
ids        of probe strings in eight languages         template  dialogs rendered by the exported Jinja template
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herd.base.errors import RunError
from herd.base.messages import Dialog, Message, Tool, ToolCall
from herd.model.source import Source
from herd.model.streamed import streamed_logits
from herd.model.tensorfile import bytes_of
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.codec import DialogCodec
from herd.tokenizer.rendering import rendered_ids

# a model up to this size (bytes) is read again for each of several greedy tokens; a larger one once
_READ_OFTEN = 2_000_000_000
_GREEDY = 8
_PROBE_TOKENS = 48

PROBES = (
    "The quick brown fox jumps over the lazy dog, doesn't it?",
    "Die Bürgermeisterin aß 1234567 Äpfel.",
    "L'été dernier, nous avons vu des chiens.",
    "Perché no? È così.",
    "Não há pão amanhã.",
    "¿Cuántos años tienes?",
    "मेरा नाम हिन्दी में लिखा है।",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "  two  spaces\n\n\tand a tab\r\n   ",
    "def f(x):\n    return x ** 2  # 3.14159",
    "<|eot_id|><|begin_of_text|> is text here",
    "👩‍👩‍👧 ﬀ \u00e9 e\u0301 \u0000 \U0001f600",
)
_TOOL = Tool(
    "get_weather",
    "Weather of a town",
    {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
)
DIALOGS = (
    Dialog((Message("user", "Hello"),)),
    Dialog(
        (Message("system", "Be brief."), Message("user", "नमस्ते"), Message("assistant", "Hi!"), Message("user", "?"))
    ),
    Dialog(
        (
            Message("user", "Ulm?"),
            Message("assistant", "", (ToolCall("get_weather", {"town": "Ulm"}),)),
            Message("tool", '{"t": 3}'),
        ),
        (_TOOL,),
    ),
)


@dataclass(frozen=True)
class Reloaded:
    """What was read back: weights, and what the format carries of a tokenizer and a template (None: nothing)."""

    source: Source
    encode: Callable[[str], list[int]] | None
    template: str | None


def verify(
    original: Source,
    reloaded: Reloaded,
    codec: DialogCodec,
    *,
    stored_as: Callable[[str], torch.dtype],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Compare what was written with where it came from; `stored_as` gives each tensor's number format in the files.

    Returns what was compared. Raises RunError naming the first difference.
    """
    found = _weights_and_logits(original, reloaded.source, codec.tokenizer, stored_as, dtype)
    if reloaded.encode is not None:
        for text in PROBES:
            _same(reloaded.encode(text), codec.tokenizer.encode(text), f"the ids of {text!r:.40}")
        found["ids"] = f"{len(PROBES)} strings, equal"
    if reloaded.template is not None:
        for dialog in DIALOGS:
            ids = rendered_ids(codec.tokenizer, reloaded.template, dialog)
            _same(ids, codec.prompt(dialog), f"the rendered dialog {dialog.messages[-1].content!r:.40}")
        found["template"] = f"{len(DIALOGS)} dialogs, the codec's ids"
    return found


def _weights_and_logits(
    original: Source,
    written: Source,
    tokenizer: Tokenizer,
    stored_as: Callable[[str], torch.dtype],
    dtype: torch.dtype,
) -> dict[str, Any]:
    if written.config.model_copy(update={"head_dim": None}) != original.config.model_copy(update={"head_dim": None}):
        raise RunError(f"the export doesn't match its source: the shape reads {written.config}, was {original.config}")
    _same(written.names(), original.names(), "the list of tensors")
    text = tokenizer.encode(" ".join(PROBES), bos=True)[:_PROBE_TOKENS]
    tokens = torch.tensor([[i % original.config.vocab_size for i in text]])
    size = sum(_bytes(original.shape(name), stored_as(name)) for name in original.names())
    greedy = _GREEDY if size <= _READ_OFTEN else 1
    compared = _Compared(original, stored_as)
    for _ in range(greedy):
        ours = streamed_logits(compared, tokens, dtype=dtype)
        theirs = streamed_logits(written, tokens, dtype=dtype, look=compared.look)
        if not torch.equal(ours, theirs):
            raise RunError(
                f"the export doesn't match its source: logits differ by {float((ours - theirs).abs().max()):.3g}"
            )
        _same(theirs[0, -1].argmax().item(), ours[0, -1].argmax().item(), "the next greedy token")
        tokens = torch.cat((tokens, ours[:, -1:].argmax(-1)), dim=1)
    return {
        "weights": f"{len(original.names())} tensors, bit equal in the format written",
        "logits": f"{len(text)} places and {greedy} greedy tokens, equal",
    }


class _Compared:
    """The original in the number format of the files, and a look at each tensor of the other side."""

    def __init__(self, source: Source, stored_as: Callable[[str], torch.dtype]) -> None:
        self.config = source.config
        self._source, self._stored_as = source, stored_as

    def names(self) -> list[str]:
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._stored_as(name)

    def read(self, name: str) -> Tensor:
        return self._source.read(name).to(self._stored_as(name))

    def look(self, name: str, theirs: Tensor) -> None:
        ours = self.read(name)
        if theirs.dtype != ours.dtype or not np.array_equal(bytes_of(theirs), bytes_of(ours.contiguous())):
            raise RunError(f"the export doesn't match its source: {name} has other numbers")


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _same(found: Any, wanted: Any, what: str) -> None:
    if found != wanted:
        raise RunError(f"the export doesn't match its source: {what} came out as {found!r:.80}, not {wanted!r:.80}")
