"""Devices: how the one here is, the way back to its last release, its log; and all those that its hub hears of."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import altair as alt
import pandas as pd
import streamlit as st

from agrikd import fleet, site
from agrikd.condition import Condition, Eye, Wrong, age
from agrikd.device.installer import BACK
from agrikd.device.store import SETTINGS
from agrikd.errors import AgriKDError
from agrikd.fleet import Hub, Look
from agrikd.heard import Member, Said, Sight
from agrikd.site import literal

words, field, visitor = st.session_state.words, site.Field.here(), st.session_state.visitor
NONE, GOOD, BAD, AWAY = "–", "●", "▲", "○"
UNITS = {"d": words["devices.d"], "h": words["devices.h"], "min": words["devices.min"], "s": words["devices.s"]}
WRONG = {
    "agent": words["devices.wrong_agent"],
    "model": words["devices.wrong_model"],
    "lost": words["devices.wrong_lost"],
    "old": words["devices.wrong_old"],
    "aide": words["devices.wrong_aide"],
    "said": words["devices.wrong_said"],
    "expired": words["devices.expired"],
    "hot": words["devices.wrong_hot"],
    "disk": words["devices.wrong_disk"],
    "memory": words["devices.wrong_memory"],
    "dropped": words["devices.wrong_dropped"],
    "twin": words["devices.wrong_twin"],
}
AIDES = {
    "live": words["devices.aide_live"],
    "second": words["devices.aide_second"],
    "sync": words["devices.aide_sync"],
}
STATES = {
    "live": f"{GOOD} {words['devices.camera_live']}",
    "opening": f"{AWAY} {words['devices.camera_opening']}",
    "lost": f"{BAD} {words['devices.camera_lost']}",
    "closed": f"{AWAY} {words['devices.camera_closed']}",
}
FAULTS = site.faults(words)
PHASES = {
    "RECEIVING": words["devices.phase_receiving"],
    "VERIFIED": words["devices.phase_verified"],
    "PREPARED": words["devices.phase_prepared"],
    "TRIAL": words["devices.phase_trial"],
    "COMMITTED": words["devices.phase_committed"],
    "ROLLED_BACK": words["devices.phase_rolled_back"],
}


# How things are said


@contextmanager
def in_words(form: str = "{why}", **more: str) -> Iterator[None]:
    """Show what a person can mend, and go on."""
    try:
        yield
    except AgriKDError as error:
        st.error(literal(form.format(why=error, **more)))


def some(number: float | None, digits: int = 0) -> str:
    return NONE if number is None else f"{number:.{digits}f}"


def long(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    count, unit = age(seconds)
    return UNITS[unit].format(n=count)


def complaint(one: Wrong) -> str:
    numbers = {"old": long(one.number), "hot": some(one.number), "dropped": some(one.number)}
    shown = numbers.get(one.what, some(100 * one.number))
    name = AIDES.get(one.name, one.name) if one.what == "aide" else one.name
    return WRONG[one.what].format(name=name, why=one.why, number=shown).strip().removesuffix(":")


def release_of(name: str) -> str:
    return fleet.named(field.folder, name)


def model_of(one: Condition, name: str) -> str:
    """As the device itself calls it, where it is the one that it was given to serve."""
    return one.release if one.release and name == one.wanted else release_of(name)


def phase_of(phase: str, release: str, why: str = "") -> str:
    if phase == "COMMITTED" and BACK in why:
        return words["devices.phase_back"].format(name=release_of(release))
    return PHASES[phase].format(name=release_of(release), why=why).removesuffix(": ")


def picture_of(quality: str) -> str:
    return ", ".join(FAULTS.get(word, word) for word in quality.split(", "))


def eye_of(one: Eye, fault: str) -> str:
    said = [STATES.get(one.state, one.state)]
    if one.state == "lost":
        return f"{said[0]}: {one.why}"
    if one.state == "live":
        said.append(words["devices.camera_fps"].format(fps=some(one.fps, 1)))
        said.append(words["devices.camera_picture"].format(words=picture_of(fault) or words["devices.fault_none"]))
    if one.age_s is not None:
        said.append(words["devices.camera_age"].format(age=long(one.age_s)))
    return ", ".join(said)


def heard(one: Member) -> str:
    if one.age_s is None:
        return f"{AWAY} {words['devices.never']}"
    if one.stale:
        return f"{AWAY} {words['devices.silent'].format(age=long(one.age_s))}"
    return f"{BAD if one.condition.wrong else GOOD} {words['devices.online']}"


def answer(one: Condition, said: Said | None) -> str:
    if said is None:
        return NONE
    known = fleet.spec(field.folder, said.model)
    if said.value is not None:
        unit = known.scale.unit if known and known.scale else ""
        return f"{said.value:.3g} {unit}".strip()
    if said.unknown:
        return words["devices.unknown"]
    if not known or said.top >= len(known.classes):
        name = words["devices.class"].format(n=said.top, model=model_of(one, said.model))
    else:
        name = known.classes[said.top]
        name = field.labels(said.model, words["code"]).get(name, name)
    return f"{name}, {100 * said.probability:.0f} %"


# This device


def verdict(look: Look) -> None:
    wrong = [complaint(one) for one in look.condition.wrong]
    wrong += [words["devices.damaged"].format(why=look.status["damage"])] if "damage" in look.status else []
    if wrong:
        st.warning("  \n".join(map(literal, wrong)), icon=":material/warning:")
    else:
        st.success(words["devices.well"], icon=":material/check_circle:")


def gauges(one: Condition) -> None:
    used = None if one.memory is None else 100 * (1 - one.memory)
    free_gb = None if one.disk_free_bytes is None else one.disk_free_bytes / 1e9
    with st.container(horizontal=True):
        st.metric(words["devices.fps"], some(one.fps, 1), border=True, width=158)
        st.metric(words["devices.celsius"], some(one.celsius), border=True, width=158)
        st.metric(words["devices.memory"], some(used), border=True, width=158)
        st.metric(words["devices.disk"], some(free_gb, 1), border=True, width=158)


def facts(look: Look) -> None:
    """A line each; none of what nobody says."""
    one, status = look.condition, look.status
    speed = words["devices.speed"].format(ms=some(status["p50_ms"], 1)) if "p50_ms" in status else ""
    runs = (one.backend,) if look.bare else (status.get("precision", ""), speed, one.backend)
    eyes = {
        words["devices.camera"].format(name=eye.name): eye_of(eye, look.faults.get(eye.name, "")) for eye in one.eyes
    }
    rows = {"rows": some(one.rows), "waiting": some(one.waiting)}
    signed = ", ".join(status.get("signed", ())) or words["devices.signed_by_none"]
    told = {
        words["devices.serves"]: look.model or words["devices.no_release"],
        words["devices.runs_by"]: ", ".join(filter(None, runs)),
        words["devices.signed"]: signed if "signed" in status and not look.bare else "",
        **eyes,
        words["devices.records"]: NONE if one.rows is None else words["devices.records_are"].format(**rows),
        words["devices.board"]: f"{status['kind']}, agrikd {status['agrikd']}",
        words["devices.load"]: some(one.load, 1),
        words["devices.uptime"]: long(one.uptime_s),
    }
    lines = [(literal(name), literal(text)) for name, text in told.items() if text not in ("", NONE)]
    st.table(pd.DataFrame(lines), hide_index=True, hide_header=True, border="horizontal")


@st.fragment(run_every=5)
def device(marks: tuple[str, ...]) -> None:
    with in_words():
        look = fleet.look(field.folder)
        if look.marks != marks:
            st.rerun()  # something else may be rolled back by now
        verdict(look)
        gauges(look.condition)
        facts(look)


@st.fragment(run_every=1)
def follow() -> None:
    with in_words():
        look = fleet.look(field.folder)
        if not look.installing:
            st.rerun()
        said = phase_of(look.status["phase"], look.status["release"])
        st.info(literal(said), icon=":material/hourglass_top:")
        if not look.condition.answers:
            st.warning(words["devices.nobody_goes_on"])


@st.dialog(words["devices.roll_back"])
def ask_back(current: str, previous: str) -> None:
    st.text(words["devices.roll_back_from"].format(name=release_of(current)))
    st.text(words["devices.roll_back_to"].format(name=release_of(previous)))
    st.caption(words["devices.roll_back_how"])
    with st.container(horizontal=True):
        sure, never = st.button(words["devices.roll_back_sure"], type="primary"), st.button(words["devices.cancel"])
    with in_words():
        if sure:
            fleet.roll_back(visitor, field.folder, previous)
        if sure or never:
            st.rerun()


def releases(look: Look) -> None:
    phase, release, reason = (look.status[name] for name in ("phase", "release", "reason"))
    if look.installing:
        follow()
    elif look.bare:
        st.caption(words["devices.bare"])
    else:
        if phase == "ROLLED_BACK":
            st.warning(literal(phase_of(phase, release, reason)), icon=":material/undo:")
        elif phase in PHASES:
            st.text(f"{GOOD} {phase_of(phase, release, reason)}")
        if not look.way_back:
            st.caption(words["devices.no_way_back"])
            return
        st.text(words["devices.before"].format(name=release_of(look.way_back)))
        if visitor.reviews and st.button(words["devices.roll_back"], icon=":material/undo:"):
            ask_back(look.status["current"], look.way_back)


def here() -> None:
    with in_words():
        look = fleet.look(field.folder)
        device(look.marks)
        st.subheader(words["devices.releases"])
        releases(look)


# The log


def happened(when: str, what: str, release: str, more: str) -> tuple[str, str, str]:
    """A line of the device's log; in words where it is of an installation."""
    if what not in PHASES:
        return when, f"{what} {release_of(release)}".strip(), more
    return when, phase_of(what, release, more if what == "COMMITTED" else ""), more


def logs() -> None:
    word = st.text_input(words["devices.filter"], max_chars=100, icon=":material/search:")
    columns = [words["devices.when"], words["devices.what"], words["devices.more"]]
    listing(words["devices.events"], lambda: fleet.events(field.folder), word, columns)
    listing(words["devices.log"], lambda: [happened(*one) for one in fleet.log(field.folder)], word, columns)
    st.download_button(
        words["devices.support"],
        lambda: fleet.support_file(field.folder),
        file_name="agrikd-logs.tar.gz",
        mime="application/gzip",
        icon=":material/download:",
        on_click="ignore",
    )
    st.caption(words["devices.support_holds"])


def listing(name: str, read: Callable[[], Sequence[tuple[str, ...]]], word: str, columns: list[str]) -> None:
    st.subheader(name)
    with in_words():
        if found := fleet.holding(read(), word):
            st.dataframe(pd.DataFrame(found, columns=columns), hide_index=True)
        else:
            st.caption(words["devices.nothing"])


# All devices


@st.cache_resource(max_entries=4, ttl=3600)
def hub_of(folder: str, changed: int) -> Hub | None:
    """changed: when agent.yaml was."""
    return Hub.of(Path(folder))


def row(one: Member) -> dict[str, object]:
    own = one.condition
    live = sum(eye.state == "live" for eye in own.eyes)
    return {
        words["devices.device"]: one.device,
        words["devices.state"]: heard(one),
        words["devices.model"]: model_of(own, own.serving) if own.serving else NONE,
        words["devices.fps"]: own.fps,
        words["devices.cameras"]: f"{live}/{len(own.eyes)}" if own.eyes else NONE,
        words["devices.celsius_short"]: own.celsius,
        words["devices.disk_free"]: None if own.disk is None else round(100 * own.disk),
        words["devices.waiting"]: own.waiting,
        words["devices.attention"]: "; ".join(map(complaint, one.wrong)) or NONE,
    }


@st.fragment(run_every=5)
def devices(hub: Hub) -> None:
    with in_words(words["devices.hub_away"], hub=hub.name):
        found = {one.device: one for one in hub.members()}
        if not found:
            st.info(literal(words["devices.hub_empty"].format(hub=hub.name)))
            return
        table = pd.DataFrame(map(row, found.values())).set_index(words["devices.device"])
        st.dataframe(table.round(1), placeholder=NONE)
        choose = words["devices.choose"]
        chosen = st.selectbox(words["devices.pick"], list(found), index=None, placeholder=choose, key="devices_picked")
        if chosen:
            member(hub, found[chosen])


def member(hub: Hub, one: Member) -> None:
    st.text(heard(one))
    if one.condition.serving:
        st.text(f"{words['devices.model']}: {model_of(one.condition, one.condition.serving)}")
    for wrong in one.wrong:
        st.text(f"{BAD} {complaint(wrong)}")
    if one.older:
        st.caption(words["devices.older"].format(n=one.older))
    charts(hub, one)
    if not one.recorded:
        st.caption(words["devices.unrecorded"])
    elif sights := hub.sights(one):
        st.dataframe(pd.DataFrame([sight_row(one.condition, sight) for sight in sights]), hide_index=True)
        pictures(hub, one, [sight for sight in sights if sight.pictured])
    else:
        st.caption(words["devices.no_frames"])


def charts(hub: Hub, one: Member) -> None:
    beats = hub.beats(one)
    told = {
        words["devices.celsius"]: [beat.celsius for beat in beats],
        words["devices.memory"]: [None if beat.memory is None else 100 * beat.memory for beat in beats],
        words["devices.fps"]: [beat.fps for beat in beats],
    }
    known = {name: values for name, values in told.items() if any(value is not None for value in values)}
    for column, (name, values) in zip(st.columns(3), known.items(), strict=False):
        with column:
            st.caption(name)
            st.altair_chart(line([beat.t for beat in beats], values), alt=name)


def line(times: list[float], values: list[float | None]) -> alt.Chart:
    """By this machine's wall clock, with a gap where nothing was said."""
    clock = [datetime.fromtimestamp(t).isoformat() for t in times]
    form = "%H:%M" if times[-1] - times[0] < 86_400 else "%m-%d"
    across = alt.X("t:T", title=None, axis=alt.Axis(format=form, tickCount=4, labelOverlap=True))
    up = alt.Y("value:Q", title=None, axis=alt.Axis(tickCount=4))
    chart = alt.Chart(pd.DataFrame({"t": clock, "value": values})).mark_line(point=alt.OverlayMarkDef(size=12))
    return chart.encode(x=across, y=up).properties(height=150)


def sight_row(of: Condition, one: Sight) -> dict[str, object]:
    return {
        words["devices.when"]: one.when,
        words["devices.camera_column"]: one.camera,
        words["devices.said"]: answer(of, one.student),
        words["devices.teacher"]: answer(of, one.teacher),
        words["devices.judged"]: one.label or NONE,
        words["devices.picture"]: picture_of(one.quality) or NONE,
    }


def pictures(hub: Hub, one: Member, sights: list[Sight]) -> None:
    held = st.session_state.get("devices_picture")
    texts = {sight.frame: f"{sight.when}  {answer(one.condition, sight.student)}" for sight in sights}
    if held and held[0] == one.series:
        texts = {held[1]: held[2], **texts}  # what somebody looks at does not go when newer ones come
    if not texts:
        st.caption(words["devices.no_pictures"])
        return
    how = {"index": None, "placeholder": words["devices.choose"], "key": f"devices_frame_{one.series}"}
    frame = st.selectbox(words["devices.show"], list(texts), format_func=lambda one: texts.get(one, NONE), **how)
    if frame is None:
        return
    if not held or held[:2] != (one.series, frame):
        with st.spinner(words["devices.fetching"]):
            held = one.series, frame, texts[frame], hub.picture(one, frame)
        st.session_state.devices_picture = held
    st.image(held[3], width=640, alt=held[2])


st.title(words["devices.title"])
path, hub = field.folder / SETTINGS, None
with in_words():
    hub = hub_of(str(field.folder), path.stat().st_mtime_ns if path.exists() else 0)
fleets = {words["devices.all"]: lambda: devices(hub)} if hub else {}
views = {words["devices.here"]: here, **fleets, words["devices.logs"]: logs}
for tab, show in zip(st.tabs(list(views), key="devices_tab", on_change="rerun"), views.values(), strict=True):
    if tab.open:
        with tab:
            show()
