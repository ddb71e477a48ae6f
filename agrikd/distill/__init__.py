"""Distillation methods, one a file; the file's name is the method's name in a recipe."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from agrikd.distill._base import Distiller
from agrikd.errors import InputError, Problem
from agrikd.recipe import problems_of


def names() -> tuple[str, ...]:
    return tuple(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))


def method(name: str) -> type[Distiller]:
    """The `Distiller` that the file `distill/<name>.py` defines."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        mend = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names())}"
        raise InputError(Problem("method.name", f"there is no method {name!r}", mend))
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Distiller) and value.__module__ == module.__name__
    ]
    return found


def problems(raw: Any, where: str) -> list[Problem]:
    """What is wrong with a recipe's `method` mapping, by the method's own Config."""
    if not isinstance(raw, dict) or not isinstance(raw.get("name", "none"), str):
        return []  # the recipe's own check says so
    try:
        config = method(raw.get("name", "none")).Config
        config.model_validate({key: value for key, value in raw.items() if key != "name"})
    except InputError as error:
        return [replace(problem, where=f"{where}: {problem.where}") for problem in error.problems]
    except ValidationError as error:
        return problems_of(error, config, where, "method.")
    return []
