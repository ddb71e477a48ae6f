"""The rules of the house: floors, sizes, what a bare machine can import."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from agrikd import extras
from agrikd.cli import doctor

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "agrikd"

FLOORS: dict[str, float] = {
    "__main__": 12,
    "cli": 11,
    "demo": 10,
    "compare": 9.5,
    "grid": 8,
    "study": 9,
    "study_plots": 6.6,
    "jobs": 7.5,
    "pool": 7,
    "check": 9,
    "odd_labels": 8,
    "tuned": 7,
    "mend": 9.2,
    "checkup": 9.5,
    "contact": 9.5,
    "crossfit": 9,
    "judge": 9,
    "teach": 9,
    "train": 8,
    "calibrate": 7,
    "distill": 7,
    "export": 7,
    "learned": 5,
    "gate": 7,
    "report": 7,
    "pack": 8,
    "wheelhouse": 8,
    "device": 6.5,
    "audit": 3.9,
    "history": 3.2,
    "records": 2,
    "web": 2.2,
    "hub": 5,
    "hub_tables": 4,
    "serve": 6,
    "site": 7,
    "panel": 6,
    "explain": 6.4,
    "heard": 6.6,
    "fleet": 6.8,
    "condition": 1,
    "review": 6.9,
    "kept": 3.1,
    "sheets": 2,
    "demo_live": 8,
    "door": 4,
    "access": 3,
    "accounts": 2.5,
    "flash": 4,
    "wire": 2,
    "command": 2.5,
    "card": 7.5,
    "gallery": 4,
    "bundle": 3,
    "trust": 2.5,
    "dsse": 2,
    "bench": 6,
    "device_report": 6,
    "beside": 5.8,
    "evaluate": 6,
    "evaluate_numbers": 6.2,
    "report_numbers": 7.2,
    "tasks": 6,
    "plots": 6.5,
    "predict": 5,
    "nets": 4,
    "data": 3,
    "intervals": 3.5,
    "metrics": 3,
    "arrays": 2,
    "known": 2.5,
    "pages": 3,
    "run": 3,
    "console": 2,
    "image": 2,
    "recipe": 2,
    "types": 1,
    "ranks": 1.5,
    "files": 1,
    "extras": 0.5,
    "errors": 0,
}
"""Predictors stand a floor above nets: the torch one opens a Run's net."""

ON_DEVICE = (
    "agrikd.errors",
    "agrikd.types",
    "agrikd.files",
    "agrikd.image",
    "agrikd.arrays",
    "agrikd.known",
    "agrikd.metrics",
    "agrikd.intervals",
    "agrikd.beside",
    "agrikd.evaluate",
    "agrikd.evaluate_numbers",
    "agrikd.bench",
    "agrikd.bundle",
    "agrikd.audit",
    "agrikd.records",
    "agrikd.device.post",
    "agrikd.device.reader",
    "agrikd.device.second",
    "agrikd.device.sync",
    "agrikd.device.vitals",
    "agrikd.device.recorder",
    "agrikd.device.watch",
    "agrikd.device.agent",
    "agrikd.device.notify",
    "agrikd.device.serve",
    "agrikd.device.worker",
    "agrikd.dsse",
    "agrikd.trust",
    "agrikd.device_report",
    "agrikd.predict.trt",
    "agrikd.data.manifest",
    "agrikd.predict",
    "agrikd.predict.decode",
    "agrikd.predict.ort",
)
"""The `*` modules: numpy alone."""


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def place(path: Path) -> str:
    """The room a file belongs to: its folder under agrikd/, or its own name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> set[str]:
    """The rooms a file imports, imports for type checking aside."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
        if isinstance(node, ast.ImportFrom) and node.module == "agrikd":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agrikd."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("agrikd.")}
    return found & FLOORS.keys()


def test_a_module_imports_only_from_floors_below() -> None:
    seen = 0
    for path in modules():
        room = place(path)
        if room == "__init__":
            continue
        assert room in FLOORS, f"{path.name}: give {room} a floor"
        for other in imports(path) - {room}:
            assert FLOORS[other] < FLOORS[room], f"{path.relative_to(ROOT)} imports {other}, which is not below {room}"
        seen += 1
    assert seen >= 45


def test_files_and_functions_are_short() -> None:
    checked = 0
    for path in modules():
        lines = path.read_text().count("\n")
        most = 120 if path.parent.name == "distill" else 400
        assert lines <= most, f"{path.relative_to(ROOT)} has {lines} lines, {most} at most"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and path.parent.name == "cli" and node.name in _verbs(path):
                assert len(node.body) <= 15, f"{path.name}: the verb {node.name} has {len(node.body)} statements"
                checked += 1
    assert checked >= 11


def _verbs(path: Path) -> set[str]:
    """The functions that a cli file registers."""
    names = {
        "doctor",
        "init",
        "synth",
        "check",
        "show_photos",
        "get",
        "split",
        "teach",
        "distill",
        "calibrate",
        "evaluate",
        "compare",
        "export_onnx",
    }
    return names | {"predict", "demo"} if path.name != "_options.py" else set()


def test_every_public_name_says_what_it_is() -> None:
    silent, counted = [], 0
    for path in modules():
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            silent.append(path.name)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                counted += 1
                if not ast.get_docstring(node) and len(node.body) > 6:
                    silent.append(f"{path.name}:{node.name}")
    assert counted >= 120
    assert not silent


_REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused}:
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.parametrize("module", ON_DEVICE)
def test_device_modules_import_with_numpy_alone(module: str) -> None:
    refused = {"torch", "timm", "pydantic", "albumentations", "cv2", "onnxruntime", "safetensors", "yaml"}
    code = _REFUSE.format(refused=refused) + f"import {module}"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


@pytest.fixture(scope="session")
def base() -> Path:
    """The environment with the base install alone, made by `make setup`."""
    folder = ROOT / ".venv-base" / "bin"
    if not (folder / "agrikd").exists():
        reason = "the base install is not there: make setup"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.mark.parametrize("words", [["--help"], ["doctor"], ["doctor", "--json"], ["--version"], ["distill", "--help"]])
def test_the_base_install_runs(base: Path, words: list[str]) -> None:
    done = subprocess.run([base / "agrikd", *words], check=True, capture_output=True, text=True)
    assert done.stdout.strip()


def test_doctor_names_the_install_command(base: Path) -> None:
    done = subprocess.run([base / "agrikd", "doctor"], check=True, capture_output=True, text=True)
    rows = done.stdout.count("[missing]") + done.stdout.count("[ok]")
    for verb in ("agent", "app", "serve", "flash", "bundle", "keys", "access", "deploy", "TensorRT"):
        assert f"│ {verb}" in done.stdout, verb
    assert rows == 19 and done.stdout.count("[missing]") >= 18 and "'agrikd[export,train]'" in done.stdout


def test_what_no_extra_brings_is_no_user_s_mistake() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for needs in doctor._NEEDS.values() for extra in needs.values()} - {doctor._SSH} <= known.keys()
    lacking = extras.of(ModuleNotFoundError("no torch", name="torch.nn"))
    assert lacking and lacking.missing == ("torch", "train")
    assert extras.of(ModuleNotFoundError("a typo", name="agrikd.nothing")) is None


_EACH_VERB = """
import json
from typer.main import get_command
from typer.testing import CliRunner
from agrikd.cli import app

def verbs(command, path=()):
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from verbs(inner, (*path, name))
    else:
        yield path, command

def words(one):
    value = {"floor": "1"}.get(one.name, "nowhere")
    return [value] if one.param_type_name == "argument" else [one.opts[0], value]

for path, verb in verbs(get_command(app)):
    needed = [word for one in verb.params if one.required for word in words(one)]
    done = CliRunner().invoke(app, [*path, *needed])
    print(json.dumps([" ".join(path), done.exit_code, done.stderr, repr(done.exception)]))
"""
_BASE_DOES = {"doctor", "data get"}
_BASE_ASKS_FIRST = {
    *(
        "init",
        "predict",
        "bench",
        "device-report",
        "flash",
        "data split",
        "data join",
        "data from-field",
        "keys rotate",
    ),
    *("bundle show", "bundle verify", "bundle permit"),
}
"""What these are given is not there, which they say before they need more than the base."""


def test_each_verb_of_the_base_install_says_what_it_lacks(base: Path, tmp_path: Path) -> None:
    done = subprocess.run([base / "python", "-c", _EACH_VERB], check=True, capture_output=True, text=True, cwd=tmp_path)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) >= 35
    for verb, status, words, error in said:
        assert status == (0 if verb in _BASE_DOES else 2 if verb in _BASE_ASKS_FIRST else 3), (verb, words, error)
        assert (status == 3) == ("pip install 'agrikd[" in words), (verb, words)


def test_the_base_install_says_what_a_verb_lacks(base: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [base / "agrikd", "data", "synth", tmp_path / "leaves"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "pip install 'agrikd[train]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ON_DEVICE)
def test_the_base_install_imports_device_modules(base: Path, module: str) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([base / "python", "-c", code], check=True)
