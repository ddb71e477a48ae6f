"""Distillation methods, one a file; the file's name is the method's name in a recipe."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from agrikd.distill._base import Distiller
from agrikd.distill._sum import Sum
from agrikd.errors import InputError, Problem
from agrikd.nets._base import Net
from agrikd.recipe import MethodSpec, problems_of
from agrikd.tasks._base import Task


def names() -> tuple[str, ...]:
    return tuple(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))


def method(name: str) -> type[Distiller]:
    """The `Distiller` that the file `distill/<name>.py` defines."""
    if wrong := _unknown(name, "method.name"):
        raise InputError(wrong)
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Distiller) and value.__module__ == module.__name__
    ]
    return found


def methods(spec: MethodSpec) -> list[type[Distiller]]:
    """The method a recipe names, and those under `also`."""
    return [method(one.name) for one in (spec, *spec.also)]


def open_method(spec: MethodSpec, task: Task, student: Net, teachers: Sequence[Net]) -> Distiller:
    """The method a recipe names over its nets, summed with those under `also`."""
    each = [_open(one, task, student, teachers) for one in (spec, *spec.also)]
    return Sum(each[0], each[1:]) if spec.also else each[0]


def _open(spec: MethodSpec, task: Task, student: Net, teachers: Sequence[Net]) -> Distiller:
    found = method(spec.name)
    return found(task, student, teachers, found.Config.model_validate(spec.settings))


def problems(raw: Any, where: str) -> list[Problem]:
    """What is wrong with a recipe's `method` mapping, by the Configs of the methods it names."""
    if not isinstance(raw, dict):
        return []  # the recipe's own check says so
    also = raw.get("also", ())
    others = [one for one in also if isinstance(one, dict)] if isinstance(also, list | tuple) else []
    found = _problems(raw, where, "method")
    for number, one in enumerate(others):
        found += [*_problems(one, where, f"method.also.{number}"), *_misplaced(one, f"{where}: method.also.{number}")]
    return [*found, *_unfit([raw.get("name", "none"), *(one.get("name", "none") for one in others)], where)]


def _problems(raw: dict[str, Any], where: str, key: str) -> list[Problem]:
    name = raw.get("name", "none")
    if not isinstance(name, str):
        return []
    if wrong := _unknown(name, f"{where}: {key}.name"):
        return wrong
    config = method(name).Config
    try:
        config.model_validate({k: value for k, value in raw.items() if k not in ("name", "also")})
    except ValidationError as error:
        return problems_of(error, config, where, f"{key}.")
    return []


def _unknown(name: str, where: str) -> list[Problem]:
    if name in names():
        return []
    near = difflib.get_close_matches(name, names(), 1)
    mend = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names())}"
    return [Problem(where, f"there is no method {name!r}", mend)]


def _misplaced(raw: dict[str, Any], where: str) -> list[Problem]:
    mend = "it counts for the whole recipe: write it beside method.name"
    shared = [key for key in Distiller.Config.model_fields if key in raw]
    return [Problem(f"{where}.{key}", "is the first method's affair", mend) for key in shared] + [
        Problem(f"{where}.also", "stands inside another 'also'", "write all of them in one list")
        for _ in raw.get("also", ())[:1]
    ]


def _unfit(named: list[Any], where: str) -> list[Problem]:
    """Methods that cannot be summed: one twice, or one whose step is more than losses."""
    if len(named) == 1 or not all(name in names() for name in named):
        return []
    twice = sorted({name for name in named if named.count(name) > 1})
    found = [Problem(f"{where}: method.also", f"method {name} stands twice", "name each once") for name in twice]
    for name in named:
        if method(name).forward is not Distiller.forward:
            said = f"method {name} has a step of its own, to which no loss can be added"
            found.append(Problem(f"{where}: method.also", said, f"use {name} alone"))
    return found
