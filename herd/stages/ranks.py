"""The processes of a run: what the first tells the others, and where all wait for each other. One needs no torch."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from herd.runtime.world import World

if TYPE_CHECKING:
    from herd.runtime.process import Leader


class Ranks:
    """This process among those of its run."""

    def __init__(self, world: World = World()) -> None:  # noqa: B008
        self.world = world

    @property
    def leads(self) -> bool:
        """Whether this process owns the ledger and the progress."""
        return self.world.leads

    @cached_property
    def _leader(self) -> "Leader":
        from herd.runtime.process import Leader

        return Leader()

    def told(self, value: Any = None) -> Any:
        """Return what the first process says (plain data), on all; others wait for it, however long it works."""
        return value if self.world.size == 1 else self._leader.says(value)

    def meet(self) -> None:
        """Wait until all are here."""
        if self.world.size > 1:
            from herd.runtime.process import meet

            meet()
