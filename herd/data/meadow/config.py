"""How large a meadow is made, and from which seed."""

from pydantic import Field

from herd.base.config import Section


class MeadowConfig(Section):
    """Sizes of what one meadow yields. Only `seed` and `characters` change the world itself.

    lookups: pages of up to 16,000 characters on which numbers are told and asked for, and needles in 10,000.
    """

    seed: int = 0
    characters: int = Field(default=48, ge=12, le=48, multiple_of=6)
    megabytes: float = Field(default=8.0, gt=0, description="pretraining text, in 10^6 bytes of UTF-8")
    dialogs: int = Field(default=6000, ge=0)
    preferences: int = Field(default=1500, ge=0)
    guard: int = Field(default=4000, ge=0)
    items: int = Field(default=100, ge=1, description="benchmark items a task (a quarter of it per language)")
    heldout_kilobytes: int = Field(default=12, ge=1, description="held-out text per language")
    lookups: bool = False
    dirt: float = Field(default=0.02, ge=0, lt=1, description="share of deliberately dirty documents")
