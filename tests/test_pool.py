"""Which photos of the pool may teach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import CLASSES
from torch import Tensor

from agrikd import jobs, pool, train
from agrikd.errors import InputError
from agrikd.nets._base import Net, Origin, Outputs
from agrikd.nets.ensemble import Ensemble
from agrikd.recipe import PoolSpec, parse

Tiny = Callable[..., dict[str, Any]]


class Told(Net):
    """Says the logits it was given for each photo, by the photo's mean colour."""

    def __init__(self, logits: dict[float, list[float]]) -> None:
        super().__init__((8, 8), (0.0,) * 3, (1.0,) * 3, Origin("test", True, CLASSES))
        self.logits = logits

    def answer(self, images: Tensor, stages: int) -> Outputs:
        said = torch.tensor([self.logits[round(float(one.mean()), 1)] for one in images])
        return Outputs(said, said)


class Grey:
    """A loader whose row n is a photo of brightness n / 10."""

    def clean(self, rows: Any) -> Any:
        from agrikd.data.loader import Batch

        index = torch.tensor(rows)
        images = (index / 10).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
        yield Batch(images, index, index >= 0, index, torch.full_like(index, -1))


SURE, UNSURE, FAINT = [9.0, 0.0, 0.0], [1.0, 0.9, 0.8], [-3.0, -9.0, -9.0]
TEACHER = Told({0.0: SURE, 0.1: [8.0, 0.0, 0.0], 0.2: SURE, 0.3: UNSURE, 0.4: FAINT})
LOADER: Any = Grey()


@pytest.mark.parametrize(
    ("spec", "rows"),
    [
        (PoolSpec(), (2, 3, 4)),
        (PoolSpec(confidence=0.6), (2, 4)),
        (PoolSpec(known=1.0), (2,)),
        (PoolSpec(confidence=0.6, known=1.0), (2,)),
    ],
)
def test_who_passes(spec: PoolSpec, rows: tuple[int, ...]) -> None:
    found = pool.chosen([TEACHER], LOADER, (0, 1), (2, 3, 4), spec)
    assert found.rows == rows
    assert found.unsure == (spec.confidence > 0) and found.unknown == 2 * (spec.known is not None)


def test_teachers_are_averaged() -> None:
    other = Told({0.3: [0.0, 9.0, 0.0], 0.2: SURE})
    p = [np.exp(v) / np.exp(v).sum() for v in (UNSURE, [0.0, 9.0, 0.0])]
    top = float(np.mean(p, axis=0).max())
    for confidence, kept in ((top - 1e-3, (2, 3)), (top + 1e-3, (2,))):
        found = pool.chosen([TEACHER, other], LOADER, (2,), (2, 3), PoolSpec(confidence=confidence))
        assert found.rows == kept


def test_an_empty_pool_and_an_ensembles_energy_are_said() -> None:
    with pytest.raises(InputError, match="leaves none of 1 photos"):
        pool.chosen([TEACHER], LOADER, (0,), (3,), PoolSpec(confidence=0.9))
    with pytest.raises(InputError, match="have no energy"):
        pool.chosen([Ensemble([TEACHER, TEACHER], "mean")], LOADER, (0,), (2,), PoolSpec(known=0.9))


def test_a_run_draws_from_the_chosen_rows_and_keeps_their_number(tiny: Tiny, tmp_path: Path) -> None:
    raw = tiny(method={"name": "kd"}, gate={"override": "a test"})
    raw["teachers"] = [{"timm": "mobilenetv3_small_075", "input_size": 32}]
    raw["data"] = {**raw["data"], "views": 2, "unlabelled_share": 0.5, "pool": {"known": 0.5}}
    run = train.fit(parse(raw, "test"), tmp_path / "run")
    kept = run.record()["pool"]
    assert 0 < kept["kept"] < 18
    assert kept["kept"] + kept["unknown"] == kept["photos"] == 18


def test_a_filter_without_a_teacher_is_a_mistake(tiny: Tiny) -> None:
    raw = tiny(method={"name": "mean_teacher"})
    raw["data"] = {**raw["data"], "unlabelled_share": 0.5, "pool": {"confidence": 0.5}}
    with pytest.raises(InputError, match=r"(?s)data.pool.*no teacher"):
        jobs.prepare(parse(raw, "test"))
