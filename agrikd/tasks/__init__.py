"""Tasks: what a target is, what a mistake costs, what agreement is. One task a file; the file's name is its name."""

from __future__ import annotations

import importlib
import pkgutil

from agrikd.errors import InputError, Problem
from agrikd.recipe import TaskSpec
from agrikd.tasks._base import Task


def names() -> tuple[str, ...]:
    return tuple(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))


def open_task(spec: TaskSpec, classes: tuple[str, ...]) -> Task:
    """The task a recipe names, over the manifest's classes."""
    if spec.name not in names():
        raise InputError(Problem("task.name", f"there is no task {spec.name!r}", f"known: {', '.join(names())}"))
    module = importlib.import_module(f"{__name__}.{spec.name}")
    task: Task = module.open_task(spec, classes)
    return task
