"""The app as people have it: its server as a process of its own, a browser, and an agent that stands in for a device.

All that the stand-in says follows from a frame's number, so that a test knows what a page must show beside a picture.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from live_kit import BITS, CELL, Live, StandIn, burnt
from needs import needed
from playwright.sync_api import Browser, Page, Playwright
from serve_kit import SPEC, opinion, recording, until

from agrikd import image, site, trust
from agrikd.device.desk import Reply
from agrikd.device.store import Store
from agrikd.dsse import Key
from agrikd.records import REVIEW, Label, Opinion, Place, Seen
from agrikd.types import ModelSpec

CLASSES, TEACHERS = ["rust", "healthy"], ["healthy", "scorch", "rust"]
HOSTILE = (
    '<img src=x onerror="window.taken=1">' + "W" * 264,
    "\"'><script>window.taken=1</script> **bold** $x^2$ :red[red] `code`",
    "[link](javascript:window.taken=1) <b class=taken>" + "no space " * 25,
)
"""What somebody may call a class, a camera or a field; one has 300 characters and no place to break."""
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
PAGES = re.findall(r'^    "(\w+)": "', (site.pages() / "main.py").read_text(), re.M)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def took(holds: Callable[[], Any], seconds: float = 30) -> float:
    """Seconds until it was so."""
    begun = time.monotonic()
    until(holds, seconds)
    return time.monotonic() - begun


def own_mb(pid: int) -> float:
    """What a process holds that is in no file: whether others have the same libraries open does not move it."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0]) / 1e3


# What the stand-in says


def shares(frame: int, salt: int = 0) -> list[float]:
    """What the model says of a frame; with another salt, what it said on the average of late."""
    rust = ((37 * frame + salt) % 101) / 100
    return [rust, round(1 - rust, 2)]


def teachers(frame: int) -> list[float]:
    """What the teacher says of a frame; no two classes alike."""
    first = 0.5 + (29 * frame % 40) / 100
    said = [round(first, 2), round(0.7 * (1 - first), 4), round(0.3 * (1 - first), 4)]
    turn = frame % 3
    return said[turn:] + said[:turn]


def rejected(frame: int, every: int) -> bool:
    """Whether who rejects each so many pictures says of this one that it is no plant: the model each 7, the teacher
    each 5."""
    return frame % every == 3


def _opinion(probabilities: list[float], unknown: bool) -> dict[str, Any]:
    top = probabilities.index(max(probabilities))
    return {"top": top, "probabilities": probabilities, "candidates": [top], "unsure": False, "unknown": unknown}


class Agent(StandIn):
    """With a teacher, whose last answer is of the frame `answered`; 0: it has answered none."""

    def __init__(self, folder: Path, fps: float) -> None:
        super().__init__(folder, fps)
        self.answered, self._asked_at = 0, 0.0
        self.picture_s: Callable[[int], float] = lambda frame: 0.0
        """How long it takes to hand out a frame's picture."""
        self.times: dict[int, float] = {}
        self.more: dict[str, Any] = {}
        """What it says of each frame instead."""
        self.classes, self.teachers = CLASSES, TEACHERS

    @property
    def quiet_s(self) -> float:
        """Since when nobody has looked: a live view asks on for as long as it has a viewer."""
        return time.monotonic() - self._asked_at

    def _next(self, asked: dict[str, Any]) -> Reply:
        self._asked_at = time.monotonic()
        said, jpeg = super()._next(asked)
        self.asked.clear()
        if "frame" not in said:
            return said, jpeg
        frame = said["frame"]
        self.times[frame] = said["t"]
        student = _opinion(shares(frame), rejected(frame, 7))
        own = {"classes": self.classes, "student": student, "smoothed": shares(frame, 1)}
        return {**said, **own, "second": self._second(self.answered), **self.more}, jpeg

    def _second(self, frame: int) -> dict[str, Any] | None:
        if not frame:
            return None
        teacher, student = _opinion(teachers(frame), rejected(frame, 5)), _opinion(shares(frame), rejected(frame, 7))
        return {
            "frame": frame,
            "t": self.times[frame],
            "classes": self.teachers,
            "student_classes": self.classes,
            "teacher": teacher,
            "student": student,
        }

    def _frame_(self, frame: int) -> Reply:
        time.sleep(self.picture_s(frame))
        return {"frame": frame}, image.encode_jpeg(burnt(frame))


# What runs


class App:
    """`agrikd app` over the folder of an agent."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        words = [sys.executable, "-m", "agrikd", "app", str(folder), "--port", str(self.port)]
        self.process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until(lambda: answers(self.port) or self.process.poll() is not None, 60)
        assert self.process.poll() is None

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


class Field:
    """Agent, live view and app, of which any may be away for a while. In the records are a few days."""

    def __init__(self, folder: Path, fps: float, hostile: bool = False) -> None:
        self.folder, self.agent = folder, Agent(folder, fps)
        Store(folder).trust(trust.first([Key.new(folder / "farm.key")]).to_bytes(), "root")
        if hostile:
            self.agent.classes, self.agent.teachers = list(HOSTILE[:2]), list(HOSTILE)
            _remember(folder / "records", replace(SPEC, classes=HOSTILE), Place(*HOSTILE[:2]), HOSTILE[2])
        else:
            _remember(folder / "records", SPEC, Place("north", "7"), "")
        self.live, self._running = Live(folder), contextlib.ExitStack()
        url = f"http://127.0.0.1:{self.live.port}"
        (folder / "live.json").write_text(json.dumps({"url": url, "cameras": ["row-7"]}))
        self.begin_agent()
        self.app = App(folder)

    def begin_agent(self) -> None:
        self._running.enter_context(self.agent.running())

    def end_agent(self) -> None:
        self._running.close()

    def kill_live(self) -> None:
        self.live.process.kill()
        self.live.stop()

    def begin_live(self) -> None:
        self.live = Live(self.folder, port=self.live.port)

    @property
    def viewers(self) -> int:
        """Streams out of the live view."""
        links = psutil.Process(self.live.process.pid).net_connections("tcp")
        return sum(link.status == psutil.CONN_ESTABLISHED and link.laddr.port == self.live.port for link in links)

    def stop(self) -> None:
        self.app.stop()
        self.live.stop()
        self.end_agent()


def _remember(folder: Path, spec: ModelSpec, place: Place, note: str) -> None:
    """An hour each: a frame drawn at random, one that the model is unsure of, one of no plant, a disagreement."""
    no = Opinion("teacher", "teacher", time.time(), 90.0, 1, (0.1, 0.8, 0.1), (1,), False, False)
    with recording(folder) as recorder:
        for number in range(96):
            kind, t = number % 4, time.time() - 3600 * (96 - number)
            said = replace(opinion(number), t=t, unsure=kind == 1, unknown=kind == 2)
            new = Seen(0, t, note or "row-7", place, audit=None if kind else 0.01)
            seen = recorder.frame(new, (said, spec), ("doubt", image.encode_jpeg(burnt(number))), "")
            if kind in (0, 3):
                recorder.opinion(seen.id, no if kind else replace(no, top=0, probabilities=(0.8, 0.1, 0.1)), spec)
            if not kind and number % 8:
                recorder.label(Label(f"click-{number:04}", seen.id, spec.classes[0], "Ana", t + 60, REVIEW, note))


@contextlib.contextmanager
def field(folder: Path, fps: float = 10.0, hostile: bool = False) -> Iterator[Field]:
    one = Field(folder, fps, hostile)
    try:
        yield one
    finally:
        one.stop()


@contextlib.contextmanager
def chromium(playwright: Playwright) -> Iterator[Browser]:
    """A browser all of whose tabs are at the front at once."""
    one = playwright.chromium.launch(executable_path=needed("chromium", "chromium"), args=["--no-sandbox"])
    try:
        yield one
    finally:
        one.close()


@dataclass(frozen=True)
class Window:
    """Of a browser as a person has it: one tab is at the front, and the others know that they are hidden."""

    browser: Browser
    process: psutil.Process

    def tab(self, url: str) -> Page:
        page = self.browser.contexts[0].new_page()
        page.add_init_script(PROBE)
        page.goto(url)
        return page

    @property
    def pages_mb(self) -> float:
        """Of the processes that show pages."""
        children = self.process.children(recursive=True)
        return sum(own_mb(one.pid) for one in children if "--type=renderer" in one.cmdline())


@contextlib.contextmanager
def window(playwright: Playwright, profile: Path) -> Iterator[Window]:
    """profile: a folder that is not there yet."""
    port = free_port()
    words = [needed("chromium", "chromium"), "--headless=new", "--no-sandbox", f"--remote-debugging-port={port}"]
    words += ["--enable-precise-memory-info", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(port))
        # No defaults: among them is that each tab is told that it is at the front.
        one = playwright.chromium.connect_over_cdp(f"http://127.0.0.1:{port}", no_defaults=True)
        yield Window(one, psutil.Process(process.pid))
        one.close()
    finally:
        process.terminate()
        process.wait(10)


# What a page shows

PROBE = """
(() => {
  const inside = (one) => one.shadowRoot?.querySelector(".live");
  const root = () => [...document.querySelectorAll("*")].map(inside).find(Boolean);
  const number = (canvas) => {
    const pixels = canvas.getContext("2d").getImageData(0, CELL / 2, BITS * CELL, 1).data;
    let found = 0;
    for (let bit = 0; bit < BITS; bit += 1) if (pixels[4 * (CELL * bit + CELL / 2)] > 127) found |= 1 << bit;
    return found;
  };
  const share = (one) => +one.style.getPropertyValue("--share");
  const rows = (parent) => [...parent.querySelectorAll(".row")].map((row) => ({
    name: row.querySelector(".name").textContent,
    fills: [...row.querySelectorAll(".fill")].map(share),
    lines: [...row.querySelectorAll(".line")].map(share),
    texts: [...row.querySelectorAll(".share")].map((one) => one.textContent),
  }));
  const text = (parent, query) => parent.querySelector(query).textContent;
  const second = (one) => {
    const place = one.querySelector(".second"), picture = place.querySelector("canvas");
    return {
      frame: +one.dataset.second, number: picture.hidden ? null : number(picture), rows: rows(place),
      age: +(text(place, ".of").match(/\\d+/) ?? [NaN])[0], verdict: text(place, ".verdict"),
    };
  };
  window.probe = {
    root, ages: [],
    painted: () => +(root()?.dataset.painted ?? 0),
    state: () => { const one = root(); return one ? text(one, ".state") : ""; },
    sample: () => {
      const one = root();
      return {
        frame: +one.dataset.frame, number: number(one.querySelector("figure canvas")), now: Date.now() / 1000,
        rows: rows(one.querySelector(".student")), verdict: text(one.querySelector(".student"), ".verdict"),
        second: one.dataset.second ? second(one) : null,
      };
    },
    text: (query) => { const one = root(); return one ? text(one, query) : ""; },
    states: [],
    note: () => new MutationObserver(() => probe.states.push(probe.state()))
      .observe(root().querySelector(".state"), { childList: true, characterData: true }),
    watch: () => new MutationObserver(() => {
      const frame = +root().dataset.frame;
      requestAnimationFrame(() => setTimeout(() => probe.ages.push([frame, Date.now() / 1000])));
    }).observe(root(), { attributeFilter: ["data-frame"] }),
  };
})()
""".replace("BITS", str(BITS)).replace("CELL", str(CELL))
"""What a page shows, read from its pixels and texts; `watch` notes when each frame was on the screen."""


def opened(browser: Browser, url: str, viewport: dict[str, int] = DESK, **more: Any) -> Page:
    """A page of a visitor who was never here, with `PROBE`."""
    page = browser.new_context(viewport=viewport, **more).new_page()  # type: ignore[arg-type]
    page.set_default_timeout(60_000)
    page.add_init_script(PROBE)
    page.goto(url)
    return page


def settled(page: Page) -> None:
    """Wait until the page's script has run to its end."""
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
    page.wait_for_selector("[data-testid=stMainBlockContainer]")


def first_frame_s(browser: Browser, url: str) -> float:
    """Until somebody who was never here sees a picture."""
    begun = time.monotonic()
    page = opened(browser, url)
    page.wait_for_function("probe.painted()", polling=20)
    page.context.close()
    return time.monotonic() - begun


def painting(page: Page, more: int = 5, seconds: float = 60) -> float:
    """Seconds until so many more frames were on the screen; a page that was left begins to count anew."""
    begun, before = time.monotonic(), page.evaluate("probe.painted()")
    news = f"(now => now < {before} ? now : now - {before})(probe.painted())"
    page.wait_for_function(f"{news} >= {more}", timeout=1000 * seconds, polling=20)
    return time.monotonic() - begun


@dataclass(frozen=True)
class Pace:
    """fps: frames on the screen each second. ages_ms: of each, from when it was taken to when it was there."""

    fps: float
    ages_ms: list[float]

    def __str__(self) -> str:
        p50, p95 = np.percentile(self.ages_ms, [50, 95])
        return f"{self.fps:.1f} fps, age p50 {p50:.0f} ms, p95 {p95:.0f} ms, most {max(self.ages_ms):.0f} ms"

    @property
    def p95_ms(self) -> float:
        return float(np.percentile(self.ages_ms, 95))


def pace(page: Page, agent: Agent, seconds: float) -> Pace:
    """Of a page that paints."""
    page.evaluate("probe.watch()")
    page.wait_for_timeout(1000 * seconds)
    seen = page.evaluate("probe.ages")
    ages = [1000 * (now - agent.times[frame]) for frame, now in seen]
    return Pace((len(seen) - 1) / (seen[-1][1] - seen[0][1]), ages)


def mixture(seen: dict[str, Any]) -> str:
    """What in a sample of a page is of another frame than the picture beside it; empty where nothing is."""
    frame, percent = seen["frame"], [f"{round(100 * share)} %" for share in shares(seen["frame"], 1)]
    if seen["number"] != frame:
        return f"the picture of {seen['number']} stands beside the answer of {frame}"
    rows = [[smooth, exact] for smooth, exact in zip(shares(frame, 1), shares(frame), strict=True)]
    if [row["fills"] + row["lines"] for row in seen["rows"]] != rows:
        return f"bars beside {frame}: {seen['rows']}"
    if [row["texts"] for row in seen["rows"]] != [[one] for one in percent]:
        return f"words beside {frame}: {seen['rows']}, not {percent}"
    top = max(range(2), key=shares(frame).__getitem__)
    said = "Not a plant I know" if rejected(frame, 7) else f"{CLASSES[top]}, {round(100 * shares(frame)[top])} %"
    return "" if seen["verdict"] == said else f"{seen['verdict']!r} beside {frame}, not {said!r}"


def second_mixture(second: dict[str, Any], agent: Agent, now: float) -> str:
    """The same of the teacher's answer, whose age may be told half a second late."""
    frame = second["frame"]
    if second["number"] != frame:
        return f"the picture of {second['number']} stands beside the teacher's answer of {frame}"
    own, its = dict(zip(CLASSES, shares(frame), strict=True)), dict(zip(TEACHERS, teachers(frame), strict=True))
    rows = [(name, [own.get(name, 0), its[name]]) for name in sorted(its, key=its.__getitem__, reverse=True)]
    if [(row["name"], row["fills"]) for row in second["rows"]] != rows:
        return f"bars beside {frame}: {second['rows']}, not {rows}"
    student = "Not a plant I know" if rejected(frame, 7) else max(own, key=own.__getitem__)
    teacher = "Not a plant I know" if rejected(frame, 5) else rows[0][0]
    said = f"Both say {teacher}." if student == teacher else f"The model says {student}, the teacher says {teacher}."
    if second["verdict"] != said:
        return f"{second['verdict']!r} beside {frame}, not {said!r}"
    age = now - agent.times[frame]
    return "" if abs(second["age"] - age) <= 1.2 else f"{second['age']} s beside {frame}, which is {age:.1f} s old"


def teaching(agent: Agent, way: str) -> Iterator[None]:
    """At each step the teacher answers about another frame. slow: the pictures come late. reordered: each other answer
    is of an older frame, and whose picture comes first is another matter. dead: it answers once."""
    agent.picture_s = {"slow": lambda frame: 0.4, "reordered": lambda frame: 0.3 * (frame % 2)}.get(way, lambda _: 0.0)
    for step in itertools.count():
        seen = sorted(agent.times)
        if way != "dead" or not step:
            agent.answered = seen[-25] if way == "reordered" and step % 2 else seen[-2]
        yield
