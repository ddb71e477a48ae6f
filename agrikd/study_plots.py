"""The plots of a study: what each way of training gains, what it learns from more labels, what its net costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agrikd.plots import ACCENT, LINES, MARKERS, MUTED, PAPER, canvas, svg

if TYPE_CHECKING:
    from markupsafe import Markup

    from agrikd.intervals import Difference


def gains(
    arms: Mapping[str, Mapping[str, Difference]], overall: Mapping[str, Difference], words: str, scale: float = 1.0
) -> Markup:
    """Each arm's difference to the student alone at each place, and its mean over the places, all with 95 % intervals.

    arms: by arm, then by place. words: of the axis. scale: of the numbers, 100 for points.
    """
    places = list(dict.fromkeys(place for each in arms.values() for place in each))
    figure = canvas(560, 90 + 22 * len(places) + 34 * len(arms))
    axes = figure.add_subplot()
    axes.axvline(0, color=MUTED, linewidth=1)
    said = []
    for row, (arm, each) in enumerate(arms.items()):
        marks: list[tuple[Any, float, dict[str, Any]]] = [
            (each[place], 0.12 + 0.17 * number, _small(number, place, row))
            for number, place in enumerate(places)
            if place in each
        ]
        if arm in overall:
            marks.append((overall[arm], -0.14, _large("mean of all" if row == 0 else "_")))
            said.append(f"{arm} {scale * overall[arm].mean:.1f}")
        for found, below, face in marks:
            reach = [[scale * (found.mean - found.low)], [scale * (found.high - found.mean)]]
            axes.errorbar(scale * found.mean, row + below, xerr=reach, **face)
    axes.set(xlabel=words, yticks=range(len(arms)), ylim=(len(arms) - 0.3, -0.6))
    axes.set_yticklabels(list(arms))
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower left", ncols=2, fontsize=11)
    return svg(figure, f"Gain over the student alone, {words}: {'; '.join(said)}")


def _small(number: int, place: str, row: int) -> dict[str, Any]:
    face = {"marker": MARKERS[1 + number % (len(MARKERS) - 1)], "markerfacecolor": PAPER, "markersize": 5}
    return {**face, "color": MUTED, "linewidth": 1, "linestyle": "none", "label": place if row == 0 else "_"}


def _large(label: str) -> dict[str, Any]:
    return {"marker": "o", "markersize": 9, "color": ACCENT, "elinewidth": 2.5, "linestyle": "none", "label": label}


def learning_curves(
    name: str,
    ticks: Sequence[str],
    lines: Mapping[str, Mapping[str, tuple[float, float]]],
    words: tuple[str, str] = ("labels a class", "macro-F1"),
) -> Markup:
    """`words` (of the axes): each line's mean and standard deviation over seeds at each of its ticks."""
    figure = canvas(480, 320 + 20 * (len(lines) // 2))
    axes = figure.add_subplot()
    said = []
    for number, (label, points) in enumerate(lines.items()):
        places = [place + 0.05 * (number - len(lines) / 2) for place, tick in enumerate(ticks) if tick in points]
        means, spread = zip(*(points[tick] for tick in ticks if tick in points), strict=True)
        colour, line = LINES[number % 4][0], LINES[(number + number // 4) % 4][1]
        face: Any = {"marker": MARKERS[number % len(MARKERS)], "markersize": 5, "linewidth": 1.5, "capsize": 3}
        axes.errorbar(places, means, yerr=spread, color=colour, linestyle=line, label=label, **face)
        said.append(f"{label} {', '.join(f'{value:.2f}' for value in means)}")
    axes.set(xlabel=words[0], ylabel=f"{words[1]} (mean ± sd over seeds)", xticks=range(len(ticks)))
    axes.set_xticklabels(ticks)
    axes.set_title(name, loc="left", fontsize=12)
    figure.legend(loc="outside lower left", ncols=2, fontsize=11)
    return svg(figure, f"{name}: {words[1]} at {', '.join(ticks)} {words[0]}: {'; '.join(said)}")


def trades(unit: str, points: Mapping[str, Sequence[tuple[float, float]]], measure: str = "macro-F1") -> Markup:
    """A measure against a cost: (cost, measure) of each net, a marker a way of training."""
    figure = canvas(480, 320 + 20 * (len(points) // 2))
    axes = figure.add_subplot()
    said = []
    for number, (label, found) in enumerate(points.items()):
        x, y = zip(*found, strict=True)
        colour, _ = LINES[number % len(LINES)]
        marker: Any = {"marker": MARKERS[number % len(MARKERS)], "markerfacecolor": PAPER, "markersize": 8}
        axes.plot(x, y, linestyle="none", color=colour, label=label, **marker)
        said.append(f"{label} {', '.join(f'{score:.2f} at {cost:.3g}' for cost, score in found)}")
    costs = sorted({cost for found in points.values() for cost, _ in found})
    axes.set_xscale("log")
    axes.set_xticks(costs, [f"{cost:.3g}" for cost in costs], minor=False)
    axes.set_xticks([], minor=True)
    axes.margins(0.15)
    axes.set(xlabel=f"{unit} (less is better)", ylabel=f"{measure}, mean over shared places")
    figure.legend(loc="outside lower left", ncols=2, fontsize=11)
    return svg(figure, f"{measure} against {unit}: {'; '.join(said)}")
