"""What all ranks do at the same step though one alone knows: save, or stop. One small sum a step, hidden by the next.

A rank casts its votes after each step; they are answered one step later, so nobody waits for the slowest of them.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from herd.runtime.process import grouped


class Votes:
    """Yes or no to `save` and `stop`, the same on every rank: yes where any rank said so a step ago."""

    def __init__(self) -> None:
        # on gloo, beside the gradients: nothing waits for a card
        self._group = dist.new_group(backend="gloo") if grouped() else None
        self._pending: tuple[dist.Work, Tensor] | None = None

    def cast(self, *, save: bool, stop: bool) -> tuple[bool, bool]:
        """Cast this rank's votes; return the answer to the last ones (one process: to these)."""
        if self._group is None:
            return save, stop
        answered = self._answer()
        votes = torch.tensor([save, stop], dtype=torch.int32)
        work = dist.all_reduce(votes, group=self._group, async_op=True)
        assert work is not None
        self._pending = (work, votes)
        return answered

    def any(self, mine: bool) -> bool:
        """Say whether any rank says yes; waits for all."""
        if self._group is None:
            return mine
        vote = torch.tensor(mine, dtype=torch.int32)
        dist.all_reduce(vote, group=self._group)
        return bool(vote)

    def close(self) -> None:
        """Wait for what was cast last."""
        if self._group is not None:
            self._answer()
            dist.destroy_process_group(self._group)
            self._group = None

    def _answer(self) -> tuple[bool, bool]:
        if self._pending is None:
            return False, False
        work, votes = self._pending
        self._pending = None
        work.wait()
        save, stop = votes.tolist()
        return save > 0, stop > 0
