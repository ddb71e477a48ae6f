"""A number a picture, as a distribution over bins, so that there are soft targets for numbers too.

HL-Gaussian: Imani & White 2018, "Improving Regression Performance with Distributional Losses" (arXiv:1806.04613), in
the form of Farebrother et al. 2024 (arXiv:2403.03950, sec. 3.1). The label y becomes a normal distribution of width
sigma, cut into bins; with ends e_0 … e_K, and Z the mass between e_0 and e_K,

    p_k = [Φ((e_{k+1} − y) / sigma) − Φ((e_k − y) / sigma)] / Z

The loss is the cross-entropy with p, the answer is the mean of the predicted distribution, and agreement of two nets is
the divergence of their distributions, as for classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from agrikd.data.loader import Batch
from agrikd.data.manifest import NOT_A_PLANT, Manifest, numbers_of
from agrikd.nets._base import Outputs
from agrikd.recipe import TaskSpec
from agrikd.tasks.classification import softened_kl
from agrikd.types import Scale


def open_task(spec: TaskSpec, manifest: Manifest) -> Regression:
    assert spec.scale
    return Regression(spec.scale, spec.bins + 2 * spec.scale.beyond, spec.sigma)


@dataclass(frozen=True)
class Regression:
    """scale, sigma: see `TaskSpec`. bins: all of them, K. Targets are float32, in the scale's unit."""

    scale: Scale
    bins: int
    sigma: float
    name: str = "regression"

    @property
    def classes(self) -> tuple[str, ...]:
        """Each bin by its ends."""
        width, centres = self.scale.width(self.bins), self.scale.centres(self.bins)
        digits = max(0, 2 - math.floor(math.log10(width)))
        ends = [f"{middle + side * width / 2:.{digits}f}" for middle in centres for side in (-1, 1)]
        trimmed = [end.rstrip("0").rstrip(".") if "." in end else end for end in ends]
        return tuple(f"{low} to {high}" for low, high in zip(trimmed[::2], trimmed[1::2], strict=True))

    def encode(self, manifest: Manifest) -> tuple[Tensor, Tensor]:
        """float32 [N], the number; bool [N]. Raises `InputError` with every label that is no number in the range."""
        known = [row.target is not None and row.target != NOT_A_PLANT for row in manifest.rows]
        values = torch.full((len(known),), self.scale.low)
        labelled = [index for index, there in enumerate(known) if there]
        values[labelled] = torch.tensor(numbers_of(manifest, labelled, self.scale, "data.manifest"))
        return values, torch.tensor(known)

    def loss(self, student: Outputs, batch: Batch) -> Tensor:
        """Cross-entropy with the label's distribution, less that distribution's entropy: 0 at the best, [B]."""
        wanted = self.distribution(batch.target)
        loss = F.kl_div(F.log_softmax(student.logits, dim=1), wanted, reduction="none").sum(dim=1)
        return loss * batch.labelled

    def place(self, target: Tensor) -> Tensor:
        return torch.from_numpy(self.scale.bins_of(target.cpu().numpy(), self.bins)).to(target.device)

    def distribution(self, target: Tensor) -> Tensor:
        return hl_gaussian(self._bins(target), self.bins, self.sigma)

    def mistake(self, logits: Tensor, target: Tensor) -> Tensor:
        centres = torch.from_numpy(self.scale.centres(self.bins)).to(logits.device)
        said = (
            (logits.softmax(dim=1) * (centres - self.scale.low)).sum(dim=1).clamp(0, self.scale.high - self.scale.low)
        )
        return (said - (target - self.scale.low)).abs().float()

    def divergence(self, student: Outputs, teacher: Outputs, temperature: float) -> Tensor:
        return softened_kl(student.logits, teacher.logits, temperature)

    def value(self, outputs: Outputs) -> Tensor:
        """The number, counted in bins from the first one's lower end, [B]."""
        shares = outputs.logits.float().softmax(dim=1)  # half precision would round a number to its bin
        return (shares * (torch.arange(self.bins, device=shares.device) + 0.5)).sum(dim=1)

    def truth(self, batch: Batch) -> Tensor:
        """The label in the same measure, [B]; it means nothing where there is none."""
        return self._bins(batch.target)

    def _bins(self, target: Tensor) -> Tensor:
        return (target - self.scale.low) / self.scale.width(self.bins) + self.scale.beyond


def hl_gaussian(value: Tensor, bins: int, sigma: float) -> Tensor:
    """[N, K] from values [N]: a normal distribution of width `sigma` around each, cut into bins; all in bins."""
    ends = torch.arange(bins + 1, device=value.device, dtype=value.dtype)
    below = torch.special.erf((ends - value[:, None]) / (sigma * math.sqrt(2)))
    shares: Tensor = below.diff(dim=1) / (below[:, -1:] - below[:, :1])
    return shares
