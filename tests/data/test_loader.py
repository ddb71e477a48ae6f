"""Batches: the same (seed, step) shows the same rows and the same pixels, in any process and by any worker."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agrikd import files, image
from agrikd.data.augment import CLEAN, Augment, Strength, _transform, seed_of
from agrikd.data.loader import Batch, Loader, PixelCache, Sampler, Views
from agrikd.data.manifest import Manifest, Row
from agrikd.errors import InputError
from agrikd.types import Image

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
SIZE = (32, 32)
STRENGTHS: tuple[Strength, ...] = ("none", "light", "field")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGRIKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def photo(seed: int, height: int = 50, width: int = 70) -> Image:
    """A coarse random pattern, in which every turn and crop looks different."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return image.resize(coarse, (height, width))


def photographed(folder: Path, n: int = 6, *, hashed: bool = True) -> Manifest:
    rows = []
    for number in range(n):
        path = folder / f"{number}.jpg"
        image.write_jpeg(path, photo(number))
        known = files.sha256(path.read_bytes()) if hashed else ""
        rows.append(Row(path.name, "ab"[number % 2], "train", sha256=known))
    return Manifest(tuple(rows), folder)


def loader_of(manifest: Manifest, strength: Strength = "field", size: tuple[int, int] = SIZE, mb: int = 8) -> Loader:
    rows = len(manifest.rows)
    cache = PixelCache(manifest, size, "stretch", mb)
    return Loader(manifest, cache, Augment(strength, size), torch.arange(rows) % 2, torch.arange(rows) % 3 > 0)


def crop_alone(strength: Strength, size: tuple[int, int]) -> Any:
    """The first step of a view's transform."""
    return albumentations.Compose([_transform(strength, size).transforms[0]])


def fingerprint(pixels: Image) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def assert_equal(one: Batch, other: Batch) -> None:
    for name, value in vars(one).items():
        assert torch.equal(value, getattr(other, name)), name


class TestViews:
    @pytest.mark.parametrize("size", [(32, 32), (32, 48)])
    @pytest.mark.parametrize("strength", STRENGTHS)
    def test_a_view_depends_on_the_row_and_the_seed_alone(self, strength: Strength, size: tuple[int, int]) -> None:
        row, pixels = Row("a.jpg", "x", "train"), photo(0, size[0] * 5 // 4, size[1] * 5 // 4)
        first, second = Augment(strength, size), Augment(strength, size)
        found = [fingerprint(first(pixels, row, view)) for view in range(12)]
        shuffled = [7, 3, 3, 11, 0, 5, 9, 1, 2, 4, 6, 8, 10]
        again = {view: fingerprint(second(pixels, row, view)) for view in shuffled}
        assert [again[view] for view in range(12)] == found
        assert len(set(found)) == (1 if strength == "none" else 12)
        assert first(pixels, row, 3).shape == (*size, 3)
        assert first(pixels, row, 3).dtype == np.uint8

    @pytest.mark.parametrize("size", [(64, 64), (64, 128), (128, 48)])
    @pytest.mark.parametrize("strength", ["light", "field"])
    def test_crops_keep_the_shape_of_the_view_within_a_quarter(self, strength: Strength, size: tuple[int, int]) -> None:
        """Each pixel's red says its row and its green its column, so that a view says what it shows."""
        height, width = size[0] * 5 // 4, size[1] * 5 // 4
        down, across = np.linspace(0, 255, height), np.linspace(0, 255, width)
        pixels = np.dstack([*np.meshgrid(down, across, indexing="ij"), np.zeros((height, width))]).astype(np.uint8)
        augment = Augment(strength, size)
        crops = []
        for view in range(60):
            augment._local.transform = crop_alone(strength, size)
            shown = augment(pixels, Row("a.jpg", None, "train"), view).astype(int)
            crops.append((np.ptp(shown[..., 0]) / 255, np.ptp(shown[..., 1]) / 255))
        found = np.array(crops)
        area, stretch = found.prod(1), found[:, 1] / found[:, 0]
        least = {"light": 0.7, "field": 0.5}[strength]
        assert least - 0.05 < area.min() < least + 0.1
        assert area.max() > 0.9
        assert 0.75 < stretch.min() < 0.9
        assert 1.1 < stretch.max() < 1.33

    def test_global_random_numbers_are_neither_read_nor_moved(self) -> None:
        augment, row = Augment("field", SIZE), Row("a.jpg", "x", "train")
        found = []
        for seed in (1, 2):
            np.random.seed(seed)
            torch.manual_seed(seed)
            before = np.random.get_state()[1].copy()
            found.append(fingerprint(augment(photo(0), row, 5)))
            np.testing.assert_array_equal(before, np.random.get_state()[1])
        assert found[0] == found[1]

    def test_another_process_shows_the_same_pixels(self, tmp_path: Path) -> None:
        manifest = photographed(tmp_path, 3)
        loader = loader_of(manifest)
        found = fingerprint(np.stack([loader.pixels(row, view) for row in range(3) for view in (0, 1, CLEAN)]))
        names = [row.path for row in manifest.rows]
        code = (
            "import hashlib, sys\nimport numpy as np\nfrom pathlib import Path\n"
            "from agrikd import files, image\nfrom agrikd.data.augment import Augment\n"
            "from agrikd.data.manifest import Row\n"
            f"folder, size, slot = Path({str(tmp_path)!r}), {SIZE}, {loader.cache.slot}\n"
            "augment = Augment('field', size)\ntotal = []\n"
            f"for name in {names}:\n"
            "    data = (folder / name).read_bytes()\n"
            "    pixels = image.fit(image.decode(data, name), slot)\n"
            "    row = Row('elsewhere/' + name, None, 'test', sha256=files.sha256(data))\n"
            "    total += [augment(pixels, row, view) for view in (0, 1, -1)]\n"
            "print(hashlib.sha256(np.stack(total).tobytes()).hexdigest())\n"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert done.stdout.strip() == found

    def test_the_order_of_the_manifest_does_not_matter(self, tmp_path: Path) -> None:
        manifest = photographed(tmp_path)
        turned = replace(manifest, rows=manifest.rows[::-1])
        one, other = loader_of(manifest), loader_of(turned)
        for row, view in itertools.product(range(6), (0, 1, 9, CLEAN)):
            np.testing.assert_array_equal(one.pixels(row, view), other.pixels(5 - row, view))

    def test_a_seed_is_a_photos_own(self) -> None:
        rows = [Row("a.jpg", None, "train"), Row("b.jpg", None, "train"), Row("a.jpg", None, "train", sha256="s")]
        seeds = {seed_of(row, view) for row in rows for view in range(100)}
        assert len(seeds) == 300
        assert all(0 <= seed < 2**31 for seed in seeds)
        moved = replace(rows[2], path="elsewhere/a.jpg", split="test", target="x")
        assert seed_of(moved, 4) == seed_of(rows[2], 4)

    def test_a_clean_view_is_the_photo_itself(self, tmp_path: Path) -> None:
        manifest = photographed(tmp_path, 2)
        for strength in STRENGTHS:
            loader = loader_of(manifest, strength)
            whole = image.fit(image.read(tmp_path / "1.jpg"), loader.cache.slot)
            np.testing.assert_array_equal(loader.pixels(1, CLEAN), image.resize(whole, SIZE))
        assert not np.array_equal(loader.pixels(1, 0), loader.pixels(1, CLEAN))


class TestBatch:
    def test_shapes_types_and_ranges(self, tmp_path: Path) -> None:
        loader = loader_of(photographed(tmp_path), size=(32, 48))
        batch = loader.batch([(4, 0), (1, 7), (4, CLEAN)])
        assert (batch.images.shape, batch.images.dtype) == ((3, 3, 32, 48), torch.float32)
        assert 0 <= batch.images.min() < 0.2
        assert 0.8 < batch.images.max() <= 1
        assert batch.index.tolist() == [4, 1, 4]
        assert batch.view.tolist() == [0, 7, CLEAN]
        assert (batch.index.dtype, batch.view.dtype, batch.labelled.dtype) == (torch.int64, torch.int64, torch.bool)
        assert batch.target.tolist() == [0, 1, 0]
        assert batch.labelled.tolist() == [True, True, True]
        for place, (row, view) in enumerate([(4, 0), (1, 7), (4, CLEAN)]):
            expected = loader.pixels(row, view).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
            np.testing.assert_array_equal(batch.images[place].numpy(), expected)

    def test_targets_of_any_shape_follow_their_rows(self, tmp_path: Path) -> None:
        loader = loader_of(photographed(tmp_path))
        loader.target = torch.arange(12.0).reshape(6, 2)
        batch = loader.batch([(5, 0), (0, 0)])
        assert batch.target.tolist() == [[10, 11], [0, 1]]
        assert batch.labelled.tolist() == [True, False]

    def test_a_cpu_batch_stays_where_it_is(self, tmp_path: Path) -> None:
        batch = loader_of(photographed(tmp_path, 2)).batch([(0, 0)])
        assert batch.to(torch.device("cpu")) is batch

    def test_clean_batches_come_in_order(self, tmp_path: Path) -> None:
        loader = loader_of(photographed(tmp_path))
        batches = list(loader.clean([3, 0, 5, 1, 1], size=2))
        assert [batch.index.tolist() for batch in batches] == [[3, 0], [5, 1], [1]]
        assert {view for batch in batches for view in batch.view.tolist()} == {CLEAN}
        assert list(loader.clean([])) == []

    @pytest.mark.parametrize("workers", [0, 1, 3])
    def test_any_number_of_workers_yields_the_same_batches(self, tmp_path: Path, workers: int) -> None:
        loader = loader_of(photographed(tmp_path))
        sampler = Sampler((0, 2, 4), (1, 3, 5), 4, 0.5, None, seed=1)
        found = list(loader.ahead((sampler.draw(step) for step in range(9)), workers))
        assert len(found) == 9
        for step, batch in enumerate(found):
            assert_equal(batch, loader.batch(sampler.draw(step)))

    @pytest.mark.parametrize("workers", [1, 3])
    def test_workers_run_two_batches_ahead_each_and_no_more(self, tmp_path: Path, workers: int) -> None:
        drawn: list[int] = []

        def draws() -> Iterator[Views]:
            for step in itertools.count():
                drawn.append(step)
                yield [(0, step)]

        batches = loader_of(photographed(tmp_path, 1)).ahead(draws(), workers)
        for taken in range(1, 6):
            next(batches)
            assert len(drawn) == taken + 2 * workers
        batches.close()

    def test_a_workers_error_reaches_the_loop(self, tmp_path: Path) -> None:
        loader = loader_of(photographed(tmp_path))
        (tmp_path / "2.jpg").write_bytes(b"")
        with pytest.raises(InputError, match=r"2\.jpg"):
            list(loader.ahead(iter([[(0, 0)], [(2, 0)]]), 2))


class TestMixtures:
    def test_a_mixture_is_a_weighted_sum_of_two_views_of_the_same_seed(self, tmp_path: Path) -> None:
        manifest = photographed(tmp_path)
        plain = loader_of(manifest)
        mixing = Loader(manifest, plain.cache, plain.augment, plain.target, plain.labelled, (0, 1, 2))
        shares = []
        for row, view in itertools.product(range(6), range(8)):
            mixed, own = (one.pixels(row, view).astype(float).ravel() for one in (mixing, plain))
            fits = []
            for partner in (0, 1, 2):
                other = plain.pixels(partner, view).astype(float).ravel()
                apart = other - own
                share = float(apart @ (other - mixed) / (apart @ apart)) if apart.any() else 1.0
                fits.append((float(np.abs(share * own + (1 - share) * other - mixed).max()), share))
            error, share = min(fits)
            assert error <= 1.5
            shares.append(share)
        assert -0.01 < min(shares) < 0.2
        assert 0.8 < max(shares) < 1.01

    def test_a_mixture_has_no_label_and_a_clean_view_is_none(self, tmp_path: Path) -> None:
        manifest = photographed(tmp_path)
        plain = loader_of(manifest)
        mixing = Loader(manifest, plain.cache, plain.augment, plain.target, plain.labelled, tuple(range(6)))
        batch = mixing.batch([(1, 4), (1, CLEAN)])
        assert batch.labelled.tolist() == [False, True]
        assert torch.equal(batch.images[1], plain.batch([(1, CLEAN)]).images[0])
        assert_equal(batch, mixing.batch([(1, 4), (1, CLEAN)]))

    def test_the_definition_says_who_is_mixed_in(self, tmp_path: Path) -> None:
        manifest = photographed(tmp_path)
        plain = loader_of(manifest)
        made = [Loader(manifest, plain.cache, plain.augment, plain.target, plain.labelled, p) for p in ((), (0,), (1,))]
        assert len({files.digest(loader.definition) for loader in made}) == 3


class TestPixelCache:
    def test_photos_are_decoded_once(self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        manifest = photographed(tmp_path)
        decoded: Counter[str] = Counter()
        decode = image.decode

        def counted(data: bytes, where: str) -> Image:
            decoded[Path(where).name] += 1
            return decode(data, where)

        monkeypatch.setattr(image, "decode", counted)
        first = [loader_of(manifest).cache[index].copy() for index in range(6)]
        second = [loader_of(manifest).cache[index].copy() for index in range(6)]
        assert decoded == {row.path: 1 for row in manifest.rows}
        np.testing.assert_array_equal(first, second)
        (made,) = (cache / "pixels").iterdir()
        assert made.stat().st_size == 6 * 40 * 40 * 3

    def test_workers_that_come_together_decode_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        loader = loader_of(photographed(tmp_path))
        together, builds = threading.Barrier(3), []
        build, opened = PixelCache._build, PixelCache._open

        def met(cache: PixelCache) -> np.ndarray:
            together.wait(timeout=60)
            return opened(cache)

        def counted(cache: PixelCache) -> None:
            builds.append(1)
            build(cache)

        monkeypatch.setattr(PixelCache, "_open", met)
        monkeypatch.setattr(PixelCache, "_build", counted)
        assert len(list(loader.ahead(iter([[(row, 0)] for row in range(3)]), 3))) == 3
        assert len(builds) == 1

    def test_what_is_beyond_the_bound_is_decoded_and_looks_the_same(self, tmp_path: Path, cache: Path) -> None:
        side = 512  # a slot of 640 × 640 pixels takes 1.2 MB
        manifest = photographed(tmp_path, 4)
        caches = {mb: PixelCache(manifest, (side, side), "stretch", mb) for mb in (0, 1, 2, 4, 100)}
        assert [caches[mb].held for mb in caches] == [0, 0, 1, 3, 4]
        for index in range(4):
            expected = image.fit(image.read(manifest.file(index)), (640, 640))
            for held in caches.values():
                np.testing.assert_array_equal(held[index], expected)
        for made in (cache / "pixels").iterdir():
            assert made.stat().st_size in {n * 640 * 640 * 3 for n in (1, 3, 4)}
        assert len(list((cache / "pixels").iterdir())) == 3

    @pytest.mark.parametrize("mb", [8, 0])
    def test_a_changed_photo_is_refused_by_name(self, tmp_path: Path, cache: Path, mb: int) -> None:
        manifest = photographed(tmp_path)
        image.write_jpeg(tmp_path / "3.jpg", photo(99))
        with pytest.raises(InputError) as caught:
            loader_of(manifest, mb=mb).batch([(3, 0)])
        (problem,) = caught.value.problems
        assert problem.where == str(tmp_path / "3.jpg")
        assert "has changed since the manifest was made" in problem.wrong
        assert not list(cache.rglob("*.*"))

    def test_a_photo_replaced_where_no_sha256_is_known_is_read_anew(self, tmp_path: Path, cache: Path) -> None:
        manifest = photographed(tmp_path, 2, hashed=False)
        before = PixelCache(manifest, SIZE, "stretch", 64)[1].copy()
        image.write_jpeg(manifest.file(1), photo(77))
        after = PixelCache(manifest, SIZE, "stretch", 64)[1]
        assert not np.array_equal(before, after)
        np.testing.assert_array_equal(after, image.fit(manifest.photo(1), after.shape[:2], "stretch"))

    def test_all_broken_photos_are_named_and_nothing_is_kept(self, tmp_path: Path, cache: Path) -> None:
        manifest = photographed(tmp_path, hashed=False)
        (tmp_path / "1.jpg").write_bytes(b"")
        (tmp_path / "2.jpg").write_bytes((tmp_path / "2.jpg").read_bytes()[:400])
        (tmp_path / "4.jpg").unlink()
        with pytest.raises(InputError) as caught:
            loader_of(manifest).batch([(0, 0)])
        said = {Path(problem.where).name: problem.wrong for problem in caught.value.problems}
        assert said.keys() == {"1.jpg", "2.jpg", "4.jpg"}
        assert [said[name].split(":")[0] for name in said] == [
            "is empty (0 bytes)",
            "is cut short",
            "there is no such file",
        ]
        assert list((cache / "pixels").iterdir()) == []

    def test_the_key_changes_with_whatever_changes_the_pixels(self, tmp_path: Path) -> None:
        manifest = photographed(tmp_path)
        other = replace(manifest, rows=(replace(manifest.rows[0], sha256="0" * 64), *manifest.rows[1:]))
        elsewhere, bare = tmp_path / "elsewhere", tmp_path / "bare"
        keys = [
            PixelCache(manifest, (32, 32), "stretch", 8)._path,
            PixelCache(other, (32, 32), "stretch", 8)._path,
            PixelCache(replace(manifest, rows=manifest.rows[::-1]), (32, 32), "stretch", 8)._path,
            PixelCache(manifest, (32, 40), "stretch", 8)._path,
            PixelCache(manifest, (32, 32), "pad", 8)._path,
            *[
                PixelCache(Manifest((Row("a", None, "train"),), root), SIZE, "pad", 8)._path
                for root in (elsewhere, bare)
            ],
        ]
        assert len(set(keys)) == len(keys)
        assert PixelCache(replace(manifest, root=elsewhere), SIZE, "stretch", 8)._path == keys[0]

    def test_where_the_cache_is(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert files.cache_folder() == cache
        monkeypatch.delenv("AGRIKD_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
        assert files.cache_folder() == Path("/caches/agrikd")
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert files.cache_folder() == Path.home() / ".cache" / "agrikd"


samplers = st.builds(
    Sampler,
    labelled=st.integers(1, 40).map(lambda n: tuple(range(n))),
    unlabelled=st.integers(1, 40).map(lambda n: tuple(range(100, 100 + n))),
    batch=st.integers(2, 24),
    unlabelled_share=st.floats(0, 0.99),
    views=st.none() | st.integers(1, 5),
    seed=st.integers(0, 2**32),
)


class TestSampler:
    @QUICK
    @given(samplers, st.integers(0, 10_000))
    def test_a_draw_depends_on_seed_and_step_alone(self, sampler: Sampler, step: int) -> None:
        found = sampler.draw(step)
        fresh = replace(sampler)
        fresh.draw(step + 1)
        assert fresh.draw(step) == found
        assert len(found) == sampler.batch
        assert all(0 <= view < (sampler.views or 2**31) for _, view in found)

    @QUICK
    @given(samplers, st.integers(1, 30))
    def test_every_row_comes_equally_often(self, sampler: Sampler, steps: int) -> None:
        seen = Counter(row for step in range(steps) for row, _ in sampler.draw(step))
        for pool in (sampler.labelled, sampler.unlabelled):
            counts = [seen[row] for row in pool]
            assert max(counts) - min(counts) <= 1, "a row came again before all had come"

    @QUICK
    @given(samplers, st.integers(0, 1000))
    def test_the_unlabelled_share_is_kept_and_a_label_always_there(self, sampler: Sampler, step: int) -> None:
        rows = [row for row, _ in sampler.draw(step)]
        n = sum(row >= 100 for row in rows)
        assert n == min(round(sampler.batch * sampler.unlabelled_share), sampler.batch - 1)
        assert all(row < 100 for row in rows[: sampler.batch - n])
        assert n < sampler.batch

    def test_a_round_is_shuffled_anew(self) -> None:
        sampler = Sampler(tuple(range(20)), (), 20, 0, None, seed=0)
        rounds = [tuple(row for row, _ in sampler.draw(step)) for step in range(8)]
        assert len(set(rounds)) == 8
        assert all(sorted(order) == list(range(20)) for order in rounds)
        other = replace(sampler, seed=1)
        assert [row for row, _ in other.draw(0)] != list(rounds[0])

    def test_new_views_differ_and_counted_views_all_come(self) -> None:
        fresh = Sampler((0,), (), 32, 0, None, seed=0)
        assert len({view for step in range(10) for _, view in fresh.draw(step)}) == 320
        counted = replace(fresh, views=4)
        assert {view for step in range(10) for _, view in counted.draw(step)} == {0, 1, 2, 3}

    def test_the_rows_of_a_step_do_not_hang_on_the_number_of_views(self) -> None:
        sampler = Sampler(tuple(range(9)), tuple(range(100, 120)), 8, 0.5, None, seed=3)
        for step in range(5):
            rows = [row for row, _ in sampler.draw(step)]
            assert [row for row, _ in replace(sampler, views=2).draw(step)] == rows

    def test_golden(self) -> None:
        """A resumed run draws what the killed one would have drawn, in later versions too."""
        found = Sampler((0, 1, 2), (7, 8), 4, 0.25, 10, seed=5).draw(6)
        assert found == [(0, 5), (1, 9), (2, 2), (7, 6)]

    def test_no_labels_at_all(self) -> None:
        with pytest.raises(InputError, match="no row of train has a label"):
            Sampler((), (1,), 4, 0.5, None, 0)

    def test_a_share_of_nothing(self) -> None:
        with pytest.raises(InputError, match="no row of train lacks a label"):
            Sampler((1,), (), 4, 0.5, None, 0)
        assert Sampler((1,), (), 4, 0, None, 0).draw(0)
