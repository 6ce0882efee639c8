"""Drafting with a smaller model: it runs ahead of all sequences together, in a cache of its own.

It chooses as the request would, with a copy of its dice, penalties and grammar: an id that both models find likely
lies on much the same faces, so that its guesses hold at high temperatures too, where the likeliest id's would not.
"""

from collections.abc import Collection, Sequence
from itertools import chain

from herd.engine.blocks import BlockPool
from herd.engine.request import Request
from herd.engine.runner import Runner
from herd.engine.sampler import choose
from herd.engine.scheduler import Share
from herd.engine.sequence import Sequence as InFlight
from herd.model.transformer import Transformer

_NEAR = 2  # pending ids of who is in step, at most: the newest token, and the last drafted id, which is never run


def weights_read(model: Transformer) -> int:
    """Return the bytes of weights that a token reads: all layers and the output matrix."""
    parts = (model.layers, model.output)
    tensors = chain.from_iterable((*part.parameters(), *part.buffers()) for part in parts)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Shadow(InFlight):
    """A sequence as the smaller model has it: its ids, of which `known` are its own, then drafted ones."""

    def __init__(self, sequence: InFlight) -> None:
        super().__init__(sequence.handle, Request(tuple(sequence.ids)), tokenizer=None)
        self.known = len(self.ids)

    def follow(self, ids: list[int]) -> None:
        """Take the sequence's ids; what was stored of others is overwritten later."""
        right, most = self.known, min(len(self.ids), len(ids))
        while right < most and self.ids[right] == ids[right]:
            right += 1
        self.ids[right:] = ids[right:]
        self.stored, self.known = min(self.stored, right, len(ids) - 1), len(ids)


class ModelDrafter:
    """A model and its cache. A sequence that finds no room in it is not drafted for.

    max_positions: the most the model holds. chunk: the most ids a round of sequences that are not yet in step.
    """

    def __init__(
        self, runner: Runner, *, blocks: int, block_size: int, max_positions: int, chunk: int, reuse: bool
    ) -> None:
        self._runner, self._pool = runner, BlockPool(blocks)
        self._block_size, self._max_positions, self._chunk, self._reuse = block_size, max_positions, chunk, reuse
        self._shadows: dict[int, _Shadow] = {}  # the longest unused first

    def prepare(self, sequences: Sequence[InFlight]) -> list[InFlight]:
        """Bring the cache in step with sequences, a chunk a round, and return those with which it is."""
        shadows = {sequence.handle: self._follow(sequence) for sequence in sequences}
        shares, budget = [], self._chunk
        for shadow in shadows.values():
            count = min(shadow.pending - 1, budget) if shadow.pending > _NEAR else 0
            # room for all of it or none: two that each hold a half would wait for each other
            if count and self._grow(shadow, len(shadow.ids), shadows):
                shares.append(Share(shadow, count))
                budget -= count
        if shares:
            self._runner.run(shares)
        for share in shares:
            share.sequence.stored += share.count
            self._publish(shadows[share.sequence.handle])
        return [sequence for sequence in sequences if shadows[sequence.handle].pending <= _NEAR]

    def draft(self, sequences: Sequence[InFlight], lengths: Sequence[int]) -> list[list[int]]:
        """See Drafter. A draft ends with a stop id, and where the grammar leaves nothing."""
        drafts: list[list[int]] = [[] for _ in sequences]
        shadows = [self._shadows[sequence.handle] for sequence in sequences]
        kept = {shadow.handle for shadow in shadows}
        going = []
        for i, (shadow, length) in enumerate(zip(shadows, lengths, strict=True)):
            if length and self._grow(shadow, len(shadow.ids) + length - 1, kept):
                going.append((i, sequences[i].picker.fork()))
        while going:
            shares = [Share(shadows[i], shadows[i].pending) for i, _ in going]
            tokens = choose(self._runner.run(shares), [picker for _, picker in going])
            before, going = going, []
            for (i, picker), token in zip(before, tokens, strict=True):
                shadow = shadows[i]
                shadow.stored = len(shadow.ids)
                if token is None:
                    continue
                drafts[i].append(token.id)
                if len(drafts[i]) < lengths[i] and token.id not in sequences[i].request.stop_ids:
                    shadow.ids.append(token.id)
                    picker.accept(token.id)
                    going.append((i, picker))
        return drafts

    def forget(self, sequence: InFlight) -> None:
        """See Drafter; what the cache has of its beginning stays for others."""
        shadow = self._shadows.pop(sequence.handle, None)
        if shadow is not None:
            self._publish(shadow)
            self._pool.release(shadow.table)

    def _follow(self, sequence: InFlight) -> _Shadow:
        """Return the shadow of a sequence, with its ids."""
        shadow = self._shadows.pop(sequence.handle, None)
        if shadow is None:
            shadow = _Shadow(sequence)
            if self._reuse:
                shadow.table = self._pool.share(shadow.keys((shadow.known - 1) // self._block_size, self._block_size))
            shadow.stored = len(shadow.table) * self._block_size
        shadow.follow(sequence.ids)
        self._shadows[sequence.handle] = shadow
        return shadow

    def _grow(self, shadow: _Shadow, positions: int, kept: Collection[int]) -> bool:
        """Give a shadow blocks for so many positions, those of others that are not `kept` if need be."""
        if positions > self._max_positions:
            return False
        need = -(-positions // self._block_size) - len(shadow.table)
        for handle in [handle for handle in self._shadows if handle not in kept]:
            if need <= self._pool.available:
                break
            self.forget(self._shadows[handle])
        if need > self._pool.available:
            return False
        shadow.table += self._pool.take(max(0, need))
        return True

    def _publish(self, shadow: _Shadow) -> None:
        """Let others share the full blocks of a sequence's own ids."""
        full = min(shadow.stored, shadow.known) // self._block_size if self._reuse else 0
        for block, key in zip(shadow.table, shadow.keys(full, self._block_size), strict=False):
            self._pool.publish(block, key)
