"""Is the teacher fit to teach? Asked before every distillation.

A teacher with a random head, with classes in another order or with another normalisation trains a student
without any error message, and a teacher no better than the student makes it worse. Each check says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from agrikd import console, files, intervals, learned, metrics
from agrikd.data.loader import Loader
from agrikd.data.manifest import Manifest
from agrikd.errors import GateError, listed
from agrikd.nets._base import Origin
from agrikd.nets.from_timm import TimmNet
from agrikd.nets.sources import open_net
from agrikd.recipe import NetSpec
from agrikd.run import Run
from agrikd.tasks._base import Task

CONTROL = "a control: its teacher has a random head on purpose"
"""The override of a study's control, whose refusal is expected and no news."""
_MOST_ROWS = 500
"""Photos the teacher answers live; more would not change the verdict."""

Answer = Literal["ok", "refused", "not checked"]


@dataclass(frozen=True)
class Check:
    """One question to the teacher and the answer to it, in words."""

    name: str
    answer: Answer
    why: str


@dataclass(frozen=True)
class Evidence:
    """Predictions on rows whose labels are known; `rows` says which rows.

    truth: [N], classes or numbers. logits: float [N, C]. mistakes: float [N], see `Task.mistake`.
    """

    rows: str
    truth: NDArray[Any]
    logits: NDArray[np.float32]
    mistakes: NDArray[np.float32]

    @property
    def mistake(self) -> float:
        return float(self.mistakes.mean())


def check(net: TimmNet, loader: Loader, task: Task, held_out: Run | None, alone: Run | None) -> list[Check]:
    """Hold a teacher of `task` against the photos of `loader`.

    held_out: the teacher's Run, whose held-out predictions count where there is no val split, if they are of these
    photos. alone: a Run of the student trained without a teacher, which the teacher must beat.
    """
    net.eval()
    classes = task.classes
    checks = [_classes(net.origin, classes), _normalisation(net), _head(net.origin), _frozen(net)]
    checks.append(_stranger(loader.manifest, held_out))
    if checks[0].answer == "refused" and len(net.origin.classes or ()) != len(classes):
        said = "the classes differ in number, so its answers mean nothing here"
        return [*checks, Check("above chance", "not checked", said), Check("beats the student", "not checked", said)]
    evidence = _evidence(net, loader, task, held_out)
    checks += [_above_chance(found, task) for found in evidence]
    return [*checks, _beats_student(evidence[0], loader, task, alone)]


def decide(findings: Sequence[Sequence[Check]], run: Run, override: str | None) -> None:
    """Write the findings into the Run; raise `GateError` if a teacher is refused and nobody overrides it."""
    refused = [check for checks in findings for check in checks if check.answer == "refused"]
    record = {
        "teachers": [[asdict(check) for check in checks] for checks in findings],
        "passed": not refused,
        "override": override if refused else None,
    }
    files.write_json(run.folder / "gate.json", record)
    if override is None:
        for one in [one for checks in findings for one in checks if one.answer == "not checked"]:
            console.say(f"the gate has not checked “{one.name}”: {one.why}")
    if not refused:
        return
    reasons = "\n".join(f"  {check.name}: {check.why}" for check in refused)
    if override:
        if override != CONTROL:
            console.say(f"{run.folder}: the gate refuses its teacher:\n{reasons}\n  going on, because: {override}")
        return
    mend = "mend the teacher, or go on all the same with --override-gate 'the reason' (it is kept in the Run)"
    raise GateError(f"The teacher is not fit to teach:\n{reasons}\n    → {mend}")


def _evidence_of(rows: str, truth: NDArray[Any], logits: NDArray[np.float32], task: Task) -> Evidence:
    mistakes = task.mistake(torch.from_numpy(logits), torch.from_numpy(truth))
    return Evidence(f"{len(truth)} {rows}", truth, logits, mistakes.numpy())


def _held_out_evidence(run: Run, task: Task) -> Evidence | None:
    """A Run's stored held-out predictions."""
    stored = run.held_out()
    return stored and _evidence_of("held-out rows", *stored, task)


def _classes(origin: Origin, classes: tuple[str, ...]) -> Check:
    name, own = "class names and order", origin.classes
    if own is None:
        return Check(name, "refused", f"{origin.source} does not say which classes it knows")
    if own == classes:
        return Check(name, "ok", f"the same {len(classes)} classes in the same order")
    if len(own) != len(classes):
        return Check(name, "refused", f"it knows {len(own)} classes, the photos have {len(classes)}")
    if set(own) == set(classes):
        return Check(name, "refused", f"the same classes in another order: {_listed(own)} against {_listed(classes)}")
    return Check(name, "refused", f"it knows {_listed(own)}, the photos have {_listed(classes)}")


def _normalisation(net: TimmNet) -> Check:
    name, origin = "declared normalisation", net.origin
    if origin.mean is None or origin.std is None:
        mend = "give the net's mean and std in the recipe"
        return Check(name, "refused", f"{origin.source} does not say its mean and std; {mend}")
    used = [tuple(values.flatten().tolist()) for values in (net.mean, net.std)]
    if not np.allclose(used, (origin.mean, origin.std), atol=1e-4):
        want = f"mean {_listed(origin.mean)}, std {_listed(origin.std)}"
        given = f"mean {_listed(used[0])}, std {_listed(used[1])}"
        return Check(name, "refused", f"it was trained with {want}, the recipe gives {given}")
    return Check(name, "ok", f"mean {_listed(origin.mean)}, std {_listed(origin.std)}")


def _head(origin: Origin) -> Check:
    if origin.head_trained:
        return Check("trained head", "ok", f"the classifier comes from {origin.source}")
    return Check("trained head", "refused", f"the classifier is random ({origin.source}); teach it first: agrikd teach")


def _frozen(net: TimmNet) -> Check:
    learning = net.training or any(p.requires_grad for p in net.parameters())
    if learning:
        return Check("eval mode, no gradient", "refused", "it is in training mode or its weights want gradients")
    return Check("eval mode, no gradient", "ok", "frozen")


def _stranger(manifest: Manifest, teacher: Run | None) -> Check:
    """What the teacher knows by heart it tells the student, which is then judged by it."""
    name = "has not seen what judges"
    rows = [*manifest.indices("val", labelled=True), *manifest.indices("test", labelled=True)]
    count = teacher and learned.seen(teacher, manifest, rows)
    if count is None:
        return Check(name, "not checked", "the teacher's weights do not say of which photos they are")
    if count:
        return Check(name, "refused", f"it has learned from {count} of the {len(rows)} photos of val and test")
    return Check(name, "ok", f"it has learned from none of the {len(rows)} photos of val and test")


def _evidence(net: TimmNet, loader: Loader, task: Task, held_out: Run | None) -> list[Evidence]:
    """The best evidence first: val rows, else what the Run said of these photos held out; then the labelled rows."""
    found = []
    if rows := loader.manifest.indices("val", labelled=True):
        found.append(_live(net, loader, task, rows, "val rows"))
    elif held_out and learned.is_of(held_out, loader.manifest) and (stored := _held_out_evidence(held_out, task)):
        found.append(stored)
    if not found or found[0].rows.endswith("held-out rows"):
        rows = loader.manifest.indices("train", labelled=True)
        found.append(_live(net, loader, task, rows, "labelled train rows, which it may have been taught"))
    return found


@torch.inference_mode()
def _live(net: TimmNet, loader: Loader, task: Task, rows: Sequence[int], what: str) -> Evidence:
    chosen = np.random.default_rng(0).permutation(np.asarray(rows))[:_MOST_ROWS].tolist()
    batches = list(loader.clean(chosen))
    logits = np.concatenate([net(batch.images).logits.numpy() for batch in batches])
    truth = np.concatenate([batch.target.numpy() for batch in batches])
    return _evidence_of(what, truth, logits, task)


def _above_chance(found: Evidence, task: Task) -> Check:
    """Better than one answer for all: the commonest class, or the median."""
    name, rows = "above chance", len(found.truth)
    if task.scale:
        gain = np.abs(found.truth - np.median(found.truth)) - found.mistakes
        low, _ = intervals.bootstrap(lambda i: float(gain[i].mean()), rows, np.random.default_rng(0))
        blind = task.scale.said(found.mistake + float(gain.mean()))
        said = f"off by {_said(found, task)} on {found.rows} (by {blind} at the median)"
        return Check(name, "ok" if low > 0 else "refused", said)
    chance = float(np.bincount(found.truth, minlength=len(task.classes)).max()) / rows
    low, _ = intervals.wilson(rows - int(found.mistakes.sum()), rows)
    said = f"accuracy {_said(found, task)} on {found.rows} (chance {chance:.2f})"
    if low > chance:
        return Check(name, "ok", said)
    return Check(name, "refused", said + _if_reordered(found, task.classes))


def _said(found: Evidence, task: Task) -> str:
    return task.scale.said(found.mistake) if task.scale else f"{1 - found.mistake:.2f}"


def _if_reordered(found: Evidence, classes: tuple[str, ...]) -> str:
    """A hint where another order of the classes would make the teacher good."""
    table = metrics.confusion(found.truth, found.logits.argmax(1), len(classes))
    best = table.argmax(axis=1)
    accuracy = table.max(axis=1).sum() / len(found.truth)
    if len(set(best.tolist())) == len(classes) and accuracy > 1.2 - found.mistake:
        return f"; it would be {accuracy:.2f} if its classes stood in another order, as in a shuffled label list"
    return ""


def _beats_student(teacher: Evidence, loader: Loader, task: Task, alone: Run | None) -> Check:
    name = "beats the student"
    if alone is None:
        return Check(name, "not checked", "no student trained alone was given: --student-alone RUN")
    if why := _incomparable(alone, loader, task):
        return Check(name, "not checked", why)
    if rows := loader.manifest.indices("val", labelled=True):
        net = open_net(NetSpec(run=alone.folder), task.classes).eval()
        student: Evidence | None = _live(net, loader, task, rows, "val rows")
    else:
        student = _held_out_evidence(alone, task)
    if student is None:
        wrong = "there is no val split, and the student alone has no held-out predictions"
        mend = f"agrikd calibrate {alone.folder} makes them, or agrikd data split a val split"
        return Check(name, "not checked", f"{wrong}: {mend}")
    if teacher.rows.endswith("may have been taught"):
        wrong = "there is no val split, and the teacher is no Run with held-out predictions of these photos"
        return Check(name, "not checked", f"{wrong}: agrikd teach makes them")
    off = "off by " if task.scale else ""
    told = f"student alone {off}{_said(student, task)} on {student.rows}"
    said = f"teacher {off}{_said(teacher, task)} on {teacher.rows}, {told}"
    if teacher.mistake < student.mistake:
        return Check(name, "ok", said)
    return Check(name, "refused", f"{said}: a teacher no better than the student makes it worse")


def _incomparable(alone: Run, loader: Loader, task: Task) -> str | None:
    own = tuple(alone.record().get("classes", ()))
    if own != task.classes:
        return f"the student alone knows {listed(own)}, not the same classes or bins"
    if not learned.is_of(alone, loader.manifest):
        return "the student alone learned from other photos, or from fewer labels"
    return None


def _listed(values: Sequence[object]) -> str:
    return f"({listed([f'{value:.4g}' if isinstance(value, float) else value for value in values])})"
