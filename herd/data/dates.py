"""Dates as corpora write them: a full date, a month, or a year, which stands for its last day."""

import calendar
import re
from datetime import date
from functools import lru_cache

DATE = re.compile(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?(?:[T ].*)?")


@lru_cache(4096)
def last_day(text: str) -> date | None:
    """Return the last day that a written date can mean, or None where it can't be read."""
    match = DATE.fullmatch(text.strip())
    if match is None:
        return None
    year, month, day = (int(part) if part else None for part in match.groups())
    assert year is not None
    month = 12 if month is None else month
    try:
        return date(year, month, calendar.monthrange(year, month)[1] if day is None else day)
    except ValueError:  # calendar.IllegalMonthError is one too
        return None
