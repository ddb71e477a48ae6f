"""Tasks: what a target is, what a mistake costs, what agreement is. One task a file; the file's name is its name."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from agrikd.data.manifest import Manifest
from agrikd.errors import InputError, Problem
from agrikd.recipe import TaskSpec
from agrikd.tasks._base import Task


def names() -> tuple[str, ...]:
    return tuple(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))


def open_task(spec: TaskSpec, manifest: Manifest) -> Task:
    """The task a recipe names, over what the manifest's rows are labelled with."""
    if found := problems({"name": spec.name}, "recipe"):
        raise InputError(found)
    module = importlib.import_module(f"{__name__}.{spec.name}")
    task: Task = module.open_task(spec, manifest)
    return task


def problems(raw: Any, where: str) -> list[Problem]:
    """What is wrong with the name in a recipe's `task` mapping; the recipe's own check says the rest."""
    name = raw.get("name") if isinstance(raw, dict) else None
    if not isinstance(name, str) or name in names():
        return []
    return [Problem(f"{where}: task.name", f"there is no task {name!r}", f"known: {', '.join(names())}")]
