"""Writing: a reader sees the old file or the new one whole, whatever goes wrong; the same value, the same digest."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agrikd import files
from agrikd.errors import InputError, StorageError

QUICK = settings(max_examples=100, deadline=None, derandomize=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FULL = OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing(error: OSError) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


class StoppedError(Exception):
    """Stands for whatever may go wrong while a file is written."""


class TestReplacing:
    def test_the_new_file_replaces_the_old(self, tmp_path: Path) -> None:
        path = tmp_path / "value.json"
        for text in ("old", "new"):
            with files.replacing(path) as temporary:
                temporary.write_text(text)
                assert temporary.parent == path.parent
                assert temporary.suffix == path.suffix
        assert path.read_text() == "new"
        assert names(tmp_path) == ["value.json"]

    def test_while_it_is_written_the_old_one_stands(self, tmp_path: Path) -> None:
        path = tmp_path / "value.json"
        path.write_text("old")
        with files.replacing(path) as temporary:
            temporary.write_text("half of the n")
            assert path.read_text() == "old"

    @pytest.mark.parametrize("error", [StoppedError, KeyboardInterrupt])
    @pytest.mark.parametrize("before", ["old", None])
    def test_an_exception_leaves_what_was_there(
        self, tmp_path: Path, before: str | None, error: type[BaseException]
    ) -> None:
        path = tmp_path / "value.json"
        if before is not None:
            path.write_text(before)
        with pytest.raises(error), files.replacing(path) as temporary:
            temporary.write_text("half")
            raise error
        assert names(tmp_path) == (["value.json"] if before else [])
        assert not before or path.read_text() == before

    def test_folders_on_the_way_are_made(self, tmp_path: Path) -> None:
        files.write_text(tmp_path / "a" / "b" / "c.txt", "here")
        assert (tmp_path / "a" / "b" / "c.txt").read_text() == "here"

    def test_the_file_may_be_read_as_the_umask_says(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            files.write_text(tmp_path / "value.txt", "x")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "value.txt").stat().st_mode) == 0o640

    def test_the_bytes_are_on_the_disk_before_the_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        done: list[str] = []
        sync, rename = os.fsync, Path.replace

        def synced(handle: int) -> None:
            done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
            sync(handle)

        def renamed(path: Path, target: Path) -> Path:
            done.append("rename")
            return rename(path, target)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "replace", renamed)
        files.write_text(tmp_path / "value.txt", "x")
        assert done == ["file", "rename", "folder"]

    @pytest.mark.parametrize("where", ["write", "fsync", "rename", "mkstemp"])
    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
        path = tmp_path / "value.txt"
        path.write_text("old")
        place: dict[str, tuple[Any, str]] = {
            "write": (Path, "write_bytes"),
            "fsync": (os, "fsync"),
            "rename": (Path, "replace"),
            "mkstemp": (files.tempfile, "mkstemp"),
        }
        monkeypatch.setattr(*place[where], failing(FULL))
        with pytest.raises(StorageError, match=r"value\.txt: the disk is full") as caught:
            files.write_text(path, "new")
        assert caught.value.exit_code == 7
        monkeypatch.undo()
        assert path.read_text() == "old"
        assert names(tmp_path) == ["value.txt"]

    @pytest.mark.parametrize(
        ("number", "said"),
        [
            (errno.EDQUOT, "the disk is full"),
            (errno.EACCES, "may not be written"),
            (errno.EROFS, "may not be written"),
            (errno.ENOTDIR, "a file is in the way"),
        ],
    )
    def test_other_refusals(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str) -> None:
        monkeypatch.setattr(os, "fsync", failing(OSError(number, os.strerror(number))))
        with pytest.raises(StorageError, match=said):
            files.write_text(tmp_path / "value.txt", "new")
        assert names(tmp_path) == []

    def test_an_error_that_is_no_refusal_to_write_stays_what_it_is(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="Broken"), files.replacing(tmp_path / "value.txt"):
            raise OSError(errno.EPIPE, "Broken pipe")
        assert names(tmp_path) == []

    def test_a_file_where_a_folder_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "taken").write_text("a file")
        with pytest.raises(StorageError, match="a file is in the way of a folder"):
            files.write_text(tmp_path / "taken" / "value.txt", "x")

    def test_json_that_is_none_leaves_the_old(self, tmp_path: Path) -> None:
        path = tmp_path / "value.json"
        files.write_json(path, {"score": 1.0})
        with pytest.raises(ValueError, match="JSON"):
            files.write_json(path, {"score": float("nan")})
        assert files.read_json(path) == {"score": 1.0}


class TestReplacingFolder:
    def test_it_appears_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "store"
        with files.replacing_folder(path) as temporary:
            (temporary / "a").write_text("1")
            assert not path.exists()
            (temporary / "b").write_text("2")
        assert names(path) == ["a", "b"]
        assert names(tmp_path / "deep") == ["store"]

    def test_the_second_writer_loses_quietly(self, tmp_path: Path) -> None:
        path = tmp_path / "store"
        with files.replacing_folder(path) as slow:
            (slow / "who").write_text("slow")
            with files.replacing_folder(path) as quick:
                (quick / "who").write_text("quick")
        assert (path / "who").read_text() == "quick"
        assert names(tmp_path) == ["store"]

    def test_the_second_writer_loses_between_the_look_and_the_rename(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "store"
        path.mkdir()
        (path / "who").write_text("quick")
        with files.replacing_folder(path) as slow:
            (slow / "who").write_text("slow")
            monkeypatch.setattr(Path, "exists", lambda _: False)
        monkeypatch.undo()
        assert (path / "who").read_text() == "quick"
        assert names(tmp_path) == ["store"]

    def test_an_exception_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(StoppedError), files.replacing_folder(tmp_path / "store") as temporary:
            (temporary / "a").write_text("half")
            raise StoppedError
        assert names(tmp_path) == []

    def test_a_full_disk(self, tmp_path: Path) -> None:
        with (
            pytest.raises(StorageError, match="store: the disk is full"),
            files.replacing_folder(tmp_path / "store") as temporary,
        ):
            (temporary / "a").write_text("half")
            raise FULL
        assert names(tmp_path) == []


class TestRead:
    def test_a_byte_order_mark_is_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "words.txt"
        path.write_bytes("\ufeffBlätter\n".encode())
        assert files.read_text(path) == "Blätter\n"

    @pytest.mark.parametrize(
        ("data", "said"), [(None, "no such file"), (b"caf\xe9", "not UTF-8 text"), ("folder", "cannot be read")]
    )
    def test_what_cannot_be_read_is_said(self, tmp_path: Path, data: bytes | str | None, said: str) -> None:
        path = tmp_path / "words.txt"
        if isinstance(data, bytes):
            path.write_bytes(data)
        elif data == "folder":
            path.mkdir()
        with pytest.raises(InputError, match=said) as caught:
            files.read_text(path)
        assert caught.value.problems[0].where == str(path)

    def test_the_line_of_broken_json(self, tmp_path: Path) -> None:
        path = tmp_path / "value.json"
        path.write_text('{"a": 1,\n "b": }\n')
        with pytest.raises(InputError, match=r"value\.json:2: is not valid JSON"):
            files.read_json(path)

    @QUICK
    @given(value=JSON)
    def test_json_goes_round(self, tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
        path = tmp_path_factory.getbasetemp() / "value.json"
        files.write_json(path, value)
        assert files.read_json(path) == value


class TestDigest:
    @QUICK
    @given(st.dictionaries(st.text(), JSON, min_size=2, max_size=6), st.randoms(use_true_random=False))
    def test_the_order_of_keys_does_not_matter(self, value: dict[str, Any], rng: Any) -> None:
        keys = list(value)
        rng.shuffle(keys)
        assert files.digest({key: value[key] for key in keys}) == files.digest(value)

    @QUICK
    @given(JSON, JSON)
    def test_other_values_have_other_digests(self, one: Any, other: Any) -> None:
        same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
        assert (files.digest(one) == files.digest(other)) == same

    def test_golden(self) -> None:
        """Stored keys of caches and Runs hang on it."""
        found = files.digest({"b": [1, 2.5, None], "a": "Blätter"})
        assert found == "cb599f97ea7d12c8511de0532af18c88397f6d6c103d38f7b3f00f43723ba5a5"
        assert files.sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
