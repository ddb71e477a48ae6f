"""Review: what people should look at next, one picture after the other, by mouse, finger or keys."""

import base64
import html
import tempfile
import time
import uuid
import zipfile
from datetime import datetime
from io import BytesIO
from pathlib import Path
from threading import Lock

import streamlit as st

from agrikd import kept, records, review, sheets, site
from agrikd.device.station import RECORDS
from agrikd.errors import AgriKDError
from agrikd.kept import Answer, Kept
from agrikd.records import CHOSEN, NOT_A_PLANT, REVIEW, UNSURE, WITHDRAWN, Label
from agrikd.site import literal

MOST_ZIP_BYTES, MOST_BUTTONS = 300 * 10**6, 20
words, field, visitor = st.session_state.words, site.Field.here(), st.session_state.visitor
state = st.session_state
kinds = {
    "disagreement": words["review.disagreement"],
    "doubt": words["review.doubt"],
    "not a plant": words["review.not_a_plant_kind"],
    "random": words["review.random"],
}


def named(name: str, labels: dict[str, str]) -> str:
    own = {UNSURE: words["review.unsure"], NOT_A_PLANT: words["review.not_a_plant"]}
    return own.get(name) or labels.get(name, name)


def refill() -> None:
    """The queue, without what somebody else has judged meanwhile; what was opened by its number stays."""
    with field.records() as db:
        while state.get("review_queue") and not (opened() or review.waits(db, state.review_queue[0])):
            state.review_queue = state.review_queue[1:]
        if not state.get("review_queue"):
            state.review_queue = review.queue(db, state.review_kinds or list(kinds), skipped=state.review_skipped)


# While the next page is on its way a browser still has buttons of the last one, and one key may press both. So each
# button belongs to one question, in its key and in its arguments, and counts only as long as that is what is asked.


def question() -> str:
    """What is asked now: the same frame after an undo is another question."""
    frame = state.review_queue[0].frame if state.get("review_queue") else 0
    return f"{state.review_turn}-{frame}"


def ask_next(queue: list[Kept], opened: int | None = None) -> None:
    """opened: the frame whose number somebody gave, so that it is asked about though it is judged."""
    state.review_queue, state.review_opened = queue, opened
    state.review_turn += 1


def opened() -> bool:
    """Whether what is asked now was opened by its number."""
    return bool(state.review_queue) and state.review_queue[0].frame == state.review_opened


def open_frame() -> None:
    frame, state.review_frame = state.review_frame, None
    if frame is None:
        return
    with field.records() as db:
        one = kept.of_frame(db, frame)
    if one is None:
        state.review_absent = frame
    else:
        ask_next([one, *(other for other in state.get("review_queue", []) if other.frame != frame)], frame)


def say(label: Label) -> bool:
    """Whether it is recorded."""
    try:
        field.label(visitor, label)
    except AgriKDError as error:
        state.review_failed = str(error)
        return False
    return True


def judge(asked: str, frame: int, name: str) -> None:
    if asked != question():
        return
    try:
        with field.records() as db:
            waits = review.waits(db, state.review_queue[0])
    except AgriKDError as error:
        state.review_failed = str(error)
        return
    if not (waits or opened() or (frame, name) in state.review_keys):
        state.review_meanwhile = True
        ask_next(state.review_queue[1:])
        return
    key = state.review_keys.setdefault((frame, name), uuid.uuid4().hex)  # a second try is the same label
    who, note = state.get("review_who", ""), state.get(f"note-{asked}", "")
    source = CHOSEN if waits and opened() else REVIEW
    if say(Label(key, frame, name, who, time.time(), source, note)):
        del state.review_keys[frame, name]
        state.review_done.append((frame, key))
        ask_next(state.review_queue[1:])


def choose(asked: str, frame: int) -> None:
    if name := state.get(f"choice-{asked}"):
        judge(asked, frame, name)


def skip(asked: str, frame: int) -> None:
    if asked == question():
        state.review_skipped.add(frame)
        state.review_done.append((frame, None))
        ask_next(state.review_queue[1:])


def undo(asked: str) -> None:
    """Take back the last label, or the last skip."""
    if asked != question():
        return
    frame, key = state.review_done[-1]
    who = state.get("review_who", "")
    if key is None:
        state.review_skipped.discard(frame)
    elif not say(Label(uuid.uuid4().hex, frame, WITHDRAWN, who, time.time(), REVIEW, key)):
        return
    state.review_done.pop()
    with field.records() as db:
        again = kept.of_frame(db, frame)
    ask_next([again, *state.review_queue] if again else state.review_queue)


def undo_button() -> None:
    asked, none = question(), not state.review_done
    args = {"width": "stretch", "type": "tertiary", "disabled": none, "on_click": undo, "args": (asked,)}
    st.button(words["review.undo"], key=f"undo-{asked}", shortcut="z", **args)


def said(one: Kept) -> dict[str, Answer]:
    """Who answered, as the page calls him, and what; nobody of a frame drawn at random, as it would lead the eye."""
    found = {words["review.student"]: one.student, words["review.teacher"]: one.teacher}
    return {who: answer for who, answer in found.items() if answer and not one.drawn}


def bars(found: dict[str, Answer], labels: dict[str, str]) -> None:
    """All classes on one scale, the likeliest first."""
    shares = {who: dict(zip(a.classes, a.probabilities, strict=True)) for who, a in found.items()}
    classes = dict.fromkeys(name for answer in found.values() for name in answer.classes)
    ranked = sorted(classes, key=lambda name: -max(own.get(name, 0.0) for own in shares.values()))
    rows = [{"": named(n, labels)} | {who: 100 * own.get(n, 0.0) for who, own in shares.items()} for n in ranked]
    bar = st.column_config.ProgressColumn(format="%.0f %%", min_value=0, max_value=100)
    st.dataframe(rows, hide_index=True, column_config=dict.fromkeys(found, bar), height="content")


def buttons(one: Kept, labels: dict[str, str]) -> None:
    asked = question()

    def button(name: str, key: str | None) -> None:
        text, args = literal(named(name, labels)), (asked, one.frame, name)
        st.button(text, key=f"label-{asked}-{name}", shortcut=key, width="stretch", on_click=judge, args=args)

    answer = one.student or one.teacher
    classes = answer.classes if answer and not answer.number else ()  # the bins of a number are no classes
    for place, name in enumerate(classes[:MOST_BUTTONS]):
        button(name, str(place + 1) if place < 9 else None)
    if rest := classes[MOST_BUTTONS:]:
        key, args = f"choice-{asked}", (asked, one.frame)
        shown = {name: named(name, labels) for name in rest}
        st.selectbox(
            words["review.more"], rest, None, shown.__getitem__, key, on_change=choose, args=args, placeholder="…"
        )
    for name, key in ((NOT_A_PLANT, "n"), (UNSURE, "u")):
        button(name, key)
    left, right = st.columns(2)
    key, args = f"skip-{asked}", (asked, one.frame)
    left.button(words["review.skip"], key, shortcut="s", width="stretch", type="tertiary", on_click=skip, args=args)
    with right:
        undo_button()
    st.text_input(words["review.note"], key=f"note-{asked}", max_chars=2000)


def picture_of(one: Kept) -> None:
    """With the page itself: on a slow link the buttons are never those of a picture that is still on its way."""
    data = base64.b64encode(field.picture(one.file).read_bytes()).decode()
    alt = html.escape(words["review.picture"])
    st.html(f'<img alt="{alt}" src="data:image/jpeg;base64,{data}" style="width: 100%; border-radius: 4px">')


def show(one: Kept) -> None:
    labels = field.labels(one.student.model if one.student else "", state.language)
    picture, side = st.columns([3, 2])
    with picture:
        try:
            picture_of(one)
        except OSError:
            st.warning(words["review.gone"])
        when = datetime.fromisoformat(one.local).strftime("%Y-%m-%d %H:%M:%S")
        place = (when, one.camera, one.field, one.plot, words["review.number"].format(frame=one.frame))
        st.text(" · ".join(text for text in place if text))
    with side:
        st.text(words["review.blind"] if one.drawn else kinds.get(review.kind_of(one) or "", ""))
        if one.label and opened():
            st.text(words["review.before"].format(label=named(one.label.label, labels)))
        for who, answer in said(one).items():
            share = "" if answer.probability is None else f", {answer.probability:.0%}"
            st.text(f"{who}: {named(answer.said, labels)}{share}")
        if visitor.reviews:
            with st.container(key=f"judge-{one.frame}"):
                buttons(one, labels)
    if found := said(one):
        bars(found, labels)


def labels_csv() -> str:
    with field.records() as db:
        return sheets.as_csv(review.COLUMNS, review.table(db))


@st.cache_resource
def alone() -> Lock:
    """For who copies photos: one at a time, of all visitors."""
    return Lock()


def prepare() -> None:
    with field.records() as db, tempfile.TemporaryDirectory() as folder:
        if review.size_bytes(db) > MOST_ZIP_BYTES or not alone().acquire(blocking=False):
            st.warning(words["review.large"])
            return
        try:
            out = Path(folder) / "photos"
            made = review.export(db, field.folder / RECORDS, out, called=Path("photos"))
            packed = BytesIO()
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
                for path in sorted(path for path in out.rglob("*") if path.is_file()):
                    archive.write(path, path.relative_to(out))
        finally:
            alone().release()
    for sentence in made.assumptions:
        st.info(literal(sentence))
    columns = (words["review.label"], "train", "val", "test")
    st.dataframe([dict(zip(columns, row, strict=True)) for row in made.counts], hide_index=True)
    st.download_button(words["review.zip"], packed.getvalue(), "photos.zip", "application/zip", on_click="ignore")


def export() -> None:
    with field.records() as db:
        count = len(records.verdicts(db))
    st.text(words["review.count"].format(count=count))
    if count:
        st.download_button(words["review.csv"], labels_csv, "labels.csv", "text/csv", on_click="ignore")
    if count and visitor.reviews:
        st.button(words["review.prepare"], on_click=lambda: state.update(review_prepare=True))
        if state.get("review_prepare"):
            try:
                with st.spinner(words["review.preparing"]):
                    prepare()
            except AgriKDError:
                state.review_prepare = False
                raise
            state.review_prepare = False  # only now: what interrupts this run begins another, which still has to do it


title, own_name = st.columns([3, 2], vertical_alignment="bottom")
title.title(words["review.title"])
if visitor.reviews and not visitor.name:
    state.setdefault("review_who", state.get("who", ""))  # what a page's boxes hold is forgotten with the page
    state.who = own_name.text_input(words["review.who"], key="review_who", max_chars=100)
state.setdefault("review_skipped", set())
state.setdefault("review_done", [])
state.setdefault("review_keys", {})
state.setdefault("review_turn", 0)
state.setdefault("review_opened", None)
state.setdefault("review_kinds", state.get("review_shown", []))
state.review_shown = st.pills(
    words["review.kinds"],
    list(kinds),
    selection_mode="multi",
    format_func=kinds.__getitem__,
    key="review_kinds",
    on_change=lambda: state.pop("review_queue", None),
)
try:
    refill()
    with st.container():  # what stands below keeps its place, and an open expander stays open
        if failed := state.pop("review_failed", ""):
            st.error(words["review.refused"].format(why=literal(failed)))
        if (absent := state.pop("review_absent", None)) is not None:
            st.warning(words["review.absent"].format(frame=absent))
        if state.pop("review_meanwhile", False):
            st.warning(words["review.meanwhile"])
        judged = sum(key is not None for _, key in state.review_done)
        st.text(words["review.progress"].format(done=judged, left=len(state.review_queue)))
        if state.review_queue:
            show(state.review_queue[0])
        else:
            st.info(words["review.empty_but_skipped" if state.review_skipped else "review.empty"])
            if state.review_done and visitor.reviews:
                undo_button()
    if visitor.reviews:
        with st.expander(words["review.again"]):
            args = {"min_value": 0, "value": None, "key": "review_frame", "on_change": open_frame}
            st.number_input(words["review.frame"], step=1, placeholder="…", **args)
    with st.expander(words["review.export"]):
        export()
except AgriKDError as error:
    st.error(literal(error))
