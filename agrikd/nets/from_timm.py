"""Any timm backbone as a `Net`."""

from __future__ import annotations

import difflib
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from agrikd.errors import InputError, Problem
from agrikd.nets._base import Net, Origin, Outputs
from agrikd.recipe import NetSpec


class TimmNet(Net):
    """`model` is a timm model with a linear classifier of as many outputs as the task wants; `spec` names it."""

    def __init__(self, model: nn.Module, spec: NetSpec, origin: Origin) -> None:
        config = cast(dict[str, Any], model.pretrained_cfg)
        size = spec.input_size or tuple(config["input_size"][-2:])
        super().__init__(size, spec.mean or config["mean"], spec.std or config["std"], origin)
        self.model: Any = model.to(memory_format=torch.channels_last)  # as the loader's pixels lie
        self.spec = spec
        self._linear_head = isinstance(self.classifier, nn.Linear)

    def answer(self, images: Tensor, stages: int) -> Outputs:
        if stages:
            last, maps = self.model.forward_intermediates(images, indices=stages)
        else:
            last, maps = self.model.forward_features(images), []
        embedding = self.model.forward_head(last, pre_logits=True)
        logits = self.classifier(embedding) if self._linear_head else self.model.forward_head(last)
        return Outputs(logits, embedding, tuple(maps))

    @property
    def classifier(self) -> nn.Module:
        """The layer from `embedding` to `logits`."""
        return cast(nn.Module, self.model.get_classifier())


def problems(raw: Any, where: str) -> list[Problem]:
    """What is wrong with the timm name in a recipe's net; the recipe's own check says the rest."""
    name = raw.get("timm") if isinstance(raw, dict) else None
    if not isinstance(name, str) or timm.is_model(name):
        return []
    near = difflib.get_close_matches(name, timm.list_models(), 3)
    mend = f"did you mean {', '.join(near)}?" if near else "python -c 'import timm; print(timm.list_models())'"
    return [Problem(f"{where}.timm", f"timm knows no model {name!r}", mend)]


def create(spec: NetSpec, outputs: int, *, pretrained: bool = False) -> nn.Module:
    """A timm model with random weights (or the hub's) and a head of `outputs` logits."""
    if found := problems({"timm": spec.timm}, "net"):
        raise InputError(found)
    try:
        model: nn.Module = timm.create_model(str(spec.timm), pretrained=pretrained, num_classes=outputs, **spec.kwargs)
    except (TypeError, KeyError, AssertionError) as error:
        mend = "leave it out, or look at what timm's create_model takes for this net"
        said = f"timm refuses them: {type(error).__name__}: {error}"
        raise InputError(Problem(f"net {spec.timm}: kwargs", said, mend)) from None
    return model
