"""The teacher's k most likely next tokens, computed once over the token shards and read by every sibling.

top_ids.npy        [n_tokens, k] uint16 or uint32: after the token at this place of the shards
top_logprobs.npy   [n_tokens, k] float16
index.json         written last: the key of what it was computed from, so a torn or stale cache is never used
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from herd.base.files import write_atomic
from herd.model.transformer import Transformer
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
    """Return the memory-mapped cache for `key`, computing it when it isn't there. `key` names teacher and shards."""
    index = folder / "index.json"
    wanted = {"key": key, "k": k, "row_length": row_length}
    if not index.exists() or json.loads(index.read_text()) != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        index.unlink(missing_ok=True)
        _compute(folder, teacher, shards, k=k, row_length=row_length, advance=advance, rows=rows)
        write_atomic(index, json.dumps(wanted))
    return _open(folder, "top_ids"), _open(folder, "top_logprobs")


def _open(folder: Path, name: str) -> np.ndarray:
    return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)


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
    id_type = np.uint16 if shards.vocab_size < 65_536 else np.uint32
    shape = (shards.n_tokens, k)
    ids = np.lib.format.open_memmap(folder / "top_ids.npy", "w+", id_type, shape)
    logprobs = np.lib.format.open_memmap(folder / "top_logprobs.npy", "w+", np.float16, shape)
    planned = pack(source.lengths, row_length)
    device = next(teacher.parameters()).device
    for start in range(0, len(planned), rows):
        group = planned[start : start + rows]
        batch = collate([[source.example(i) for i in row] for row in group], row_length=row_length, pad_id=0).to(device)
        hidden = teacher(batch.tokens, positions=batch.positions, documents=batch.documents)
        top_ids, top_logprobs = _top(teacher.logits(hidden), k)
        for r, row in enumerate(group):
            at = 0
            for piece in row:
                n = int(source.lengths[piece]) - 1
                place = slice(int(source.starts[piece]), int(source.starts[piece]) + n)
                ids[place], logprobs[place] = top_ids[r, at : at + n], top_logprobs[r, at : at + n]
                at += n
        advance(min(start + rows, len(planned)), len(planned))
    ids.flush()
    logprobs.flush()
