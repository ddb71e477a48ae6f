"""What agrikd asks of TensorRT, held against NVIDIA's own Python bindings of each release it claims.

The bindings come without TensorRT's libraries; a stub of their few entry points lets them be imported, and that is
enough to see every class, method and flag. Nothing is computed: that is the fake's part, whose names are held against
the same classes.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from agrikd.predict import _build

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / ".bindings"
FAKES = ROOT / "tests" / "fakes"
RELEASES = ("8.6.1", "10.3.0", "10.13.3", "10.16.1", "11.4.0")
"""One for each row of the lint's table; `make` fetches them."""
OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "measured": "ITimingCache",
    "_runtime": "Runtime",
    "_cuda_engine": "ICudaEngine",
    "_context": "IExecutionContext",
}
"""What the names in agrikd's source hold."""
ENTRY = re.compile(r" U (\w*(?:INTERNAL|PluginRegistry|NvOnnxParserVersion|InferPlugins|nvuffparser|nvcaffeparser)\w*)")


def used() -> set[tuple[str, str]]:
    """(class, attribute) of all that the runner and the builder touch; "" is the module itself."""
    found = set()
    for name in ("trt.py", "_build.py"):
        tree = ast.parse((ROOT / "agrikd" / "predict" / name).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and (pair := _pair(node)):
                found.add(pair)
    return found - {("", "__version__")}


def _pair(node: ast.Attribute) -> tuple[str, str] | None:
    holder = node.value
    if isinstance(holder, ast.Attribute) and isinstance(holder.value, ast.Name) and holder.value.id == "trt":
        return None if holder.attr == "__version__" else (holder.attr, node.attr)
    name = holder.attr if isinstance(holder, ast.Attribute) else getattr(holder, "id", "")
    if name in ("trt", "_trt"):
        return "", node.attr
    own = OBJECTS.get(name)
    return (own, node.attr) if own and not isinstance(node.ctx, ast.Store) else None


def needed(version: str) -> set[tuple[str, str]]:
    """What of it this release must have: the flags of its own policy alone, and progress from 10 on."""
    release = tuple(map(int, version.split(".")))
    flags = {("NetworkDefinitionCreationFlag", name) for name in _build.policy(release, "fp32").network}
    precisions = ("fp32", "fp16", "int8f16" if release >= (10, 12) else "int8")
    flags |= {("BuilderFlag", name) for one in precisions for name in _build.policy(release, one).builder}
    late = {("", "IProgressMonitor"), ("IBuilderConfig", "progress_monitor")}
    return (used() | flags | late) - (late if release < (10,) else set())


def wheel(version: str) -> Path:
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    found = sorted(WHEELS.glob(f"*bindings-{version}*{python}*.whl"))
    if not found:
        reason = f"no bindings of {version} for {python} in {WHEELS}: make {WHEELS.name}/.ready"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return found[0]


@pytest.fixture(scope="module", params=RELEASES)
def bindings(
    request: pytest.FixtureRequest, gcc: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, str]]:
    """A release's version, and the environment in which its bindings can be imported."""
    folder = tmp_path_factory.mktemp("bindings")
    with zipfile.ZipFile(wheel(request.param)) as archive:
        archive.extractall(folder)
    (library,) = folder.rglob("tensorrt.so")
    said = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"NEEDED.*\[(libnv\w+\.so\.\d+)\]", said)
    symbols = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    entries = ENTRY.findall(symbols.stdout)
    assert len(names) >= 3 and len(entries) >= 8
    source = "\n".join(
        f'void *f{n}(void) __asm__("{name}"); void *f{n}(void) {{ return 0; }}' for n, name in enumerate(entries)
    )
    (folder / "stub.c").write_text(source)
    for name in names:
        command = [gcc, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, folder / "stub.c"]
        subprocess.run(command, check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
    return request.param, environment


def check(pairs: set[tuple[str, str]], environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, str(FAKES / "bindings_check.py")]
    done = subprocess.run(
        command, input=json.dumps(sorted(pairs)), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_is_used_is_counted() -> None:
    found = used()
    assert len(found) >= 30
    assert {("IExecutionContext", "execute_async_v3"), ("Builder", "build_serialized_network")} <= found
    assert {name for name, _ in found} >= {"", *OBJECTS.values()} - {"INetworkDefinition"}


def test_the_real_classes_have_all_that_is_used(bindings: tuple[str, dict[str, str]]) -> None:
    version, environment = bindings
    found = check(needed(version), environment)
    assert found["version"].startswith(version)
    assert found["checked"] == len(needed(version)) >= 30
    assert found["absent"] == []
    assert found["unnoticed"] == [], "a name that is gone must be missed"


def test_what_a_release_lacks_is_missed(bindings: tuple[str, dict[str, str]]) -> None:
    """The same check, asked for what other releases have: it can fail."""
    version, environment = bindings
    gone = {
        "8.6.1": ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        "10.3.0": ("IExecutionContext", "execute_async_v2"),
        "10.13.3": ("Builder", "build_engine"),
        "10.16.1": ("IBuilderConfig", "max_workspace_size"),
        "11.4.0": ("BuilderFlag", "FP16"),
    }[version]
    assert check({*needed(version), gone}, environment)["absent"] == [list(gone)]


def test_the_fake_has_no_name_that_the_real_one_lacks(bindings: tuple[str, dict[str, str]]) -> None:
    version, environment = bindings
    source = (
        "import json, tensorrt as t\n"
        "own = {n: v for n, v in vars(t).items() if isinstance(v, type) and v.__module__ == 'tensorrt'}\n"
        "print(json.dumps([[n, a] for n, v in own.items() for a in vars(v) if a[0] != '_']))"
    )
    fake = {**os.environ, "PYTHONPATH": str(FAKES), "AGRIKD_FAKE_TRT": json.dumps({"version": version})}
    said = subprocess.run([sys.executable, "-c", source], env=fake, capture_output=True, text=True, check=True).stdout
    inside = {"min_severity", "logger", "flags", "onnx", "data", "cache"}
    pairs = {(name, attribute) for name, attribute in json.loads(said) if attribute not in inside}
    assert len(pairs) >= 25
    assert check(pairs, environment)["absent"] == []
