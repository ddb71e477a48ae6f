from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from agrikd import image, metrics, plots
from agrikd.beside import Beside
from agrikd.data.manifest import Manifest, Row
from agrikd.errors import InputError, MissingExtraError
from agrikd.evaluate import ClassReport, Decisions, Estimate, Mistake, Refusals, Report
from agrikd.report import write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}
NASTY = '<b onmouseover="x">rust</b> & "$\\frac{1}" </svg><script>alert(1)</script> -->'
DECISIONS = Decisions(0.8, 0.05, 0.92, 1.4)


class Page(HTMLParser):
    """What a browser would make of the file; raises where a tag is closed that is not open."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.open, self.tags, self.words = source, [], [], []
        self.feed(source)
        self.close()
        assert self.open == [], "tags were left open"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def made(classes: Sequence[str], table: Sequence[Sequence[int]] | None = None, **changes) -> Report:
    """A report that its confusion matrix implies; by default every seventh photo is called the next class."""
    each = range(len(classes))
    if table is None:
        table = [[6 if i == j else int(j == (i + 1) % len(classes)) for j in each] for i in each]
    counts = np.array(table)
    rows = int(counts.sum())
    right = float(np.trace(counts) / rows)
    per_class = zip(classes, *metrics.precision_recall_f1(counts), counts.sum(1), strict=True)
    report = Report(
        model="tinynet",
        backend="torch",
        data_digest="d" * 64,
        split="test",
        rows=rows,
        classes=tuple(classes),
        accuracy=Estimate(right, max(right - 0.1, 0), min(right + 0.1, 1)),
        macro_f1=Estimate(metrics.macro_f1(counts), 0.5, 0.9),
        nll=0.4,
        ece=0.06,
        brier=0.2,
        per_class=tuple(ClassReport(c, float(p), float(r), float(f), int(n)) for c, p, r, f, n in per_class),
        confusion=tuple(tuple(int(n) for n in row) for row in counts),
        reliability=((0.55, 0.5, rows // 2), (0.95, 0.9, rows - rows // 2)),
        worst=(),
        decisions=DECISIONS,
        teacher=None,
        agreement=None,
        kl=None,
        parameters=1_590_000,
        size_bytes=6_400_000,
        ms_per_image=9.4,
    )
    return replace(report, **changes)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Four photos, one of them broken and one gone, and a row without a label."""
    image.write_jpeg(tmp_path / "good.jpg", np.full((300, 600, 3), 90, np.uint8))
    image.write_jpeg(tmp_path / "tall & <thin>.jpg", np.full((900, 3, 3), 90, np.uint8))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    named = ("good.jpg", "tall & <thin>.jpg", "broken.jpg", "gone.jpg")
    rows = tuple(Row(name, "rust", "test") for name in named)
    return Manifest((*rows, Row("bare.jpg", None, "train")), tmp_path)


def written(manifest: Manifest, reports: Sequence[tuple[str, Report]], **others) -> Page:
    """Write the page, hold it to what every page must keep, and return it."""
    path = manifest.root / "out" / "report.html"
    write_report(path, reports, **{"title": "Coffee", "manifest": manifest, **others})
    page = Page(path.read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:href="|url\()#([^")]+)', page.source):
        assert reference in ids
    assert "http:" not in page.source and "https:" not in page.source
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.tags)
    for attributes in page.named("img"):
        assert attributes["alt"] and attributes["src"].startswith("data:image/jpeg;base64,")
    assert page.named("svg")
    for attributes in page.named("svg"):
        assert attributes["role"] == "img" and attributes["aria-label"]
    assert page.named("html") == [{"lang": "en"}]
    for label, _ in reports:
        assert label in page.text
    return page


FIVE = ("cercospora", "healthy", "leaf_miner", "phoma", "rust")
GATE = {
    "teachers": [
        [
            {"name": "trained head", "answer": "ok", "why": "from a Run"},
            {"name": "beats the student", "answer": "not checked", "why": "no student alone"},
            {"name": "above chance", "answer": "refused", "why": "accuracy 0.2"},
        ]
    ],
    "passed": False,
    "override": "a trial",
}
STAGES = [
    {"stage": "probe", "rows": 60, "nll": 0.7, "mistake": 0.25, "kept": True},
    {"stage": "all", "rows": 60, "nll": 0.9, "mistake": 0.30, "kept": False},
]
HISTORY = [
    {"step": 10, "lr": 0.1, "loss": 2.0, "task": 1.5, "kd": 0.5},
    {"step": 20, "lr": 0.1, "loss": 1.0, "task": 0.8, "kd": 0.2, "val_mistake": 0.6},
]


def test_a_whole_page(manifest: Manifest) -> None:
    teacher = made(FIVE, size_bytes=64_000_000, ms_per_image=94.0)
    student = made(FIVE, teacher="big", agreement=0.84, kl=0.213)
    ahead = Beside("teacher", 0.0, -0.1, 0.1, "can't tell", (8.0, 10.0, 12.0))
    distilled = replace(student, calibrated=True, beside=(ahead,))
    page = written(
        manifest,
        [("teacher", teacher), ("student alone", student), ("distilled", distilled)],
        note="A demonstration, not evidence",
        gate=GATE,
        stages=STAGES,
        history=HISTORY,
        facts={"torch": "2.8.0"},
    )
    order = (
        "Coffee",
        "demonstration, not evidence",
        "The figures",
        "In plain words: distilled",
        "In detail: distilled",
    )
    order += ("In detail: student alone", "In detail: teacher", "fit to teach?", "was taught", "training went", "Facts")
    text = page.text[page.text.index("agrikd report") :]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    for words in ("84 %", "0.213", "6.4", "1.59 M", "0.50–0.90", "2.8.0", "d" * 64, "leaf miner"):
        assert words in text
    assert re.search(r"Calibrated .*? no no yes", text)
    assert "10.0 times smaller and 10.0 times faster than “teacher”" in text
    assert "Refused, and overridden. The gate refused; somebody went on, because: a trial" in text
    assert all(words in text for words in ("✓ ok", "– not checked", "✗ refused", "✓ kept", "– dropped"))
    said = [attributes["aria-label"] for attributes in page.named("svg")]
    assert len(said) == 3 + 3 * 2 + 2  # the comparison, a matrix and a reliability plot a model, the curves
    assert "Training, loss: loss from 2 to 1; task from 1.5 to 0.8; kd from 0.5 to 0.2" in said
    assert any(words.startswith("Macro-F1 against MB: teacher") for words in said)


def test_one_model_of_two_classes_and_nothing_else(manifest: Manifest) -> None:
    page = written(manifest, [("alone", made(("a", "b"), decisions=None))])
    assert "not calibrated" in page.text
    assert len(page.named("svg")) == 3
    for absent in ("Agreement", "Beside", "Short list", "fit to teach", "was taught", "training went", "Note."):
        assert absent not in page.text


def test_forty_classes_with_long_names(manifest: Manifest) -> None:
    names = [f"Tomato___yellow_leaf_curl_virus_and_its_mosaic_number_{n:02}" for n in range(40)]
    page = written(manifest, [("forty", made(names))])
    assert "Tomato yellow leaf curl virus and its mosaic number 39" in page.text
    assert "Tomato yellow leaf curl virus… 40" in page.text
    (matrix,) = (one for one in page.named("svg") if one["aria-label"].startswith("Confusion"))
    assert int(matrix["width"]) < 900 and matrix["class"] == "natural"
    assert len(page.source) < 1_000_000


def test_special_characters_are_text_and_never_markup(manifest: Manifest) -> None:
    report = made(("healthy", NASTY, "$\\frac$"), worst=(Mistake("tall & <thin>.jpg", NASTY, "healthy", 0.9),))
    checks = [[{"name": NASTY, "answer": "refused", "why": NASTY}]]
    page = written(
        manifest,
        [("alone", report), (NASTY, report)],
        title=NASTY,
        note=NASTY,
        gate={"teachers": checks, "passed": False, "override": NASTY},
        stages=[{**STAGES[0], "stage": NASTY}],
        history=[{"step": 1, NASTY: 0.5}],
        facts={NASTY: NASTY},
    )
    assert page.named("title") and page.text.count("<script>") >= 10
    assert "tall & <thin>.jpg" in page.text and page.text.count("$\\frac$") >= 6
    assert not any("onmouseover" in attributes for _, attributes in page.tags)


def test_photos_that_cannot_be_shown_are_tiles_with_words(manifest: Manifest) -> None:
    paths = ("good.jpg", "broken.jpg", "gone.jpg", "../secret.jpg")
    image.write_jpeg(manifest.root.parent / "secret.jpg", np.zeros((8, 8, 3), np.uint8))
    worst = tuple(Mistake(path, "rust", "healthy", 0.997) for path in paths)
    page = written(manifest, [("alone", made(FIVE, worst=worst))])
    (picture,) = page.named("img")
    assert picture["alt"] == "A photo of rust, called healthy"
    for words in ("cannot be decoded as a picture", "there is no such file", "it is not in the manifest"):
        assert f"No picture: {words}" in page.text
    assert page.text.count("over 99 % sure") == 4


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (6, 6), (3000, 4000)])
def test_thumbnails_are_small(manifest: Manifest, shape: tuple[int, int]) -> None:
    image.write_jpeg(manifest.root / "good.jpg", np.zeros((*shape, 3), np.uint8))
    page = written(manifest, [("alone", made(FIVE, worst=(Mistake("good.jpg", "rust", "phoma", 0.9),)))])
    assert len(page.named("img")[0]["src"]) < 5000


def test_a_model_without_mistakes(manifest: Manifest) -> None:
    page = written(manifest, [("alone", made(("a", "b"), [[10, 0], [0, 10]]))])
    assert "None on these photos." in page.text and "every photo was named rightly" in page.text
    assert "best" not in page.text.split("Right and wrong")[1].split("Confusions")[0]


def test_best_worst_and_confusions_in_words(manifest: Manifest) -> None:
    page = written(manifest, [("alone", made(("blight", "healthy", "rust"), [[20, 4, 1], [0, 30, 0], [5, 0, 25]]))])
    assert "It names 75 of 85 photos rightly." in page.text
    assert "It finds “healthy” best (30 of 30 photos) and “blight” worst (20 of 25)." in page.text
    assert "Most often, “rust” is called “blight” in 5 of 30 photos; next, “blight” is called “healthy”" in page.text


def test_what_nothing_defines_is_said_so(manifest: Manifest) -> None:
    """A class without photos has no recall, a class never said no precision, and neither is a 0."""
    page = written(manifest, [("alone", made(("here", "absent", "unsaid"), [[9, 1, 0], [0, 0, 0], [10, 0, 0]]))])
    assert "No photo here shows “absent”" in page.text
    assert "best (9 of 10 photos) and “unsaid” worst (0 of 10)" in page.text
    assert page.text.count("not defined") == 2


def honest(claim: float, right: float, rows: int) -> dict[str, object]:
    return {
        "ece": abs(claim - right),
        "reliability": ((claim, right, rows),),
        "accuracy": Estimate(right, right, right),
    }


@pytest.mark.parametrize(
    ("claim", "right", "rows", "words"),
    [
        (0.80, 0.81, 4000, "They can be taken at their word: they are off by 1 point on average"),
        (0.80, 0.75, 20, "Too few photos to tell: they are off by 5 points on average, and on 20 photos honest ones"),
        (0.88, 0.80, 4000, "right: they are off by 8 points on average. It is too sure of itself: it claims 88 %"),
        (0.50, 0.90, 400, "word: they are off by 40 points on average. It is not sure enough of itself: it"),
    ],
)
def test_how_far_percentages_are_trusted(manifest: Manifest, claim: float, right: float, rows: int, words: str) -> None:
    table = [[rows // 2, 0], [0, rows - rows // 2]]
    page = written(manifest, [("alone", made(("a", "b"), table, **honest(claim, right, rows)))])
    assert words in page.text


def test_honest_percentages_on_few_photos_are_not_blamed(manifest: Manifest) -> None:
    """The error the words allow for chance is the one that perfectly honest models show."""
    rng, rows = np.random.default_rng(0), 100
    claims = rng.uniform(0.5, 1, (400, rows))
    off = [metrics.ece(np.stack([1 - c, c], 1), (rng.random(rows) < c).astype(int)) for c in claims]
    bins = metrics.reliability(np.stack([1 - claims[0], claims[0]], 1), np.ones(rows, int))
    found = zip(bins.confidence, bins.accuracy, bins.rows, strict=True)
    reliability = tuple((float(c), float(a), int(n)) for c, a, n in found if n)
    page = written(manifest, [("alone", made(("a", "b"), [[50, 0], [0, 50]], ece=0.05, reliability=reliability))])
    said = re.search(r"honest ones would be off by (\d+) points", page.text)
    assert said and math.isclose(int(said[1]), 100 * np.mean(off), abs_tol=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "It answers 80 % of the photos and says “unsure” to the rest. Of its answers 5 % are wrong"),
        ({"answered": 0.0, "risk": 0.0}, "It says “unsure” to every photo"),
        ({"answered": 1.0, "risk": 0.002}, "It answers every photo; under 1 % of the answers are wrong."),
        ({}, "holds the right name in 92 % of the photos; it is 1.4 names long on average, of 5."),
    ],
)
def test_decisions_in_words(manifest: Manifest, changes: dict[str, float], words: str) -> None:
    page = written(manifest, [("alone", made(FIVE, decisions=replace(DECISIONS, **changes)))])
    assert words in page.text


@pytest.mark.parametrize(
    ("refusals", "words"),
    [
        (None, "Something else It does not notice it"),
        (Refusals(50, 2, 0, 0), "it refuses 2 of 50 plants (4.0 %). There was no picture of anything else"),
        (Refusals(50, 0, 20, 19), "refuses 0 of 50 plants (0.0 %) and 19 of 20 pictures of no plant (95.0 %)."),
    ],
)
def test_what_is_no_plant_in_words(manifest: Manifest, refusals: Refusals | None, words: str) -> None:
    page = written(manifest, [("alone", made(FIVE, refusals=refusals))])
    assert words in page.text


def test_how_the_last_model_stands_to_each_before_it(manifest: Manifest) -> None:
    def stands(other: str, words: str, pace: tuple[float, float, float] | None) -> Beside:
        return Beside(other, 0.1, 0.05, 0.15, words, pace)

    found = (
        stands("slower", "better by 10.0 points", (1.1, 1.5, 2.0)),
        stands("busy", "can't tell: 1.0 points", (0.4, 1.5, 6.0)),
        stands("near", "worse by 3.0 points", (1.01, 1.1, 1.19)),
        stands("elsewhere", "worse by 3.0 points", None),
        stands("faster", "worse by 3.0 points", (0.2, 0.5, 0.8)),
    )
    others = [(one.other, made(("a", "b"), ms_per_image=99.0)) for one in found]
    text = written(manifest, [*others, ("main", made(("a", "b"), beside=found))]).text
    assert "Beside “slower” In macro-F1, on the same photos: better by 10.0 points. One training of each" in text
    assert "1.5 times faster than “slower”" in text and "2.0 times slower than “faster”" in text
    for unsaid in ("busy", "near", "elsewhere"):
        assert f"er than “{unsaid}”" not in text, "the time is not told from noise"


@pytest.mark.parametrize(
    ("drawn", "words"), [(0, ""), (1, "1 of 5 pictures were drawn"), (5, "All 5 pictures were drawn")]
)
def test_synthetic_pictures_are_named(manifest: Manifest, drawn: int, words: str) -> None:
    rows = [replace(row, source="synthetic") if n < drawn else row for n, row in enumerate(manifest.rows)]
    page = written(replace(manifest, rows=tuple(rows)), [("alone", made(FIVE))])
    assert ("Synthetic pictures." in page.text) == bool(drawn) and words in page.text
    assert "train 0 labelled and 1 unlabelled; test 4 labelled." in page.text


def test_a_gate_that_passed_and_one_that_refused(manifest: Manifest) -> None:
    checks = GATE["teachers"] * 2
    passed = written(manifest, [("alone", made(FIVE))], gate={"teachers": checks, "passed": True, "override": None})
    assert "The gate let the teachers pass." in passed.text and "Teacher 2" in passed.text
    refused = written(manifest, [("alone", made(FIVE))], gate={"teachers": checks, "passed": False, "override": None})
    assert "The gate refused; see why below." in refused.text


def test_the_same_report_has_the_same_bytes_and_leaves_no_trace(manifest: Manifest) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    first = written(manifest, [("alone", made(FIVE)), ("two", made(FIVE))], history=HISTORY).source
    assert written(manifest, [("alone", made(FIVE)), ("two", made(FIVE))], history=HISTORY).source == first
    assert dict(mpl.rcParams) == before
    assert [one.name for one in (manifest.root / "out").iterdir()] == ["report.html"]


def test_names_in_other_scripts_draw_without_a_warning(manifest: Manifest) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = written(manifest, [("模型", made(("锈病", "स्वस्थ", "صدأ")))])
    assert page.text.count("锈病") >= 3


def test_figures_that_nobody_measured_are_drawn_and_not_compared(manifest: Manifest) -> None:
    unmeasured = made(FIVE, ms_per_image=0.0, size_bytes=0)
    beside = replace(unmeasured, beside=(Beside("slow", 0.0, 0.0, 0.0, "no difference", None),))
    assert " times " not in written(manifest, [("slow", made(FIVE)), ("unmeasured", beside)]).text
    assert written(manifest, [("a", unmeasured), ("b", unmeasured)]).named("svg")


def test_reports_that_cannot_stand_side_by_side_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    five = made(FIVE)
    cases: list[tuple[list[tuple[str, Report]], str]] = [
        ([], "there is none"),
        ([("a", five), ("a", five)], "the same label"),
        ([("a", made(FIVE, split="val")), ("b", five)], "a and b were judged on other rows or classes"),
        ([("a", made(FIVE[::-1])), ("b", five)], "other rows or classes"),
    ]
    for reports, words in cases:
        with pytest.raises(InputError, match=words):
            write_report(path, reports, title="x", manifest=manifest)
    with pytest.raises(TypeError, match="histories"):
        write_report(path, [("a", five)], title="x", manifest=manifest, histories=[])  # type: ignore[call-arg]
    assert not path.exists()


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named(manifest: Manifest, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed\n.*agrikd\[train\]"):
        write_report(manifest.root / "report.html", [("a", made(FIVE))], title="x", manifest=manifest)


def test_costs_far_apart_are_labelled_in_plain_numbers() -> None:
    """On a logarithmic axis matplotlib's own minor labels are raw mathtext."""
    small, large = (made(("a", "b"), size_bytes=size) for size in (2_300_000, 19_500_000))
    drawn = "".join(plots.comparison([("small", small), ("large", large)]))
    assert drawn.count("<svg") == 3
    assert "mathdefault" not in drawn
