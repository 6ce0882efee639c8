"""The key/value cache: rows of slots, each with its own length, so that sequences of any age decode together.

keys, values   [layer][slot, kv head, position, head_size]
lengths        [slot]: how many positions of a slot hold a token
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from herd.model.config import ModelConfig


class Cache:
    """Storage for `slots` sequences of up to `capacity` positions."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        slots: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.n_layers, slots, config.n_kv_heads, capacity, config.head_size)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(slots, dtype=torch.long, device=device)
        self.capacity = capacity

    def view(self, slots: Tensor) -> "CacheView":
        """Return the part of the cache that a batch of slots reads and writes."""
        return CacheView(self, slots, self.lengths[slots])


@dataclass(frozen=True)
class CacheView:
    """The slots of one forward pass: row i of the batch continues slot `slots[i]` after `starts[i]` tokens."""

    cache: Cache
    slots: Tensor
    starts: Tensor

    def extend(self, layer: int, keys_bhtd: Tensor, values_bhtd: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values at each row's end; return all keys and values up to the longest row."""
        new = keys_bhtd.shape[2]
        places = self.starts.unsqueeze(1) + torch.arange(new, device=self.starts.device)
        rows = self.slots.unsqueeze(1)
        # advanced indexing on slot and position puts them first: [b, t, h, d]
        self.cache.keys[layer][rows, :, places] = keys_bhtd.transpose(1, 2).to(self.cache.keys.dtype)
        self.cache.values[layer][rows, :, places] = values_bhtd.transpose(1, 2).to(self.cache.values.dtype)
        longest = int(self.starts.max()) + new
        return self.cache.keys[layer][self.slots, :, :longest], self.cache.values[layer][self.slots, :, :longest]

    def mask(self, new: int) -> Tensor:
        """Return [b, 1, new, longest]: which stored positions each new token may see."""
        longest = int(self.starts.max()) + new
        places = self.starts.unsqueeze(1) + torch.arange(new, device=self.starts.device)
        return (torch.arange(longest, device=self.starts.device) <= places.unsqueeze(-1)).unsqueeze(1)

    def advance(self, counts: Tensor) -> None:
        """Say how many of the new tokens of each row were real; padding behind them is overwritten next time."""
        self.cache.lengths[self.slots] = self.starts + counts
