"""Frames: what is said is heard, and what is no frame ends the conversation."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agrikd.wire import MAX_BYTES, Patient, Wire, WireError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.lists(st.binary(max_size=300) | st.dictionaries(st.from_regex("[a-z]+", fullmatch=True), JSON)))
def test_what_is_said_is_heard(said: list[bytes | dict[str, Any]]) -> None:
    stream = io.BytesIO()
    out = Wire(io.BytesIO(), stream)
    for one in said:
        out.send(one) if isinstance(one, bytes) else out.say(**one)
    heard = Wire(io.BytesIO(stream.getvalue()), io.BytesIO())
    assert [heard.receive() for _ in said] == said
    with pytest.raises(WireError, match="closed"):
        heard.receive()


@given(st.binary(max_size=200))
def test_any_bytes_end_it_or_are_frames(noise: bytes) -> None:
    heard = Wire(io.BytesIO(noise), io.BytesIO())
    for _ in range(60):
        try:
            heard.receive()
        except WireError:
            return
    raise AssertionError("200 bytes hold no 60 frames")


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"J" + (MAX_BYTES + 1).to_bytes(4, "big"), "does not speak"),
        (b"Welcome to Ubuntu", "does not speak"),
        (b"J\0\0\0\x02[]", "no object"),
        (b"J\0\0\0\x01{", "no JSON"),
        (b"J\0\0\0\x09{", "closed"),
        (b"B\0", "closed"),
        (b"J" + (200_001).to_bytes(4, "big") + b"[" * 200_001, "no JSON"),
    ],
)
def test_what_is_no_frame(sent: bytes, said: str) -> None:
    with pytest.raises(WireError, match=said):
        Wire(io.BytesIO(sent), io.BytesIO()).receive()


def test_bytes_where_words_were_expected() -> None:
    with pytest.raises(WireError, match="words were expected"):
        Wire(io.BytesIO(b"B\0\0\0\0"), io.BytesIO()).hear()


def test_silence_ends_it_and_slow_bytes_do_not() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as reader, os.fdopen(writing, "wb", buffering=0) as writer:
        writer.write(b"J\0\0\0\x02{")
        wire = Wire(Patient(reader, 0.05), io.BytesIO())
        with pytest.raises(WireError, match=r"nothing was heard for 0\.05 s"):
            wire.receive()


def test_who_is_gone_is_an_error_on_both_ways() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as writer, pytest.raises(WireError, match="the link broke"):
        Wire(io.BytesIO(), writer).say(hello=1)
