"""A Run in torch: the reference every other backend is held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agrikd import image
from agrikd.errors import MissingExtraError
from agrikd.predict.decode import decode
from agrikd.types import Image, ModelSpec, Prediction

try:
    import torch

    from agrikd.nets._base import Net
    from agrikd.nets.sources import open_net
    from agrikd.recipe import NetSpec
    from agrikd.run import Run
except ImportError:
    raise MissingExtraError("torch", "train") from None

_BATCH = 32


class TorchPredictor:
    """Any `Net` on the CPU, 32 photos at a time."""

    backend = "torch"

    def __init__(self, net: Net, spec: ModelSpec, size_bytes: int = 0) -> None:
        self.net, self.spec = net.eval(), spec
        self.size_bytes = size_bytes
        self.parameters = sum(p.numel() for p in net.parameters())

    @classmethod
    def from_run(cls, folder: Path) -> TorchPredictor:
        run = Run.open(folder)
        net = open_net(NetSpec(run=folder), ())
        classes = net.origin.classes or ()
        task, fit = run.recipe.task, run.recipe.data.fit
        spec = ModelSpec(run.recipe.name, task.name, classes, net.input_size, fit, run.calibration, task.scale)
        return cls(net, spec, run.weights.stat().st_size)

    def __call__(self, images: Sequence[Image]) -> list[Prediction]:
        made: list[Prediction] = []
        for start in range(0, len(images), _BATCH):
            made += self._answer(images[start : start + _BATCH])
        return made

    @torch.inference_mode()
    def _answer(self, images: Sequence[Image]) -> list[Prediction]:
        pixels = np.stack([image.fit(one, self.spec.input_size, self.spec.fit) for one in images])
        outputs = self.net(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
        return decode(outputs.logits.numpy(), outputs.embedding.numpy(), images, self.spec)
