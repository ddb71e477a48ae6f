"""The drawn dataset: the same pictures each time, a truth that agrees with the pixels, whole folders or none."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agrikd import image
from agrikd.data import manifest
from agrikd.data.leaf import DISEASES, Sample, Spec, draw
from agrikd.data.manifest import NOT_A_PLANT, Manifest
from agrikd.data.scenery import BACKGROUNDS, CAMERAS, OTHERS, SEASONS
from agrikd.data.synthetic import SyntheticConfig, plan, write_dataset
from agrikd.errors import InputError

SICK = [name for name in DISEASES if name != "healthy"]
SMALL = SyntheticConfig(
    seed=3,
    size=64,
    train_per_class=4,
    unlabelled=12,
    val_per_class=2,
    test_per_class=5,
    non_plant=3,
    seasons=("2025", "2026"),
    cameras=("phone", "field_camera"),
)
SPEC = Spec(seed=1, plant=7, photo=0, target="rust", severity_pct=8.0, size=128)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_dataset(tmp_path_factory.mktemp("drawn") / "set", SMALL)


def assert_truth_holds(sample: Sample, size: int) -> None:
    assert sample.image.shape == (size, size, 3)
    assert sample.image.dtype == np.uint8
    assert sample.image.flags.c_contiguous
    assert 0 <= sample.severity_pct <= 100
    boxed = np.zeros((size, size), bool)
    for left, top, right, bottom in sample.boxes:
        assert 0 <= left < right <= size
        assert 0 <= top < bottom <= size
        inside = np.s_[int(top) : int(bottom), int(left) : int(right)]
        assert sample.lesions[inside].any()
        boxed[inside] = True
    assert not (sample.lesions & ~sample.leaf).any(), "a lesion lies beside the leaf"
    assert not (sample.lesions & ~boxed).any(), "a lesion lies in no box"
    share = 100 * sample.lesions.sum() / max(sample.leaf.sum(), 1)
    assert sample.severity_pct == pytest.approx(share)
    if sample.target in SICK:
        assert sample.boxes
        assert sample.severity_pct > 0
    else:
        assert sample.boxes == ()
        assert sample.severity_pct == 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.builds(
        Spec,
        seed=st.integers(0, 2**32 - 1),
        plant=st.integers(0, 2**32 - 1),
        photo=st.integers(0, 2),
        target=st.sampled_from([*DISEASES, NOT_A_PLANT]),
        severity_pct=st.floats(0.5, 100),
        season=st.sampled_from(list(SEASONS)),
        camera=st.sampled_from(list(CAMERAS)),
        background=st.sampled_from(list(BACKGROUNDS)),
        size=st.integers(64, 160),
    )
)
def test_whatever_is_drawn_its_truth_agrees_with_its_pixels(spec: Spec) -> None:
    assert_truth_holds(draw(spec), spec.size)


@pytest.mark.parametrize("target", [*DISEASES, NOT_A_PLANT])
def test_a_spec_gives_the_same_pixels_and_another_spec_others(target: str) -> None:
    spec = replace(SPEC, target=target)
    first, again = draw(spec), draw(spec)
    assert np.array_equal(first.image, again.image)
    assert first.boxes == again.boxes
    others = [replace(spec, seed=2), replace(spec, plant=8), replace(spec, photo=1)]
    if target != NOT_A_PLANT:
        others.append(replace(spec, background="grass"))
    others += [replace(spec, season="2026"), replace(spec, camera="field_camera")]
    assert not any(np.array_equal(first.image, draw(other).image) for other in others)


def test_drawing_leaves_numpys_global_stream_alone() -> None:
    np.random.seed(5)
    before = np.random.get_state()[1].tobytes()  # type: ignore[union-attr]
    draw(SPEC)
    assert np.random.get_state()[1].tobytes() == before  # type: ignore[union-attr]


@pytest.mark.parametrize("target", SICK)
def test_the_severity_drawn_follows_the_severity_asked_for(target: str) -> None:
    for plant in range(3):
        drawn = [
            draw(replace(SPEC, target=target, plant=plant, size=192, severity_pct=asked)).severity_pct
            for asked in (1.0, 4.0, 12.0, 30.0)
        ]
        assert drawn == sorted(drawn)
        assert drawn[0] == pytest.approx(1, abs=0.8)
        assert drawn[3] == pytest.approx(30, abs=10)


def test_the_leaf_does_not_change_with_the_disease_asked_for() -> None:
    leaves = [draw(replace(SPEC, target=target)).leaf for target in DISEASES]
    assert all(np.array_equal(leaves[0], leaf) for leaf in leaves)


def test_a_leaf_fills_a_fair_share_of_its_picture() -> None:
    shares = [draw(replace(SPEC, plant=plant, size=64)).leaf.mean() for plant in range(40)]
    assert min(shares) > 0.1
    assert max(shares) < 0.85


def test_pictures_of_no_plant_come_in_every_kind() -> None:
    kinds = {draw(replace(SPEC, target=NOT_A_PLANT, plant=plant, size=64)).background for plant in range(60)}
    assert kinds == set(OTHERS)
    assert len(kinds) >= 5


def test_a_disease_nobody_draws_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mosaic.*expected one of healthy"):
        draw(replace(SPEC, target="mosaic"))


def test_the_splits_hold_what_the_config_asks_for(written: Manifest) -> None:
    counts = Counter((row.split, row.target) for row in written.rows)
    expected = {("train", None): 12, ("val", NOT_A_PLANT): 3, ("test", NOT_A_PLANT): 3}
    for name in DISEASES:
        expected |= {("train", name): 4, ("val", name): 2, ("test", name): 5}
    assert counts == expected


def test_a_plant_has_one_to_three_photos_in_one_split(written: Manifest) -> None:
    groups: dict[str, list[manifest.Row]] = {}
    for row in written.rows:
        groups.setdefault(row.group, []).append(row)
    assert {len(rows) for rows in groups.values()} == {1, 2, 3}
    for rows in groups.values():
        assert len({(row.split, row.target, row.season) for row in rows}) == 1


def test_the_folder_reads_back_and_says_what_it_is(written: Manifest) -> None:
    read = manifest.read(written.root / "manifest.csv")
    assert read.rows == written.rows
    assert read.digest == written.digest
    assert {row.source for row in read.rows} == {"synthetic"}
    manifest.require_files(read, "set")
    assert "No real plant" in (written.root / "README.txt").read_text()
    assert {path.name for path in written.root.iterdir()} == {
        "images",
        "manifest.csv",
        "truth.json",
        "README.txt",
    }


def test_the_truth_covers_every_row_and_unlabelled_ones_too(written: Manifest) -> None:
    truth = json.loads((written.root / "truth.json").read_text())
    assert list(truth) == [row.path for row in written.rows]
    hidden = Counter(truth[row.path]["class"] for row in written.rows if row.target is None)
    assert sum(hidden.values()) == 12
    assert set(hidden.values()) == {2, 3}
    for row in written.rows:
        told = truth[row.path]
        assert row.target in (None, told["class"])
        assert row.season == told["season"]
        assert bool(told["boxes"]) == (told["class"] in SICK) == (told["severity_pct"] > 0)
    assert {told["season"] for told in truth.values()} == set(SMALL.seasons)
    assert {told["camera"] for told in truth.values()} == set(SMALL.cameras)


def test_the_names_of_unlabelled_photos_do_not_tell_the_class(written: Manifest) -> None:
    for row in written.rows:
        if row.target is None:
            assert not any(name in row.path + row.group for name in DISEASES)


def test_a_file_holds_what_was_drawn(written: Manifest) -> None:
    shot = plan(SMALL)[0]
    kept = image.read(written.root / shot.path).astype(int)
    assert np.abs(kept - draw(shot.spec).image).mean() < 12


def test_the_same_config_gives_the_same_digest_and_another_seed_another(tmp_path: Path) -> None:
    tiny = replace(SMALL, train_per_class=1, unlabelled=0, val_per_class=0, test_per_class=0, non_plant=1)
    first, again = write_dataset(tmp_path / "a", tiny), write_dataset(tmp_path / "deep" / "b", tiny)
    assert first.digest == again.digest
    assert write_dataset(tmp_path / "c", replace(tiny, seed=4)).digest != first.digest


def test_more_training_pictures_leave_the_others_as_they_were() -> None:
    more = replace(SMALL, train_per_class=9, unlabelled=30)

    def specs(config: SyntheticConfig, stream: str) -> list[Spec]:
        return [shot.spec for shot in plan(config) if shot.group.startswith(stream)]

    for stream in ("val", "test"):
        assert specs(more, stream) == specs(SMALL, stream)
    assert {(s.plant, s.photo) for s in specs(SMALL, "train")} < {(s.plant, s.photo) for s in specs(more, "train")}


def test_no_two_pictures_of_a_plan_are_drawn_from_one_stream() -> None:
    shots = plan(SMALL)
    assert len({(shot.spec.plant, shot.spec.photo) for shot in shots}) == len(shots)
    assert len({shot.path for shot in shots}) == len(shots)


def test_fewer_classes_may_be_drawn(tmp_path: Path) -> None:
    config = SyntheticConfig(
        size=64,
        classes=("rust", "healthy"),
        train_per_class=1,
        unlabelled=3,
        val_per_class=1,
        test_per_class=1,
    )
    drawn = write_dataset(tmp_path / "two", replace(config, non_plant=0))
    assert drawn.classes == ("healthy", "rust")
    assert len(drawn.rows) == 9


def test_progress_counts_every_picture(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    config = replace(SMALL, train_per_class=0, unlabelled=4, val_per_class=0, test_per_class=0, non_plant=0)
    write_dataset(tmp_path / "set", config, lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("blow", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_writing_leaves_nothing(tmp_path: Path, blow: type[BaseException]) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise blow

    with pytest.raises(blow):
        write_dataset(tmp_path / "set", SMALL, stop)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled_and_a_full_one_refused(tmp_path: Path) -> None:
    config = replace(SMALL, train_per_class=1, unlabelled=0, val_per_class=0, test_per_class=0, non_plant=0)
    folder = tmp_path / "set"
    folder.mkdir()
    write_dataset(folder, config)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    with pytest.raises(InputError, match="not empty"):
        write_dataset(folder, config)
    assert len(manifest.read(folder / "manifest.csv").rows) == 5
    with pytest.raises(InputError, match="is a file"):
        write_dataset(folder / "README.txt", config)


def test_what_another_program_wrote_meanwhile_stays(tmp_path: Path) -> None:
    folder = tmp_path / "set"

    def intrude(done: int, total: int) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "manifest.csv").write_text("path,target,split\na.jpg,rust,train\n")

    config = replace(SMALL, train_per_class=1, unlabelled=0, val_per_class=0, test_per_class=0, non_plant=0)
    with pytest.raises(InputError, match="another program"):
        write_dataset(folder, config, intrude)
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "manifest.csv"]


def test_every_mistake_of_a_config_is_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        SyntheticConfig(
            seed=-1,
            size=63,
            classes=("rust", "rust", "mosaic"),
            train_per_class=-1,
            test_per_class=100_001,
            seasons=(),
            cameras=("drone",),
            backgrounds=("snow",),
        )
    said = [problem.where.removeprefix("synthetic.") for problem in caught.value.problems]
    expected = ["seed", "size", "train_per_class", "test_per_class"]
    assert said == [*expected, "classes", "classes", "seasons", "cameras", "backgrounds"]
    assert "'mosaic' is unknown" in str(caught.value)
    assert "expected some of healthy, rust" in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("size", 4097), ("size", 128.0), ("unlabelled", -1)])
def test_a_single_mistake_names_its_key(key: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"synthetic\.{key}: is {value}"):
        SyntheticConfig(**{key: value})  # type: ignore[arg-type]


def test_a_dataset_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="is 0, as is every other count"):
        SyntheticConfig(train_per_class=0, unlabelled=0, val_per_class=0, test_per_class=0, non_plant=0)
