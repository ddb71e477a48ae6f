"""Compare: one picture before several models, why a model may have said so, and where two of them part."""

import re
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from string import ascii_uppercase

import altair as alt
import streamlit as st

from agrikd import explain, files, gallery, image, pages, panel, site
from agrikd.data.manifest import SPLITS
from agrikd.errors import AgriKDError
from agrikd.records import NOT_A_PLANT
from agrikd.types import Image

MOST_MODELS, MOST_PICTURES, MOST_ROWS = 4, 12, 12
SHOWN, SMALL = 720, 150  # pixels of the longer side: no more than a poor link need carry
words, field, state = st.session_state.words, site.Field.here(), st.session_state


def named(name: str) -> str:
    return words["compare.unknown"] if name == NOT_A_PLANT else labels.get(name, name)


def texts(*names: str) -> list[str]:
    return [words[name] for name in names]


def percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.1 or not share else 1}f}\u00a0%"


def when(one: panel.Kept) -> str:
    return one.local[:16].replace("T", " ")


# Kept between two runs of the page, for all who look


@st.cache_resource(max_entries=MOST_MODELS, show_spinner=False)
def predictor(path: str, changed: int):
    return panel.opened(Path(path))


@st.cache_data(max_entries=300, show_spinner=False)
def asked(name: str, path: str, changed: int, sha256: str, _picture: Callable[[], Image]) -> panel.Answer:
    one = predictor(path, changed)
    return panel.Answer(name, one.spec, one([_picture()])[0])


@st.cache_data(max_entries=100, show_spinner=False)
def smaller(sha256: str, side: int, _picture: Callable[[], Image]) -> bytes:
    """As JPEG, at most `side` pixels long."""
    return image.encode_jpeg(panel.shrunk(_picture(), side), 80)


@st.cache_data(max_entries=50, show_spinner=False)
def heated(path: str, changed: int, sha256: str, wanted: int, _picture: Callable[[], Image]):
    """The map as JPEG, its cells' (height, width), and whether anything spoke for the class."""
    found = explain.heat(predictor(path, changed), _picture(), wanted)
    return image.encode_jpeg(explain.drawn(found), 85), found.cells.shape, bool(found.cells.any())


@st.cache_data(max_entries=20, ttl=60, show_spinner=False)
def differences(folder: str, student: str, days: int, drawn: bool) -> panel.Differences:
    with field.records() as db:
        return panel.differences(db, student, time.time() - 86400 * days if days else 0, drawn)


# A picture


def uploaded() -> bytes | None:
    given = st.file_uploader(
        words["compare.upload"], ["jpg", "jpeg", "png"], key="compare_upload", max_upload_size=panel.MOST_BYTES // 2**20
    )
    st.caption(words["compare.private"])
    return given.getvalue() if given else None


def look_at(frame: int) -> None:
    state.compare_frame, state.compare_view = frame, "frame"


def pictures(found: Sequence[panel.Kept], said: Sequence[str], key: str) -> None:
    """Small pictures that wrap, each with a button to compare it."""
    with st.container(horizontal=True, gap="small"):
        for one, text in zip(found, said, strict=True):
            with st.container(width=SMALL, gap="xsmall"):
                try:
                    path = field.picture(one.file)
                    data = smaller(one.sha256, SMALL, lambda path=path: image.read(path))
                    st.image(data, width="stretch", alt=text)
                except AgriKDError:
                    st.text(words["compare.gone"])
                st.text(text)
                number = f"#{one.frame}"
                st.button(
                    number,
                    key=f"{key}-{one.frame}",
                    on_click=look_at,
                    args=(one.frame,),
                    width="stretch",
                    help=when(one),
                )


def stored() -> tuple[bytes | None, list[panel.Answer]]:
    """A frame's picture, where it was kept, and what was said of it when it was seen."""
    with field.records() as db:
        newest = panel.kept(db, MOST_PICTURES)
        if "compare_frame" not in state:
            state.compare_frame = newest[0].frame if newest else None
        number = st.number_input(
            words["compare.number"], min_value=1, max_value=10**15, step=1, value=None, key="compare_frame", width=240
        )
        with st.expander(words["compare.newest"], expanded=not number):
            pictures(newest, [when(one) for one in newest], "newest")
        one = panel.frame(db, int(number)) if number else None
        then = panel.recorded(db, one.frame) if one else []
    if one is None:
        if number or not newest:
            st.info(words["compare.no_frame"] if number else words["compare.none_kept"])
        return None, []
    st.text(f"#{one.frame} · {when(one)} · {one.camera}")
    if one.file:
        try:
            return files.read_bytes(field.picture(one.file)), then
        except AgriKDError:
            pass
    st.info(words["compare.gone"])
    return None, then


# What they say


def answered(chosen: Sequence[panel.Model], sha256: str, picture: Callable[[], Image]) -> list[panel.Answer]:
    """Of the models that can answer; why the others cannot is said once for all of them."""
    found, failed = [], {}
    for model in chosen:
        try:
            with st.spinner(words["compare.asking"].format(name=site.literal(model.name))):
                found.append(asked(model.name, str(model.path), model.changed, sha256, picture))
        except (AgriKDError, OSError) as error:
            failed.setdefault(str(error), []).append(model.name)
    for why, names in failed.items():
        st.warning(f"{site.literal(', '.join(names))}: {site.literal(why)}")
    return found


def verdict(answer: panel.Answer) -> tuple[str, str]:
    """In large, and beside it."""
    scale, interval = answer.spec.scale, answer.said.interval
    share = percent(answer.spec.calibration.coverage) if answer.spec.calibration else ""
    if answer.said.unknown:
        likeliest = words["compare.nearest_class"].format(name=named(answer.likeliest))
        return words["compare.unknown"], "" if scale else likeliest
    if scale:
        low, high = map(scale.said, interval or (scale.low, scale.high))
        return answer.word, words["compare.interval"].format(share=share, low=low, high=high) if interval else ""
    more = [words["compare.unsure"]] if answer.said.unsure else []
    if len(answer.candidates) > 1:
        names = words["compare.or"].join(map(named, answer.candidates))
        more.append(words["compare.set"].format(share=share, names=names))
    return f"{named(answer.word)}, {percent(answer.share)}", " · ".join(more)


def whose(answer: panel.Answer) -> str:
    if answer.recorded:
        return words["compare.student_then"] if answer.recorded == "student" else words["compare.teacher_then"]
    return words["compare.device"] if answer.model in serving_names else words["compare.asked_now"]


def summed_up(answers: Sequence[panel.Answer]) -> str:
    found = panel.parties(answers)
    if sum(map(len, found.values())) < 2:
        return ""
    if len(found) == 1 and len(next(iter(found.values()))) < len(answers):
        return ""  # two say the same, and a number beside them nothing of the kind
    if len(found) == 1:
        return words["compare.agree"].format(name=named(next(iter(found))))
    said = (f"{', '.join(ascii_uppercase[place] for place in places)}: {named(name)}" for name, places in found.items())
    return words["compare.differ"].format(who="; ".join(said))


def shown(answers: Sequence[panel.Answer]) -> str:
    """As HTML: the page that makes it escapes all names."""
    cards = [
        {"letter": letter, "model": answer.model, "whose": whose(answer), "verdict": large, "more": more}
        for letter, answer in zip(ascii_uppercase, answers, strict=False)
        for large, more in [verdict(answer)]
    ]
    tops = [answer.likeliest for answer in answers]
    rows = [
        {"name": named(name), "bars": list(zip(ascii_uppercase, row, [top == name for top in tops], strict=False))}
        for name, row in panel.bars(answers).items()
    ]
    rest = words["compare.more"].format(count=len(rows) - MOST_ROWS)
    summary = summed_up(answers)
    return pages.render("panel.html", {}, cards=cards, rows=rows, most=MOST_ROWS, rest=rest, summary=summary)


# Why


def reasons(chosen: Sequence[panel.Model], answers: Sequence[panel.Answer], sha256: str, picture: Callable[[], Image]):
    st.subheader(words["compare.why"])
    said = {answer.model: answer for answer in answers if not answer.recorded}
    able = {model.name: model for model in chosen if model.explains and model.name in said}
    if not able:
        st.info(words["compare.why_needs"])
        return
    name = st.selectbox(words["compare.why_of"], list(able), key="compare_why", width=320)
    left, right = st.columns(2, gap="large")
    with left:
        looked(able[name], said[name], sha256, picture)
    with right:
        alike(able[name], sha256, picture)


def looked(model: panel.Model, answer: panel.Answer, sha256: str, picture: Callable[[], Image]) -> None:
    if answer.spec.scale:
        st.info(words["compare.heat_numbers"])
        return
    classes = answer.spec.classes
    wanted = st.selectbox(
        words["compare.heat_of"], range(len(classes)), answer.said.top, lambda place: named(classes[place]), width=320
    )
    key = (str(model.path), model.changed, sha256, wanted)
    if st.button(words["compare.heat"]):
        state.compare_heat = key
    if state.get("compare_heat") != key:
        return
    try:
        with st.spinner(words["compare.heating"]):
            shown, cells, any_ = heated(*key, picture)
    except AgriKDError as error:
        st.error(site.literal(str(error)))
        return
    text = words["compare.heat_says"].format(name=named(classes[wanted]))
    st.image(shown, width=360, alt=text)
    st.caption(site.literal(text if any_ else words["compare.heat_none"].format(name=named(classes[wanted]))))
    height, width = answer.spec.input_size
    size = {"width": width, "height": height, "columns": cells[1], "rows": cells[0]}
    st.caption(words["compare.heat_caution"].format(**size))


def alike(model: panel.Model, sha256: str, picture: Callable[[], Image]) -> None:
    key = (str(model.path), model.changed, sha256)
    st.text(words["compare.near_what"])
    if st.button(words["compare.near"]):
        bar = st.progress(0.0, words["compare.near_first"])
        try:
            found = explain.neighbours(
                predictor(*key[:2]),
                model.path,
                picture(),
                6,
                lambda done, of: bar.progress(done / of, f"{done} / {of}"),
            )
            state.compare_near = key, found
        except AgriKDError as error:
            st.error(site.literal(str(error)))
        bar.empty()
    if state.get("compare_near", (None,))[0] != key:
        return
    found = state.compare_near[1]
    used = texts("compare.split_train", "compare.split_val", "compare.split_test")
    with st.container(horizontal=True, gap="small"):
        for one in found.nearest:
            with st.container(width=130, gap="xxsmall"):
                target = named(one.row.target) if one.row.target else words["compare.no_label"]
                st.image(image.encode_jpeg(one.thumbnail, 80), width=130, alt=target)
                st.text(f"{one.similarity:.2f}  {target}")
                about = (used[SPLITS.index(one.row.split)], one.row.season, one.row.group)
                st.caption(site.literal(" · ".join(text for text in about if text)))
    st.caption(words["compare.near_caution"].format(count=found.photos))
    if found.absent or found.changed:
        st.caption(words["compare.near_other"].format(count=found.absent))


# Over the records


def records() -> None:
    with field.records() as db:
        known = panel.students(db)
    if not known:
        st.info(words["compare.no_answers"])
        return
    periods = dict(zip((7, 30, 0), texts("compare.days_7", "compare.days_30", "compare.days_all"), strict=True))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        student = st.selectbox(words["compare.student"], known, key="compare_student", width=280)
        days = st.selectbox(words["compare.period"], list(periods), 1, periods.__getitem__, "compare_days", width=200)
    drawn = st.toggle(words["compare.drawn"], value=True)
    found = differences(str(field.folder), student, days, drawn)
    st.caption(words["compare.drawn_why"] if drawn else words["compare.not_drawn_why"])
    if not found.frames:
        st.info(words["compare.no_answers"])
        return
    share = percent(found.agreed / found.frames)
    st.text(words["compare.agreed"].format(agreed=found.agreed, count=found.frames, share=share))
    if found.pairs:
        pairs(found)
    over_time(found.days)


def pairs(found: panel.Differences) -> None:
    st.subheader(words["compare.pairs"])
    columns = texts("compare.said_student", "compare.said_teacher", "compare.frames", "compare.part")
    rows = [(named(p.student), named(p.teacher), p.frames, percent(p.frames / found.frames)) for p in found.pairs]
    st.dataframe([dict(zip(columns, row, strict=True)) for row in rows], hide_index=True)
    with field.records() as db:
        seen = [(pair, one) for pair in found.pairs[:6] if pair.frame and (one := panel.frame(db, pair.frame))]
    if seen:
        st.text(words["compare.examples"])
        pictures([one for _, one in seen], [f"{named(p.student)} / {named(p.teacher)}" for p, _ in seen], "example")


def over_time(days: Sequence[panel.Day]) -> None:
    st.subheader(words["compare.over_time"])
    rows = [{"date": d.date, "share": d.share, **d.interval._asdict(), "n": d.frames} for d in days]
    axis = alt.Axis(format="%", title=None, tickCount=5)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("date:O", title=None, axis=alt.Axis(labelOverlap=True, labelAngle=0)),
        tooltip=["date:O", alt.Tooltip("share:Q", format=".0%"), "n:Q"],
    )
    interval = base.mark_rule(strokeWidth=2, color="#808080").encode(
        y=alt.Y("low:Q", axis=axis, scale=alt.Scale(domain=[0, 1])), y2="high:Q"
    )
    point = base.mark_point(filled=True, size=70, opacity=1).encode(y=alt.Y("share:Q", axis=axis))
    st.altair_chart((interval + point).properties(height=240), width="stretch", alt=words["compare.over_time"])
    st.caption(words["compare.interval_why"])
    with st.expander(words["compare.as_table"]):
        names = texts("compare.day", "compare.share", "compare.low", "compare.high", "compare.frames")
        table = [(d.date, *map(percent, (d.share, *d.interval)), d.frames) for d in days]
        st.dataframe([dict(zip(names, row, strict=True)) for row in table], hide_index=True)


def one_picture(view: str, found: Sequence[panel.Model]) -> None:
    side, main = st.columns([2, 3], gap="large")
    with side:
        data, then = (uploaded(), []) if view == "photo" else stored()
        sha256 = files.sha256(data) if data else ""
        picture = cache(lambda: panel.photo(data, words["compare.photo"]))
        if data:
            st.image(smaller(sha256, SHOWN, picture), width="stretch", alt=words["compare.photo"])
    with main:
        chosen = []
        if data and found:
            told = {answer.model for answer in then}
            ready = [one for one in found if one.name not in told and not (one.serves and serving in told)]
            chosen = st.multiselect(
                words["compare.models"],
                found,
                ready[: MOST_MODELS - len(then)] if len(then) < MOST_MODELS else [],
                lambda one: one.name,
                key=f"compare_models_{view}",
                max_selections=MOST_MODELS,
                wrap=True,
            )
        elif data and not then:
            st.info(words["compare.no_models"])
        place = st.empty()
        if then:
            place.html(shown(then))  # at once: to open a Run takes seconds
        answers = [*then, *answered(chosen, sha256, picture)]
        if answers:
            place.html(shown(answers))
            st.caption(words["compare.not_sure"])
    if data:
        reasons(chosen, answers, sha256, picture)


st.title(words["compare.title"])
names = texts("compare.view_photo", "compare.view_frame", "compare.view_records")
views = dict(zip(("photo", "frame", "records"), names, strict=True))
if re.fullmatch("[1-9][0-9]{0,14}", asked_for := st.query_params.pop("frame", "")):
    look_at(int(asked_for))
state.setdefault("compare_view", "photo")
view = st.segmented_control(
    words["compare.view"],
    list(views),
    format_func=views.__getitem__,
    key="compare_view",
    required=True,
    wrap=True,
    label_visibility="collapsed",
)
try:
    with field.records() as db:
        serving = panel.serving(db)
except AgriKDError:
    serving = ""
labels = field.labels(serving, state.language)
try:
    if view == "records":
        records()
    else:
        models = panel.models(field.folder, gallery.folder(field.folder), serving)
        serving_names = {one.name for one in models if one.serves}
        one_picture(view, models)
except AgriKDError as error:
    st.error(site.literal(str(error)))
