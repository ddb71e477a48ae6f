"""A hundred thousand inputs at length, a time-boxed share of them always, led by the lines of code that they reach."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from device_kit import Pack
from needs import absent

from agrikd.bundle import Bundle
from agrikd.device.store import Store

LENGTH = int(os.environ.get("AGRIKD_TORTURE", "1"))
TARGETS = ("bundles", "envelopes", "frames", "conversations")
PROGRAM = Path(__file__).parent / "fakes" / "fuzzing.py"


def seeds(target: str, bundle: Path, root: bytes) -> list[bytes]:
    """Whole inputs to begin from."""
    with Bundle(bundle) as opened:
        envelope, payload = opened.envelope, opened.release.payload()
    offer = json.dumps({"sha256": "0" * 64, "roots": [], "dry_run": False}).encode()
    said = b"J" + len(offer).to_bytes(4, "big") + offer
    sent = b"B" + len(envelope).to_bytes(4, "big") + envelope
    return {
        "bundles": [bundle.read_bytes()],
        "envelopes": [envelope, payload, root],
        "frames": [said, sent, said + sent],
        "conversations": [said, said + sent.replace(b'"sig":"', b'"sig":"A'), said + said],
    }[target]


@pytest.mark.torture
@pytest.mark.parametrize("target", TARGETS)
def test_whatever_comes_is_refused_or_right(target: str, packed: Pack, root: bytes, folder: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        absent("there is no atheris: pip install 'agrikd[dev]', on Linux")
    folder.mkdir()
    bundle = packed(1)
    (folder / "good.akb").write_bytes(bundle.read_bytes())
    (folder / "root.dsse").write_bytes(root)
    Store(folder / "store").trust(root, "root")
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds(target, bundle, root)):
        (corpus / f"{number}").write_bytes(seed)
    bound = ["-runs=25000"] if LENGTH > 1 else ["-max_total_time=8"]
    words = [sys.executable, PROGRAM, target, folder, *bound, "-seed=1", "-max_len=8192", "-timeout=20"]
    words += [f"-artifact_prefix={folder}/", str(corpus)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"Done (\d+) runs", done.stderr)
    assert found and int(found.group(1)) >= (25_000 if LENGTH > 1 else 300), done.stderr[-500:]
