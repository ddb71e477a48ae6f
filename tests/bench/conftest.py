"""How a benchmark measures: one thread, contenders in turns, medians; the machine is named beside the figures."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Race:
    """Seconds of each contender's turns: CPU seconds of this process, and by the clock.

    Ratios are of CPU seconds: on a loaded machine the clock measures the others, and with one thread and files in
    the page cache the two agree on an idle one.
    """

    cpu_s: dict[str, list[float]]
    clock_s: dict[str, list[float]]
    items: int

    @classmethod
    def run(cls, contenders: Mapping[str, Callable[[], object]], items: int, turns: int) -> Race:
        """Each contender takes a turn, `turns` times over, after one that is not counted; a turn handles `items`.

        One that works in a process of its own returns that process's (CPU seconds, seconds by the clock).
        """
        race = cls({name: [] for name in contenders}, {name: [] for name in contenders}, items)
        for turn in range(turns + 1):
            for name, contender in contenders.items():
                cpu, clock = time.process_time(), time.perf_counter()
                said = contender()
                here = time.process_time() - cpu, time.perf_counter() - clock
                cpu_s, clock_s = said if isinstance(said, tuple) else here
                if turn:
                    race.cpu_s[name].append(cpu_s)
                    race.clock_s[name].append(clock_s)
        return race

    def rate(self, name: str) -> float:
        """Items a CPU second, by the median turn."""
        return self.items / statistics.median(self.cpu_s[name])

    def ratio(self, name: str, against: str) -> float:
        """How many times as fast as `against`: the median over the turns, each set beside the one next to it."""
        pairs = zip(self.cpu_s[against], self.cpu_s[name], strict=True)
        return statistics.median(other / own for other, own in pairs)

    def show(self, title: str, unit: str, against: str) -> None:
        """One table: rates, their spread over the turns, and each rate beside that of `against`."""
        print(f"\n{title}\n{machine()}")
        print(f"{'':34}{unit + '/CPU s':>16}{'quartiles':>18}{unit + '/s by clock':>22}{'ratio':>8}")
        for name, seconds in self.cpu_s.items():
            low, _, high = statistics.quantiles(seconds, n=4)
            quartiles = f"{self.items / high:.1f} to {self.items / low:.1f}"
            clock = self.items / statistics.median(self.clock_s[name])
            figures = f"{self.rate(name):16.1f}{quartiles:>18}{clock:22.1f}{self.ratio(name, against):8.2f}"
            print(f"{name:34}{figures}")


def machine() -> str:
    """The processor, the cores, the load, the versions and the threads in use."""
    import cv2
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    threads = f"{torch.get_num_threads()} torch thread, {cv2.getNumThreads()} OpenCV thread"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, OpenCV {cv2.__version__}"
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {load}; {versions}; {threads}"


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """One thread for torch and one for OpenCV."""
    import cv2
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


@pytest.fixture
def race(one_thread: None) -> Callable[[Mapping[str, Callable[[], object]], int, int], Race]:
    """`Race.run` with one thread for torch and one for OpenCV."""
    return Race.run


@pytest.fixture(scope="session")
def pair(
    datasets: Path, weights: Path, one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Any]]:
    """Makes a raw recipe over a hundred labelled coffee leaves, 10 views each: lite2 at 224 px, its classifier taught
    once and for all by a probe, teaches a small student at 112 px. Keyword arguments replace its top-level keys.
    """
    from agrikd import jobs, recipe
    from agrikd.data import manifest as manifests
    from agrikd.teach import teach

    folder = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGRIKD_DATA", str(datasets))
        raw = recipe.read_mapping(ROOT / "models/recipes/coffee-leaf-20.yaml")
        patch.setenv("AGRIKD_CACHE", str(folder / "cache"))  # what teaching stores must not help the contenders
        labelled = jobs.open_manifest(recipe.parse(raw, "pair"))
        rows = tuple(row for row in labelled.rows if row.target is not None)  # without the pool
        manifests.write(replace(labelled, rows=rows), folder / "hundred.csv")
        data = {"manifest": str(folder / "hundred.csv"), "root": str(labelled.root), "views": 10}
        file, half = str(weights / "tf_efficientnet_lite2.in1k.safetensors"), (0.5, 0.5, 0.5)
        lite2 = {"timm": "tf_efficientnet_lite2", "weights": file, "input_size": 224, "mean": half, "std": half}
        teaching = {"stages": ["probe"], "folds": 2}
        taught = teach(
            recipe.parse({**raw, "data": data, "teachers": [lite2], "teach": teaching}, "pair"), folder / "t"
        )

    def made(**changes: Any) -> dict[str, Any]:
        return {**raw, "data": data, "teachers": [{"run": str(taught.folder)}], **changes}

    return made
