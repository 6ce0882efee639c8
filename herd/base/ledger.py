"""The ledger: an append-only file of facts, one JSON object a line, from which cards are rendered.

Each record has the same keys:
    id      'r0007', its line number from 1
    kind    'start' (an attempt began), then 'stage' (the step ended: its facts hold) or 'end' (the attempt came to
            nothing), and 'event' meanwhile; 'score' (one task, one model)
    step    which step of the run, such as 'pretrain' or 'distil/small'
    facts   what is true of the result; the same whether or not the run was ever killed
    cost    what making it took: seconds, device_hours, watts, ...; differs from run to run
    reads, writes   {path relative to the run folder: SHA-256}
    fingerprint     hash of config + code version + inputs (stage records only)
    time    UTC, ISO 8601
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from herd.base.errors import RunError


@dataclass(frozen=True)
class Record:
    """One line of the ledger."""

    id: str
    kind: str
    step: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    reads: Mapping[str, str] = field(default_factory=dict)
    writes: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    time: str = ""


class Ledger:
    """Reads and appends records. A last line torn by a crash is cut off before anything is appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = list(_read(path)) if path.exists() else []

    def append(self, kind: str, step: str, **parts: Any) -> Record:
        """Append one record, flushed to disk before this returns. `parts` are the keys of Record."""
        _cut_torn_tail(self.path)
        record = Record(
            id=f"r{len(self.records) + 1:04d}",
            kind=kind,
            step=step,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            **parts,
        )
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)
        return record

    def reload(self) -> None:
        """Read again what another process has written."""
        self.records = list(_read(self.path)) if self.path.exists() else []

    def done(self, step: str, fingerprint: str) -> Record | None:
        """Return the newest stage record of `step` if it carries this fingerprint."""
        newest = self.latest(step)
        return newest if newest and newest.fingerprint == fingerprint else None

    def latest(self, step: str) -> Record | None:
        """Return the newest stage record of `step`."""
        return next((r for r in reversed(self.records) if r.kind == "stage" and r.step == step), None)

    def scores(self) -> list[Record]:
        """Return the newest score record of each (task, model), in order of first appearance."""
        newest: dict[str, Record] = {r.step: r for r in self.records if r.kind == "score"}
        return list(newest.values())


def _read(path: Path) -> Iterator[Record]:
    # what stands behind the last newline was cut by a crash, even where it happens to be whole
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            yield Record(**json.loads(line))
        except (json.JSONDecodeError, TypeError) as error:
            raise RunError(f"{path}: line {number} is not a ledger record ({error}); restore it from a copy") from None


def _cut_torn_tail(path: Path) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
