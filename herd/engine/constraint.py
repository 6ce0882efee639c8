"""What a grammar must offer so that the engine can hold an answer to it."""

from typing import Protocol

from torch import Tensor


class Constraint(Protocol):
    """The state of one answer: which ids may come next."""

    def allowed(self) -> Tensor | None:
        """Return bool [vocab], true where an id may come next; None when every id may."""
        ...

    def accept(self, token_id: int) -> None:
        """Take the id that came. Ids that end the answer are not told."""
        ...

    def fork(self) -> "Constraint":
        """Return a copy that goes its own way."""
        ...
