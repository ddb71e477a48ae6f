"""One job in several processes, its ranks, as torchrun starts them: who they are, and what they tell each other.

    torchrun --nproc-per-node 2 -m agrikd distill recipe.yaml

The environment says how many ranks there are (WORLD_SIZE) and which of them this is (RANK); where it says one, or
nothing, all here does nothing. Each rank computes its part of every batch, the mean of their gradients moves the same
weights everywhere, and rank 0 alone writes and speaks. Words go over gloo; gradients over nccl where there is CUDA.

A rank whose process ends closes its connections, which the others notice in their next exchange. One that computes
alone for long, or waits for a machine that was lost, learns it from the beats that each rank gives every second.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from agrikd import files
from agrikd.errors import InputError, Problem, TrainingError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.distributed import Store  # type: ignore[attr-defined]

T = TypeVar("T")
_MEETING_S = 120
"""How long the first rank to come waits for the last: they import torch side by side."""
_BEAT_S, _SILENCE_S, _GRACE_S = 1, 15, 5
"""Between two beats; without a beat, until a rank is given up; then, until a process that does not end is ended."""
_LONGEST = timedelta(days=1)
"""For an exchange: rank 0 may decode photos for hours. The beats say sooner whether anybody is still there."""

_joined = False
_times = itertools.count()
if int(os.environ.get("WORLD_SIZE") or 1) > 1:  # torch reads this once; its warnings of a lost rank fill a screen
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def world() -> int:
    """How many ranks the job has."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Which of them this process is, from 0."""
    return int(os.environ.get("RANK") or 0) if world() > 1 else 0


def local_world() -> int:
    """How many of them share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if world() > 1 else 1


def leads() -> bool:
    """Whether this is rank 0, which writes and speaks."""
    return rank() == 0


def device() -> torch.device:
    """Where this rank computes: the GPU of its number on this machine, or the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    if not _joined:
        return torch.device("cuda")
    local, there = int(os.environ.get("LOCAL_RANK") or rank()), torch.cuda.device_count()
    if local >= there:
        wrong = f"rank {rank()} is number {local + 1} on a machine with {there} {'GPU' if there == 1 else 'GPUs'}"
        raise InputError(Problem("torchrun", wrong, "start a process a GPU, or with CUDA_VISIBLE_DEVICES= on the CPU"))
    return torch.device("cuda", local)


@contextmanager
def joined() -> Iterator[None]:
    """Inside, the ranks are connected; each leaves when all have come to the end.

    Raises `TrainingError` where the others do not come, or one of them dies or leaves before the end.
    """
    global _joined
    if world() == 1:
        yield
        return
    import torch.distributed as dist

    watch = _Watch(_meet())
    watch.start()
    try:
        try:
            _joined = True
            _connect(watch.store)
            yield
            wait()
            watch.stop()
            wait()  # rank 0 may hold the store: it stays until nobody listens any more
        finally:
            watch.stop()
    except KeyboardInterrupt:
        watch.ended.set()
        if watch.lost:
            raise _gone() from None
        raise
    finally:
        _joined = False
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def first() -> Iterator[None]:
    """What stands inside is done by rank 0, then by the others, who find it done."""
    if not leads():
        wait()
    yield
    if leads():
        wait()


def wait() -> None:
    """Until all ranks are here."""
    import torch

    _add(torch.zeros(1))


def part(rows: Sequence[T]) -> Sequence[T]:
    """This rank's part of rows that all ranks know: every n-th."""
    return rows[rank() :: world()] if _joined else rows


def mean(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named scalars, each the mean over the ranks; not a number where one rank's is none."""
    import torch

    if not _joined:
        return dict(values)
    own = torch.stack([value.detach().float().cpu() for value in values.values()])
    return dict(zip(values, _add(own / world()).unbind(), strict=True))


def share(module: nn.Module) -> None:
    """After `backward`: each gradient becomes the mean over the ranks, running statistics become rank 0's."""
    import torch

    if not _joined:
        return
    grads = [value.grad for value in module.parameters() if value.grad is not None]
    training = [each for each in module.modules() if each.training]
    kept = [value for each in training for value in each.buffers(recurse=False) if value.is_floating_point()]
    own = [value / world() for value in grads] + [value if leads() else torch.zeros_like(value) for value in kept]
    total = _add(torch.cat([value.flatten() for value in own]))
    for value, found in zip((*grads, *kept), torch.split(total, [value.numel() for value in own]), strict=True):
        value.copy_(found.view_as(value))


def require_same(what: Mapping[str, Any]) -> None:
    """Raise `InputError` on every rank unless all hold the same JSON value under each name."""
    import torch
    import torch.distributed as dist

    if not _joined:
        return
    own = torch.tensor([int(files.digest(value)[:15], 16) for value in what.values()])
    same = _add(own.clone(), dist.ReduceOp.MIN) == _add(own.clone(), dist.ReduceOp.MAX)
    if differing := [name for name, equal in zip(what, same.tolist(), strict=True) if not equal]:
        wrong = f"not the same on all {world()} ranks: {', '.join(differing)}"
        raise InputError(Problem("torchrun", wrong, "give all ranks the same files, and an --out that all can see"))


class _Watch(threading.Thread):
    """Tells the other ranks that this one lives, and ends it where one of them has not been heard of for long."""

    def __init__(self, store: Store) -> None:
        super().__init__(name="beats", daemon=True)
        self.store, self.lost, self.ended = store, False, threading.Event()
        self._deciding = threading.Lock()
        self._prefix = f"beat {_time()}"

    def run(self) -> None:
        heard = dict.fromkeys(range(world()), (0, time.monotonic()))
        try:
            own = self._own_connection()
            while not self.ended.wait(_BEAT_S):
                own.add(f"{self._prefix} {rank()}", 1)
                for other, (before, since) in heard.items():
                    beats = own.add(f"{self._prefix} {other}", 0)
                    if beats != before:
                        heard[other] = beats, time.monotonic()
                    elif time.monotonic() - since > _SILENCE_S:
                        raise TimeoutError
        except (RuntimeError, TimeoutError):  # RuntimeError: the store went with the rank that held it
            self._end()

    def stop(self) -> None:
        """After this nothing is watched, and nothing ended."""
        with self._deciding:
            self.ended.set()

    def _own_connection(self) -> Store:
        """A connection is busy while somebody waits on it."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        limit = timedelta(seconds=_SILENCE_S)
        return TCPStore(address, port, None, is_master=False, timeout=limit, wait_for_workers=False)

    def _end(self) -> None:
        with self._deciding:
            if self.ended.is_set():
                return
            self.lost = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if not self.ended.wait(_GRACE_S):  # it waits, outside of Python, for one who is not there
            error = _gone()
            sys.stderr.write(f"error: {error}\n")
            sys.stderr.flush()
            os._exit(error.exit_code)


def _meet() -> Store:
    from torch.distributed.rendezvous import rendezvous

    try:
        store: Store = next(rendezvous("env://", timeout=timedelta(seconds=_MEETING_S)))[0]
    except ValueError as error:
        mend = f"start it with: torchrun --nproc-per-node {world()} -m agrikd …, or unset WORLD_SIZE"
        raise InputError(Problem("WORLD_SIZE", f"is {world()}, but {_said(error)}", mend)) from None
    except RuntimeError as error:
        mend = f"start all {world()} together, as torchrun does; a port that is taken is changed with --master-port"
        said = f"rank {rank()}: the {world()} ranks did not meet ({_said(error)})"
        raise TrainingError(f"{said}\n    → {mend}") from None
    return store


def _connect(store: Store) -> None:
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
        backend = "cpu:gloo,cuda:nccl"
    own = dist.PrefixStore(f"group {_time()}", store)  # type: ignore[attr-defined]
    with _reaching():
        dist.init_process_group(backend, store=own, rank=rank(), world_size=world(), timeout=_LONGEST)


def _add(values: Tensor, how: Any = None) -> Tensor:
    """The sum over the ranks (or what `how` says), in place."""
    import torch.distributed as dist

    if _joined:
        with _reaching():
            dist.all_reduce(values, how or dist.ReduceOp.SUM)
    return values


@contextmanager
def _reaching() -> Iterator[None]:
    """An exchange fails where another rank is not there any more."""
    try:
        yield
    except RuntimeError as error:
        raise _gone() from error


def _gone() -> TrainingError:
    said = f"rank {rank()} stops: another of the {world()} processes of this job has died or stopped"
    mend = "see what that one said (one killed for want of memory says nothing), then go on with --resume"
    return TrainingError(f"{said}; the last checkpoint is kept\n    → {mend}")


def _time() -> str:
    """Names what stands in the store, which outlives a job's end and torchrun's --max-restarts."""
    return f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}.{next(_times)}"


def _said(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
