"""Every method in the loop on real photos' files: it trains, and resumes to the same weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import same_weights

from agrikd import distill, jobs, tasks, train
from agrikd.errors import InputError
from agrikd.nets.cached import CachedTeacher, FeatureStore
from agrikd.nets.ensemble import Ensemble
from agrikd.recipe import parse
from agrikd.run import Run

Tiny = Callable[..., dict[str, Any]]
METHODS = distill.names()
PAIRS = tuple((name, task) for name in METHODS for task in distill.method(name).tasks or tasks.names())
SUM = {"name": "kd", "weight_kd": 2, "also": [{"name": "rkd"}, {"name": "mean_teacher"}, {"name": "fitnet"}]}


def recipe_of(tiny: Tiny, method: dict[str, Any]) -> Any:
    """Unlabelled rows and fixed views where the method takes them; a small teacher that was taught nothing."""
    chosen = distill.method(method["name"])
    raw = tiny(method=method, gate={"override": "a test"}, optim={"steps": 4, "batch": 6, "checkpoint_every": 1})
    raw["data"] = {**raw["data"], "views": 3, "unlabelled_share": 0.5 if chosen.uses_unlabelled else 0.0}
    if chosen.needs_teacher:
        raw["teachers"] = [{"timm": "mobilenetv3_small_075", "input_size": 32}]
    return parse(raw, "test")


def test_methods_and_tasks_are_counted() -> None:
    assert len(PAIRS) == 37


@pytest.mark.parametrize(
    ("method", "task"),
    [*(({"name": name}, task) for name, task in PAIRS), (SUM, "classification"), (SUM, "regression")],
    ids=[*("-".join(pair) for pair in PAIRS), "sum-classification", "sum-regression"],
)
def test_a_method_resumes_to_the_same_weights(
    tiny: Tiny, tiny_numbers: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any], task: str
) -> None:
    recipe, step = recipe_of(tiny if task == "classification" else tiny_numbers, method), train._step
    train.fit(recipe, tmp_path / "whole")

    def interrupted(state: train.TrainState, batch: Any) -> Any:
        if state.step == 2:
            raise KeyboardInterrupt
        return step(state, batch)

    monkeypatch.setattr(train, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.fit(recipe, tmp_path / "again")
    monkeypatch.setattr(train, "_step", step)
    run = train.fit(recipe, tmp_path / "again", resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "again")
    parts = set(Run.open(run.folder).history()[-1]) - {"step", "lr", "loss", "val_mistake"}
    assert "task" in parts and (len(parts) > 1 or method["name"] == "none")


def test_methods_that_read_feature_maps_say_that_the_teacher_runs_live(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    live = [name for name in METHODS if distill.method(name).teacher_stages]
    for name in live:
        job = jobs.prepare(recipe_of(tiny, {"name": name}))
        assert train._replayed(job) is job.distiller
        assert f"method {name} reads the teacher's feature maps" in " ".join(capsys.readouterr().err.split())
    assert len(live) >= 4


@pytest.mark.parametrize("name", ["rkd", "crd"])
def test_an_embedding_that_no_store_keeps_is_read_live(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    raw = tiny(method={"name": "kd", "also": [{"name": name}]}, teachers=[{"timm": "dla46_c", "input_size": 32}])
    raw["data"] = {**raw["data"], "views": 2}
    job = jobs.prepare(parse(raw, "test"))
    assert not isinstance(train._replayed(job).teachers[0], CachedTeacher)
    assert "the teacher runs live" in " ".join(capsys.readouterr().err.split())


def test_an_ensemble_is_replayed_member_by_member(tiny: Tiny) -> None:
    raw = tiny(method={"name": "rkd", "also": [{"name": "kd"}]})
    raw["data"] = {**raw["data"], "views": 2}
    members = [{"timm": name, "input_size": size} for name, size in (("mobilenetv3_small_075", 32), ("resnet10t", 64))]
    raw["teachers"] = [{"ensemble": members, "combine": "confidence"}]
    job = jobs.prepare(parse(raw, "test"))
    live = job.distiller.eval().teachers[0]
    cached = train._replayed(job).teachers[0]
    assert isinstance(cached, Ensemble)
    batch = job.loader.batch(job.sampler.draw(0))
    assert batch.images.shape[-1] == 64
    with torch.inference_mode():
        one, other = live.on(batch), cached.on(batch)
    assert torch.allclose(one.logits, other.logits, atol=2e-2)
    assert torch.allclose(one.embedding, other.embedding, atol=2e-2)


def test_function_matching_sees_mixtures_alone(tiny: Tiny) -> None:
    job = jobs.prepare(recipe_of(tiny, {"name": "funmatch"}))
    batch = job.loader.batch(job.sampler.draw(0))
    assert not batch.labelled.any()
    assert float(job.distiller(batch).parts["task"].detach()) == 0


def test_function_matching_without_the_pool_sees_labelled_photos_alone(tiny: Tiny) -> None:
    raw = recipe_of(tiny, {"name": "funmatch"}).model_dump(mode="json")
    stores = {}
    for share, labels in ((0.0, None), (0.0, 8), (0.5, None), (0.5, 8)):
        raw["data"] |= {"unlabelled_share": share, "labels_per_class": labels}
        job = jobs.prepare(parse(raw, "test"))
        net = job.distiller.teachers[0]
        stores[share, labels] = FeatureStore(net, job.loader, 3).disk.path
        partners = job.manifest.indices("train", labelled=None if share else True)
        assert job.loader.partners == partners and len(partners) == (42 if share else 12 if labels else 24)
    assert stores[0.5, None] == stores[0.5, 8], "the same photos are mixed, whoever has a label"
    assert len({*stores.values()}) == 3


@pytest.fixture
def of_two_classes(tiny: Tiny, tiny_photos: Path, tmp_path: Path) -> Tiny:
    lines = (tiny_photos / "manifest.csv").read_text().splitlines()
    (tmp_path / "two.csv").write_text("\n".join(line for line in lines if "rust" not in line) + "\n")
    return partial(tiny, data={"manifest": str(tmp_path / "two.csv"), "root": str(tiny_photos)})


@pytest.mark.parametrize("method", [{"name": "logit_std"}, {"name": "kd", "also": [{"name": "logit_std"}]}])
def test_a_method_that_teaches_nothing_of_two_classes_is_refused(of_two_classes: Tiny, method: dict[str, Any]) -> None:
    said = r"(?s)method.name: method logit_std teaches nothing of 2 classes: any two logits.*take kd"
    with pytest.raises(InputError, match=said):
        jobs.prepare(recipe_of(of_two_classes, method))


@pytest.mark.parametrize("name", ["dist", "dkd", "kd"])
def test_a_method_that_teaches_less_of_two_classes_says_so(
    of_two_classes: Tiny, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for number, photos in enumerate((of_two_classes, tiny)):
        train.fit(recipe_of(photos, {"name": name}), tmp_path / str(number))
    said = " ".join(capsys.readouterr().err.split())
    assert said.count(f"method {name}, of two classes:") == (name != "kd")
