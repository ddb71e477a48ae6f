""" "Not a plant I know": its numbers counted by plain loops, its way through the pipeline, and what it refuses."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import absent
from numpy.typing import NDArray

from agrikd import crossfit, files, image, judge, known, pack, train
from agrikd.bundle import Bundle
from agrikd.calibrate import calibrate
from agrikd.card import card
from agrikd.data import augment, manifest
from agrikd.data.splits import subset
from agrikd.dsse import Key
from agrikd.errors import InputError
from agrikd.evaluate import Refusals
from agrikd.export.artefacts import export
from agrikd.predict import open_predictor
from agrikd.recipe import parse
from agrikd.run import Run
from agrikd.types import Calibration, Image, Known, ModelSpec

MANIFESTS = Path(__file__).parents[1] / "data" / "manifests"
SPEC = ModelSpec("leaf", "classification", ("a", "b"), (32, 32))


def picture(seed: int, side: int = 112) -> Image:
    """Smooth colours with some noise: neither flat nor even."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (7, 7, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_LINEAR)
    return np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def rows(count: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + 3).astype(np.float32)


def quantile(values: list[float], share: float) -> float:
    ordered, at = sorted(values), share * (len(values) - 1)
    low = math.floor(at)
    return ordered[low] + (at - low) * (ordered[min(low + 1, len(values) - 1)] - ordered[low])


def counted(pixels: Image) -> list[float]:
    """`known.statistics` of a picture of 112 × 112, one number at a time."""
    side = len(pixels)
    planes: list[list[list[float]]] = [[[0.0] * side for _ in range(side)] for _ in range(3)]
    saturation = []
    for y, x in itertools.product(range(side), repeat=2):
        r, g, b = (int(v) / 255 for v in pixels[y, x])
        luma = 0.299 * r + 0.587 * g + 0.114 * b
        for plane, value in zip(planes, (luma, b - luma, r - luma), strict=True):
            plane[y][x] = value
        saturation.append(max(r, g, b) - min(r, g, b))
    flat = [[v for line in plane for v in line] for plane in planes]
    means = [sum(plane) / len(plane) for plane in flat]
    deviations = [
        math.sqrt(sum((v - mean) ** 2 for v in plane) / len(plane)) + 0.02
        for plane, mean in zip(flat, means, strict=True)
    ]
    found = [quantile(plane, q) for plane in flat for q in (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)]
    found += [quantile(saturation, q) for q in (0.1, 0.5, 0.9)] + [math.log(one) for one in deviations]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        together = sum((a - means[i]) * (b - means[j]) for a, b in zip(flat[i], flat[j], strict=True)) / len(flat[i])
        found.append(together / deviations[i] / deviations[j])
    for _ in range(4):
        planes, numbers = halved(planes)
        found += numbers
    return found


def halved(planes: list[list[list[float]]]) -> tuple[list[list[list[float]]], list[float]]:
    half, energies, means = len(planes[0]) // 2, [], []
    crossed = magnitude = 0.0
    for number, plane in enumerate(planes):
        squares, smaller = 0.0, [[0.0] * half for _ in range(half)]
        for y, x in itertools.product(range(half), repeat=2):
            (a, b), (c, d) = (plane[2 * y + k][2 * x : 2 * x + 2] for k in (0, 1))
            across, down, both = (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2
            squares += across**2 + down**2
            smaller[y][x] = (a + b + c + d) / 4
            if number == 0:
                crossed += both**2
                magnitude += abs(across) + abs(down)
        energies.append(math.sqrt(squares / half**2) + 0.002)
        means.append(smaller)
    spread = (magnitude / half**2 + 0.002) / energies[0]
    numbers = (energies[0], math.sqrt(crossed / half**2) + 0.002, spread, *energies[1:])
    return means, [math.log(one) for one in numbers]


class TestStatistics:
    @pytest.mark.parametrize("seed", range(3))
    def test_golden(self, seed: int) -> None:
        pixels = picture(seed)
        found = known.statistics(pixels)
        assert found.shape == (50,) and found.dtype == np.float32
        np.testing.assert_allclose(found, counted(pixels), atol=2e-5)

    def test_a_turned_or_mirrored_picture_is_the_same(self) -> None:
        pixels, found = picture(4), known.statistics(picture(4))
        for turned in (pixels[::-1], pixels[:, ::-1], np.rot90(pixels), np.rot90(pixels, 2)):
            np.testing.assert_allclose(known.statistics(np.ascontiguousarray(turned)), found, atol=2e-4)

    def test_pixels_go_through_the_resize_of_all_others(self) -> None:
        large = picture(5, 480)
        np.testing.assert_array_equal(known.statistics(large), known.statistics(image.resize(large, (112, 112))))

    @pytest.mark.parametrize("value", [0, 128, 255])
    def test_a_flat_or_tiny_picture_has_finite_ones(self, value: int) -> None:
        for shape in ((112, 112, 3), (1, 1, 3), (3, 700, 3)):
            assert np.isfinite(known.statistics(np.full(shape, value, np.uint8))).all()


class TestLedoitWolf:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(3, 60), st.integers(2, 20), st.integers(0, 10**6))
    def test_as_scikit_learn_has_it(self, count: int, width: int, seed: int) -> None:
        covariance = pytest.importorskip("sklearn.covariance", reason="pip install 'agrikd[check]'")
        centred = rows(count, width, seed).astype(np.float64)
        theirs = covariance.LedoitWolf(assume_centered=True).fit(centred).covariance_
        np.testing.assert_allclose(known.ledoit_wolf(centred), theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())

    @settings(max_examples=30, deadline=None)
    @given(st.floats(1e-3, 1e3), st.integers(0, 10**6))
    def test_scale_order_and_bounds(self, scale: float, seed: int) -> None:
        given_rows = rows(30, 6, seed).astype(np.float64)
        found = known.ledoit_wolf(given_rows)
        np.testing.assert_allclose(known.ledoit_wolf(scale * given_rows), scale**2 * found, rtol=1e-9)
        order = np.random.default_rng(seed).permutation(30)
        np.testing.assert_allclose(known.ledoit_wolf(given_rows[order]), found, rtol=1e-9)
        plain = given_rows.T @ given_rows / 30
        assert np.trace(found) == pytest.approx(np.trace(plain))
        assert np.linalg.cond(found) <= np.linalg.cond(plain) * (1 + 1e-9)


class TestFit:
    def test_golden(self) -> None:
        """Each row against the Gaussian of the other folds, with the inverse never formed."""
        features, photo = rows(90, 5), np.repeat(np.arange(30), 3)
        found = known.fit(features, photo, 7)
        fold = (np.random.default_rng(7).permutation(30) % 10)[photo]
        for row in range(90):
            others = features[fold != fold[row]].astype(np.float64)
            assert found.held_out[row] == pytest.approx(plain_distance(others, features[row]), rel=1e-9)
        mean, factor = found.known.arrays()
        for row in range(90):
            distance = np.sum(((features[row] - mean) @ factor) ** 2)
            assert distance == pytest.approx(plain_distance(features.astype(np.float64), features[row]), rel=1e-5)
        assert found.known.photos == 30

    def test_the_order_of_rows_does_not_matter(self) -> None:
        features, photo = rows(90, 5), np.repeat(np.arange(30), 3)
        order = np.random.default_rng(1).permutation(90)
        one, other = known.fit(features, photo, 7), known.fit(features[order], photo[order], 7)
        np.testing.assert_allclose(other.held_out, one.held_out[order], rtol=1e-9)
        for a, b in zip(one.known.arrays(), other.known.arrays(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def test_nobody_is_judged_by_views_of_its_own(self) -> None:
        """A photo unlike all others is strange however many views of it there are."""
        features, photo = rows(330, 5), np.repeat(np.arange(30), 11)
        features[photo == 3] += 40
        found = known.fit(features, photo, 0)
        assert found.held_out[photo == 3].min() > 5 * found.held_out[photo != 3].max()

    def test_a_share_of_fresh_rows_stays_below(self) -> None:
        features = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
        found = known.fit(features, np.arange(2000), 0)
        fresh = np.random.default_rng(1).normal(size=(4000, 8))
        mean, factor = found.known.arrays()
        below = np.sum(((fresh - mean) @ factor) ** 2, axis=1) <= np.quantile(found.held_out, 0.95)
        assert below.mean() == pytest.approx(0.95, abs=0.015)


def plain_distance(learned: NDArray[np.float64], row: NDArray[np.float32]) -> float:
    count, width = learned.shape
    mean = [sum(column) / count for column in learned.T]
    deviation = [math.sqrt(sum((v - m) ** 2 for v in c) / count) + 1e-6 for c, m in zip(learned.T, mean, strict=True)]
    scaled = [[(v - m) / s for v, m, s in zip(one, mean, deviation, strict=True)] for one in learned]
    sample = [[sum(one[i] * one[j] for one in scaled) / count for j in range(width)] for i in range(width)]
    m = sum(sample[i][i] for i in range(width)) / width
    cells = list(itertools.product(range(width), repeat=2))
    d2 = sum((sample[i][j] - m * (i == j)) ** 2 for i, j in cells) / width
    b2 = sum((one[i] * one[j] - sample[i][j]) ** 2 for one in scaled for i, j in cells) / width / count**2
    share = min(b2, d2) / d2
    drawn = [[share * m * (i == j) + (1 - share) * sample[i][j] for j in range(width)] for i in range(width)]
    off = np.array([(v - m) / s for v, m, s in zip(row.astype(np.float64), mean, deviation, strict=True)])
    return float(off @ np.linalg.solve(np.array(drawn), off))


@pytest.fixture(scope="module")
def learned() -> Calibration:
    """From 40 smooth pictures."""
    found = known.fit(np.stack([known.statistics(picture(n)) for n in range(200)]), np.arange(200) // 5, 0)
    limit = float(np.quantile(found.held_out, 0.95))
    return Calibration(1.0, 0.5, 0.1, 0.9, 0.9, limit, 0.95, 40, "val", found.known)


class TestJson:
    def test_it_comes_back_and_is_small(self, learned: Calibration) -> None:
        spec = replace(SPEC, calibration=learned)
        text = json.dumps(spec.to_json())
        again = ModelSpec.from_json(json.loads(text))
        assert again == spec and again.to_json() == spec.to_json() and len(text) < 7500
        assert files.canonical(again.to_json()) == files.canonical(spec.to_json())
        assert isinstance(again.calibration, Calibration) and isinstance(again.calibration.known, Known)

    def test_what_was_written_before_it_reads_and_writes_as_it_was(self) -> None:
        old = {"temperature": 1.5, "abstain_below": 0.5, "target_risk": 0.1, "conformal_quantile": 0.9, "coverage": 0.9}
        old |= {"unknown_above": -3.0, "known_kept": 0.95, "rows": 40, "evidence": "val"}
        spec = ModelSpec.from_json({**SPEC.to_json(), "calibration": old})
        assert spec.calibration is not None and spec.calibration.known is None
        assert spec.to_json()["calibration"] == old

    def test_rounding_changes_no_decision(self, learned: Calibration) -> None:
        features = np.stack([known.statistics(picture(n)) for n in range(200)])
        mean, factor = known._gaussian(features.astype(np.float64))
        exact = np.sum(((features - mean) @ factor) ** 2, axis=1)
        assert learned.known is not None
        kept = known.strangeness(learned.known, [picture(n) for n in range(200)])
        np.testing.assert_allclose(kept, exact, rtol=1e-4)

    def test_no_picture_is_no_answer(self, learned: Calibration) -> None:
        assert learned.known is not None and known.strangeness(learned.known, []).shape == (0,)

    @pytest.mark.parametrize(
        "broken",
        [
            lambda one: (one.mean, one.factor),
            lambda one: (one.mean, one.factor[:-8], one.photos),
            lambda one: (one.mean[:-8], one.factor, one.photos),
            lambda one: (one.mean, "", one.photos),
            lambda one: ("", "", one.photos),
            lambda one: (one.mean, "AAAAAA==", one.photos),
            lambda one: (one.mean, one.factor.replace("A", "*"), one.photos),
            lambda one: (one.mean, "AADAfw==" + one.factor[8:], one.photos),
            lambda one: (one.mean, 5, one.photos),
            lambda one: ("A" * 2**20, one.factor, one.photos),
            lambda one: 3,
        ],
    )
    def test_what_is_broken_is_said(self, learned: Calibration, broken: Callable[[Any], Any], colours: Path) -> None:
        said = replace(SPEC, calibration=learned).to_json()
        said["calibration"]["known"] = broken(learned.known)
        with pytest.raises((ValueError, TypeError)):
            ModelSpec.from_json(json.loads(json.dumps(said)))


class TestViews:
    def test_they_are_of_the_same_size_and_repeat(self) -> None:
        photo = picture(1, 96)
        made = [augment.another_camera(photo, np.random.default_rng(seed)) for seed in range(40)]
        again = [augment.another_camera(photo, np.random.default_rng(seed)) for seed in range(40)]
        assert {(one.shape, one.dtype.name) for one in made} == {(photo.shape, "uint8")}
        assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))
        untouched = sum(np.array_equal(one, photo) for one in made)
        assert untouched < 8 and len({one.tobytes() for one in made}) >= 40 - untouched
        assert np.array_equal(photo, picture(1, 96)), "the photo itself stays"


@pytest.fixture(scope="module")
def calibrated(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Run on the tiny photos with its calibration, judged on val."""
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    shutil.copytree(colours, folder)
    run = Run.open(folder)
    looks = crossfit.looks(crossfit.open_manifest(run.recipe), 0)
    run.write_calibration(calibrate(two_folds(run)._replace(known=looks)))
    judge.judge([folder], None, "test", None, None)
    return folder


def two_folds(run: Run) -> Any:
    """Held-out predictions made up from the training photos: their thresholds are not what is tested here."""
    photos = crossfit.open_manifest(run.recipe)
    indices = photos.indices("train", labelled=True)
    logits, truth = crossfit._predicted(run.folder, photos, indices)
    return crossfit.HeldOut(logits, truth, "val")


class TestPipeline:
    def test_a_run_carries_it_to_its_export_and_its_card(self, calibrated: Path) -> None:
        run = Run.open(calibrated)
        found = run.calibration
        assert found is not None and found.known is not None and found.known.photos == 24
        said = files.read_json(calibrated / "report_test.json")["refusals"]
        counts = Refusals(**said)
        assert (counts.plants, counts.others) == (24, 8) and counts.others_refused >= 7 and counts.plants_refused <= 3
        assert str(counts) in (calibrated / "report.html").read_text()
        spec = open_predictor(calibrated).spec
        words = card(run, [], spec)
        assert f"it refuses there {counts}" in words and "not botany" in words and "learned from 24 photos" in words
        photos = crossfit.open_manifest(run.recipe)
        shown = [photos.photo(row) for row in (*photos.indices("test", labelled=True), *photos.others("test"))]
        for precision in ("fp32", "fp16"):
            predictor = open_predictor(calibrated / str(export(calibrated, precision, 8).file))
            assert predictor.spec == spec
            assert sum(bool(one.unknown) for one in predictor(shown)) == counts.plants_refused + counts.others_refused

    def test_a_bundle_carries_it_and_is_the_same_twice(
        self, calibrated: Path, key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        shutil.copytree(calibrated, tmp_path / "run")
        export(tmp_path / "run", "fp32", 8)
        for name in ("a.akb", "b.akb"):
            made = pack.pack(tmp_path / "run", tmp_path / name, [key], pack.Options())
        assert (tmp_path / "a.akb").read_bytes() == (tmp_path / "b.akb").read_bytes()
        with Bundle(tmp_path / "a.akb") as opened:
            assert opened.release == made and opened.release.spec.calibration == Run.open(calibrated).calibration

    def test_the_same_photos_and_seed_give_the_same(self, calibrated: Path) -> None:
        found, photos = Run.open(calibrated).calibration, crossfit.open_manifest(Run.open(calibrated).recipe)
        again, other = crossfit.looks(photos, 0), crossfit.looks(photos, 1)
        assert found and again and other and again.known == found.known and other.known != found.known
        assert float(again.held_out.max()) >= found.unknown_above

    def test_of_many_photos_a_draw_is_looked_at(self, calibrated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(crossfit, "_MOST_PHOTOS", 21)
        found = crossfit.looks(crossfit.open_manifest(Run.open(calibrated).recipe), 0)
        assert found and found.known.photos == 21 and found.held_out.shape == (231,)

    def test_copies_of_a_photo_count_once(self, calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
        photos = crossfit.open_manifest(Run.open(calibrated).recipe)
        first = next(row for row in photos.rows if row.split == "train" and row.target)
        copies = replace(photos, rows=(first,) * 40)
        assert crossfit.looks(copies, 0) is None and "there are 1 labelled" in capsys.readouterr().err

    def test_too_few_photos_say_nothing(
        self, calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = Run.open(calibrated)
        few = subset(crossfit.open_manifest(run.recipe), 10, 0, by_class=True)
        assert crossfit.looks(few, 0) is None and "18 labelled training photos" in capsys.readouterr().err
        held_out = two_folds(run)
        made = calibrate(held_out)
        assert made.known is None and made.unknown_above is None
        shutil.copytree(calibrated, tmp_path / "run")
        Run.open(tmp_path / "run").write_calibration(made)
        predictor = open_predictor(tmp_path / "run")
        (said,) = predictor([picture(0)])
        assert said.unknown is None and said.unsure is not None
        assert "It never says" in card(Run.open(tmp_path / "run"), [], predictor.spec)

    def test_a_broken_one_in_a_run_is_said(self, calibrated: Path, tmp_path: Path) -> None:
        shutil.copytree(calibrated, tmp_path / "run")
        path = tmp_path / "run" / "calibration.json"
        said = files.read_json(path)
        files.write_json(path, {**said, "known": ["AAAA", "AAAA", 3]})
        with pytest.raises(InputError, match="is no calibration"):
            open_predictor(tmp_path / "run")

    def test_numbers_have_it_too(self, tiny_numbers: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
        run = train.fit(parse(tiny_numbers(), "test"), tmp_path / "run")
        held_out = two_folds(run)._replace(known=crossfit.looks(crossfit.open_manifest(run.recipe), 0))
        run.write_calibration(calibrate(held_out, run.recipe.task.scale))
        judge.judge([run.folder], None, "test", None, None)
        counts = Refusals(**files.read_json(run.folder / "report_test.json")["refusals"])
        assert (counts.plants, counts.others) == (24, 8) and counts.others_refused >= 7 and counts.plants_refused <= 3
        assert str(counts) in (run.folder / "report.html").read_text()
        assert str(counts) in card(run, [], open_predictor(run.folder).spec)


PHOTOGRAPHS = (
    *("astronaut", "brick", "cell", "chelsea", "clock_motion", "coffee", "coins", "gravel", "hubble_deep_field", "ihc"),
    *("moon", "motorcycle_left", "page", "retina", "rocket", "text"),
)
"""Of scikit-image's package data, those that show no plant and are no drawings."""


def crops(photo: Image, seed: int, count: int = 8) -> list[Image]:
    """The whole, its middle, and squares of 40 to 90 % of its shorter side."""
    rng, (height, width) = np.random.default_rng(seed), photo.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    made = [photo, photo[top : top + side, left : left + side]]
    while len(made) < count:
        own = int(side * rng.uniform(0.4, 0.9))
        y, x = int(rng.integers(0, height - own + 1)), int(rng.integers(0, width - own + 1))
        made.append(photo[y : y + own, x : x + own])
    return made


@pytest.fixture(scope="module")
def photographs() -> dict[str, list[Image]]:
    """Crops of photographs of no plant, by their source."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        absent("there is no scikit-image: pip install 'agrikd[dev]'")
    folder = Path(found.origin).parent / "data"
    paths = [path for name in PHOTOGRAPHS for path in (folder / f"{name}.png", folder / f"{name}.jpg") if path.exists()]
    return {path.stem: crops(image.read(path), number) for number, path in enumerate(paths)}


def made_up() -> dict[str, list[Image]]:
    rng = np.random.default_rng(0)
    text = np.full((256, 256, 3), 245, np.uint8)
    for y in range(20, 256, 22):
        cv2.putText(text, "abc defgh ijk lmnop 0123", (4, y), 0, 0.6, (30, 30, 30), 1, cv2.LINE_AA)
    green = np.clip(np.array([90, 120, 60]) + rng.normal(0, 30, (256, 256, 3)), 0, 255).astype(np.uint8)
    return {
        "noise": [rng.integers(0, 256, (256, 256, 3), dtype=np.uint8), green],
        "black": [np.zeros((256, 256, 3), np.uint8), np.full((256, 256, 3), 255, np.uint8)],
        "text": [text],
    }


REAL = {"coffee-leaf": "cls-coffee-leaf", "plantvillage-mini": "cls-plantvillage-mini"}


@pytest.mark.parametrize("name", REAL)
def test_photographs_of_no_plant_are_refused_and_leaves_are_not(
    name: str,
    datasets: Path,
    photographs: dict[str, list[Image]],
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Taught with 20 photos a class, as the study in models/LOG.md: its claim, on photos that it never saw."""
    leaves = {one: manifest.read(MANIFESTS / f"{one}.csv", datasets / folder) for one, folder in REAL.items()}
    looks = crossfit.looks(subset(leaves[name], 20, 0, by_class=True), 0)
    assert looks is not None
    limit = np.sort(looks.held_out)[math.ceil(0.95 * (len(looks.held_out) + 1)) - 1]

    def refused(pictures: list[Image]) -> tuple[int, int]:
        assert looks is not None
        return int((known.strangeness(looks.known, pictures) > limit).sum()), len(pictures)

    held_out = {one: [photos.photo(row) for row in photos.indices("test")] for one, photos in leaves.items()}
    counts = {source: refused(made) for source, made in photographs.items()}
    others = {what: refused(made) for what, made in (*made_up().items(), *held_out.items())}
    for what, (k, n) in {**counts, **others}.items():
        record_property(what, f"{k} of {n}")
    with capsys.disabled():
        print(f"\n{name}, refused: {counts}\n    {others}")
    hits, shown = (sum(column) for column in zip(*counts.values(), strict=True))
    assert shown >= 100 and len(counts) >= 12
    assert hits >= 0.9 * shown
    k, n = others[name]
    assert n >= 100 and k <= 0.05 * n
