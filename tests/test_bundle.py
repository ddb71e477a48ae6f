"""Bundles and the trust in them: the same bytes twice, every other byte refused."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agrikd import bundle, dsse, files, trust
from agrikd.bundle import Artefact, Bundle, File, Release
from agrikd.dsse import Envelope, Key
from agrikd.errors import AgriKDError, InputError, TrustError
from agrikd.trust import Root
from agrikd.types import Calibration, Known, ModelSpec, Scale

CONTENTS = {
    "model.onnx": bytes(range(256)) * 600,
    "empty.txt": b"",
    "probe.png": b"\x89PNG",
    "answers.json": b'{"fp32":[[0.5,-0.5]]}',
}
SPEC = ModelSpec(
    "leaf", "classification", ("blight", "healthy"), (32, 48), "pad", Calibration(1.5, *[0.5] * 6, 40, "val")
)


def release(**changes: object) -> Release:
    made = Release(
        name="leaf",
        version="2026.1",
        seq=7,
        min_agent="0.1.0",
        compatible=("aarch64-jetpack6", "x86_64"),
        spec=SPEC,
        resize=2,
        artefacts=(Artefact("fp32", "model.onnx", ("10.3", "11"), 0.01),),
        probes=("probe.png",),
        answers="answers.json",
        files=tuple(File.of(name, data) for name, data in CONTENTS.items()),
        labels={"es": ("tizón", "sana")},
        budget_ms=40.0,
        provenance={"teachers": ["a", {"b": None}]},
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return Key.new(tmp_path_factory.mktemp("keys") / "one.key")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return Key.new(tmp_path_factory.mktemp("keys") / "other.key")


@pytest.fixture(scope="module")
def root(key: Key) -> Root:
    return Root.from_envelope(trust.first([key]), "root")


@pytest.fixture(scope="module")
def packed(key: Key, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("bundle") / "leaf.akb"
    bundle.write(path, release(), CONTENTS, [key])
    return path.read_bytes()


@pytest.fixture
def refused(tmp_path: Path, root: Root) -> Callable[[bytes], str]:
    """What is said of a bundle with these bytes; fails where it is taken."""

    def said(data: bytes) -> str:
        path = tmp_path / "given.akb"
        path.write_bytes(data)
        with pytest.raises(AgriKDError) as caught, Bundle(path) as opened:
            opened.verify(root)
        assert type(caught.value) in (InputError, TrustError)
        return str(caught.value)

    return said


def test_it_comes_back_whole_and_is_an_ordinary_tar(packed: bytes, root: Root, tmp_path: Path) -> None:
    (tmp_path / "a.akb").write_bytes(packed)
    with Bundle(tmp_path / "a.akb") as opened:
        opened.verify(root)
        assert opened.release == release()
        read = {
            one.name: b"".join(opened.chunk(place, n) for n in range(len(one.chunks)))
            for place, one in enumerate(opened.release.files)
        }
    assert read == CONTENTS and list(map(len, (CONTENTS["model.onnx"], release().files[0].chunks))) == [153600, 3]
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
        assert tar.getnames() == ["release.dsse", *CONTENTS]
        assert {m.mtime for m in tar} == {0} and all(m.isreg() and m.mode == 0o644 for m in tar)
        assert tar.extractfile("model.onnx").read() == CONTENTS["model.onnx"]  # type: ignore[union-attr]


def test_two_packs_of_the_same_are_the_same_bytes(packed: bytes, key: Key, tmp_path: Path) -> None:
    bundle.write(tmp_path / "again.akb", release(), CONTENTS, [key])
    assert (tmp_path / "again.akb").read_bytes() == packed


def test_a_release_from_before_a_calibration_knew_plants_keeps_its_bytes() -> None:
    """A device finds a release by the digest of its payload, and refuses one that is not in canonical form."""
    old = release()
    assert old.id == "7-1634b6fb" and b'"known":' not in old.payload()
    assert Release.from_payload(old.payload(), "old") == old


def test_what_plants_look_like_travels_in_a_release() -> None:
    assert SPEC.calibration is not None
    looks = Known(base64.b64encode(bytes(8)).decode(), base64.b64encode(bytes(12)).decode(), 40)
    made = release(spec=replace(SPEC, calibration=replace(SPEC.calibration, known=looks)))
    again = Release.from_payload(made.payload(), "new")
    assert again == made and again.payload() == made.payload()
    broken = made.payload().replace(looks.factor.encode(), looks.factor[:-4].encode())
    with pytest.raises(InputError, match="is no release"):
        Release.from_payload(broken, "broken")


def test_every_byte_counts(packed: bytes, refused: Callable[[bytes], str]) -> None:
    """A flip in each region: headers, envelope, padding, every file's first, middle and last byte, the end."""
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
        members = tar.getmembers()
    places: list[int] = []
    for one in members:
        places += [one.offset + at for at in (0, 99, 100, 107, 124, 135, 136, 148, 156, 157, 257, 263, 329, 345, 511)]
        padding = one.offset_data + one.size
        places += [one.offset_data + one.size * share // 4 for share in range(4) if one.size]
        places += [padding - 1, padding, padding + (-one.size % 512) - 1] if one.size % 512 else []
    places += [len(packed) - 1024, len(packed) - 1]
    for at in places:
        assert refused(packed[:at] + bytes([packed[at] ^ 0x04]) + packed[at + 1 :]), f"byte {at} was flipped unseen"
    assert len(places) >= 80


def _retarred(packed: bytes, change: Callable[[tarfile.TarInfo], None]) -> bytes:
    """The same members, the model's header changed, as a tar program would write them."""
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as given,
        tarfile.open(fileobj=out, mode="w:", format=tarfile.USTAR_FORMAT) as made,
    ):
        for member in given.getmembers():
            data = given.extractfile(member)
            if member.name == "model.onnx":
                change(member)
            made.addfile(member, data if member.isreg() else None)
    return out.getvalue()


def _as(kind: bytes, name: str = "model.onnx", link: str = "") -> Callable[[tarfile.TarInfo], None]:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.name, member.linkname = kind, name, link

    return change


TRICKS: dict[str, Callable[[bytes], bytes]] = {
    "a path above": lambda packed: _retarred(packed, _as(tarfile.REGTYPE, "../../etc/passwd")),
    "an absolute path": lambda packed: _retarred(packed, _as(tarfile.REGTYPE, "/etc/passwd")),
    "a symbolic link": lambda packed: _retarred(packed, _as(tarfile.SYMTYPE, link="/etc/passwd")),
    "a hard link": lambda packed: _retarred(packed, _as(tarfile.LNKTYPE, link="/etc/passwd")),
    "a device": lambda packed: _retarred(packed, _as(tarfile.CHRTYPE)),
    "a pipe": lambda packed: _retarred(packed, _as(tarfile.FIFOTYPE)),
    "a name twice": lambda packed: _retarred(packed, _as(tarfile.REGTYPE, "probe.png")),
    "a sparse file": lambda packed: _retarred(packed, _as(tarfile.GNUTYPE_SPARSE)),
    "one member more": lambda packed: packed[:-1024] + packed[:1024] + bytes(1024),
    "data without an end": lambda packed: packed + bytes(10**7),
    "a compressed bundle": gzip.compress,
    "a bomb": lambda packed: gzip.compress(bytes(10**8)),
    "an envelope without an end": lambda packed: packed[:124] + b"77777777777" + packed[135:],
}


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_with_archives_are_refused(trick: str, packed: bytes, refused: Callable[[bytes], str]) -> None:
    """A plain repacking by a tar program is one too: only the bytes that the release makes are a bundle."""
    assert refused(TRICKS[trick](packed))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_edit_is_refused(
    packed: bytes, key: Key, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cuts, insertions and overwrites anywhere: refused with one of our errors, never another exception."""
    at = data.draw(st.integers(0, len(packed)))
    length = data.draw(st.integers(0, 700))
    put = data.draw(st.binary(max_size=700))
    changed = packed[:at] + put + packed[at + length :]
    if changed == packed:
        return
    path = tmp_path_factory.mktemp("edit") / "x.akb"
    path.write_bytes(changed)
    trusts = Root(1, 1, {key.id: key.public})
    with pytest.raises((InputError, TrustError)), Bundle(path) as opened:
        opened.verify(trusts)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "x.akb"
    path.write_bytes(noise)
    with pytest.raises(InputError), Bundle(path):
        pass
    with pytest.raises(InputError):
        Envelope.from_bytes(noise, "noise")
    with pytest.raises(InputError):
        Release.from_payload(noise, "noise")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": (File.of("../up", b""),)}, "lower-case letters"),
        ({"files": (File.of("/etc/passwd", b""),)}, "lower-case letters"),
        ({"files": (File.of("a", b""),) * 2}, "names a file twice"),
        ({"files": (File.of("release.dsse", b""),)}, "names a file twice"),
        ({"files": ()}, "names a file twice, or none"),
        ({"files": tuple(File.of(f"f{n}", b"") for n in range(65))}, "more than 64"),
        ({"files": (File("model.onnx", 2**31, "0" * 64, ("0" * 64,) * 2**15),)}, "contradict"),
        ({"files": (File("model.onnx", 10, "0" * 64, ()),)}, "contradict"),
        ({"files": (File("model.onnx", -1, "0" * 64, ()),)}, "contradict"),
        ({"seq": -1}, "seq"),
        ({"seq": True}, "seq"),
        ({"name": "Leaf/.."}, "lower-case"),
        ({"probes": ()}, "no probe"),
        ({"artefacts": ()}, "no model"),
        ({"files": (File.of("choice.json", b""),)}, "reserved"),
        ({"answers": "gone.json"}, "lacks gone.json"),
        ({"labels": {"es": ("uno",)}}, "one for each of the 2 classes"),
    ],
)
def test_a_signed_release_that_contradicts_itself_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        Release.from_payload(release(**changes).payload(), "x")
    assert said in str(caught.value)


def test_all_contradictions_are_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Release.from_payload(release(seq=-1, probes=(), answers="gone.json").payload(), "x")
    assert len(caught.value.problems) == 3


def test_a_form_that_is_not_canonical_or_of_another_schema_is_refused() -> None:
    said = json.loads(release().payload())
    with pytest.raises(InputError, match="canonical"):
        Release.from_payload(json.dumps(said).encode(), "x")
    with pytest.raises(InputError, match="TypeError"):
        Release.from_payload(files.canonical({**said, "surprise": 1}), "x")
    with pytest.raises(InputError, match="update agrikd"):
        Release.from_payload(files.canonical({**said, "schema": 2}), "x")
    for spec in ({**said["spec"], "input_size": [8]}, {**said["spec"], "input_size": [1e999, 8]}, [], 7):
        with pytest.raises(InputError, match="is no release"):
            Release.from_payload(json.dumps({**said, "spec": spec}).encode(), "x")
    deep = b'{"schema":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(InputError):
        Release.from_payload(deep, "x")


@given(
    st.text(),
    st.integers(0, 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.text(), min_size=1, unique=True),
)
def test_any_release_writes_and_reads_the_same(version: str, seq: int, atol: float, classes: list[str]) -> None:
    try:
        version.encode()
        "".join(classes).encode()
    except UnicodeEncodeError:
        return
    scale = Scale(0, 1, "%", 2) if len(classes) > 6 else None
    made = release(
        version=version,
        seq=seq,
        artefacts=(Artefact("fp32", "model.onnx", (), atol),),
        spec=ModelSpec("leaf", "x", tuple(classes), (1, 1), scale=scale),
        labels={"q": tuple(classes)},
    )
    assert Release.from_payload(made.payload(), "x") == made


def test_only_a_key_that_counts_may_sign(key: Key, other: Key, root: Root, tmp_path: Path) -> None:
    path = tmp_path / "a.akb"
    bundle.write(path, release(), CONTENTS, [other])
    with Bundle(path) as opened, pytest.raises(TrustError, match=f"signed by {other.id}"):
        opened.verify(root)
    bundle.write(path, release(), CONTENTS, [])
    with Bundle(path) as opened, pytest.raises(TrustError, match="signed by nobody"):
        opened.verify(root)
    both = Root(1, 2, {key.id: key.public, other.id: other.public})
    bundle.write(path, release(), CONTENTS, [key, key])
    with Bundle(path) as opened, pytest.raises(TrustError, match="1 trusted signatures, 2 needed"):
        opened.verify(both)
    bundle.write(path, release(), CONTENTS, [key, other])
    with Bundle(path) as opened:
        opened.verify(both)


def test_a_payload_of_another_kind_is_refused(key: Key, root: Root) -> None:
    """The same key signs roots and releases: neither passes as the other, also when the kind alone is rewritten."""
    as_root = dsse.sign(trust.KIND, release().payload(), [key])
    with pytest.raises(TrustError, match="is signed as"):
        bundle.trusted(as_root.to_bytes(), root, "x")
    with pytest.raises(TrustError, match="0 trusted"):
        bundle.trusted(replace(as_root, kind=bundle.KIND).to_bytes(), root, "x")


def test_the_signed_bytes_are_those_of_the_protocol(key: Key) -> None:
    """DSSE's own example: PAE("http://example.com/HelloWorld", "hello world")."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    made = dsse.sign("http://example.com/HelloWorld", b"hello world", [key])
    pae = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    Ed25519PublicKey.from_public_bytes(key.public).verify(made.signatures[0][1], pae)
    assert Envelope.from_bytes(made.to_bytes(), "x") == made


def test_roots_follow_one_another(key: Key, other: Key, root: Root) -> None:
    """The next root is signed by the old and the new; a key that it leaves out no longer signs bundles."""
    made = trust.rotate(root, [key, other], [other.public], [key.id], 1)
    second = trust.successor(root, made, "x")
    assert second.version == 2 and set(second.keys) == {other.id}
    with pytest.raises(TrustError):
        second.require(dsse.sign(bundle.KIND, b"{}", [key]), bundle.KIND, "x")
    with pytest.raises(TrustError, match="by itself"):
        trust.rotate(root, [key], [other.public], [key.id], 1)
    with pytest.raises(TrustError, match="by root 1"):
        trust.rotate(root, [other], [other.public], [], 1)
    third = trust.rotate(second, [other], [], [], 1)
    with pytest.raises(TrustError, match="is root 3, expected root 2"):
        trust.successor(root, third, "x")
    with pytest.raises(InputError, match="is no key of this root"):
        trust.rotate(root, [key], [], ["beef"], 1)
    with pytest.raises(InputError, match="threshold"):
        trust.rotate(root, [key], [], [], 2)


@pytest.mark.parametrize(
    "broken", [{"threshold": 0}, {"threshold": 2}, {"version": 0}, {"keys": {"a": "!"}}, {"schema": 2}]
)
def test_a_broken_root_is_refused(key: Key, root: Root, broken: dict[str, object]) -> None:
    payload = files.canonical({**json.loads(root.payload()), **broken})
    with pytest.raises(InputError, match="no root of trust"):
        Root.from_envelope(dsse.sign(trust.KIND, payload, [key]), "x")


def test_keys_are_kept_and_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "farm" / "a.key"
    made = Key.new(path, "soil")
    assert path.stat().st_mode & 0o777 == 0o600
    assert dsse.read_public(dsse.public_path(path)) == made.public
    with pytest.raises(InputError, match="never overwritten"):
        Key.new(path)
    with pytest.raises(InputError, match="locked with a passphrase"):
        Key.read(path)
    monkeypatch.setenv(dsse.PASSPHRASE, "wrong")
    with pytest.raises(InputError, match="no signing key"):
        Key.read(path)
    monkeypatch.setenv(dsse.PASSPHRASE, "soil")
    assert Key.read(path).id == made.id
    with pytest.raises(InputError, match="no public key"):
        dsse.read_public(path)


def test_keys_that_sign_together_may_have_passphrases_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {tmp_path / "plain.key": "", tmp_path / "a.key": "soil", tmp_path / "farm-2.b.key": "rain"}
    made = [Key.new(path, passphrase).id for path, passphrase in paths.items()]
    monkeypatch.setenv(dsse.PASSPHRASE, "soil")
    with pytest.raises(
        InputError, match=r"another passphrase\n.*\$AGRIKD_PASSPHRASE_FARM_2_B, or from \$AGRIKD_PASSPHRASE$"
    ):
        [Key.read(path) for path in paths]
    monkeypatch.setenv("AGRIKD_PASSPHRASE_FARM_2_B", "rain")
    assert [Key.read(path).id for path in paths] == made


def test_a_file_of_another_kind_is_called_by_its_name(tmp_path: Path, key: Key) -> None:
    Key.new(tmp_path / "season.key")
    public, text = tmp_path / "season.key.pub", tmp_path / "note.txt"
    text.write_text("no key")
    with pytest.raises(InputError, match=r"is the public half of a key\n.*the secret half, as in .*season.key$"):
        Key.read(public)
    with pytest.raises(InputError, match=r"is no signing key\n.*keys new$"):
        Key.read(text)
    with pytest.raises(InputError, match=r"is nothing that agrikd signed\n.*keys new --root") as refused:
        Root.read(public)
    assert "JSON" not in str(refused.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"a note", "is no bundle"), (b"\xff\xd8\xff" + bytes(900), "is no bundle"), (b"release.d", "is cut short")],
)
def test_a_short_file_is_no_bundle_unless_it_begins_as_one(
    data: bytes, said: str, refused: Callable[[bytes], str]
) -> None:
    assert said in refused(data)


def test_no_downgrade() -> None:
    bundle.require_newer(release(), 7, "x")
    with pytest.raises(TrustError, match="has had 8"):
        bundle.require_newer(release(), 8, "x")
