"""The judge: figures against what they must be for a predictor whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agrikd import metrics
from agrikd.calibrate import HeldOut, calibrate
from agrikd.data import manifest as manifests
from agrikd.errors import InputError
from agrikd.evaluate import Refusals, Report, evaluate, evaluate_all
from agrikd.judge import judge
from agrikd.predict._base import FakePredictor
from agrikd.predict.decode import decode
from agrikd.types import Calibration, Image, ModelSpec, Prediction

CLASSES = ("blight", "healthy", "rust")
SPEC = ModelSpec("known", "classification", CLASSES, (8, 8))


class Known:
    """Answers each photo by its order: right but for the first three, which it takes for the next class."""

    backend, parameters, size_bytes = "known", 3, 12

    def __init__(self, truth: Sequence[int], spec: ModelSpec = SPEC) -> None:
        self.truth, self.spec, self.seen = list(truth), spec, 0

    def __call__(self, images: Sequence[Image]) -> list[Prediction]:
        logits = np.zeros((len(images), 3), np.float32)
        for row in range(len(images)):
            shift = 1 if self.seen < 3 else 0
            logits[row, (self.truth[self.seen % len(self.truth)] + shift) % 3] = 4
            self.seen += 1
        return decode(logits, logits, images, self.spec)


@pytest.fixture
def photos(tiny_photos: Path) -> manifests.Manifest:
    return manifests.read(tiny_photos / "manifest.csv")


def truth(photos: manifests.Manifest, split: str = "test") -> list[int]:
    return [CLASSES.index(str(photos.rows[row].target)) for row in photos.indices(split, labelled=True)]


def test_figures_of_a_known_predictor(photos: manifests.Manifest) -> None:
    report = evaluate(Known(truth(photos)), photos, "test")
    assert report.rows == 24
    assert report.accuracy.value == pytest.approx(21 / 24)
    assert report.accuracy.low < report.accuracy.value < report.accuracy.high
    assert report.confusion == ((5, 3, 0), (0, 8, 0), (0, 0, 8))
    assert report.macro_f1.value == pytest.approx(np.mean([10 / 13, 16 / 19, 1.0]))
    assert report.per_class[0].recall == pytest.approx(5 / 8) and report.per_class[1].precision == pytest.approx(8 / 11)
    sure = float(np.exp(4) / (np.exp(4) + 2))
    assert report.ece == pytest.approx(abs(sure - 21 / 24), abs=1e-6)
    assert report.nll == pytest.approx((21 * -np.log(sure) + 3 * -np.log((1 - sure) / 2)) / 24, abs=1e-5)
    assert [mistake.said for mistake in report.worst] == ["healthy"] * 3
    assert report.ms_per_image > 0 and report.decisions is None and report.teacher is None


def test_agreement_with_a_teacher(photos: manifests.Manifest) -> None:
    report = evaluate(Known(truth(photos)), photos, "test", teacher=Known(truth(photos)))
    assert report.agreement == 1 and report.kl == pytest.approx(0, abs=1e-6)


def test_a_report_survives_json(photos: manifests.Manifest) -> None:
    calibration = Calibration(1.0, 0.5, 0.1, 0.9, 0.9, -1.0, 0.95, 20, "val")
    spec = ModelSpec("known", "classification", CLASSES, (8, 8), calibration=calibration)
    report = evaluate(Known(truth(photos), spec), photos, "test", teacher=FakePredictor(SPEC))
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert report.decisions is not None and report.refusals is None
    counted = replace(report, refusals=Refusals(24, 1, 8, 7))
    assert Report.from_json(json.loads(json.dumps(counted.to_json()))) == counted


class Slow(Known):
    """Takes `ms` of the patched clock for a photo, and ten times as much for its first."""

    def __init__(self, truth: Sequence[int], clock: list[float], ms: Sequence[float]) -> None:
        super().__init__(truth)
        self.clock, self.ms = clock, ms

    def __call__(self, images: Sequence[Image]) -> list[Prediction]:
        self.clock[0] += self.ms[self.seen % len(self.ms)] / 1000 * (1 if self.seen else 10)
        return super().__call__(images)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("agrikd.evaluate.time.perf_counter", lambda: now[0])
    return now


def test_models_are_judged_in_turns_and_beside_each_other(photos: manifests.Manifest, clock: list[float]) -> None:
    labels = truth(photos)
    answers = {"alone": Slow(labels, clock, [4]), "same": Slow(labels, clock, [4]), "quick": Slow(labels, clock, [2])}
    answers["quick"].truth = [*labels[1:], 0]  # mostly right, as the labels come sorted
    found = evaluate_all(answers, photos, "test", teacher="alone")
    assert [found[label].ms_per_image for label in answers] == pytest.approx([4, 4, 2])
    assert [found[label].agreement is None for label in answers] == [True, False, False]
    assert found["alone"].beside == ()
    (same,) = found["same"].beside
    assert (same.other, same.gain, same.words) == ("alone", 0, "no difference: the same answer to every photo")
    assert same.times == ""
    quick = found["quick"].beside[0]
    assert quick.gain == pytest.approx(found["quick"].macro_f1.value - found["alone"].macro_f1.value)
    assert quick.low <= quick.gain <= quick.high and quick.times == "2.0 times faster"
    assert found["quick"] == Report.from_json(json.loads(json.dumps(found["quick"].to_json())))


def test_a_busy_moment_is_no_speed(photos: manifests.Manifest, clock: list[float]) -> None:
    labels = truth(photos)
    moods = {"first": Slow(labels, clock, [4, 4, 9]), "second": Slow(labels, clock, [3, 9, 3])}
    report = evaluate_all(moods, photos, "test")["second"]
    assert report.beside[0].times == "", "per photo it is now faster, now slower"


def test_models_of_other_classes_are_not_set_side_by_side(photos: manifests.Manifest) -> None:
    turned = Known(truth(photos), replace(SPEC, classes=CLASSES[::-1]))
    with pytest.raises(InputError, match="turned: knows other classes: rust, healthy, blight"):
        evaluate_all({"known": Known(truth(photos)), "turned": turned}, photos, "test")


def test_the_teacher_is_judged_too_and_the_models_are_set_against_the_first(
    photos: manifests.Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = Calibration(1.0, 0.5, 0.1, 0.9, 0.9, -1.0, 0.95, 20, "val")
    known = {"teacher": SPEC, "alone": SPEC, "student": replace(SPEC, calibration=calibration)}
    monkeypatch.setattr("agrikd.judge.open_predictor", lambda path: FakePredictor(known[path.stem]))
    models = [Path("alone.onnx"), Path("student.onnx")]
    made = judge(models, photos.root / "manifest.csv", "test", Path("teacher.onnx"), tmp_path / "report.html")
    assert [row[0] for row in made.rows] == ["/teacher.onnx", "/alone.onnx", "/student.onnx"]
    assert [row[3].endswith("*") for row in made.rows] == [True, True, False], "which are calibrated"
    verdict, chance, raw = made.verdicts
    assert verdict.startswith("/student.onnx beside /alone.onnx, macro-F1") and "no difference" in verdict
    assert "chance of training" in chance and "not calibrated (/teacher.onnx, /alone.onnx)" in raw
    assert made.to_json()["verdicts"] == made.verdicts
    assert "Beside “/alone.onnx”" in (tmp_path / "report.html").read_text()


def test_a_set_without_val_says_how_to_make_one(photos: manifests.Manifest) -> None:
    rows = tuple(row for row in photos.rows if row.split != "val")
    with pytest.raises(InputError, match=r"agrikd data split .*--split test reads the test set"):
        evaluate(Known(truth(photos)), replace(photos, rows=rows), "val")


def test_groups_widen_the_interval(photos: manifests.Manifest) -> None:
    rows = tuple(replace(row, group=f"{row.split} plant {row.target} {i % 2}") for i, row in enumerate(photos.rows))
    grouped = evaluate(Known(truth(photos)), replace(photos, rows=rows), "test").accuracy
    alone = evaluate(Known(truth(photos)), photos, "test").accuracy
    assert grouped.value == alone.value and grouped.high - grouped.low > alone.high - alone.low


def test_labels_the_model_does_not_know_are_named(photos: manifests.Manifest) -> None:
    fake = FakePredictor(ModelSpec("other", "classification", ("blight", "healthy"), (8, 8)))
    with pytest.raises(InputError, match="labels the model does not know: rust"):
        evaluate(fake, photos, "test")


def test_calibration_keeps_its_promises_on_fresh_rows() -> None:
    """On simulated rows: the thresholds found on one half hold on the other within sampling error."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 4000)
    logits = rng.normal(0, 1, (4000, 4)).astype(np.float32)
    logits[np.arange(4000), labels] += 2
    logits *= 3  # with unit noise around a shift of 2 the honest logits are 2 times the values, so T = 3 / 2
    made = calibrate(HeldOut(logits[:2000], labels[:2000], "val"), target_risk=0.1, coverage=0.9)
    spec = ModelSpec("s", "classification", ("a", "b", "c", "d"), (8, 8), calibration=made)
    said = decode(logits[2000:], logits[2000:], (), spec)
    fresh = labels[2000:]
    probabilities = np.stack([one.probabilities for one in said])
    assert made.temperature == pytest.approx(1.5, rel=0.1)
    assert metrics.ece(probabilities, fresh) < 0.04
    answered = [(one.top == t) for one, t in zip(said, fresh, strict=True) if not one.unsure]
    assert np.mean(answered) > 0.88 and len(answered) > 1000
    assert np.mean([t in one.candidates for one, t in zip(said, fresh, strict=True)]) == pytest.approx(0.9, abs=0.03)
    assert {one.unknown for one in said} == {None}, "nothing was learned of what plants look like"


def test_what_no_probability_reaches_a_certain_answer_does_not_reach_either() -> None:
    made = Calibration(1.0, metrics.NEVER, 0.1, 0.5, 0.9, None, 0.95, 40, "val")
    logits = np.array([[200, 0, 0], [0, 0, 200]], np.float32)
    said = decode(logits, logits, (), replace(SPEC, calibration=made))
    assert [(float(one.probabilities.max()), one.unsure) for one in said] == [(1.0, True)] * 2


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5])
def test_calibration_refuses_shares_and_too_few_rows_at_once(share: float) -> None:
    with pytest.raises(InputError) as caught:
        calibrate(HeldOut(np.zeros((5, 2), np.float32), np.zeros(5, np.int64), "val"), coverage=share)
    assert [problem.where for problem in caught.value.problems] == ["coverage", "calibrate"]
