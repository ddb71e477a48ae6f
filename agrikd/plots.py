"""The plots of the pages, each as an SVG element that stands in a page and takes the page's colours and font."""

from __future__ import annotations

import io
import math
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from agrikd import files, intervals
from agrikd.errors import MissingExtraError

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from agrikd.evaluate import Report
    from agrikd.evaluate_numbers import NumberReport

_NAMED_COLUMNS = 8
"""With more classes the matrix numbers its columns: names would not fit over them."""
_LONGEST_NAME, _LONGEST_NUMBERED, _LONGEST_ALONE = 26, 30, 48
_PHONE = 430
"""A matrix wider than this keeps its size on a narrow screen, where it scrolls: shrunk, it could not be read."""

# matplotlib draws in these colours; `_styled` turns each into the page's own, so that plots follow its light and dark.
INK, MUTED, _LINE = "#1b2a21", "#55635b", "#d8ded9"
ACCENT, _HEAT, _AMBER, PAPER = "#17693f", "#0f5c37", "#9a5b00", "#fefefd"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    _LINE: "line",
    ACCENT: "accent",
    _HEAT: "heat",
    _AMBER: "amber",
    PAPER: "card",
}
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and set in the page's font
    "svg.hashsalt": "agrikd",  # the same report, the same bytes
    "text.parse_math": False,  # a class may be called "$x$"
    "text.usetex": False,
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}
_ALONE = threading.Lock()
"""matplotlib's style is the whole process's; the app draws in threads."""
MARKERS = "osD^vPX*"
LINES = ((INK, "-"), (ACCENT, "--"), (_AMBER, ":"), (MUTED, "-."))


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib in the page's style; a letter its font lacks is the browser's to draw, and no news."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise MissingExtraError("matplotlib", "train") from None
    with _ALONE, mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def comparison(reports: Sequence[tuple[str, Report]]) -> list[Markup]:
    """Macro-F1 of labelled models; from two on also against what they cost in time and bytes."""
    scores = [_scores(reports)]
    if len(reports) < 2:
        return scores
    axes: list[tuple[str, Callable[[Report], float]]] = [
        ("ms per photo", lambda report: report.ms_per_image),
        ("MB", lambda report: report.size_bytes / 1e6),
    ]
    return scores + [_trade(reports, unit, value) for unit, value in axes]


def canvas(width: float, height: float) -> Figure:
    """A figure in CSS pixels: at 72 dpi a point of matplotlib's is one of the SVG's units."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")


def _scores(reports: Sequence[tuple[str, Report]]) -> Markup:
    figure = canvas(300, 76 + 52 * len(reports))
    axes = figure.add_subplot()
    for place, (label, report) in enumerate(reports):
        score, face = report.macro_f1, _face(place, reports)
        reach = [[max(score.value - score.low, 0)], [max(score.high - score.value, 0)]]
        axes.errorbar(score.value, place, xerr=reach, capsize=4, markersize=8, **face)
        name = f"{_shortened(label)}  {score.value:.2f}"
        axes.text(0.02, place - 0.3, name, transform=axes.get_yaxis_transform(), va="center")
    low = min(report.macro_f1.low for _, report in reports)
    axes.set(xlim=(min(math.floor(low * 10) / 10, 0.9), 1.005), ylim=(len(reports) - 0.55, -0.65), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("macro-F1, 95 % interval")
    said = [f"{label} {r.macro_f1.value:.2f} ({r.macro_f1.low:.2f} to {r.macro_f1.high:.2f})" for label, r in reports]
    return svg(figure, f"Macro-F1 with 95 % interval: {'; '.join(said)}")


def _trade(reports: Sequence[tuple[str, Report]], unit: str, value: Callable[[Report], float]) -> Markup:
    figure = canvas(300, 196 + 20 * len(reports))
    axes = figure.add_subplot()
    costs = [value(report) for _, report in reports]
    for place, (label, report) in enumerate(reports):
        axes.plot(costs[place], report.macro_f1.value, markersize=9, label=_shortened(label), **_face(place, reports))
    if min(costs) > 0 and max(costs) > 8 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_formatter(lambda *_: "")
        axes.set_xlim(min(costs) / 2, max(costs) * 2)
    else:
        axes.set_xlim(0, max(costs) * 1.2 or 1)
    axes.margins(y=0.25)
    axes.set(xlabel=f"{unit} (less is better)", ylabel="macro-F1")
    figure.legend(loc="outside lower left", fontsize=11)
    said = [f"{label} {r.macro_f1.value:.2f} at {value(r):.3g}" for label, r in reports]
    return svg(figure, f"Macro-F1 against {unit}: {'; '.join(said)}")


def _face(place: int, reports: Sequence[object]) -> dict[str, Any]:
    """A model's marker: a shape of its own, filled for the last."""
    last = place == len(reports) - 1
    colour = ACCENT if last else INK
    return {
        "marker": MARKERS[place % len(MARKERS)],
        "color": colour,
        "markerfacecolor": colour if last else PAPER,
        "linestyle": "none",
    }


def matrix(label: str, report: Report) -> Markup:
    """Rows are the truth, columns what was said; a cell is as dark as its share of the row."""
    classes = len(report.classes)
    numbered, cell = classes > _NAMED_COLUMNS, max(16, min(52, 560 // classes))
    small = 12 if cell > 20 else 10
    names = [_shortened(readable(name), _LONGEST_NUMBERED if numbered else _LONGEST_NAME) for name in report.classes]
    longest = 0.58 * small * max(len(name) for name in names) + 12
    left, below = longest + (52 if numbered else 24), 46 if numbered else 0.75 * longest + 34
    side = cell * classes
    width, height = left + side + 12, below + side + 8
    figure = canvas(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((left / width, below / height, side / width, side / height))
    axes.grid(False)
    for i, row in enumerate(report.confusion):
        for j, times in enumerate(row):
            if times:
                _cell(axes, (j, i), times, times / sum(row), cell)
    places = range(classes)
    axes.set(
        xlim=(-0.5, classes - 0.5),
        ylim=(classes - 0.5, -0.5),
        xlabel="what the model said",
        ylabel="what the photo shows",
    )
    axes.set_yticks(places, [f"{name}  {i + 1}" for i, name in enumerate(names)] if numbered else names, fontsize=small)
    turn = {"rotation": 0} if numbered else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(places, [str(i + 1) for i in places] if numbered else names, fontsize=small, **turn)
    axes.tick_params(length=0)
    right = sum(report.confusion[i][i] for i in places)
    return svg(
        figure, f"Confusion matrix of {label}: {right} of {report.rows} photos on the diagonal", natural=width > _PHONE
    )


def _cell(axes: Axes, place: tuple[int, int], times: int, share: float, cell: int) -> None:
    from matplotlib.patches import Rectangle

    corner = place[0] - 0.5, place[1] - 0.5
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=_HEAT, alpha=0.06 + 0.94 * share, linewidth=0))
    colour = PAPER if share > 0.72 else INK
    axes.text(*place, str(times), color=colour, ha="center", va="center", fontsize=max(8, min(14, cell // 2.4)))


def reliability(label: str, report: Report) -> Markup:
    """How often the model was right against how sure it was, and how many photos say so."""
    figure = canvas(380, 380)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot((0, 1), (0, 1), "--", color=MUTED)
    axes.text(0.03, 0.94, "above the line: too modest", va="top", fontsize=11, color=MUTED)
    axes.text(0.97, 0.04, "below: too sure", ha="right", fontsize=11, color=MUTED)
    for confidence, right, rows in report.reliability:
        low, high = intervals.wilson(round(right * rows), rows)
        axes.plot((confidence, confidence), (low, high), color=ACCENT, linewidth=1)
        axes.plot(confidence, right, "o", color=ACCENT)
        middle = (min(math.floor(confidence * 15), 14) + 0.5) / 15
        bar = counts.bar(middle, rows, width=0.055, color=MUTED)
        counts.bar_label(bar, fontsize=10)
    axes.set(xlim=(0, 1), ylim=(0, 1.03), ylabel="share that was right")
    counts.set(xlabel="what the model claimed", ylabel="photos", yticks=[])
    counts.margins(y=0.35)
    for percents in (axes.xaxis, axes.yaxis):
        percents.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")
    return svg(figure, f"Reliability of {label}: calibration error {report.ece:.3f} over {report.rows} photos")


def scatter(label: str, report: NumberReport) -> Markup:
    """What was said of each photo over what it was; a bar is the interval."""
    figure = canvas(400, 400)
    axes = figure.add_subplot()
    scale, points = report.scale, report.points
    truth, said = np.array([point.truth for point in points]), np.array([point.said for point in points])
    if report.covered is not None:
        ends = np.array([point.interval for point in points])
        axes.vlines(truth, ends[:, 0], ends[:, 1], color=_LINE, linewidth=1.2)
    top = max(truth.max(), said.max(), scale.low + (scale.high - scale.low) / 100)
    axes.plot((scale.low, top), (scale.low, top), color=MUTED, linewidth=1)
    axes.plot(truth, said, "o", color=ACCENT, markersize=4.5, alpha=0.75, markeredgewidth=0)
    axes.set_title(_shortened(label), loc="left", fontsize=12)
    unit = f", {scale.unit}" if scale.unit else ""
    axes.set(xlabel=f"what it was{unit}", ylabel=f"what was said{unit}")
    return svg(
        figure, f"{label}: what was said of {report.rows} photos over what it was; off by {report.mae.value:.3g}"
    )


def curves(history: Sequence[Mapping[str, float]]) -> list[Markup]:
    """The loss and its parts over the steps of a Run, and what was measured on its validation photos."""
    names = [name for name in dict.fromkeys(key for entry in history for key in entry) if name not in ("step", "lr")]
    scores = [name for name in names if name.startswith("val_")]
    losses = [name for name in names if name not in scores]
    return [
        _curve(history, kind, words) for kind, words in ((losses, "loss"), (scores, "on the validation photos")) if kind
    ]


def _curve(history: Sequence[Mapping[str, float]], names: Sequence[str], words: str) -> Markup:
    figure = canvas(400, 270)
    axes = figure.add_subplot()
    ends = []
    for place, name in enumerate(names):
        steps, values = zip(*((entry["step"], entry[name]) for entry in history if name in entry), strict=True)
        colour, line = LINES[place % len(LINES)]
        marker = "o" if len(steps) < 20 else ""
        axes.plot(steps, values, line, color=colour, label=readable(name), marker=marker, markersize=4, linewidth=1.6)
        ends.append(f"{name} from {values[0]:.3g} to {values[-1]:.3g}")
    axes.set(xlabel="step", ylabel=words)
    figure.legend(loc="outside upper left", ncols=4, fontsize=11)
    return svg(figure, f"Training, {words}: {'; '.join(ends)}")


def counts(classes: Mapping[str, Mapping[str, int]]) -> Markup:
    """How many photos of each class each split holds; a split has its own scale, so that shares can be compared."""
    splits = list(dict.fromkeys(split for each in classes.values() for split in each))
    figure = canvas(336, 36 + 38 * len(classes))
    columns = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    places = range(len(classes))
    for axes, split in zip(columns, splits, strict=True):
        found = [each.get(split, 0) for each in classes.values()]
        bars = axes.barh([place + 0.16 for place in places], found, height=0.36, color=ACCENT)
        axes.bar_label(bars, [f"{n:,}" for n in found], padding=4, fontsize=11)
        axes.set_title(f"{split} · {sum(found):,}", loc="left", fontsize=12, color=MUTED)
        axes.set(xlim=(0, 1.5 * max(*found, 1)), ylim=(len(classes) - 0.5, -0.5), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for place, name in enumerate(classes):
        columns[0].text(0, place - 0.2, _shortened(readable(name), _LONGEST_ALONE), va="center", in_layout=False)
    said = [f"{name} {', '.join(f'{split} {n}' for split, n in each.items())}" for name, each in classes.items()]
    return svg(figure, f"Photos of each class: {'; '.join(said)}")


def spreads(what: str, values: Mapping[str, Sequence[float]], reach: tuple[float, float]) -> Markup:
    """A measure's histogram in each split, one above the other: the share of its photos, and their median."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    (low, high), bins = reach, 24
    steep = 0 < 8 * low < high
    edges = np.geomspace(low, high, bins + 1) if steep else np.linspace(low, high, bins + 1)
    figure = canvas(300, 44 + 72 * len(values))
    column = figure.subplots(len(values), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    said = []
    for axes, (split, found) in zip(column, values.items(), strict=True):
        middle = float(np.median(found))
        axes.hist(np.clip(found, edges[0], edges[-1]), edges, weights=np.full(len(found), 1 / len(found)), color=ACCENT)
        axes.axvline(middle, color=_AMBER, linestyle="--", linewidth=1.8)
        axes.set_title(f"{split} · {len(found):,}", loc="left", fontsize=12)
        axes.set(yticks=[])
        axes.spines["left"].set_visible(False)
        said.append(f"{split}, median {middle:.3g} of {len(found)} photos")
    column[-1].set(xlabel=what, xlim=(edges[0], edges[-1]))
    if steep:
        column[-1].set_xscale("log")
    column[-1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if steep else MaxNLocator(5))
    column[-1].xaxis.set_major_formatter(lambda x, _: f"{x:,g}")
    column[-1].xaxis.set_minor_formatter(lambda *_: "")
    return svg(figure, f"{what.capitalize()}: {'; '.join(said)}")


def standalone(svg: Markup) -> str:
    """A plot as a file of its own, in the light colours of the page."""
    colours = "; ".join(f"--{name}: {colour}" for colour, name in _VARIABLES.items())
    named = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    look = f"background: {PAPER}; font-family: system-ui, sans-serif; {colours}"
    return str(svg).replace("<svg ", f'<svg {named} style="{look}" ', 1)


def readable(name: str) -> str:
    """A class or a figure's name as a person would write it: Late_blight is "Late blight"."""
    return " ".join(name.replace("_", " ").split()) or name


def _shortened(text: str, longest: int = _LONGEST_NAME) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def svg(figure: Figure, alt: str, natural: bool = False) -> Markup:
    """The figure as an element of the page; `natural` keeps its size on a narrow screen, which then scrolls."""
    from markupsafe import Markup

    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.S)
    own = files.sha256((alt + text).encode())[:10]
    text = re.sub(r"<[^>]+>", lambda tag: _styled(tag.group(), own), text)
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    keep = ' class="natural"' if natural else ""
    head = Markup('<svg role="img" aria-label="{}"{} viewBox="0 0 {w} {h}" width="{w}" height="{h}">').format(
        alt, Markup(keep), w=width, h=height
    )
    return head + Markup(text[text.index(">") + 1 :])


def _styled(tag: str, own: str) -> str:
    """A tag of an SVG with the page's colours, and ids that no other plot of the page has."""
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}-", tag)
    for colour, name in _VARIABLES.items():
        tag = tag.replace(colour, f"var(--{name})")
    return tag
