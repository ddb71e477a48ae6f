"""A Run that several tests export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def colours(tiny: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained until it tells the tiny photos' three colours apart."""
    from agrikd import train
    from agrikd.recipe import parse

    raw = tiny(student={"timm": "test_efficientnet", "input_size": 32})
    raw["optim"] = {"steps": 120, "batch": 8, "lr": 5e-3, "checkpoint_every": 60}
    return train.fit(parse(raw, "test"), tmp_path_factory.mktemp("colours") / "run").folder
