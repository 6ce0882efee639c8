"""The teacher's k most likely next tokens, computed once over the token shards and read by every sibling.

top_ids.npy        [n_tokens, k] uint16 or uint32: after the token at this place of the shards
top_logprobs.npy   [n_tokens, k] float16
index.json         written last: the key of what it was computed from, so a torn or stale cache is never used
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from herd.base.files import write_atomic
from herd.model.transformer import Transformer
from herd.runtime.process import leads, meet, place
from herd.tokenizer.shards import TokenShards
from herd.train.batch import collate, pack
from herd.train.feed import ShardSource

Pair = tuple[np.ndarray, np.ndarray]


def teacher_cache(
    folder: Path,
    teacher: Transformer,
    shards: TokenShards,
    *,
    k: int,
    row_length: int,
    key: str,
    advance: Callable[[int, int], None] = lambda done, total: None,
    rows: int = 32,
) -> Pair:
    """Return the memory-mapped cache for `key`, computing it when it isn't there. `key` names teacher and shards.

    Of several processes all come here together, and each computes a part.
    """
    index = folder / "index.json"
    wanted = {"key": key, "k": k, "row_length": row_length}
    if not index.exists() or json.loads(index.read_text()) != wanted:
        meet()  # all have seen that it isn't there
        if leads():
            folder.mkdir(parents=True, exist_ok=True)
            index.unlink(missing_ok=True)
            _make(folder, shards, k)
        meet()
        _compute(folder, teacher, shards, k=k, row_length=row_length, advance=advance, rows=rows)
        meet()
        if leads():
            write_atomic(index, json.dumps(wanted))
        meet()
    return _open(folder, "top_ids"), _open(folder, "top_logprobs")


def _open(folder: Path, name: str, mode: Literal["r", "r+"] = "r") -> np.ndarray:
    return np.load(folder / f"{name}.npy", mmap_mode=mode, allow_pickle=False)


def _make(folder: Path, shards: TokenShards, k: int) -> None:
    id_type = np.uint16 if shards.vocab_size < 65_536 else np.uint32
    for name, dtype in (("top_ids", id_type), ("top_logprobs", np.float16)):
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (shards.n_tokens, k)).flush()


def _top(scores_btv: Tensor, k: int) -> Pair:
    """Return the k most likely ids and their log-probabilities, [b, t, k] each."""
    top = scores_btv.topk(k)
    # float32 copies of a few hundred rows at a time stay in the processor's cache
    sums = [piece.float().logsumexp(-1) for piece in scores_btv.flatten(0, 1).split(512)]
    logprobs = top.values.float() - torch.cat(sums).view(*scores_btv.shape[:2], 1)
    return top.indices.cpu().numpy(), logprobs.cpu().numpy()


@torch.no_grad()
def _compute(
    folder: Path,
    teacher: Transformer,
    shards: TokenShards,
    *,
    k: int,
    row_length: int,
    advance: Callable[[int, int], None],
    rows: int,
) -> None:
    teacher.eval()
    source = ShardSource(shards, row_length=row_length)
    ids, logprobs = _open(folder, "top_ids", "r+"), _open(folder, "top_logprobs", "r+")
    planned = pack(source.lengths, row_length)
    device = next(teacher.parameters()).device
    rank, ranks = place()
    for start in range(rank * rows, len(planned), ranks * rows):
        group = planned[start : start + rows]
        batch = collate([[source.example(i) for i in row] for row in group], row_length=row_length, pad_id=0).to(device)
        hidden = teacher(batch.tokens, positions=batch.positions, documents=batch.documents)
        top_ids, top_logprobs = _top(teacher.logits(hidden), k)
        for r, row in enumerate(group):
            at = 0
            for piece in row:
                n = int(source.lengths[piece]) - 1
                span = slice(int(source.starts[piece]), int(source.starts[piece]) + n)
                ids[span], logprobs[span] = top_ids[r, at : at + n], top_logprobs[r, at : at + n]
                at += n
        advance(min(start + rows, len(planned)), len(planned))
    for array in (ids, logprobs):
        assert isinstance(array, np.memmap)
        array.flush()
