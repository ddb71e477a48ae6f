"""One face over timm's families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from agrikd.nets._base import Origin
from agrikd.nets.from_timm import TimmNet, create
from agrikd.recipe import NetSpec

FAMILIES: dict[str, dict[str, Any]] = {
    "mobilenetv3_small_050": {},
    "tf_efficientnet_lite0": {},
    "resnet18": {},
    "ghostnet_050": {},  # drops a fifth of its features before the classifier
    "convnext_atto": {},
    "dla46_c": {},  # its classifier is a convolution
    "vit_tiny_patch16_224": {"drop_rate": 0.2},
    "deit_tiny_distilled_patch16_224": {},  # two classifiers
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answer_is_timms_own(name: str) -> None:
    spec = NetSpec(timm=name, kwargs=FAMILIES[name])
    net = TimmNet(create(spec, 3), spec, Origin("random", head_trained=False)).eval()
    images = torch.rand((1, 3, *net.input_size), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        said = net(images)
        expected = net.model((images - net.mean) / net.std)
    assert_close(said.logits, expected)
    assert said.embedding.shape[0] == 1 and said.embedding.ndim == 2


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet18", "ghostnet_050", "vit_tiny_patch16_224"])
def test_dropout_before_the_classifier_reaches_the_logits(name: str) -> None:
    spec = NetSpec(timm=name, kwargs={"drop_rate": 0.9})
    net = TimmNet(create(spec, 3), spec, Origin("random", head_trained=False)).eval()
    nn.init.normal_(net.classifier.weight)
    features = net.model.forward_features(torch.rand((2, 3, 224, 224), generator=torch.Generator().manual_seed(0)))
    net.model.forward_features = lambda _: features
    clean = net.answer(features, 0).logits
    assert_close(net.answer(features, 0).logits, clean)
    net.train()
    assert not torch.allclose(net.answer(features, 0).logits, clean)
