"""Files and words of others: what is read is bounded, what is shown is harmless."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

from agrikd import files
from agrikd.errors import InputError, Problem

_MOST_BYTES = 2**24
_LONGEST = 200


def json_of(path: Path) -> dict[str, Any]:
    """A JSON file's mapping; raises `InputError` where it is none, or larger than 16 MiB."""
    try:
        if path.exists() and path.stat().st_size > _MOST_BYTES:
            raise InputError(Problem(str(path), "is too large"))
        found = files.read_json(path)
    except (RecursionError, ValueError):
        raise InputError(Problem(str(path), "is not valid JSON")) from None
    if not isinstance(found, dict):
        raise InputError(Problem(str(path), "holds no mapping"))
    return found


def shown(text: object, longest: int = _LONGEST) -> str:
    """What anybody wrote, in one line of letters that every screen takes, cut to a length."""
    words = " ".join(str(text).encode(errors="replace").decode().replace("\0", "").split())
    return words if len(words) <= longest else f"{words[: longest - 1]}…"


def literal(text: object, longest: int = _LONGEST) -> str:
    """`shown`, for a place that reads Markdown: there it looks as it is written here."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", shown(text, longest))


def breaking(text: object) -> str:
    """`literal`, for a narrow column: paths and keys may go on in the next line."""
    return literal(re.sub(r"([./_])", "\\1\u200b", shown(text)), 2 * _LONGEST)


def moment(t: float) -> str:
    """UTC, seconds since 1970, by the wall clock here: 2027-05-04 16:20."""
    return datetime.fromtimestamp(t).astimezone().strftime("%Y-%m-%d %H:%M")


def lasting(seconds: float) -> str:
    """A duration ≥ 0: 7 s, 2 min 05 s, 3 h 20 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
