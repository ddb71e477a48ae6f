"""The loop closes: what people label in a browser trains the next student."""

from __future__ import annotations

import base64
import contextlib
import csv
import json
import os
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from app_kit import App, chromium, free_port, settled
from device_kit import CLASSES, net
from field_kit import coloured, film
from live_kit import number_in
from playwright.sync_api import Locator, Page, TimeoutError, sync_playwright
from serve_kit import recording, until

from agrikd import image, records, site
from agrikd.data import manifest as manifests
from agrikd.device.store import Store
from agrikd.records import Opinion, Seen
from agrikd.types import ModelSpec

FRAMES, SESSIONS = 36, 12
KEYS = {"blight": "1", "healthy": "2", "rust": "3"}
SPEC = ModelSpec("leaf", "classification", CLASSES, (8, 8))


def truth(number: int) -> str:
    return CLASSES[number % 3]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Of an agent at work, which has recorded twelve sessions before; a third of what it said is wrong."""
    made = Store(tmp_path / "field").folder
    with recording(made / "records") as recorder:
        for number in range(FRAMES):
            seen = Seen(0, 1.8e9 + 86_400 * (number * SESSIONS // FRAMES) + number, "row-7", audit=0.1)
            top = (number + number % 3 % 2) % 3
            shares = tuple(0.8 if place == top else 0.1 for place in range(3))
            said = Opinion("leaf-1", "student", seen.t, 5.0, top, shares, (top,), False, False)
            recorder.frame(seen, (said, SPEC), ("audit", image.encode_jpeg(coloured(number))), "")
    (tmp_path / "leaf.onnx").write_bytes(net())
    camera = {"name": "row-7", "source": str(film(tmp_path / "film.mp4", 30)), "every_s": 3600}
    own = {"cameras": [camera], "live": {"port": free_port()}, "records": {"audit_share": 0, "free_gb": 0}}
    (made / "agent.yaml").write_text(yaml.safe_dump(own))
    words = ["agent", str(tmp_path / "leaf.onnx"), "--folder", str(made)]
    agent = subprocess.Popen([sys.executable, "-m", "agrikd", *words], stderr=subprocess.DEVNULL)
    until(lambda: answers(made), 60)
    yield made
    agent.terminate()
    agent.wait(10)


def answers(folder: Path) -> bool:
    with contextlib.suppress(Exception):
        return bool(site.Field(folder).call("GET", "/status"))
    return False


ASKED = """before => {
  const buttons = document.querySelector("[class*=st-key-judge-]");
  const frame = buttons && +buttons.className.match(/st-key-judge-(\\d+)/)[1];
  const picture = document.querySelector("[data-testid=stHtml] img");
  return frame && frame !== before && picture ? [frame, picture.src] : null;
}"""


def asked(page: Page, before: int, patience_ms: float = 20_000) -> tuple[int, int]:
    """The frame that the buttons are for, as soon as it is another one, and the number in its picture."""
    try:
        frame, source = page.wait_for_function(ASKED, arg=before, timeout=patience_ms).json_value()
    except TimeoutError as error:
        error.add_note(page.inner_text("body"))
        raise
    return frame, number_in(base64.b64decode(source.partition(",")[2]))


def button(page: Page, frame: int, name: str) -> Locator:
    return page.locator(f".st-key-judge-{frame}").get_by_role("button", name=name)


def pressed(page: Page, frame: int, key: str, name: str) -> tuple[int, int]:
    """What is asked next, after a key; after its button where the page was not ready to hear the key."""
    page.keyboard.press(key)
    with contextlib.suppress(TimeoutError):
        return asked(page, frame, 5000)
    with contextlib.suppress(TimeoutError):  # it was heard late, and there is no such button any more
        button(page, frame, name).click(timeout=5000)
    return asked(page, frame)


def test_labels_from_a_browser_train_a_student(folder: Path, tmp_path: Path) -> None:
    app = App(folder)
    with contextlib.ExitStack() as held:
        held.callback(app.stop)
        page = held.enter_context(chromium(held.enter_context(sync_playwright()))).new_page()
        page.goto(f"{app.url}/review?language=en")
        page.get_by_label("Your name").fill("Ana")
        page.get_by_role("heading", name="Review").click()
        frame, number = asked(page, 0)
        for done in range(FRAMES):
            if done == 5:  # a slip of the finger, and back
                name = truth(number + 1)
                slipped, _ = pressed(page, frame, KEYS[name], name)
                assert pressed(page, slipped, "z", "Undo") == (frame, number)
            if done < FRAMES - 1:
                name = truth(number)
                frame, number = pressed(page, frame, KEYS[name], name)
        button(page, frame, truth(number)).click()
        page.get_by_text(f"{FRAMES} judged now, 0 more in this round").wait_for()
        settled(page)
        page.get_by_text("The labels as next season").click()
        page.get_by_role("button", name="Prepare photos for training").click()
        with page.expect_download(timeout=60_000) as coming:
            page.get_by_role("button", name="Photos and manifest (ZIP)").click(timeout=60_000)
        coming.value.save_as(tmp_path / "photos.zip")
    with zipfile.ZipFile(tmp_path / "photos.zip") as packed:
        packed.extractall(tmp_path / "photos")
    manifest = manifests.read(tmp_path / "photos" / "manifest.csv")
    splits = defaultdict(set)
    for place, row in enumerate(manifest.rows):
        assert row.target == truth(number_in(manifest.file(place).read_bytes()))
        splits[row.group].add(row.split)
    assert len(manifest.rows) == FRAMES and len(splits) == SESSIONS and all(len(one) == 1 for one in splits.values())
    with (tmp_path / "photos" / "labels.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    with contextlib.closing(records.read(folder / "records")) as db:
        words = records.verdicts(db)
    assert {int(row["frame"]): row["label"] for row in rows} == {f: one.label for f, one in words.items()}
    assert {(row["label_by"], row["source"]) for row in rows} == {("Ana", "review")}
    _distil(tmp_path)


def _distil(folder: Path) -> None:
    recipe = {
        "name": "season",
        "data": {"manifest": "photos/manifest.csv", "size": 32},
        "student": {"timm": "mobilenetv3_small_050", "input_size": 32},
        "optim": {"steps": 8, "batch": 8},
    }
    (folder / "season.yaml").write_text(yaml.safe_dump(recipe))
    words = ["distill", "season.yaml", "--hard-labels", "--out", "run", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "agrikd", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "AGRIKD_CACHE": str(folder / "cache")},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["run"] == "run" and (folder / "run" / "weights.safetensors").exists()
