"""One contender of test_distill_bench.py, in a process of its own: python distill_arms.py NAME RECIPE STEPS TURNS.

Each line on stdin asks for a turn of STEPS training steps; its seconds and mean loss go to stdout. After the last
turn it says its peak memory and the student's accuracy on the test split. All contenders train the same nets, opened
by agrikd and resizing at their own doors, on the same views in the same order, with AdamW at the same learning rates.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from torchvision.transforms.functional import to_tensor

from agrikd.data.loader import Views
from agrikd.jobs import Job, prepare
from agrikd.nets._base import Net
from agrikd.nets.cached import replay
from agrikd.recipe import OptimSpec, parse
from agrikd.train import TrainState, fit_epoch, learning_rate

Turn = Callable[[], float]
"""Takes the next steps and returns the mean of their losses."""


class Door(nn.Module):
    """agrikd's net with the face the other libraries want: pictures in [0, 1] in, logits out."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        self.pretrained_cfg = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # the net normalises by itself

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images).logits
        return logits


class Drawn(Dataset[tuple[Tensor, int]]):
    """The views that agrikd's sampler draws for `steps` steps, one by one, as torchvision makes tensors of them."""

    def __init__(self, job: Job, steps: int) -> None:
        self.loader = job.loader
        self.draws: Views = [view for step in range(steps) for view in job.sampler.draw(step)]

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        row, view = self.draws[place]
        return to_tensor(self.loader.pixels(row, view)), int(self.loader.target[row])


def agrikd_live(job: Job, steps: int, turns: int) -> Turn:
    state = TrainState(job.distiller, job.recipe.optim)
    batches = job.loader.ahead((job.sampler.draw(step) for step in range(steps * turns)), job.recipe.data.workers)
    return lambda: fit_epoch(state, batches, steps, job.recipe.seed)["loss"]


def agrikd_cached(job: Job, steps: int, turns: int) -> Turn:
    """The teacher replayed from its store, which is filled here unless another process did so before."""
    rows, views = job.sampler.labelled, job.recipe.data.views or 0
    nets = [replay(net, job.loader, views, rows) for net in job.distiller.teachers]
    job.distiller.teachers = nn.ModuleList(nets).requires_grad_(False)
    job.distiller.train()
    return agrikd_live(job, steps, turns)


def timm_task(job: Job, steps: int, turns: int) -> Turn:
    """timm's LogitDistillationTask in the loop of timm's train.py, as far as it goes on a CPU."""
    from timm.task import DistillationTeacher, LogitDistillationTask

    student, teacher, spec = Door(job.student), Door(job.distiller.teachers[0]), job.recipe.optim
    task = LogitDistillationTask(
        student,
        DistillationTeacher(teacher),
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=1.0,
        distill_loss_weight=_knob(job, "weight_kd"),
        temperature=_knob(job, "temperature"),
        verbose=False,
    )
    task.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=spec.lr, weight_decay=spec.weight_decay)
    scheduler = LambdaLR(optimizer, _share(spec))
    batches = iter(DataLoader(Drawn(job, steps * turns), batch_size=spec.batch, num_workers=0))

    def turn() -> float:
        total = 0.0
        for images, target in itertools.islice(batches, steps):
            loss = task(images, target)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item()
        return total / steps

    return turn


def torchdistill_box(job: Job, steps: int, turns: int) -> Turn:
    """torchdistill's DistillationBox in the loop of its image classification example."""
    from torchdistill.core.distillation import DistillationBox

    spec, batch_only = job.recipe.optim, {"forward_proc": "forward_batch_only"}
    kd = {"temperature": _knob(job, "temperature"), "alpha": 1.0, "beta": _knob(job, "weight_kd")}
    logits = {f"{who}_module_{key}": value for who in ("student", "teacher") for key, value in _OUTPUT.items()}
    config: dict[str, Any] = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "requires_supp": False,
            "sampler": {"class_or_func": SequentialSampler},
            "kwargs": {"batch_size": spec.batch, "num_workers": 0},
        },
        "teacher": {**batch_only, "requires_grad": False},
        "student": batch_only,
        "optimizer": {"key": "AdamW", "kwargs": {"lr": spec.lr, "weight_decay": spec.weight_decay}},
        "scheduler": {"key": "LambdaLR", "kwargs": {"lr_lambda": _share(spec)}, "scheduling_step": 1},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": {**kd, **logits}}, "weight": 1.0}}
            },
        },
    }
    nets = Door(job.distiller.teachers[0]).eval(), Door(job.student)
    device, photos = torch.device("cpu"), {"train": Drawn(job, steps * turns)}
    box = DistillationBox(*nets, photos, config, device, device_ids=None, distributed=False, lr_factor=1)
    box.pre_epoch_process(epoch=0)
    batches = iter(box.train_data_loader)

    def turn() -> float:
        total = 0.0
        for images, target in itertools.islice(batches, steps):
            loss = box.forward_process(images, target, None)
            box.post_forward_process(loss)
            total += loss.item()
        return total / steps

    return turn


_OUTPUT = {"path": ".", "io": "output"}
ARMS: dict[str, Callable[[Job, int, int], Turn]] = {
    "agrikd, live": agrikd_live,
    "agrikd, replayed": agrikd_cached,
    "timm": timm_task,
    "torchdistill": torchdistill_box,
}


def _knob(job: Job, name: str) -> float:
    value: float = getattr(job.distiller.config, name)
    return value


def _share(spec: OptimSpec) -> Callable[[int], float]:
    """The learning rate of a step as a share of the recipe's."""
    return lambda step: learning_rate(spec, step) / spec.lr


@torch.inference_mode()
def accuracy(job: Job) -> float:
    rows = job.manifest.indices("test", labelled=True)
    student = job.student.eval()
    right = [student(batch.images).logits.argmax(1) == batch.target for batch in job.loader.clean(rows)]
    return float(torch.cat(right).float().mean())


def peak_mib() -> float:
    """VmHWM: getrusage's ru_maxrss begins with the parent's peak, and pytest's is in the way."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    cpu, clock = time.process_time(), time.perf_counter()
    said = work()
    return {"cpu_s": time.process_time() - cpu, "clock_s": time.perf_counter() - clock, "said": said}


def replies(name: str, raw: str, steps: int, turns: int) -> Iterator[dict[str, Any]]:
    """One for getting ready, one for each turn, and the last."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    job = prepare(parse(json.loads(raw), "bench"))
    job.loader.cache.fill()
    made: list[Turn] = []
    yield timed(lambda: made.append(ARMS[name](job, steps, turns)))
    for _ in range(turns):
        yield timed(made[0])
    yield {"peak_mib": peak_mib(), "accuracy": accuracy(job)}


if __name__ == "__main__":
    answers = replies(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    for _, reply in zip(sys.stdin, answers, strict=False):
        print(json.dumps(reply), flush=True)
