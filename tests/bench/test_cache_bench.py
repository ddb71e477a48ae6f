"""What a stored teacher saves: fifteen runs that replay its answers, beside the same with the teacher run live."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from agrikd import jobs, train
from agrikd.nets.cached import replay
from agrikd.recipe import Recipe, parse
from agrikd.run import Run

pytestmark = pytest.mark.bench

STEPS = int(os.environ.get("AGRIKD_BENCH_STEPS", "60"))
METHODS = ("kd", "dkd", "logit_std")
SEEDS = range(5)
LIVE_SEED = 2
"""In the middle of its method's seeds, so that live and replayed runs meet the same neighbours on the machine."""


def recipe(pair: Callable[..., dict[str, Any]], method: str, seed: int) -> Recipe:
    optim = {"steps": STEPS, "batch": 32}
    return parse(pair(name=f"{method}-{seed}", method={"name": method}, seed=seed, optim=optim), "bench")


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """(by the clock, CPU seconds of all threads)"""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def summed(spent: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(clock for clock, _ in spent), sum(cpu for _, cpu in spent)


def test_fifteen_runs_cost_at_most_0_4_of_live_ones(
    pair: Callable[..., dict[str, Any]], one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three methods by five seeds, each a whole `fit` with its gate, its checkpoints and its stored examples.

    Replayed: all fifteen, and before them decoding the photos and filling the store from an empty cache. Live: one
    run of each method, counted five times (fifteen would take a quarter of an hour); it finds the photos decoded.
    """
    monkeypatch.setenv("AGRIKD_CACHE", str(tmp_path / "cache"))
    job = jobs.prepare(recipe(pair, METHODS[0], SEEDS[0]))
    rows, views = job.sampler.labelled, job.recipe.data.views or 0
    assert (len(rows), views) == (100, 10)
    decoding = seconds(job.loader.cache.fill)
    filling = seconds(lambda: replay(job.distiller.teachers[0], job.loader, views, rows))
    replayed, live = [], []
    for method, seed in itertools.product(METHODS, SEEDS):
        own, out = recipe(pair, method, seed), tmp_path / f"{method}-{seed}"
        replayed.append(seconds(lambda own=own, out=out: train.fit(own, out)))
        if seed == LIVE_SEED:
            with monkeypatch.context() as patch:
                patch.setattr(train, "_replayed", lambda job, *check: job.distiller)
                live.append(seconds(lambda own=own, out=out: train.fit(own, out.with_suffix(".live"))))
            assert_same_work(out, out.with_suffix(".live"))
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 1  # all runs share the store
    paid = summed([decoding, filling, *replayed])
    full = [len(SEEDS) * spent for spent in summed(live)]
    ratio, cpu_ratio = (ours / theirs for ours, theirs in zip(paid, full, strict=True))
    threads = f"{torch.get_num_threads()} torch thread, {cv2.getNumThreads()} OpenCV thread, 1 loader thread"
    print(f"\n15 runs of {STEPS} steps of 32 over {len(rows)} photos x {views} views, {threads}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; 3 live runs were timed and count five times each")
    print(f"{'':34}{'s by clock':>12}{'CPU s':>12}")
    each = {
        "decoding the photos, once": decoding,
        "filling the store, once": filling,
        "a replayed run (median of 15)": tuple(map(statistics.median, zip(*replayed, strict=True))),
        "a live run (median of 3)": tuple(map(statistics.median, zip(*live, strict=True))),
        "15 replayed, all told": paid,
        "15 live": full,
    }
    for name, (clock, cpu) in each.items():
        print(f"{name:34}{clock:12.1f}{cpu:12.1f}")
    print(f"{'ratio':34}{ratio:12.3f}{cpu_ratio:12.3f}")
    assert ratio <= 0.4


def assert_same_work(replayed: Path, live: Path) -> None:
    """The first mean losses agree but for the store's float16."""
    first = [Run.open(folder).history()[0]["loss"] for folder in (replayed, live)]
    assert first[0] == pytest.approx(first[1], rel=2e-2)
