"""The page's charts, by Vega: they follow its width and its light or dark. None speaks by colour alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from agrikd import intervals
from agrikd.errors import MissingExtraError
from agrikd.gallery.judged import Judgement
from agrikd.gallery.texts import shown

try:
    import altair as alt
except ImportError:
    raise MissingExtraError("altair", "app") from None

Drawing: TypeAlias = alt.LayerChart | alt.FacetChart
MOST_CELLS = 30
"""Classes on a side of a confusion matrix that can still be read."""
_COLOURS = ("#17693f", "#b45f06", "#3b5bdb", "#8a3ffc", "#6b7280", "#c2255c")
_DASHES = ([1, 0], [7, 4], [2, 3], [9, 3, 2, 3], [4, 2], [12, 4])
_INK, _PAPER, _LIGHT, _DARK, _MUTED = "#10241a", "#ffffff", "#eef5f0", "#0f5c37", "#7d8a83"
_LONGEST, _MOST_POINTS, _NARROW = 24, 1000, 12


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], step: str, value: str) -> Drawing:
    """Figures over the steps, by their names; each has a dash of its own. step, value: the axes' words."""
    names = _distinct(list(lines))
    rows = [
        {"step": at, "value": found, "name": name}
        for name, points in zip(names, lines.values(), strict=True)
        for at, found in points
    ]
    colour = alt.Scale(domain=names, range=[_COLOURS[n % len(_COLOURS)] for n in range(len(names))])
    dash = alt.Scale(domain=names, range=[_DASHES[n % len(_DASHES)] for n in range(len(names))])
    wide = max(map(len, names), default=0) > _NARROW
    legend = alt.Legend(
        orient="top",
        title=None,
        columns=1 if wide else 4,
        labelLimit=300,
        symbolType="stroke",
        symbolSize=400,
        symbolStrokeWidth=2.5,
    )
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        alt.X("step:Q", title=step, axis=alt.Axis(format=",d", tickCount=5, tickMinStep=1)),
        alt.Y("value:Q", title=value, axis=alt.Axis(format="~g"), scale=alt.Scale(zero=False)),
        alt.Color("name:N", scale=colour, legend=legend),
        tooltip=[alt.Tooltip("name:N"), alt.Tooltip("step:Q"), alt.Tooltip("value:Q", format=".4g")],
    )
    line = base.mark_line(strokeWidth=2.2).encode(alt.StrokeDash("name:N", scale=dash, legend=legend))
    alone = any(len(points) == 1 for points in lines.values())  # a line of one point cannot be seen
    return alt.layer(line, *([base.mark_point(filled=True, size=60, opacity=1)] if alone else []))


def confusion(judged: Judgement, names: Sequence[str], truth: str, said: str) -> Drawing:
    """Rows are the truth, columns what was said; a cell holds its count and is as dark as its share of the row.

    names: of the classes, in their order. truth, said: the axes' words."""
    named = _distinct([shown(name, _LONGEST) for name in names])
    cells = [
        {"truth": named[i], "said": named[j], "times": times, "share": times / max(sum(row), 1)}
        for i, row in enumerate(judged.confusion)
        for j, times in enumerate(row)
    ]
    axis: dict[str, Any] = {"labelLimit": 110, "ticks": False, "domain": False, "grid": False}
    base = alt.Chart(alt.InlineData(values=cells)).encode(
        alt.X("said:N", sort=named, title=said, axis=alt.Axis(labelAngle=-45, **axis)),
        alt.Y("truth:N", sort=named, title=truth, axis=alt.Axis(**axis)),
        tooltip=[alt.Tooltip(f"{name}:N", title=words) for name, words in (("truth", truth), ("said", said))],
    )
    shade = alt.Scale(domain=[0, 1], range=[_LIGHT, _DARK], interpolate="rgb")
    squares = base.mark_rect(stroke=_PAPER).encode(alt.Color("share:Q", scale=shade, legend=None))
    size = 15 if len(named) <= 8 else 10
    ink = alt.condition("datum.share > 0.5", alt.value(_PAPER), alt.value(_INK))
    return alt.layer(squares, base.mark_text(fontSize=size).encode(text="times:Q", color=ink))


def reliability(judged: Judgement, claimed: str, right: str, photos: str) -> Drawing:
    """How often a model was right against how sure it was, with the 95 % interval of each bin and its photos; dashed:
    where the two are equal. claimed, right, photos: words."""
    rows = []
    for number, (confidence, share, count) in enumerate(judged.reliability):
        low, high = intervals.wilson(round(share * count), count)
        shares = {"claimed": confidence, "right": share, "low": low, "high": high}
        rows.append({**shares, "photos": count, "under": -0.06 - 0.07 * (number % 2)})  # neighbours in two lines
    percent = alt.Axis(format=".0%", values=[0, 0.25, 0.5, 0.75, 1])
    across = alt.X("claimed:Q", title=claimed, axis=percent, scale=alt.Scale(domain=[0, 1]))
    tooltip = [alt.Tooltip("claimed:Q", title=claimed, format=".0%"), alt.Tooltip("right:Q", title=right, format=".0%")]
    tooltip += [alt.Tooltip("photos:Q", title=photos)]
    base = alt.Chart(alt.InlineData(values=rows)).encode(across, tooltip=tooltip)
    up = alt.Scale(domain=[-0.18, 1], nice=False)
    equal = alt.Chart(alt.InlineData(values=[{"claimed": end, "right": end} for end in (0, 1)])).encode(
        across, alt.Y("right:Q", title=right, axis=percent, scale=up)
    )
    return alt.layer(
        equal.mark_line(strokeDash=[5, 4], color=_MUTED),
        base.mark_rule(color=_COLOURS[0], strokeWidth=1.5).encode(alt.Y("low:Q", scale=up), alt.Y2("high:Q")),
        base.mark_point(filled=True, size=70, color=_COLOURS[0], opacity=1).encode(alt.Y("right:Q", scale=up)),
        base.mark_text(fontSize=12, color=_MUTED).encode(alt.Y("under:Q", scale=up), text="photos:Q"),
    )


def scatter(judged: Judgement, truth: str, said: str) -> Drawing:
    """What was said of each photo over what it was, with its interval, of 1,000 photos at the most; dashed: where the
    two are equal. truth, said: words."""
    every = -(-len(judged.points) // _MOST_POINTS)
    rows = [point._asdict() for point in judged.points[:: max(every, 1)]]
    ends = [number for row in rows for number in (row["truth"], row["said"])]
    unit = f", {shown(judged.unit, 12)}" if judged.unit else ""
    across, up = alt.X("truth:Q", title=truth + unit), alt.Y("said:Q", title=said + unit)
    base = alt.Chart(alt.InlineData(values=rows)).encode(across)
    equal = [{"truth": end, "said": end} for end in (min(ends), max(ends))]
    with_interval = base.transform_filter("isValid(datum.low)").mark_rule(color=_MUTED, opacity=0.5)
    return alt.layer(
        alt.Chart(alt.InlineData(values=equal)).mark_line(strokeDash=[5, 4], color=_MUTED).encode(across, up),
        with_interval.encode(alt.Y("low:Q"), alt.Y2("high:Q")),
        base.mark_point(filled=True, size=40, color=_COLOURS[0], opacity=0.75).encode(up),
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, those that stand twice with a number: for a chart equal names are one."""
    return [name if names.count(name) == 1 else f"{name} ({number + 1})" for number, name in enumerate(names)]
