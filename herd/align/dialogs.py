"""Dialogs and preference pairs as training examples: the codec's ids and weights, nothing else."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from herd.base.messages import Dialog, Message
from herd.tokenizer.codec import DialogCodec
from herd.train.batch import Example


def dialog_examples(codec: DialogCodec, dialogs: Iterable[Dialog]) -> list[Example]:
    """Encode dialogs for SFT: weight 1 on the assistant's tokens. Dialogs without any are left out."""
    examples = []
    for dialog in dialogs:
        encoded = codec.encode(dialog)
        weights = np.asarray(encoded.weights, np.float32)
        if weights[1:].any():
            examples.append(Example(np.asarray(encoded.ids, np.int64), weights))
    return examples


@dataclass(frozen=True)
class Pair:
    """A preferred and a rejected answer to one prompt. `content` marks answer tokens that aren't formatting."""

    chosen: Example
    rejected: Example
    chosen_content: np.ndarray
    rejected_content: np.ndarray


def preference_pair(codec: DialogCodec, prompt: tuple[Message, ...], chosen: str, rejected: str) -> Pair:
    """Encode one pair. Earlier assistant turns carry no loss; headers and terminators aren't content (4.1.4)."""
    silent = tuple(Message(m.role, m.content, m.tool_calls, 0.0) for m in prompt)
    sides = []
    for answer in (chosen, rejected):
        encoded = codec.encode(Dialog((*silent, Message("assistant", answer))))
        weights = np.asarray(encoded.weights, np.float32)
        content = weights * ~np.asarray(encoded.control, bool)
        sides.append((Example(np.asarray(encoded.ids, np.int64), weights), content))
    return Pair(sides[0][0], sides[1][0], sides[0][1], sides[1][1])
