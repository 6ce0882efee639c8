"""The C library's allocator in a process that trains on a processor: what is freed is kept for the next step.

By default glibc gives large blocks back to the system at once, and a step asks for the same gigabytes again, page by
page: on two cores that took a third of the time of a step (docs/log.md).
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Keep freed memory until the process ends; return whether this C library can (glibc). The peak stays the same."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # no block is mapped on its own, and the heap's end is never trimmed
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
