"""Models and runs: what was trained, how far it is, what it is worth, and how two Runs differ."""

import time
from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from agrikd import gallery, site
from agrikd.errors import AgriKDError
from agrikd.gallery import charts, runs
from agrikd.gallery.judged import HELD_OUT, Figure, Judgement
from agrikd.gallery.log import POINTS, Log
from agrikd.gallery.runs import Summary
from agrikd.gallery.texts import breaking, lasting, literal, moment, shown
from agrikd.types import ModelSpec, Scale

words, field = st.session_state.words, site.Field.here()
ROOT = gallery.folder(field.folder)
LIVE_S, LIVE_POINTS, MOST_LOGS, MOST_PAIRS, MOST_CARD = 2, 100, 8, 5, 20_000
STATES = {
    "finished": words["models.finished"],
    "training": words["models.training"],
    "begun": words["models.begun"],
    "interrupted": words["models.interrupted"],
    "stopped": words["models.stopped"],
    "refused": words["models.refused"],
}
MARKS = {"finished": "✓", "training": "▶", "begun": "…", "interrupted": "‖", "stopped": "✕", "refused": "✕"}
FIGURES = {
    "accuracy": (words["models.accuracy"], "{:.1%}"),
    "macro_f1": (words["models.macro_f1"], "{:.2f}"),
    "mae": (words["models.mae"], "{:.3g}"),
    "rmse": (words["models.rmse"], "{:.3g}"),
    "r2": (words["models.r2"], "{:.2f}"),
    "bias": (words["models.bias"], "{:+.3g}"),
    "ece": (words["models.ece"], "{:.1%}"),
    "answered": (words["models.answered"], "{:.0%}"),
    "risk": (words["models.risk"], "{:.0%}"),
    "covered": (words["models.covered"], "{:.0%}"),
    "set_size": (words["models.set_size"], "{:.1f}"),
    "width": (words["models.width"], "{:.3g}"),
    "plants_refused": (words["models.plants_refused"], "{:.1%}"),
    "others_refused": (words["models.others_refused"], "{:.1%}"),
    "agreement": (words["models.agreement"], "{:.0%}"),
    "ms_per_image": (words["models.ms_per_image"], "{:.1f}"),
}
OBSTACLES = {
    "task": words["models.other_task"],
    "photos": words["models.other_photos"],
    "labels": words["models.other_labels"],
    "split": words["models.other_split"],
    "rows": words["models.other_rows"],
}


def where(one: Summary) -> str:
    folder = one.run.folder
    return shown(folder.relative_to(ROOT) if folder != ROOT else folder.name)


def split(name: str) -> str:
    return words["models.held_out"] if name == HELD_OUT else shown(name, 40)


def written(name: str, figure: Figure) -> str:
    return FIGURES[name][1].format(figure.value)


def span(name: str, figure: Figure) -> str:
    """Its interval; nothing where it has none."""
    if figure.low is None or figure.high is None:
        return ""
    return f"{written(name, Figure(figure.low))} – {written(name, Figure(figure.high))}"


def written_with_span(name: str, figure: Figure | None) -> str:
    if figure is None:
        return "–"
    return f"{written(name, figure)} ({around})" if (around := span(name, figure)) else written(name, figure)


def steps(one: Summary) -> str:
    if one.steps is None:
        return ", ".join(shown(said.get("stage", ""), 20) for said in stages(one)) or "–"
    return f"{one.step or 0} / {one.steps}"


def stages(one: Summary) -> list[dict[str, object]]:
    said = one.record.get("stages")
    return [stage for stage in said if isinstance(stage, dict)] if isinstance(said, list) else []


def overview(found: list[Summary]) -> None:
    def best(one: Summary, name: str) -> float | None:
        return one.judged[0].figures[name].value if one.judged and name in one.judged[0].figures else None

    def state(one: Summary) -> str:
        reached = "" if one.state == "finished" else f" {steps(one)}"
        return f"{MARKS[one.state]} {STATES[one.state]}{reached}"

    table: dict[str, list[object]] = {  # the columns that a window of 1280 pixels holds; the rest stands in the facts
        words["models.run"]: [where(one) for one in found],
        words["models.state"]: [state(one) for one in found],
        words["models.accuracy_short"]: [best(one, "accuracy") for one in found],
        "macro-F1": [best(one, "macro_f1") for one in found],
        "MAE": [best(one, "mae") for one in found],
        words["models.judged_on"]: [split(one.judged[0].split) if one.judged else "–" for one in found],
        words["models.method"]: [shown(one.method, 60) for one in found],
        words["models.teacher"]: [shown(one.teacher, 60) or "–" for one in found],
        words["models.calibration"]: [words["models.yes"] if one.calibration else words["models.no"] for one in found],
        words["models.changed"]: [moment(one.changed) for one in found],
    }
    config = {
        words["models.run"]: st.column_config.TextColumn(pinned=True),
        words["models.accuracy_short"]: st.column_config.NumberColumn(format="percent"),
        "macro-F1": st.column_config.NumberColumn(format="%.2f"),
        "MAE": st.column_config.NumberColumn(format="%.3g"),
    }
    known = {name: cells for name, cells in table.items() if any(cell is not None for cell in cells)}
    st.dataframe(known, hide_index=True, placeholder="–", column_config=config)


def followed(one: Summary) -> Log:
    logs: dict[Path, Log] = st.session_state.setdefault("run_logs", {})
    if len(logs) >= MOST_LOGS and one.run.metrics not in logs:
        logs.clear()
    log = logs.setdefault(one.run.metrics, Log(one.run.metrics))
    log.read()
    return log


def drawn(log: Log, most: int = POINTS) -> None:
    for kind, title in zip(log.panels(most), (words["models.loss"], words["models.validation"]), strict=True):
        if kind:
            st.altair_chart(charts.curves(kind, words["models.step"], title), height=320, alt=title)


@st.fragment(run_every=LIVE_S)
def progress(one: Summary) -> None:
    """What a training that goes on has reached."""
    try:
        log, now = followed(one), time.time()
        if runs.state(one.run, now) != one.state:
            st.rerun()
    except AgriKDError as error:
        st.error(literal(error))
        return
    pace, left = log.steps_per_s, log.seconds_left(one.steps or 0)
    with st.container(horizontal=True):
        st.metric(words["models.steps"], f"{log.step} / {one.steps}", width="content")
        st.metric(words["models.pace"], f"{pace:.2g}" if pace else "…", width="content")
        st.metric(words["models.left"], lasting(left) if left is not None else "…", width="content")
        last = lasting(max(now - (log.changed or one.changed), 0))
        st.metric(words["models.last_word"], last, width="content")
    st.progress(min(log.step / (one.steps or 1), 1.0))
    if one.state == "begun":
        st.info(words["models.begun_why"])
    drawn(log, LIVE_POINTS)


def quality(one: Summary, _: list[Summary]) -> None:
    if not one.judged:
        st.info(words["models.not_judged"].format(run=literal(where(one))))
        return
    found = {said.split: said for said in one.judged}
    chosen = next(iter(found))
    if len(found) > 1:
        chosen = st.selectbox(words["models.judged_on"], list(found), format_func=split)
    said = found[chosen]
    st.caption(words["models.rows"].format(rows=said.rows, split=literal(split(said.split))))
    table(said)
    left, right = st.columns(2)
    if said.points:
        with left:
            st.altair_chart(charts.scatter(said, words["models.truth"], words["models.said"]), height=380)
    if said.confusion:
        with left:
            confusion(said, called(said.classes))
    if said.reliability:
        with right:
            st.subheader(words["models.reliability"])
            st.caption(words["models.reliability_why"])
            texts = (words["models.claimed"], words["models.right"], words["models.photos"])
            st.altair_chart(charts.reliability(said, *texts), height=380, alt=words["models.reliability"])


def table(said: Judgement) -> None:
    known = {name: said.figures[name] for name in FIGURES if name in said.figures}
    unit = f" ({literal(said.unit)})" if said.unit else ""
    in_unit = ("mae", "rmse", "bias", "width")
    st.table(
        {
            words["models.figure"]: [FIGURES[name][0] + unit * (name in in_unit) for name in known],
            words["models.value"]: [written(name, figure) for name, figure in known.items()],
            words["models.interval"]: [span(name, figure) for name, figure in known.items()],
        },
        border="horizontal",
    )


def confusion(said: Judgement, names: list[str]) -> None:
    st.subheader(words["models.confusion"])
    own = dict(zip(said.classes, names, strict=True))
    most = [
        {"truth": literal(own[truth]), "said": literal(own[wrong]), "times": times, "rows": rows}
        for truth, wrong, times, rows in said.confusions[:MOST_PAIRS]
    ]
    st.markdown("\n".join("- " + words["models.confused"].format(**texts) for texts in most))
    if len(names) > charts.MOST_CELLS:
        st.caption(words["models.many_classes"].format(count=len(names)))
        return
    matrix = charts.confusion(said, names, words["models.truth"], words["models.said"])
    st.altair_chart(matrix, height=150 + max(250, 30 * len(names)), alt=words["models.confusion"])


def training(one: Summary, _: list[Summary]) -> None:
    log = followed(one)
    if one.state not in runs.UNFINISHED:  # else they are drawn above
        drawn(log)
    if not log.series and one.steps is not None:
        st.info(words["models.no_history"])
    if log.broken:
        st.warning(words["models.broken_lines"].format(count=log.broken))
    if log.behind:
        st.caption(words["models.behind"].format(mb=round(log.behind / 1e6)))
    if said := stages(one):
        keys = {"stage": words["models.stage"], "rows": words["models.photos"], "nll": words["models.nll"]}
        keys |= {"mistake": words["models.mistake"], "kept": words["models.kept"]}
        st.subheader(words["models.stages"])
        st.table(
            columns(list(keys.values()), [tuple(cell(stage.get(key)) for key in keys) for stage in said]),
            border="horizontal",
        )
    if asked := runs.gate(one.run):
        st.subheader(words["models.gate"])
        heads = (words["models.asked"], words["models.answer"], words["models.why"])
        st.table(columns(heads, [tuple(map(literal, row)) for row in asked]), border="horizontal")


def cell(value: object) -> str:
    """A value of a Run's own files."""
    if isinstance(value, bool):
        return str(words["models.yes"] if value else words["models.no"])
    return f"{value:.3g}" if isinstance(value, float) else literal("–" if value is None else value)


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    return {head: [row[place] for row in rows] for place, head in enumerate(heads)}


def facts(one: Summary, _: list[Summary]) -> None:
    """What it was made from and with, and its report."""
    recipe, record, weights, found = one.run.recipe, one.record, one.run.weights, one.calibration
    versions, calibrated = record.get("versions"), words["models.no"]
    if found:
        texts = {"temperature": f"{found.temperature:.2f}", "rows": found.rows, "evidence": found.evidence}
        calibrated = words["models.calibrated"].format(**texts, coverage=f"{found.coverage:.0%}")
    said: dict[str, object] = {
        words["models.name"]: recipe.name,
        words["models.state"]: STATES[one.state],
        words["models.changed"]: moment(one.changed),
        words["models.net"]: runs.net(recipe.student),
        words["models.method"]: one.method,
        words["models.teacher"]: one.teacher or "–",
        words["models.steps"]: steps(one),
        words["models.answers"]: answers(recipe.task.scale, record.get("classes")),
        words["models.calibration"]: calibrated,
        words["models.data"]: f"{recipe.data.manifest.name}, {str(record.get('data_digest', '–'))[:16]}",
        words["models.recipe"]: str(record.get("recipe_digest", "–"))[:16],
        words["models.seed"]: recipe.seed,
        words["models.readings"]: record.get("test_readings", 0),
        words["models.machine"]: f"{record.get('machine', '–')}, Python {record.get('python', '–')}",
        words["models.versions"]: ", ".join(f"{name} {said}" for name, said in versions.items())
        if isinstance(versions, dict)
        else "–",
    }
    if weights.exists():
        at = weights.stat()
        said[words["models.weights"]] = f"{at.st_size / 1e6:.1f} MB"
    rows = {words["models.fact"]: list(said), words["models.value"]: [breaking(text) for text in said.values()]}
    st.table(rows, border="horizontal", hide_header=True)
    if weights.exists():
        st.caption(words["models.sha256"])
        st.code(runs.digest(weights, at.st_mtime_ns, at.st_size), language=None, wrap_lines=True)
    for number, report in enumerate(runs.reports(one.run, ROOT)):
        label = words["models.report"].format(name=literal(report.relative_to(ROOT.parent)))
        st.download_button(label, report.read_bytes, "report.html", "text/html", key=f"report-{number}")


def answers(scale: Scale | None, classes: object) -> str:
    if scale:
        return f"{scale.low:g} – {scale.high:g} {scale.unit}"
    return ", ".join(called(tuple(map(str, classes)))) if isinstance(classes, list | tuple) else "–"


def recipe(one: Summary, _: list[Summary]) -> None:
    text = one.run.recipe.to_yaml().encode(errors="replace").decode()
    st.code(text, language="yaml", wrap_lines=True)


def beside(one: Summary, found: list[Summary]) -> None:
    """Two Runs: may they be compared, what differs, their figures and curves."""
    others = {where(other): other for other in found if other is not one}
    if not others:
        st.info(words["models.alone"])
        return
    name = st.selectbox(words["models.other"], list(others), key="models_other")
    other, mine = others[name], where(one)
    obstacles = runs.obstacles(one, other)
    for obstacle in obstacles:
        st.warning(OBSTACLES[obstacle], icon=":material/warning:")
    if not obstacles:
        st.success(words["models.comparable"], icon=":material/check:")
    for first, second in runs.alike(one, other):
        st.subheader(words["models.rows_of"].format(split=literal(split(first.split))))
        both = [name for name in FIGURES if name in first.figures or name in second.figures]
        sides = [[written_with_span(n, s.figures.get(n)) for n in both] for s in (first, second)]
        heads = (words["models.figure"], literal(f"A: {mine}"), literal(f"B: {name}"))
        st.table(dict(zip(heads, ([FIGURES[n][0] for n in both], *sides), strict=True)), border="horizontal")
    pair_of_curves(one, other, (f"A: {mine}", f"B: {name}"))
    st.subheader(words["models.differences"])
    if rows := runs.differences(one.run.recipe, other.run.recipe):
        heads = (words["models.key"], literal(f"A: {mine}"), literal(f"B: {name}"))
        st.table(columns(heads, [tuple(breaking(cell) or "–" for cell in row) for row in rows]), border="horizontal")
    else:
        st.text(words["models.same_recipe"])


def pair_of_curves(one: Summary, other: Summary, names: tuple[str, str]) -> None:
    series = [followed(summary).series for summary in (one, other)]
    common = sorted((n for n in series[0] if n in series[1] and n != "lr"), key=lambda n: not n.startswith("val_"))
    if not common:
        st.caption(words["models.no_common"])
        return
    chosen = st.selectbox(words["models.curve"], common)
    lines = {shown(name, 40): one[chosen].points for name, one in zip(names, series, strict=True)}
    st.altair_chart(charts.curves(lines, words["models.step"], chosen), height=320, alt=chosen)
    if chosen == "loss" and one.method != other.method:
        st.caption(words["models.other_loss"])


def on_device() -> list[tuple[str, str, ModelSpec]]:
    try:
        with field.records() as db:
            return runs.on_device(db)
    except AgriKDError:
        return []  # no agent has written here yet, which other pages say


def called(classes: tuple[str, ...]) -> list[str]:
    """The classes as a release of the device with the same ones calls them, else as they are."""
    for name, _, spec in models:
        if spec.classes == classes and (labels := field.labels(name, st.session_state.language)):
            return [labels[one] for one in classes]
    return list(classes)


def installed() -> None:
    """The models that have answered on this device."""
    roles = {"student": words["models.student"], "teacher": words["models.teacher"]}
    st.subheader(words["models.device"])
    if not models:
        st.text(words["models.device_none"])
        return
    rows = [
        (
            literal(name),
            roles.get(role, literal(role)),
            literal(answers(spec.scale, spec.classes), 1000),
            f"{spec.input_size[1]} × {spec.input_size[0]}",
            f"{spec.calibration.coverage:.0%}" if spec.calibration else words["models.no"],
        )
        for name, role, spec in models
    ]
    heads = (words["models.name"], words["models.role"], words["models.answers"], words["models.pixels"])
    st.table(columns((*heads, words["models.calibration"]), rows), border="horizontal")


def cards() -> None:
    """Of the releases that serve and did before, as their signed bundles say; a release is read whole or not at all."""
    for link in ("current", "previous"):
        path = field.folder / link / "card.md"
        if path.is_file():
            with st.expander(words["models.card"].format(release=literal(path.resolve().parent.name))):
                st.code(path.read_text(errors="replace")[:MOST_CARD], language=None, wrap_lines=True)


VIEWS = {
    "quality": (words["models.quality"], quality),
    "training": (words["models.curves"], training),
    "beside": (words["models.beside"], beside),
    "facts": (words["models.facts"], facts),
    "recipe": (words["models.recipe_view"], recipe),
}

st.title(words["models.title"])
models = on_device()
try:
    found, wrong = runs.find(ROOT, time.time())
except AgriKDError as error:
    found, wrong = [], [str(error)]
if found:
    overview(found)
    st.button(words["models.again"], icon=":material/refresh:")
elif ROOT.is_dir():
    st.info(words["models.none"].format(folder=literal(ROOT)))
if strange := [*wrong, *(said for one in found for said in one.wrong)]:
    with st.expander(words["models.wrong"].format(count=len(strange)), icon=":material/warning:", expanded=not found):
        for said in strange[: runs.MOST_RUNS]:
            st.warning(literal(said, 600))
if found:
    by_folder = {str(one.run.folder): one for one in found}
    key = st.selectbox(
        words["models.choose"], list(by_folder), format_func=lambda key: where(by_folder[key]), key="models_run"
    )
    one = by_folder[key]
    if one.state in runs.UNFINISHED:
        progress(one)
    view = st.segmented_control(
        words["models.view"],
        list(VIEWS),
        default="quality" if one.judged else "training",
        required=True,
        format_func=lambda name: VIEWS[name][0],
        label_visibility="collapsed",
    )
    try:
        VIEWS[view][1](one, found)
    except AgriKDError as error:
        st.error(literal(error, 600))
installed()
cards()
