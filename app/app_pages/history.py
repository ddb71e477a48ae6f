"""History: how often the model was right, what was seen day by day, the pictures that were kept, room for more."""

import sqlite3
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime
from functools import partial
from pathlib import Path

import altair as alt
import pandas as pd
import streamlit as st

from agrikd import audit, history, kept, site
from agrikd.audit import Estimate, Judged
from agrikd.device import settings
from agrikd.errors import AgriKDError
from agrikd.history import Count, Room, Session
from agrikd.kept import Answer, Kept
from agrikd.records import NOT_A_PLANT, UNSURE
from agrikd.types import figure

words, field = st.session_state.words, site.Field.here()
HERE = str(field.folder)
CLASSES, A_PAGE, LONGEST = 8, 24, 40
# Okabe and Ito's, which people who see few colours tell apart; grey is last
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#767676"]
JUDGES = {
    "people": (words["history.people"], words["history.people_means"]),
    "people and teacher": (words["history.both"], words["history.both_means"]),
    "teacher": (words["history.teacher"], words["history.teacher_means"]),
}


# What takes long over a million frames is kept for a while; a label counts at once


@st.cache_data(ttl=120, max_entries=8, show_spinner=words["history.counting"])
def counted(folder: str) -> tuple[list[Count], datetime]:
    with site.Field(Path(folder)).records() as db:
        return history.counts(db), datetime.now()


@st.cache_data(ttl=120, max_entries=8, show_spinner=words["history.counting"])
def captured(folder: str) -> tuple[list[Session], datetime]:
    with site.Field(Path(folder)).records() as db:
        return history.sessions(db), datetime.now()


@st.cache_data(ttl=120, max_entries=8, show_spinner=words["history.counting"])
def judged(folder: str, model: str, newest_label: int) -> tuple[list[Judged], datetime]:
    with site.Field(Path(folder)).records() as db:
        return audit.judged(db, model), datetime.now()


@st.cache_data(max_entries=500, show_spinner=False)
def small(file: str, sha256: str) -> bytes:
    """sha256: records that begin anew give a picture's name to another."""
    return history.thumbnail(Path(file))


def zipped(folder: str, camera: str, span: tuple[int, int]) -> bytes:
    here = site.Field(Path(folder))
    with here.records() as db:
        return history.packed(kept.of_camera(db, camera, span), here.picture)


# How things are said


def naming(models: list[str]) -> Callable[[str], str]:
    named = {NOT_A_PLANT: words["live.not_a_plant"], UNSURE: words["live.unsure"]}
    for model in models:
        named |= field.labels(model, words["code"])
    return lambda name: named.get(name, name)


def percent(share: float) -> str:
    return f"{100 * share:.0f}\u00a0%"


def size(count: float) -> str:
    return f"{figure(count / 1e9)}\u00a0GB" if count >= 1e9 else f"{figure(count / 1e6)}\u00a0MB"


def cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def one_of(label: str, names: set[str]) -> str | None:
    """None: all of them."""
    titles = {None: words["history.all"], **{name: name or words["history.unnamed"] for name in sorted(names)}}
    return st.selectbox(label, list(titles), format_func=titles.__getitem__, width=220)


def as_of(when: datetime, forget: Callable[[], None]) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(words["history.as_of"].format(time=f"{when:%H:%M:%S}"), width="content")
        st.button(words["history.again"], on_click=forget, type="tertiary", icon=":material/refresh:")


# Accuracy


def accuracy(db: sqlite3.Connection) -> None:
    students = history.students(db)
    if not students:
        st.info(words["history.no_answers"])
        return
    model = students[0] if len(students) == 1 else st.selectbox(words["history.model"], students)
    if kept.specs(db)[model].scale:
        st.info(words["history.numbers"])
        return
    (newest,) = db.execute("SELECT COALESCE(MAX(id), 0) FROM labels").fetchone()
    rows, when = judged(HERE, model, newest)
    said = audit.estimate(rows)
    if said:
        overall(said)
    if fall := audit.fall(rows):
        st.warning(words["history.fall"])
        said_by = {"people": words["history.fell_people"], "teacher": words["history.fell_teacher"]}[fall.how]
        st.caption(said_by.format(before=percent(fall.before), now=percent(fall.now), recent=fall.recent))
    people, teacher = (said.labelled, said.answered) if said else (0, 0)
    st.markdown(words["history.judged"].format(drawn=len(rows), people=people, teacher=teacher))
    if not people:
        st.info(words["history.what_to_do"])
        st.page_link("app_pages/review.py", label=words["history.go_review"], icon=":material/rule:")
    if found := audit.by_class(rows):
        class_table(found, naming([model]))
    as_of(when, judged.clear)


def overall(said: Estimate) -> None:
    title = words["history.agreement"] if said.how == "teacher" else words["history.right"]
    st.metric(title, percent(said.share))
    low, high = map(percent, said.interval)
    st.markdown(words["history.interval"].format(low=low, high=high))
    (st.warning if said.how == "teacher" else st.markdown)(JUDGES[said.how][1])


def class_table(found: dict[str, Estimate], named: Callable[[str], str]) -> None:
    lines = [
        {
            words["history.class"]: named(name),
            words["history.share"]: 100 * one.share,
            words["history.range"]: f"{100 * one.interval.low:.0f}–{percent(one.interval.high)}",
            words["history.judge"]: JUDGES[one.how][0],
            words["history.n_people"]: one.labelled,
            words["history.n_teacher"]: one.answered,
        }
        for name, one in sorted(found.items(), key=lambda pair: pair[1].share)
    ]
    st.subheader(words["history.by_class"])
    st.caption(words["history.by_class_note"])
    form = {
        words["history.class"]: st.column_config.TextColumn(width=150),
        words["history.share"]: st.column_config.NumberColumn(format="%.0f %%"),
    }
    st.dataframe(pd.DataFrame(lines), hide_index=True, column_config=form)


# Classes by day


def classes(_: sqlite3.Connection) -> None:
    rows, when = counted(HERE)
    if not rows:
        st.info(words["history.no_answers"])
        return
    rows, begin, end = chosen(rows)
    own = [row for row in rows if row.role == "student"]
    found = history.by_day(own, naming(sorted({row.model for row in own})), CLASSES)
    if found:
        names = sorted(sum(found.values(), Counter()).items(), key=lambda pair: (not pair[0], -pair[1], pair[0]))
        titles = {name: name or words["history.others"] for name, _ in names}
        class_chart(found, titles)
        st.caption(words["history.most_probable"])
        share_table(found, titles)
    else:
        st.info(words["history.none_chosen"])
    data, name = partial(history.counts_csv, rows), f"counts_{begin}_{end}.csv"
    st.download_button(words["history.csv"], data, name, "text/csv", on_click="ignore", icon=":material/download:")
    st.caption(words["history.csv_note"])
    as_of(when, counted.clear)


def chosen(rows: list[Count]) -> tuple[list[Count], str, str]:
    """What a person wants to see of them, from day to day."""
    first, last = date.fromisoformat(rows[0].day), date.fromisoformat(rows[-1].day)
    month = max(first, date.fromordinal(last.toordinal() - 29))
    with st.container(horizontal=True):
        within = one_of(words["history.field"], {row.field for row in rows})
        rows = [row for row in rows if within in (None, row.field)]
        camera = one_of(words["history.camera"], {row.camera for row in rows})
        days = st.date_input(words["history.from_to"], (month, last), first, last, format="YYYY-MM-DD", width=240)
    begin, end = (f"{days[0]}", f"{days[-1]}") if days else (f"{first}", f"{last}")
    return [row for row in rows if camera in (None, row.camera) and begin <= row.day <= end], begin, end


def class_chart(found: dict[str, Counter[str]], titles: dict[str, str]) -> None:
    lines = [
        {"day": day, "class": title, "rank": rank, "frames": row[name], "share": row[name] / row.total()}
        for day, row in found.items()
        for rank, (name, title) in enumerate(titles.items())
        if row[name]
    ]
    first, last = (date.fromisoformat(day(found)).toordinal() for day in (min, max))
    days = [date.fromordinal(day).isoformat() for day in range(first, last + 1)]
    share, shades = words["history.share_of_frames"], alt.Scale(domain=[*titles.values()], range=COLOURS)
    axis = alt.Axis(labelOverlap=True, labelAngle=0, labelExpr="slice(datum.label, 5)")
    legend = alt.Legend(orient="bottom", columns=1, labelLimit=260, symbolStrokeWidth=0, rowPadding=4)
    chart = (
        alt.Chart(pd.DataFrame(lines))
        .mark_bar(stroke="#333333", strokeWidth=0.6)
        .encode(
            alt.X("day:O", title=None, scale=alt.Scale(domain=days), axis=axis),
            alt.Y("share:Q", title=share, axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
            alt.Color("class:N", title=None, scale=shades, legend=legend),
            alt.Order("rank:Q", sort="descending"),
            [
                alt.Tooltip("day:O", title=words["history.day"]),
                alt.Tooltip("class:N", title=words["history.class"]),
                alt.Tooltip("share:Q", title=share, format=".1%"),
                alt.Tooltip("frames:Q", title=words["history.frames"]),
            ],
        )
    )
    st.altair_chart(chart, height=300 + 18 * len(titles), alt=words["history.chart"])


def share_table(found: dict[str, Counter[str]], titles: dict[str, str]) -> None:
    lines = [
        {
            words["history.day"]: day,
            words["history.frames"]: row.total(),
            **{title: 100 * row[name] / row.total() for name, title in titles.items()},
        }
        for day, row in sorted(found.items(), reverse=True)
    ]
    form = st.column_config.NumberColumn(format="%.1f %%", width=110)
    st.dataframe(pd.DataFrame(lines), hide_index=True, column_config=dict.fromkeys(titles.values(), form))


# Pictures


def pictures(db: sqlite3.Connection) -> None:
    found, when = captured(HERE)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        camera = one_of(words["history.camera"], {one.camera for one in found})
        only = st.toggle(words["history.only_pictures"], value=True)
    found = [one for one in found if camera in (None, one.camera) and (one.pictures or not only)]
    if not found:
        st.info(words["history.no_pictures"])
        return
    by_begin = {(one.camera, one.first): one for one in found}  # what goes on has another name each time it is counted
    session = by_begin[
        st.selectbox(
            words["history.session"],
            list(by_begin),
            format_func=lambda key: session_name(by_begin[key]),
            key="history_session",
        )
    ]
    held = {"frames": session.frames, "pictures": session.pictures, "size": size(session.size_bytes)}
    st.markdown(words["history.session_holds"].format(**held))
    if session.pictures:
        download(db, session)
        thumbnails(db, session)
    as_of(when, captured.clear)


def session_name(one: Session) -> str:
    end = one.end[11:16] if one.end[:10] == one.begin[:10] else f"{one.end[:10]} {one.end[11:16]}"
    held = words["history.n_pictures"].format(n=one.pictures)
    return " · ".join(
        [f"{one.begin[:10]} {one.begin[11:16]}–{end}", held, cut(one.camera), *filter(None, [cut(one.field)])]
    )


def download(db: sqlite3.Connection, session: Session) -> None:
    parts = history.parts(db, session)
    number = 1
    if len(parts) > 1:
        st.caption(words["history.in_parts"].format(n=len(parts), size=size(history.PART_BYTES)))
        number = st.number_input(words["history.part"], 1, len(parts), width=160)
    if parts:
        data, name = partial(zipped, HERE, session.camera, parts[number - 1]), f"pictures_{session.first}_{number}.zip"
        st.download_button(
            words["history.zip"], data, name, "application/zip", on_click="ignore", icon=":material/download:"
        )


def thumbnails(db: sqlite3.Connection, session: Session) -> None:
    pages = -(-session.pictures // A_PAGE)
    page = st.pagination(pages, key=f"history_page_{session.first}") if pages > 1 else 1
    shown = list(kept.of_camera(db, session.camera, (session.first, session.last), (page - 1) * A_PAGE, A_PAGE))
    named = naming(sorted({answer.model for one in shown for answer in (one.student, one.teacher) if answer}))
    with st.container(horizontal=True):
        for one in shown:
            with st.container(width=150, gap=None):
                thumbnail(one)
                st.text("\n".join(told(one, named)))


def thumbnail(one: Kept) -> None:
    try:
        st.image(
            small(str(field.picture(one.file)), one.sha256),
            width="stretch",
            alt=words["history.picture_of"].format(time=one.local[11:19]),
        )
    except AgriKDError:
        st.warning(words["history.gone"])


def told(one: Kept, named: Callable[[str], str]) -> list[str]:
    lines = [one.local[11:19]]
    if one.student:
        lines.append(answer(one.student, named))
    if one.teacher:
        lines.append(words["history.teacher_said"].format(name=answer(one.teacher, named)))
    if one.label:
        lines.append(words["history.person_said"].format(name=cut(named(one.label.label))))
    return lines


def answer(said: Answer, named: Callable[[str], str]) -> str:
    sure = "" if said.probability is None else f" {percent(said.probability)}"
    return cut(named(said.said)) + sure + (words["history.doubtful"] if said.unsure else "")


# Room


def disk(db: sqlite3.Connection) -> None:
    own = settings.read(field.folder / "agent.yaml").records
    quota = own.quota_gb * 1e9
    room = history.room(db, field.folder, quota, own.free_gb * 1e9)
    st.progress(
        min(room.kept_bytes / quota, 1.0),
        words["history.kept_of"].format(kept=size(room.kept_bytes), quota=size(quota)),
    )
    with st.container(horizontal=True):
        st.metric(words["history.labelled"], size(room.labelled_bytes), width="content")
        st.metric(words["history.disk_free"], size(room.disk_free_bytes), width="content")
        if room.bytes_per_day:
            st.metric(words["history.a_day"], size(room.bytes_per_day), width="content")
    st.markdown(how_long(room))
    st.caption(words["history.how_computed"].format(free=size(own.free_gb * 1e9)))


def how_long(room: Room) -> str:
    if room.bytes_per_day is None:
        return words["history.too_early"]
    if room.days is None:
        return words["history.none_lately"]
    if room.days < 1 / 24:
        return words["history.full"]
    if room.days < 2:
        return words["history.hours_left"].format(n=round(24 * room.days))
    return words["history.days_left"].format(n=round(room.days))


st.title(words["history.title"])
names = words["history.accuracy"], words["history.classes"], words["history.pictures"], words["history.disk"]
tabs = st.tabs(names, key="history_tab", on_change="rerun")
panels = accuracy, classes, pictures, disk
try:
    with field.records() as db:
        tab, panel = next(one for one in zip(tabs, panels, strict=True) if one[0].open)
        with tab:
            panel(db)
except (AgriKDError, sqlite3.Error) as error:
    st.error(site.literal(error))
