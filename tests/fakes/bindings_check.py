"""Run with NVIDIA's bindings importable: which of the names given on stdin, as [class, attribute] pairs, they lack.

An attribute of the module itself has the class "". Answers with JSON: the version, how many were looked at, those that
are absent, and for each name whether its absence is noticed when it is taken away.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import tensorrt_bindings as trt


def owner(name: str) -> Any:
    return getattr(trt, name) if name else trt


def absent(pairs: list[list[str]]) -> list[list[str]]:
    return [
        pair for pair in pairs if not (hasattr(trt, pair[0]) or not pair[0]) or not hasattr(owner(pair[0]), pair[1])
    ]


def noticed(pair: list[str], pairs: list[list[str]]) -> bool:
    """Whether the name is missed when it is gone from the class."""
    where, name = owner(pair[0]), pair[1]
    kept = where.__dict__.get(name)
    if kept is not None:
        delattr(where, name)
        found, gone = absent(pairs), not hasattr(where, name)
        setattr(where, name, kept)
        if gone:
            return pair in found
    other = [pair[0], f"{name}_that_is_gone"]  # an enum's member, or inherited: it cannot be taken away
    return absent([*pairs, other]) == [other]


asked = json.load(sys.stdin)
missing = absent(asked)
unnoticed = [] if missing else [pair for pair in asked if not noticed(pair, asked)]
print(json.dumps({"version": trt.__version__, "checked": len(asked), "absent": missing, "unnoticed": unnoticed}))
