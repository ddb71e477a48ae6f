"""Stored answers are the live ones, and whatever was killed, cut or changed, only what must be is computed again.

Run as a program, this file is a parent of writers: it forks one for each line of its input (see `Writers`).
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pytest
import timm
import torch
import yaml
from torch import Tensor, nn
from typer.testing import CliRunner

from agrikd import console, files, image, train
from agrikd.cli import app
from agrikd.data.augment import CLEAN, Augment, Strength
from agrikd.data.loader import Loader, PixelCache
from agrikd.data.manifest import Manifest, Row
from agrikd.errors import AgriKDError, InputError, StorageError
from agrikd.nets import cached, store
from agrikd.nets._base import Net, Origin, Outputs
from agrikd.nets.cached import CachedTeacher, FeatureStore
from agrikd.nets.from_timm import TimmNet, create
from agrikd.recipe import NetSpec, parse
from agrikd.types import Image

ROWS, VIEWS, RECORD = 12, 3, 40
ALL = range(ROWS)


class Linear(Net):
    """Logits from 2 × 2 mean colours: a net that costs nothing. `answered` counts the views it was shown."""

    def __init__(self, seed: int = 0, classes: int = 10) -> None:
        super().__init__((8, 8), (0.5,) * 3, (0.5,) * 3, Origin("test", True))
        torch.manual_seed(seed)
        self.layer = nn.Linear(12, classes)
        self.answered: list[int] = []

    def answer(self, images: Tensor, stages: int) -> Outputs:
        self.answered.append(len(images))
        pooled = nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        return Outputs(self.layer(pooled), pooled)


def timm_net(seed: int = 0, name: str = "test_efficientnet", classes: int = 3) -> TimmNet:
    torch.manual_seed(seed)
    spec = NetSpec(timm=name, input_size=(32, 32))
    return TimmNet(create(spec, classes), spec, Origin("random", head_trained=False))


def photo(folder: Path, number: int, seed: int) -> Row:
    pixels = np.random.default_rng((seed, number)).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    path = folder / f"{number}.jpg"
    image.write_jpeg(path, pixels)
    return Row(path.name, "leaf", "train", sha256=files.sha256(path.read_bytes()))


def photos(folder: Path, numbers: range = ALL) -> Manifest:
    folder.mkdir(exist_ok=True)
    return Manifest(tuple(photo(folder, number, 0) for number in numbers), folder)


def opened(manifest: Manifest, strength: Strength = "field", side: int = 16) -> Loader:
    cache = PixelCache(manifest, (side, side), "stretch", 100)
    none = torch.zeros(len(manifest.rows))
    return Loader(manifest, cache, Augment(strength, (side, side)), none, none.bool())


def logits_store(manifest: Manifest, net: Net | None = None, views: int = VIEWS) -> FeatureStore:
    return FeatureStore(net or Linear(), opened(manifest), views, kind="logits")


def require_right(stored: FeatureStore, rows: range = ALL) -> None:
    """Every view of every row is what the net says of it now, but for float16's last bit."""
    compared = 0
    for row in rows:
        batch = stored.loader.batch([(row, view) for view in (CLEAN, *range(stored.views))])
        with torch.inference_mode():
            live = stored._values(stored.net.on(batch, stored.stages))
        found = stored(batch.index, batch.view)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, live, rtol=2**-10, atol=1e-4)
        compared += len(found)
    assert compared == len(rows) * (stored.views + 1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGRIKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(console, "say", lines.append)
    return lines


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return photos(tmp_path / "photos")


class TestValues:
    @pytest.mark.parametrize(
        ("make", "kind"), [(timm_net, "features"), (Linear, "logits"), (lambda: timm_net(0, "dla46_c"), "logits")]
    )
    def test_a_teacher_is_stored_by_what_leads_to_its_logits(
        self, make: Callable[[], Net], kind: str, manifest: Manifest
    ) -> None:
        net, loader = make(), opened(manifest, side=32)
        teacher = CachedTeacher(net, loader, VIEWS)
        assert teacher.store.kind == kind
        assert teacher.store.require(ALL) == ROWS
        require_right(teacher.store)
        batch = loader.batch([(row, view) for row in ALL for view in (CLEAN, *range(VIEWS))])
        with torch.inference_mode():
            live, replayed = net.on(batch), teacher.on(batch)
        torch.testing.assert_close(replayed.logits, live.logits, rtol=2e-3, atol=1e-3)
        assert replayed.logits.shape == (ROWS * (VIEWS + 1), live.logits.shape[1])
        assert replayed.embedding.shape[1] == (live.embedding.shape[1] if kind == "features" else 0)

    def test_channels_of_feature_maps_beside_the_features(self, manifest: Manifest) -> None:
        stored = FeatureStore(timm_net(), opened(manifest), 0, stages=2)
        assert stored.require(ALL) == ROWS
        require_right(stored)

    def test_features_of_a_net_whose_head_is_not_linear(self, manifest: Manifest) -> None:
        with pytest.raises(InputError, match="does more than map the pooled features"):
            FeatureStore(timm_net(0, "dla46_c"), opened(manifest), VIEWS)

    def test_heads_of_one_backbone_share_a_store(self, manifest: Manifest, cache: Path) -> None:
        one, other = timm_net(), timm_net(classes=7)
        other.model.load_state_dict({k: v for k, v in one.model.state_dict().items() if k[:10] != "classifier"}, False)
        assert CachedTeacher(one, opened(manifest), VIEWS).store.require(ALL) == ROWS
        assert CachedTeacher(other, opened(manifest), VIEWS).store.require(ALL) == 0
        assert len(list(cache.iterdir())) == 1

    def test_only_what_was_required_is_answered(self, manifest: Manifest) -> None:
        stored = logits_store(manifest)
        stored.require([0])
        with pytest.raises(ValueError, match="not required"):
            stored(torch.tensor([0, 1]), torch.tensor([0, 0]))
        with pytest.raises(ValueError, match="view seed 3"):
            stored(torch.tensor([0]), torch.tensor([3]))
        with pytest.raises(ValueError, match="no feature maps"):
            CachedTeacher(Linear(), opened(manifest), VIEWS).on(stored.loader.batch([(0, 0)]), stages=1)

    def test_a_photo_that_stands_twice_is_computed_once(self, manifest: Manifest) -> None:
        twice = Manifest((*manifest.rows, manifest.rows[0]), manifest.root)
        stored = logits_store(twice)
        assert stored.require(range(ROWS + 1)) == ROWS
        require_right(stored, range(ROWS + 1))

    def test_more_views_than_fit_a_batch(self, manifest: Manifest) -> None:
        net = Linear()
        stored = logits_store(manifest, net, views=150)
        net.answered.clear()
        assert stored.require([0, 1]) == 2
        assert net.answered == [64, 64, 23] * 2
        require_right(stored, range(2))

    def test_a_thousand_photos_are_less_than_five_megabytes(self, tmp_path: Path) -> None:
        class Painted(Loader):
            def pixels(self, index: int, view: int) -> Image:
                return np.full((8, 8, 3), (7 * index + view) % 256, np.uint8)

        rows = tuple(Row(f"{n}.jpg", "leaf", "train", sha256=files.sha256(b"%d" % n)) for n in range(1000))
        drawn = Manifest(rows, tmp_path)
        none = torch.zeros(1000)
        pixels = PixelCache(drawn, (8, 8), "stretch", 0)
        loader = Painted(drawn, pixels, Augment("none", (8, 8)), none, none.bool())
        stored = FeatureStore(Linear(), loader, 50, kind="logits")
        assert stored.require(range(1000)) == 1000
        assert stored(torch.arange(1000), torch.arange(1000) % 50).shape == (1000, 10)
        kept = [path for path in stored.disk.path.parent.iterdir() if path.is_file()]
        assert {path.name for path in kept} == {"key.json", "values.f16", "rows", "lock"}
        assert stored.disk.path.stat().st_size == 1000 * 51 * 10 * 2
        assert sum(512 * path.stat().st_blocks for path in kept) < 5_000_000

    @pytest.mark.parametrize("value", [float("nan"), 1e6])
    def test_an_answer_beyond_float16_is_refused(self, manifest: Manifest, value: float) -> None:
        net = Linear()
        with torch.no_grad():
            net.layer.bias[0] = value
        with pytest.raises(InputError, match=r"0\.jpg: the net's answer holds numbers beyond ±65504"):
            logits_store(manifest, net).require(ALL)

    def test_values_that_no_disk_holds(self, manifest: Manifest) -> None:
        with pytest.raises(StorageError, match=r"too large[^→]*→ ask for less, as with fewer data\.views"):
            logits_store(manifest, views=10**12).require(ALL)


class TestChanges:
    def test_a_new_season_computes_what_is_new(self, tmp_path: Path, said: list[str]) -> None:
        first = photos(tmp_path / "photos")
        logits_store(first).require(ALL)
        more = photos(tmp_path / "photos", range(ROWS + 3))
        order = np.random.default_rng(0).permutation(ROWS + 3)
        season = Manifest(tuple(more.rows[place] for place in order), more.root)
        stored = logits_store(season)
        assert stored.require(range(ROWS + 3)) == 3
        require_right(stored, range(ROWS + 3))
        assert not said

    @pytest.mark.parametrize("hashed", [True, False])
    def test_a_changed_photo_is_the_only_one_computed(self, manifest: Manifest, hashed: bool, said: list[str]) -> None:
        def known(rows: tuple[Row, ...]) -> Manifest:
            return Manifest(rows if hashed else tuple(replace(row, sha256="") for row in rows), manifest.root)

        logits_store(known(manifest.rows)).require(ALL)
        rows = list(manifest.rows)
        rows[5] = photo(manifest.root, 5, seed=1)
        net = Linear()
        stored = logits_store(known(tuple(rows)), net)
        net.answered.clear()
        assert stored.require(ALL) == 1
        assert sum(net.answered) == VIEWS + 1
        require_right(stored)
        assert not said

    def test_photos_without_sha256_are_told_apart_by_the_seeds_of_their_views(self, manifest: Manifest) -> None:
        above = Manifest(tuple(replace(row, sha256="") for row in manifest.rows), manifest.root)
        paths = tuple(replace(row, path=f"{manifest.root.name}/{row.path}") for row in above.rows)
        below = Manifest(paths, manifest.root.parent)
        assert [above.identity(row) for row in ALL] == [below.identity(row) for row in ALL]
        logits_store(above).require(ALL)
        stored = logits_store(below)
        assert stored.require(ALL) == ROWS, "the views' seeds come from the path"
        require_right(stored)

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            ("seed", "the weights differ from those"),
            ("views", r"the views \(3, now 4\) differ from those"),
            ("strength", r"the view's strength \(field, now light\) and view's steps differ from those"),
            ("mean", "the mean differs from that"),
            (torch, r"the torch version \(.*, now 9\.9\) differs from that"),
            (timm, r"the timm version \(.*, now 9\.9\) differs from that"),
            (albumentations, r"the albumentations version \(2\.0\.8, now 9\.9\) differs from that"),
            (image.opencv(), r"the opencv version \(.*, now 9\.9\) differs from that"),
        ],
    )
    def test_what_changes_every_value_is_named(
        self, change: Any, part: str, manifest: Manifest, said: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loader = opened(manifest)
        FeatureStore(Linear(), loader, VIEWS, kind="logits").require(ALL)
        assert not said
        with monkeypatch.context() as patched:
            if not isinstance(change, str):
                patched.setattr(change, "__version__", "9.9")
            net = Linear(int(change == "seed"))
            net.mean += 0.1 * (change == "mean")
            strength: Strength = "light" if change == "strength" else "field"
            changed = FeatureStore(net, opened(manifest, strength), VIEWS + (change == "views"), kind="logits")
            assert changed.require(ALL) == ROWS
            require_right(changed)
        assert len(said) == 1
        assert re.fullmatch(f"teacher logits: {part} of an earlier store; computed anew", said[0]), said
        assert FeatureStore(Linear(), loader, VIEWS, kind="logits").require(ALL) == 0, "the earlier store stands"

    def test_stores_that_differ_in_much_are_not_spoken_of(self, manifest: Manifest, said: list[str]) -> None:
        logits_store(manifest).require([0])
        FeatureStore(timm_net(), opened(manifest, "light"), VIEWS + 1).require([0])
        assert not said

    def test_a_nets_inner_settings_are_part_of_the_key(self, manifest: Manifest, cache: Path) -> None:
        class Both(Net):
            def __init__(self, temperature: float, side: int) -> None:
                super().__init__((8, 8), (0.5,) * 3, (0.5,) * 3, Origin("test", True))
                self.temperature, self.one = temperature, Linear()
                self.one.input_size = (side, side)

        made = {json.dumps(cached._settings(Both(*own))) for own in [(1.0, 8), (2.0, 8), (1.0, 4), (1.0, 8)]}
        assert len(made) == 3

    def test_a_folder_of_another_key_is_refused(self, manifest: Manifest) -> None:
        stored = logits_store(manifest)
        stored.require(ALL)
        path = stored.disk.path.with_name("key.json")
        key = files.read_json(path)
        assert {"weights", "torch version", "views", "view's strength", "mean"} <= key.keys()
        refused = 0
        for part in key:
            path.write_text(json.dumps({**key, part: "other"}))
            with pytest.raises(StorageError) as caught:
                logits_store(manifest)
            words = str(caught.value)
            assert f"is of another {part}" in words and f"delete the folder {path.parent}" in words
            refused += 1
        assert refused == len(key) >= 15
        for text in ("{", "[]"):
            path.write_text(text)
            with pytest.raises(StorageError, match="delete the folder"):
                logits_store(manifest)
        path.write_text(json.dumps(key))
        assert logits_store(manifest).require(ALL) == 0


class TestDamage:
    """Bytes that changed after they were written."""

    @pytest.fixture
    def whole(self, manifest: Manifest) -> Path:
        stored = logits_store(manifest)
        assert stored.require(ALL) == ROWS
        return stored.disk.path.parent

    def spoilt(self, whole: Path, name: str, spoil: Callable[[Path], None], keep: Path) -> None:
        """Put the whole store back as it was kept, then spoil one of its files."""
        if not keep.exists():
            shutil.copytree(whole, keep)
        shutil.rmtree(whole)
        shutil.copytree(keep, whole)
        spoil(whole / name)

    def test_a_flipped_byte_costs_its_row(
        self, whole: Path, manifest: Manifest, tmp_path: Path, said: list[str]
    ) -> None:
        rng, flips = np.random.default_rng(0), 0

        def flip(path: Path) -> None:
            data = bytearray(path.read_bytes())
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            path.write_bytes(data)

        for name in 8 * ["values.f16", "rows"]:
            self.spoilt(whole, name, flip, tmp_path / "kept")
            stored = logits_store(manifest)
            assert stored.require(ALL) == 1
            require_right(stored)
            assert said == [f"teacher logits: 1 damaged row in {whole / name}; computed again"]
            said.clear()
            assert logits_store(manifest).require(ALL) == 0
            assert not said, "what was mended is not spoken of again"
            flips += 1
        assert flips == 16

    def test_a_cut_file_of_values_costs_what_was_cut(
        self, whole: Path, manifest: Manifest, tmp_path: Path, said: list[str]
    ) -> None:
        slot = (VIEWS + 1) * 10 * 2
        lengths = [0, 1, slot - 1, slot, *np.random.default_rng(1).integers(0, ROWS * slot, 8).tolist()]
        for length in lengths:
            self.spoilt(whole, "values.f16", lambda path, length=length: os.truncate(path, length), tmp_path / "kept")
            stored = logits_store(manifest)
            lost = ROWS - length // slot
            assert stored.require(ALL) == lost
            require_right(stored)
            assert len(said) == 1 and f": {lost} damaged row" in said[0] and str(whole / "values.f16") in said[0]
            said.clear()
            assert logits_store(manifest).require(ALL) == 0 and not said

    def test_a_cut_file_of_records_costs_what_was_cut(
        self, whole: Path, manifest: Manifest, tmp_path: Path, said: list[str]
    ) -> None:
        for length in [0, 1, RECORD - 1, RECORD, *np.random.default_rng(2).integers(0, ROWS * RECORD, 8).tolist()]:
            self.spoilt(whole, "rows", lambda path, length=length: os.truncate(path, length), tmp_path / "kept")
            stored = logits_store(manifest)
            assert stored.require(ALL) == ROWS - length // RECORD
            require_right(stored)
            assert (whole / "rows").stat().st_size == ROWS * RECORD and not said
            assert (whole / "values.f16").stat().st_size == ROWS * (VIEWS + 1) * 10 * 2

    @pytest.mark.parametrize("name", ["values.f16", "rows", "lock"])
    def test_a_lost_file(self, whole: Path, manifest: Manifest, name: str) -> None:
        (whole / name).unlink()
        stored = logits_store(manifest)
        assert stored.require(ALL) == (0 if name == "lock" else ROWS)
        require_right(stored)

    def test_a_writer_goes_on_where_the_records_were_cut_under_it(self, whole: Path, manifest: Manifest) -> None:
        more = photos(manifest.root, range(ROWS + 2))
        stored = logits_store(more)
        stored.require(ALL)
        os.truncate(whole / "rows", 3 * RECORD)
        assert stored.require([ROWS, ROWS + 1]) == 2
        again = logits_store(more)
        assert again.require(range(ROWS + 2)) == ROWS - 3
        require_right(again, range(ROWS + 2))


class TestCheck:
    def test_what_is_stored_is_what_is_said_now(self, manifest: Manifest, said: list[str]) -> None:
        net = timm_net()
        stored = FeatureStore(net, opened(manifest, side=32), VIEWS)
        stored.require(ALL)
        assert 0 < stored.check(seed=1, sample=5) < 0.01
        assert stored.check() < 0.01
        assert [line.partition(", ")[0] for line in said] == [
            "teacher features: 5 of 12 rows computed anew",
            "teacher features: 8 of 12 rows computed anew",
        ]

    @pytest.mark.parametrize("by", [0.02, 1.0])
    def test_rows_that_differ_are_named(self, manifest: Manifest, by: float) -> None:
        stored = logits_store(manifest)
        stored.require(ALL)
        forge(stored.disk.path.parent, [2, 7], by)
        again = logits_store(manifest)
        assert again.require(ALL) == 0, "the crc32 is right"
        with pytest.raises(AgriKDError, match=r"of 12 rows computed anew 2 differ, by up to .*: 2\.jpg, 7\.jpg\n") as e:
            again.check(sample=100)
        assert e.value.exit_code == 1 and f"delete the folder {stored.disk.path.parent}" in str(e.value)

    def test_the_verb(self, tiny: Callable[..., dict[str, Any]], tmp_path: Path, cache: Path) -> None:
        raw = replayed_recipe(tiny, steps=2)
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(raw))

        def distill(out: str, *words: str) -> Any:
            line = ["distill", tmp_path / "recipe.yaml", "--override-gate", "a test", "--out", tmp_path / out, *words]
            return CliRunner().invoke(app, [str(word) for word in line])

        first = distill("first", "--check-cache")
        assert first.exit_code == 0 and "teacher features: 8 of 42 rows computed anew, the same" in first.stderr
        (folder,) = cache.iterdir()
        forge(folder, range(42), 0.5)
        assert distill("trusting").exit_code == 0
        stopped = distill("stopped", "--check-cache")
        assert stopped.exit_code == 1
        assert "of 8 rows computed anew 8 differ" in stopped.stderr and "train_" in stopped.stderr
        assert not (tmp_path / "stopped" / "weights.safetensors").exists()
        nothing = distill("nothing", "--check-cache", "--hard-labels")
        assert nothing.exit_code == 0 and "nothing to check" in nothing.stderr


def forge(folder: Path, slots: Any, by: float) -> None:
    """Add `by` to the values of some slots, and make their records fit."""
    rows = bytearray((folder / "rows").read_bytes())
    values = np.fromfile(folder / "values.f16", np.float16).reshape(len(rows) // RECORD, -1)
    for slot in slots:
        values[slot] += np.float16(by)
        named = rows[slot * RECORD : slot * RECORD + 32] + struct.pack("<I", zlib.crc32(values[slot].tobytes()))
        rows[slot * RECORD : (slot + 1) * RECORD] = named + struct.pack("<I", zlib.crc32(named))
    values.tofile(folder / "values.f16")
    (folder / "rows").write_bytes(rows)


def replayed_recipe(tiny: Callable[..., dict[str, Any]], steps: int) -> dict[str, Any]:
    net = {"timm": "test_efficientnet", "input_size": 32}
    raw = tiny(student=net, teachers=[net], method={"name": "kd"}, gate={"override": "a test"})
    raw["optim"] = {"steps": steps, "batch": 8, "checkpoint_every": steps, "lr": 1e-4}
    return {**raw, "data": {**raw["data"], "unlabelled_share": 0.5, "views": VIEWS}}


def test_a_hundred_steps_lose_as_with_the_live_teacher(
    tiny: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse(replayed_recipe(tiny, steps=100), "test")
    losses: dict[str, list[float]] = {"live": [], "replayed": []}
    step, replayed = train._step, train._replayed
    for way, found in losses.items():

        def kept(state: Any, batch: Any, found: list[float] = found) -> Any:
            parts = step(state, batch)
            found.append(float(parts["loss"].detach()))
            return parts

        monkeypatch.setattr(train, "_step", kept)
        monkeypatch.setattr(train, "_replayed", replayed if way == "replayed" else lambda job, _: job.distiller)
        train.fit(recipe, tmp_path / way)
    assert len(losses["live"]) == len(losses["replayed"]) == 100
    apart = np.abs(np.subtract(losses["live"], losses["replayed"]))
    assert 0 < apart.max() < 1e-3


# Writers that are killed, and writers side by side.


class Writers:
    """Real processes that fill a store, forked by one that has torch loaded already.

    They write two rows at a time. A task: photos, cache: folders. kill_at: the number of the fsync call (one for the
    values, one for the records) at which the writer kills itself. cut: so many bytes of what it wrote last are lost
    before. limit_bytes: no file may be larger. together: so many writers, who all know what is missing before the
    first writes.
    """

    def __init__(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, __file__]
        self.parent = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def __call__(self, **task: Any) -> list[dict[str, Any]]:
        """What became of each writer: its signal, how many rows it computed and added, the error it met."""
        assert self.parent.stdin and self.parent.stdout
        self.parent.stdin.write(json.dumps(task) + "\n")
        self.parent.stdin.flush()
        results: list[dict[str, Any]] = json.loads(self.parent.stdout.readline())
        return results


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    made = Writers()
    yield made
    made.parent.communicate()
    assert made.parent.returncode == 0


def whole_records(kill_at: int, cut: int, asked: int = ROWS) -> int:
    """How many of its records stand when a writer is killed: each odd call syncs the values of two of the rows it
    was asked for, each even one their records."""
    return 2 * ((kill_at - 1) // 2) if kill_at % 2 else min(kill_at, asked) - -(-cut // RECORD)


def test_a_killed_writer_leaves_nothing_half_true(
    writers: Writers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    manifest = photos(tmp_path / "photos")
    rng = np.random.default_rng(3)
    points = rng.choice(np.arange(1, ROWS + 1), 10, replace=False).tolist()
    seen = []
    for number, kill_at in enumerate(points):
        cut = int(rng.integers(1, 2 * RECORD)) * (number % 2)
        cache = tmp_path / f"cache-{kill_at}"
        (done,) = writers(photos=str(manifest.root), cache=str(cache), kill_at=kill_at, cut=cut)
        assert done["signal"] == signal.SIGKILL
        monkeypatch.setenv("AGRIKD_CACHE", str(cache))
        net = Linear()
        stored = logits_store(manifest, net)
        net.answered.clear()
        missing = ROWS - whole_records(kill_at, cut)
        assert stored.require(ALL) == missing
        assert sum(net.answered) == missing * (VIEWS + 1)
        require_right(stored)
        assert logits_store(manifest).require(ALL) == 0
        assert stored.disk.rows_path.stat().st_size == ROWS * RECORD
        assert stored.disk.path.stat().st_size == ROWS * stored.disk.slot_bytes
        seen.append(missing)
    assert len(seen) == 10 and len(set(seen)) >= 6
    assert not said


def test_a_store_whose_writers_are_killed_again_and_again_is_filled(
    writers: Writers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = photos(tmp_path / "photos")
    rng, there, kills = np.random.default_rng(4), 0, 0
    task = {"photos": str(manifest.root), "cache": str(tmp_path / "cache")}
    while there < ROWS:
        kill_at, cut = int(rng.integers(1, 5)), int(rng.integers(0, 2 * RECORD))
        (done,) = writers(**task, kill_at=kill_at, cut=cut)
        if done["signal"]:
            kills += 1
            there += whole_records(kill_at, cut, ROWS - there)
        else:
            assert done == {"signal": 0, "computed": ROWS - there, "added": ROWS - there, "error": ""}
            there = ROWS
        stored = logits_store(manifest)
        assert len(stored.disk._slots) == there
    assert kills >= 5
    assert stored.require(ALL) == 0
    require_right(stored)


def test_two_writers_write_each_row_once(writers: Writers, tmp_path: Path) -> None:
    manifest = photos(tmp_path / "photos")
    done = writers(photos=str(manifest.root), cache=str(tmp_path / "cache"), together=2)
    assert [one["computed"] for one in done] == [ROWS, ROWS], "each knew of nothing when it began"
    assert sum(one["added"] for one in done) == ROWS
    stored = logits_store(manifest)
    assert stored.require(ALL) == 0
    require_right(stored)
    assert stored.disk.rows_path.stat().st_size == ROWS * RECORD
    assert stored.disk.path.stat().st_size == ROWS * stored.disk.slot_bytes


def test_a_disk_that_takes_no_more_is_an_error_that_keeps_what_was_written(writers: Writers, tmp_path: Path) -> None:
    manifest = photos(tmp_path / "photos")
    slot = (VIEWS + 1) * 10 * 2
    limit = 7 * slot + slot // 2
    (done,) = writers(photos=str(manifest.root), cache=str(tmp_path / "cache"), limit_bytes=limit)
    assert done["signal"] == 0 and done["added"] == 6
    assert "values.f16: the file would be too large for this disk" in done["error"]
    stored = logits_store(manifest)
    assert stored.require(ALL) == ROWS - 6
    require_right(stored)


def _fork_writers() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        together, results = int(task.get("together", 1)), []
        ready, go = os.pipe(), os.pipe()
        children = []
        for number in range(together):
            report = Path(task["cache"] + f".{number}.json")
            if not (pid := os.fork()):
                _write_rows(task, report, (ready[1], go[0]))
                os._exit(0)
            children.append((pid, report))
        if together > 1:
            os.read(ready[0], 1), os.read(ready[0], 1)
            os.write(go[1], b"x" * together)
        for pid, report in children:
            _, status = os.waitpid(pid, 0)
            said = json.loads(report.read_text()) if report.exists() else {}
            results.append({"signal": os.waitstatus_to_exitcode(status) * -1, **said})
            report.unlink(missing_ok=True)
        for end in (*ready, *go):
            os.close(end)
        print(json.dumps(results), flush=True)


def _write_rows(task: dict[str, Any], report: Path, barrier: tuple[int, int]) -> None:
    os.environ["AGRIKD_CACHE"], cached._BETWEEN_WRITES = task["cache"], 2 * (VIEWS + 1)
    stored = logits_store(photos_at(Path(task["photos"])))
    stored.loader.cache.fill()
    added, append, sync, calls = [], stored.disk.append, os.fsync, []

    def counted(rows: Any) -> int:
        added.append(append(rows))
        return added[-1]

    def killed(handle: int) -> None:
        calls.append(handle)
        if len(calls) == task.get("kill_at"):
            os.ftruncate(handle, os.fstat(handle).st_size - task["cut"])
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    def meet(slots: int) -> None:
        if "together" in task:
            os.write(barrier[0], b"x")
            os.read(barrier[1], 1)

    stored.disk.append, stored.disk.require_room = counted, meet  # type: ignore[method-assign]
    store.os.fsync = killed
    if limit := task.get("limit_bytes"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    error, computed = "", 0
    try:
        computed = stored.require(ALL)
    except StorageError as caught:
        error = str(caught)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    said = {"computed": computed, "added": sum(added), "error": error}
    report.write_text(json.dumps(said))


def photos_at(folder: Path) -> Manifest:
    paths = [folder / f"{number}.jpg" for number in ALL]
    rows = [Row(path.name, "leaf", "train", sha256=files.sha256(path.read_bytes())) for path in paths]
    return Manifest(tuple(rows), folder)


if __name__ == "__main__":
    _fork_writers()
    os._exit(0)
