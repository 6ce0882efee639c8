"""Named seeds: every random stream of a run is derived from the recipe's one seed and its own name."""

import hashlib
import random


def named_seed(seed: int, name: str) -> int:
    """Return a 63-bit seed for the stream `name`; streams with different names are independent."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def named_rng(seed: int, name: str) -> random.Random:
    """Return a Python generator for the stream `name`."""
    return random.Random(named_seed(seed, name))
