"""The run folder: one writer at a time, one recipe for life."""

import fcntl
import json
import os
import socket
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from herd.base.errors import RunError
from herd.base.files import write_atomic
from herd.base.ledger import Ledger


class RunFolder:
    """Paths of a run, and its ledger."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = Ledger(path / "ledger.jsonl")

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def recipe_path(self) -> Path:
        """The complete recipe that this folder belongs to."""
        return self.path / "recipe.yaml"

    def read_recipe(self) -> dict[str, Any]:
        """Return the recipe's values. Raises RunError when this isn't a run folder."""
        from yaml import safe_load

        if not self.recipe_path.is_file():
            raise RunError(f"{self.path}: no recipe.yaml, so this is not a run folder; make one with `herd raise`")
        return safe_load(self.recipe_path.read_text(encoding="utf-8"))

    def claim(
        self,
        values: Mapping[str, Any],
        complete: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda old: old,
        *,
        free: Collection[str] = (),
    ) -> None:
        """Write the recipe into a new folder, or check that the folder was made by the same one. Raises RunError.

        `complete` fills in what an older herd didn't write: keys that have come since, with their defaults. Sections
        that are `free` say how a run is run, not what it makes: they may change, and the folder keeps the newest.
        """
        from yaml import safe_dump

        if not self.recipe_path.exists():
            if self.path.is_dir() and any(p.name not in _OWN for p in self.path.iterdir()):
                raise RunError(f"{self.path}: not empty and not a run folder; choose another --run")
            write_atomic(self.recipe_path, safe_dump(dict(values), sort_keys=False, allow_unicode=True))
            return
        old, new = complete(self.read_recipe()), json.loads(json.dumps(values))
        if differs := difference({**old, **{key: new.get(key) for key in free}}, new):
            raise RunError(
                f"{self.path}: made by another recipe ({differs}); choose another --run, or pass the same values"
            )
        if old != new:
            write_atomic(self.recipe_path, safe_dump(new, sort_keys=False, allow_unicode=True))

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the folder; a second holder is refused and told who the first is. Raises RunError."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise RunError(f"{self.path}: in use by {file.read().strip() or 'another process'}") from None
            file.seek(0)
            file.truncate()
            since = datetime.now(UTC).isoformat(timespec="seconds")
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
            file.flush()
            yield


_OWN = {".lock", "ledger.jsonl", "recipe.yaml"}


def difference(old: Any, new: Any, *, most: int = 5) -> str:
    """Return in words where two JSON values differ, the first `most` places; an empty text where they don't."""
    found = list(_differences(old, new, ""))
    return "; ".join(found[:most]) + (f"; and {len(found) - most} more" if len(found) > most else "")


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield f"{path} was {old!r}, now {new!r}"
