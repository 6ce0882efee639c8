"""Direct preference optimisation as Llama 3 does it (arXiv:2407.21783, section 4.1.4; Rafailov et al. 2023, eq. 7).

Formatting tokens (headers, terminators) are masked out of the preference loss, so that a model doesn't unlearn
to stop, and the chosen answer keeps a next-token term of coefficient 0.2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from herd.align.dialogs import Pair
from herd.base.errors import DataError
from herd.base.seeds import named_seed
from herd.model.transformer import Transformer
from herd.runtime.process import place, sum_over_ranks
from herd.train.batch import WHOLE, Batch, Part, collate
from herd.train.objective import Loss


@dataclass(frozen=True)
class PairBatch(Batch):
    """Rows 0..n-1 are chosen answers, n..2n-1 the rejected ones. `content` [2n, t] masks formatting tokens out;
    `reference` [2n] is the reference model's log-probability of the content."""

    content: Tensor | None = None
    reference: Tensor | None = None

    def to(self, device: torch.device) -> "PairBatch":
        """Return the batch on a device."""
        content, reference = (None if part is None else part.to(device) for part in (self.content, self.reference))
        return replace(self, **vars(super().to(device)) | {"content": content, "reference": reference})


@dataclass(frozen=True)
class Preference:
    """-log sigmoid(beta · margin against the reference) + nll · mean NLL of the chosen answer, per pair."""

    beta: float = 0.1
    nll: float = 0.2
    metrics: ClassVar[tuple[str, ...]] = ("preference", "nll", "margin", "accuracy")

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        """Return the sum over pairs; metrics are the preference loss, the reward margin and its sign."""
        assert isinstance(batch, PairBatch)
        assert batch.content is not None
        assert batch.reference is not None
        logprobs = answer_logprobs(model, batch)
        pairs = batch.tokens.shape[0] // 2
        rewards = self.beta * ((logprobs * batch.content).sum(1) - batch.reference)
        margins = rewards[:pairs] - rewards[pairs:]
        there = batch.documents[:pairs, 0] >= 0  # a part of a batch may end in empty pairs
        preference = -(F.logsigmoid(margins) * there).sum()
        chosen, weights = logprobs[:pairs], batch.weights[:pairs]
        nll = -((chosen * weights).sum(1) / weights.sum(1).clamp_min(1)).sum()
        metrics = {
            "preference": preference,
            "nll": nll,
            "margin": margins.sum(),
            "accuracy": (margins > 0).sum(),
        }
        return Loss(preference + self.nll * nll, there.sum().float(), metrics)


def answer_logprobs(model: Transformer, batch: Batch) -> Tensor:
    """Return log p of each target [rows, t], 0 where the weight is 0."""
    hidden = model(batch.tokens, positions=batch.positions, documents=batch.documents)
    places = batch.weights.flatten().nonzero().squeeze(1)
    scores = model.logits(hidden.flatten(0, 1)[places])
    if isinstance(scores, DTensor):  # tensor parallel: answers are short, so all of the vocabulary is gathered
        scores = scores.full_tensor()
    scores = scores.float().log_softmax(-1)
    chosen = scores.gather(1, batch.targets.flatten()[places].unsqueeze(1)).squeeze(1)
    flat = torch.zeros(batch.tokens.numel(), dtype=torch.float32, device=hidden.device)
    return flat.scatter(0, places, chosen).view_as(batch.tokens)


class PairFeed:
    """Batches of preference pairs, epoch after epoch, each row padded to the longest of its batch.

    A rank lays out the pairs of its own `part`, both answers of each, and empty ones where pairs run out.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        batch_pairs: int,
        row_length: int,
        pad_id: int,
        seed: int,
        part: Part = WHOLE,
    ) -> None:
        most = row_length + 1
        self._pairs = [p for p in pairs if len(p.chosen.ids) <= most and len(p.rejected.ids) <= most]
        if not self._pairs:
            raise DataError(
                f"none of {len(pairs)} preference pairs fits a row of {row_length} tokens; lengthen dpo.context"
            )
        self._batch, self._pad_id, self._seed = min(batch_pairs, len(self._pairs)), pad_id, seed
        self._part = part
        self._reference: np.ndarray | None = None
        self._epoch, self._at = 0, 0

    def __len__(self) -> int:
        return len(self._pairs)

    @torch.no_grad()
    def set_reference(self, model: Transformer) -> None:
        """Compute the reference model's log-probability of every answer, once; of several processes each a part."""
        reference = np.zeros((len(self._pairs), 2), np.float32)
        device = next(model.parameters()).device
        rank, ranks = place()
        for start in range(rank * self._batch, len(self._pairs), ranks * self._batch):
            places = np.arange(start, min(start + self._batch, len(self._pairs)))
            batch = self._collate(places, WHOLE).to(device)
            assert batch.content is not None
            sums = (answer_logprobs(model, batch) * batch.content).sum(1).cpu().numpy()
            reference[places] = sums.reshape(2, -1).T
        self._reference = sum_over_ranks(torch.from_numpy(reference).to(device)).cpu().numpy()

    def __next__(self) -> PairBatch:
        order = np.random.default_rng(named_seed(self._seed, f"epoch/{self._epoch}")).permutation(len(self._pairs))
        places = order[self._at : self._at + self._batch]
        self._at += self._batch
        if self._at + self._batch > len(self._pairs):
            self._epoch, self._at = self._epoch + 1, 0
        return self._collate(places, self._part)

    def _collate(self, places: np.ndarray, part: Part) -> PairBatch:
        # every part's rows are as long as the longest of the whole batch
        length = max(max(len(p.chosen.ids), len(p.rejected.ids)) for p in (self._pairs[int(i)] for i in places)) - 1
        mine = places[part.index :: part.of]
        pairs, empty = [self._pairs[int(i)] for i in mine], [None] * (part.rows(len(places)) - len(mine))
        chosen = [(pair.chosen, pair.chosen_content) for pair in pairs]
        rejected = [(pair.rejected, pair.rejected_content) for pair in pairs]
        answers = [*chosen, *empty, *rejected, *empty]
        rows = [[] if answer is None else [answer[0]] for answer in answers]
        batch = collate(rows, row_length=length, pad_id=self._pad_id)
        content = torch.zeros(len(answers), length)
        for row, answer in zip(content, answers, strict=True):
            if answer is not None:
                row[: len(answer[1]) - 1] = torch.from_numpy(answer[1][1:])
        reference = None
        if self._reference is not None:
            known = np.zeros((len(answers) // 2, 2), np.float32)
            known[: len(pairs)] = self._reference[mine]
            reference = torch.from_numpy(known.T.reshape(-1).copy())
        return PairBatch(**vars(batch), content=content, reference=reference)

    def state(self) -> dict[str, Any]:
        """Return where the next batch is taken from."""
        return {"epoch": self._epoch, "at": self._at}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a saved place."""
        self._epoch, self._at = int(state["epoch"]), int(state["at"])

    def facts(self) -> dict[str, Any]:
        """Return nothing: every pair is shown once an epoch."""
        return {}
