"""The distillation objective: the next token and the teacher's distribution, mixed (Hinton et al. 2015)."""

from dataclasses import dataclass
from typing import ClassVar

from herd.model.transformer import Transformer
from herd.train.batch import Batch
from herd.train.head import head_loss
from herd.train.objective import Loss, carried


@dataclass(frozen=True)
class Distill:
    """(1 - share) · cross-entropy of the next token + share · KL(teacher || student); 0 is plain pretraining."""

    share: float = 0.7
    metrics: ClassVar[tuple[str, ...]] = ("kl",)

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        """Return the weighted sum; metric `kl` is the divergence alone, in nats a token."""
        assert batch.teacher is not None, "a distillation feed carries the teacher's log-probabilities"
        hidden, targets, weights, ids, logprobs = carried(model, batch, *batch.teacher)
        total, divergence = head_loss(model, hidden, targets, weights, teacher=(ids, logprobs), share=self.share)
        return Loss(total, weights.sum(), {"kl": divergence})
