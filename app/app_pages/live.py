"""Live: a camera, what the model says of it, and what the teacher says of the last frame that it was asked about."""

import time
import uuid
from pathlib import Path

import streamlit as st

from agrikd import site
from agrikd.errors import AgriKDError
from agrikd.records import LIVE, NOT_A_PLANT, UNSURE, Label
from agrikd.site import literal

PARTS = {kind: (Path(site.pages()) / f"live.{kind}").read_text() for kind in ("html", "css", "js")}
view = st.components.v2.component("agrikd_live", **PARTS)
words, field, visitor = st.session_state.words, site.Field.here(), st.session_state.visitor


@st.dialog(words["live.form"])
def judge(frame: int, classes: list[str], labels: dict[str, str]) -> None:
    try:
        st.image(field.call("GET", f"/frame/{frame}.jpg?hold=true").body, width=320)
    except AgriKDError as error:  # nobody judges what he does not see
        st.warning(literal(error))
        return
    named = {**{name: labels.get(name, name) for name in classes}}
    named |= {UNSURE: words["live.form_unsure"], NOT_A_PLANT: words["live.form_not_a_plant"]}
    with st.form(f"label-{frame}", border=False):  # else it would keep what was chosen for another frame and not saved
        label = st.radio(
            words["live.form"],
            list(named),
            index=None,
            format_func=lambda name: literal(named[name]),
            label_visibility="collapsed",
        )
        who = visitor.name or st.text_input(
            words["live.form_who"], value=st.session_state.get("who", ""), max_chars=100
        )
        note = st.text_input(words["live.form_note"], max_chars=2000)
        done = st.form_submit_button(words["live.form_save"], type="primary")
    if st.button(words["live.ask"]):
        try:
            field.ask_teacher(visitor, frame)
            st.info(words["live.asked"].format(frame=frame))
        except AgriKDError as error:
            st.error(literal(error))
    if done and not label:
        st.warning(words["live.form"])
    elif done:
        st.session_state.who = who
        try:
            field.label(visitor, Label(uuid.uuid4().hex, frame, label, who, time.time(), LIVE, note))
        except AgriKDError as error:
            st.error(words["live.refused"].format(why=literal(error)))
        else:
            st.session_state.saved = named[label]
            st.rerun()


try:
    cameras = field.live["cameras"]
    serving = field.call("GET", "/status").json()["serving"]
except AgriKDError as error:
    st.error(words["live.away"].format(why=literal(error)))
    st.stop()
camera = cameras[0] if len(cameras) == 1 else st.selectbox(words["live.camera"], cameras)
if saved := st.session_state.pop("saved", None):
    st.toast(words["live.saved"].format(name=literal(saved)))
labels = field.labels(serving, st.session_state.language)
data = {
    "socket": f"{site.PREFIX}/live?camera={camera}",
    "frames": f"{site.PREFIX}/frame/",
    "labels": labels,
    "may_label": visitor.reviews,
    "faults": site.faults(words),
    "words": {key: text for key, text in words.items() if key.startswith("live.")},
}
frozen = view(data=data, key=f"live-{camera}", on_frozen_change=lambda: None).frozen
if frozen is not None and visitor.reviews:
    judge(frozen["frame"], frozen["classes"] or [], labels)
