"""One engine over several ranks: rank 0 schedules, chooses and serves; the others run the passes that it sends.

    rank 0   submit, cancel -> scheduler -> LeadingRunner.run ── what is to be run ──> runner -> scores -> sampler
    others                                  follow() <─────────────────┘             runner    (scores are dropped)

The others hold keys, values and their part of the weights, and decide nothing: there is no state in which ranks could
come to differ, and what only one process can have (clocks, dice, grammars, clients) stays in one. What is sent each
round is ids and block tables, some hundred numbers a row, over a group of its own on the processors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from herd.base.errors import HerdError
from herd.engine.runner import Runner
from herd.engine.scheduler import Share

_STOP, _RUN, _SCORE = range(3)


@dataclass
class FollowedSequence:
    """What a runner reads of a sequence."""

    table: list[int]
    stored: int
    ids: list[int]
    prompt: list[int]
    prompt_logprobs: list[float] = field(default_factory=list)
    logprobs_due: bool = False

    @property
    def request(self) -> "FollowedSequence":
        """Where a runner looks for the prompt."""
        return self


@dataclass(frozen=True)
class FollowedShare:
    """What a runner reads of a share."""

    sequence: FollowedSequence
    count: int
    scored: int

    @property
    def ids(self) -> list[int]:
        """The ids to run."""
        return self.sequence.ids[self.sequence.stored : self.sequence.stored + self.count]


class LeadingRunner:
    """Rank 0's runner: tells the others what it runs. `close` lets them go."""

    def __init__(self, runner: Runner, *, blocks: int, block_size: int) -> None:
        self._runner = runner
        self._group = dist.new_group(backend="gloo")  # what is sent lies on processors, whatever the model does
        _send([blocks, block_size], self._group)

    def run(self, shares: Sequence[Share]) -> Tensor:
        """Run each share, here and on all other ranks."""
        numbers = [_RUN, len(shares)]
        for share in shares:
            numbers += _packed(share)
        _send(numbers, self._group)
        return self._runner.run(shares)

    def score(self, sequences: Sequence[Sequence[int]], *, on_done: Callable[[int], None]) -> list[list[float]]:
        """Score them, here and on all other ranks."""
        _send([_SCORE, len(sequences), *(n for ids in sequences for n in (len(ids), *ids))], self._group)
        return self._runner.score(sequences, on_done=on_done)

    def refresh(self) -> None:
        """Refuse: the other ranks' weights can't be changed from here."""
        raise HerdError("weights of an engine over several ranks can't be changed in place; load them anew on each")

    def close(self) -> None:
        """Tell the other ranks to stop following."""
        _send([_STOP], self._group)


def follow(opened: Callable[..., Runner]) -> None:
    """Run what rank 0 runs until it closes, by a runner that is opened with its `blocks` and `block_size`."""
    group = dist.new_group(backend="gloo")
    blocks, block_size = _received(group)
    runner = opened(blocks=blocks, block_size=block_size)
    while True:
        numbers = iter(_received(group))
        kind = next(numbers)
        if kind == _STOP:
            return
        count = next(numbers)
        with torch.inference_mode():
            if kind == _RUN:
                runner.run([cast(Share, _unpacked(numbers)) for _ in range(count)])
            else:
                runner.score([[next(numbers) for _ in range(next(numbers))] for _ in range(count)], on_done=_nothing)


def _nothing(done: int) -> None:
    pass


def _packed(share: Share) -> list[int]:
    sequence = share.sequence
    prompt = sequence.request.prompt if sequence.logprobs_due else ()
    ids, table = share.ids, sequence.table
    head = [share.count, share.scored, sequence.stored, len(table), len(prompt), len(sequence.prompt_logprobs)]
    return [*head, *ids, *table, *prompt]


def _unpacked(numbers: Iterator[int]) -> FollowedShare:
    def take(count: int) -> list[int]:
        return [next(numbers) for _ in range(count)]

    count, scored, stored, blocks, prompt, known = take(6)
    ids = [0] * stored + take(count)
    sequence = FollowedSequence(take(blocks), stored, ids, take(prompt), [0.0] * known, logprobs_due=bool(prompt))
    return FollowedShare(sequence, count, scored)


def _send(numbers: list[int], group: dist.ProcessGroup) -> None:
    dist.broadcast(torch.tensor([len(numbers)]), 0, group=group)
    dist.broadcast(torch.tensor(numbers, dtype=torch.int32), 0, group=group)


def _received(group: dist.ProcessGroup) -> list[int]:
    length = torch.zeros(1, dtype=torch.long)
    dist.broadcast(length, 0, group=group)
    numbers = torch.zeros(int(length), dtype=torch.int32)
    dist.broadcast(numbers, 0, group=group)
    return numbers.tolist()
