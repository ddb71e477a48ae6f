"""Training steps a second beside a bare PyTorch loop on the same tensors, and the memory of a short `fit`."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from agrikd import distill
from agrikd.data.loader import Batch
from agrikd.nets.sources import open_net
from agrikd.recipe import NetSpec, OptimSpec
from agrikd.tasks.classification import Classification
from agrikd.train import TrainState, fit_epoch

pytestmark = pytest.mark.bench

NAME, SIDE, BATCH, STEPS = "mobilenetv3_small_050", 112, 32, 5
CLASSES = ("blight", "healthy", "leaf_spot", "mildew", "rust")


def random_batch() -> Batch:
    """Laid out as the loader's batches are: uint8 pixels, rows of RGB, made float."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (BATCH, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    target = torch.randint(0, len(CLASSES), (BATCH,), generator=generator)
    images = pixels.permute(0, 3, 1, 2).float().div_(255)
    return Batch(images, target, torch.ones(BATCH, dtype=torch.bool), torch.arange(BATCH), torch.zeros(BATCH).long())


def ours(batch: Batch) -> Callable[[], object]:
    """Weight decay apart from norms and biases, the schedule, finite losses, clipping, averaged weights, means."""
    torch.manual_seed(0)
    student = open_net(NetSpec(timm=NAME, input_size=(SIDE, SIDE)), CLASSES)
    method = distill.method("none")
    distiller = method(Classification(CLASSES), student, [], method.Config())
    state = TrainState(distiller, OptimSpec(steps=10**6, batch=BATCH, ema=0.99, clip=1.0))
    return lambda: fit_epoch(state, itertools.repeat(batch), STEPS)


def bare(batch: Batch) -> Callable[[], object]:
    """Forward of normalised images, cross-entropy, backward, clip, AdamW: nothing else."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=len(CLASSES)).train()
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model((batch.images - mean) / std), batch.target).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return steps


def test_steps_a_second(race: Callable[..., Any]) -> None:
    batch = random_batch()
    found = race({"agrikd fit_epoch": ours(batch), "a bare PyTorch loop": bare(batch)}, STEPS, 16)
    found.show(f"Steps of {NAME}, {SIDE} px, batches of {BATCH}", "steps", "a bare PyTorch loop")
    assert found.ratio("agrikd fit_epoch", "a bare PyTorch loop") >= 0.95


_FIT = """
import json, resource, sys
from pathlib import Path
import torch
from agrikd import train
from agrikd.recipe import parse
torch.set_num_threads(1)
recipe = parse(json.loads(sys.argv[1]), "bench")
before = {name: value for name, value in [line.split(":") for line in open("/proc/self/status")]}["VmHWM"]
train.fit(recipe, Path(sys.argv[2]))
after = {name: value for name, value in [line.split(":") for line in open("/proc/self/status")]}["VmHWM"]
print(json.dumps([int(before.split()[0]), int(after.split()[0])]))
"""
"""VmHWM and not getrusage: its ru_maxrss begins with the parent's peak, and pytest's is in the way."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_peak_memory_of_a_short_fit(tiny: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    raw = tiny(
        student={"timm": NAME, "input_size": SIDE},
        optim={"steps": 12, "batch": BATCH, "checkpoint_every": 6},
    )
    done = subprocess.run(
        [sys.executable, "-c", _FIT, json.dumps(raw), tmp_path / "run"], check=True, capture_output=True, text=True
    )
    before, after = (kib / 1024 for kib in json.loads(done.stdout))
    print(f"\nPeak memory, 12 steps of {NAME} at {SIDE} px, batches of {BATCH}, 1 torch thread, 1 loader thread")
    print(f"{'after the imports':34}{before:10.0f} MiB\n{'after fit':34}{after:10.0f} MiB")
    assert after <= 1536
