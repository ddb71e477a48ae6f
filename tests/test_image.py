"""Pixels: every kind of photo becomes the same upright RGB, no broken one gets through, a thin lesion survives."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agrikd import image
from agrikd.errors import InputError, MissingExtraError
from agrikd.types import Fit, Image

QUICK = settings(max_examples=150, deadline=None, derandomize=True)
FITS: tuple[Fit, ...] = ("stretch", "crop", "pad")
MARK = (200, 30, 30), (30, 200, 30), (30, 30, 200), (220, 220, 220)
"""The colours of a picture's corners: top left, top right, bottom left, bottom right."""

UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: np.swapaxes(stored, 0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(np.swapaxes(stored, 0, 1), 2),
    8: np.rot90,
}
"""EXIF 2.3, tag 0x0112: what brings the stored rows and columns to how the photo is displayed."""


def corners(height: int = 16, width: int = 32) -> Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    pixels[:top, :left], pixels[:top, left:], pixels[top:, :left], pixels[top:, left:] = MARK
    return pixels


def blurred(height: int = 60, width: int = 90, seed: int = 0) -> Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (5, 5), 0))


def exif(orientation: int, order: str = "<", preview: bytes = b"") -> bytes:
    """An APP1 segment with the orientation tag and, after it, a preview picture."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    tag = struct.pack(f"{order}HHHIHH", 1, 0x0112, 3, 1, orientation, 0)
    body = b"Exif\0\0" + head + tag + struct.pack(f"{order}I", 0) + preview
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def tagged(jpeg: bytes, segment: bytes) -> bytes:
    return jpeg[:2] + segment + jpeg[2:]


def encoded(pixels: np.ndarray, suffix: str) -> bytes:
    """OpenCV's encoding of RGB, RGBA or grey pixels of 8 or 16 bits."""
    codes = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    done, data = cv2.imencode(suffix, pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, codes[pixels.shape[2]]))
    assert done
    return bytes(data)


def pillows(picture: PIL.Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG of 8-bit grey that says its size; `data` are the rows."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def refused(data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        image.decode(data, "leaf.jpg")
    (problem,) = caught.value.problems
    assert problem.where == "leaf.jpg"
    return problem.wrong


class TestDecode:
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("orientation", UPRIGHT)
    def test_a_photo_stands_as_exif_says(self, orientation: int, order: str) -> None:
        plain = image.encode_jpeg(corners(), 100)
        found = image.decode(tagged(plain, exif(orientation, order)), "x")
        np.testing.assert_array_equal(found, UPRIGHT[orientation](image.decode(plain, "x")))
        assert found.flags.c_contiguous

    @pytest.mark.parametrize("orientation", [0, 9, 65535])
    def test_an_orientation_that_is_none_turns_nothing(self, orientation: int) -> None:
        plain = image.encode_jpeg(corners())
        np.testing.assert_array_equal(image.decode(tagged(plain, exif(orientation)), "x"), image.decode(plain, "x"))

    def test_the_channels_are_red_green_blue(self) -> None:
        found = image.decode(encoded(corners(), ".png"), "x")
        assert [tuple(found[y, x]) for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1))] == list(MARK)

    @pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff"])
    def test_lossless_files_give_back_their_pixels(self, suffix: str) -> None:
        found = image.decode(encoded(blurred(), suffix), "x")
        np.testing.assert_array_equal(found, blurred())
        assert suffix in image.SUFFIXES

    def test_webp_is_read(self) -> None:
        found = image.decode(pillows(PIL.Image.fromarray(blurred()), "WEBP", lossless=True), "x")
        np.testing.assert_array_equal(found, blurred())

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    def test_grey_becomes_three_equal_channels(self, suffix: str) -> None:
        found = image.decode(encoded(blurred()[..., 0], suffix), "x")
        assert found.shape == (60, 90, 3)
        assert (found == found[..., :1]).all()
        np.testing.assert_allclose(found[..., 0], blurred()[..., 0], atol=0 if suffix == ".png" else 12)

    def test_alpha_is_dropped_and_the_colour_below_kept(self) -> None:
        clear = np.dstack([corners(), np.zeros((16, 32), np.uint8)])
        np.testing.assert_array_equal(image.decode(encoded(clear, ".png"), "x"), corners())

    def test_a_palette_and_one_bit_are_spread_to_rgb(self) -> None:
        few = PIL.Image.fromarray(corners()).quantize(4)
        np.testing.assert_array_equal(image.decode(pillows(few, "PNG"), "x"), np.asarray(few.convert("RGB")))
        bits = blurred()[..., 0] > 128
        found = image.decode(pillows(PIL.Image.fromarray(bits), "PNG"), "x")
        np.testing.assert_array_equal(found, np.dstack([bits * np.uint8(255)] * 3))

    @pytest.mark.parametrize(("suffix", "apart"), [(".png", 0), (".tiff", 1)])
    def test_16_bits_keep_their_upper_8(self, suffix: str, apart: int) -> None:
        deep = np.random.default_rng(0).integers(0, 2**16, (9, 7, 3)).astype(np.uint16)
        found = image.decode(encoded(deep, suffix), "x")
        assert found.dtype == np.uint8
        np.testing.assert_allclose(found.astype(int), deep >> 8, atol=apart)

    def test_a_cmyk_jpeg_comes_as_the_rgb_it_prints(self) -> None:
        found = image.decode(pillows(PIL.Image.fromarray(corners()).convert("CMYK"), "JPEG", quality=100), "x")
        assert found.shape == (16, 32, 3)
        np.testing.assert_allclose(found.astype(int), corners().astype(int), atol=3)

    def test_jpeg_bytes_go_round(self) -> None:
        quarters = corners(64, 96)
        found = image.decode(image.encode_jpeg(quarters, 100), "x")
        apart = np.abs(found.astype(int) - quarters)
        apart[24:40], apart[:, 40:56] = 0, 0  # beside the edges, which JPEG smears
        assert apart.max() <= 2


class TestBroken:
    def test_empty(self) -> None:
        assert "empty" in refused(b"")

    @pytest.mark.parametrize("data", [b"these are words, no picture\n", b"\0" * 5000, b"\xff\xd8", b"GIF89a", b"RIFF"])
    def test_no_picture(self, data: bytes) -> None:
        assert refused(data)

    def test_pixels_of_32_bit_floats(self) -> None:
        done, data = cv2.imencode(".tiff", np.zeros((4, 4, 3), np.float32))
        assert done
        assert "cannot be decoded" in refused(bytes(data))

    @pytest.mark.parametrize("kind", ["baseline", "progressive", "with a preview", "png"])
    def test_a_file_cut_anywhere(self, kind: str) -> None:
        pixels = PIL.Image.fromarray(blurred())
        preview = image.encode_jpeg(image.resize(blurred(), (20, 30)))
        whole = {
            "baseline": image.encode_jpeg(blurred()),
            "progressive": pillows(pixels, "JPEG", progressive=True),
            "with a preview": tagged(image.encode_jpeg(blurred()), exif(1, preview=preview)),
            "png": encoded(blurred(), ".png"),
        }[kind]
        assert image.decode(whole, "x").shape == (60, 90, 3)
        for length in (*range(1, len(whole), 13), *range(len(whole) - 12, len(whole))):
            assert refused(whole[:length])
        assert "cut short" in refused(whole[: len(whole) // 2])

    @pytest.mark.parametrize("suffix", [".bmp", ".tiff", ".webp"])
    def test_a_file_of_another_kind_cut_in_the_middle(self, suffix: str) -> None:
        whole = encoded(blurred(), suffix)
        assert refused(whole[: len(whole) // 2])

    @pytest.mark.parametrize("suffix", [".jpg", ".png"])
    def test_what_follows_the_picture_does_not_matter(self, suffix: str) -> None:
        """A motion photo carries a film behind the picture, in which any pair of bytes may stand."""
        whole = encoded(blurred(), suffix)
        film = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes() + b"\xff\xda"
        np.testing.assert_array_equal(image.decode(whole + film, "x"), image.decode(whole, "x"))

    def test_padding_between_the_segments_of_a_jpeg(self) -> None:
        whole = image.encode_jpeg(blurred())
        padded = tagged(whole, b"\xff\xff\xff" + exif(1)[1:] + b"\0\0")
        np.testing.assert_array_equal(image.decode(padded, "x"), image.decode(whole, "x"))

    def test_a_bomb_is_refused_before_it_goes_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def never(*_: object) -> None:
            raise AssertionError("it was decoded")

        jpeg = image.encode_jpeg(blurred())
        at = jpeg.index(b"\xff\xc0") + 5
        monkeypatch.setattr(cv2, "imdecode", never)
        assert refused(png(30_000, 30_000, b"")) == "has 30000 × 30000 pixels"
        with pytest.raises(InputError, match="has 30000 × 30000 pixels"):
            image.require_whole(png(30_000, 30_000, b""), "leaf.png")
        assert refused(jpeg[:at] + struct.pack(">HH", 20_000, 60_000) + jpeg[at + 4 :]) == "has 60000 × 20000 pixels"

    def test_a_large_picture_of_another_kind_is_refused_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(image, "MAX_PIXELS", 60 * 90 - 1)
        assert refused(encoded(blurred(), ".bmp")) == "has 90 × 60 pixels"
        monkeypatch.setattr(image, "MAX_PIXELS", 60 * 90)
        assert image.decode(encoded(blurred(), ".bmp"), "x").shape == (60, 90, 3)

    @QUICK
    @given(
        st.sampled_from([b"", b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF", b"II*\0", b"GIF89a"]),
        st.binary(max_size=400),
    )
    def test_random_bytes_are_a_picture_or_an_input_error(self, head: bytes, rest: bytes) -> None:
        assert_picture_or_refused(head + rest)

    @QUICK
    @given(st.sampled_from([".jpg", ".png"]), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=6))
    def test_a_damaged_picture_is_a_picture_or_an_input_error(self, suffix: str, hits: list[tuple[int, int]]) -> None:
        data = bytearray(encoded(corners(), suffix))
        for place, value in hits:
            data[place % len(data)] = value
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(image, "MAX_PIXELS", 10_000)
            assert_picture_or_refused(bytes(data))


def assert_picture_or_refused(data: bytes) -> None:
    try:
        found = image.decode(data, "leaf.jpg")
    except InputError as error:
        assert "leaf.jpg" in str(error)
    else:
        assert found.dtype == np.uint8
        assert found.ndim == 3
        assert found.shape[2] == 3


class TestRead:
    def test_all_that_cannot_be_read_are_named(self, tmp_path: Path) -> None:
        good, empty, cut, words = (tmp_path / name for name in ("good.jpg", "empty.jpg", "cut.jpg", "words.png"))
        image.write_jpeg(good, blurred())
        empty.write_bytes(b"")
        cut.write_bytes(good.read_bytes()[:500])
        words.write_text("no picture")
        absent, folder = tmp_path / "absent.jpg", tmp_path
        with pytest.raises(InputError) as caught:
            image.read_all([empty, good, cut, words, absent, folder])
        assert [problem.where for problem in caught.value.problems] == [
            str(path) for path in (empty, cut, words, absent, folder)
        ]

    def test_the_pictures_come_in_order(self, tmp_path: Path) -> None:
        paths = [tmp_path / f"{side}.jpg" for side in (30, 20, 40)]
        for path in paths:
            image.write_jpeg(path, blurred(int(path.stem), 10))
        assert [pixels.shape[0] for pixels in image.read_all(paths)] == [30, 20, 40]
        assert image.read_all([]) == []

    def test_photos_are_read_when_they_are_asked_for(self, tmp_path: Path) -> None:
        paths = [tmp_path / f"{side}.jpg" for side in (30, 20, 40)]
        for path in paths:
            image.write_jpeg(path, blurred(int(path.stem), 10))
        photos = image.Photos.at(paths)
        assert len(photos) == 3 and photos[0] is not photos[0]
        assert [one.shape[0] for one in photos] == [one.shape[0] for one in photos] == [30, 20, 40]
        assert [one.shape[0] for one in photos[1:]] == [20, 40]
        paths[0].write_bytes(b"")
        paths[2].write_text("no picture")
        with pytest.raises(InputError) as caught:
            image.Photos.at(paths)
        assert [problem.where for problem in caught.value.problems] == [str(paths[0]), str(paths[2])]


STEPS = np.array([[10, 20, 30, 40], [50, 60, 70, 80]], np.uint8)
"""2 × 4, beside which the golden values can be worked out by hand."""

GOLDEN = {
    ("stretch", (2, 2)): [[15, 35], [55, 75]],
    ("crop", (2, 2)): [[20, 30], [60, 70]],
    ("pad", (2, 2)): [[65, 75], [85, 95]],
    ("pad", (4, 4)): [[114] * 4, [10, 20, 30, 40], [50, 60, 70, 80], [114] * 4],
    ("stretch", (1, 4)): [[30, 40, 50, 60]],
    ("stretch", (4, 4)): [[10, 20, 30, 40], [20, 30, 40, 50], [40, 50, 60, 70], [50, 60, 70, 80]],
    ("stretch", (4, 2)): [[15, 35], [25, 45], [45, 65], [55, 75]],
    ("crop", (2, 4)): [[10, 20, 30, 40], [50, 60, 70, 80]],
}


class TestFit:
    @pytest.mark.parametrize(("mode", "size"), GOLDEN)
    def test_golden(self, mode: Fit, size: tuple[int, int]) -> None:
        found = image.fit(np.dstack([STEPS] * 3), size, mode)
        assert found.shape == (*size, 3)
        np.testing.assert_array_equal(found, np.dstack([np.array(GOLDEN[mode, size])] * 3))

    @QUICK
    @given(
        st.sampled_from(FITS),
        st.tuples(*[st.integers(1, 80)] * 2),
        st.tuples(*[st.integers(1, 80)] * 2),
        st.integers(0),
    )
    def test_the_shape_is_as_asked_and_the_colour_kept(
        self, mode: Fit, shape: tuple[int, int], size: tuple[int, int], seed: int
    ) -> None:
        colour = np.random.default_rng(seed).integers(0, 256, 3).astype(np.uint8)
        found = image.fit(np.broadcast_to(colour, (*shape, 3)).copy(), size, mode)
        assert found.shape == (*size, 3)
        assert found.dtype == np.uint8
        if mode != "pad":
            assert (found == colour).all()

    @QUICK
    @given(*[st.sampled_from((1, 2, 4, 8))] * 2, st.integers(1, 12), st.integers(1, 12), st.integers(0))
    def test_shrinking_by_powers_of_two_averages(self, down: int, across: int, height: int, width: int, seed: int):
        pixels = np.random.default_rng(seed).integers(0, 256, (height * down, width * across, 3), dtype=np.uint8)
        mean = pixels.reshape(height, down, width, across, 3).mean((1, 3))
        assert np.abs(image.fit(pixels, (height, width)) - mean).max() <= 1.5001, "three steps, each to the nearest"

    @pytest.mark.parametrize("size", [(37, 53), (20, 31), (59, 11), (1, 1)])
    def test_shrinking_keeps_the_mean(self, size: tuple[int, int]) -> None:
        assert image.fit(blurred(), size).mean() == pytest.approx(blurred().mean(), abs=1)

    @pytest.mark.parametrize("size", [(224, 224), (60, 100), (300, 20)])
    def test_a_thin_line_never_falls_between_samples(self, size: tuple[int, int]) -> None:
        """Also where the other side of the picture grows."""
        for at in range(0, 1000, 23):
            pixels = np.zeros((200, 1000, 3), np.uint8)
            pixels[:, at] = 255
            assert image.resize(pixels, size).any(), f"the line at {at} is gone"
            turned = np.ascontiguousarray(np.swapaxes(pixels, 0, 1))
            np.testing.assert_array_equal(
                image.resize(turned, size[::-1]), np.swapaxes(image.resize(pixels, size), 0, 1)
            )

    def test_the_size_it_has_needs_no_work(self) -> None:
        pixels = blurred()
        assert image.resize(pixels, (60, 90)) is pixels

    def test_crop_keeps_the_centre_and_pad_keeps_all(self) -> None:
        wide = np.zeros((20, 60, 3), np.uint8)
        wide[:, 20:40] = 200
        assert (image.fit(wide, (20, 20), "crop") == 200).all()
        padded = image.fit(wide, (60, 60), "pad")
        np.testing.assert_array_equal(padded[20:40], wide)
        assert (padded[:20] == 114).all()
        assert (padded[40:] == 114).all()

    def test_a_mode_that_is_none(self) -> None:
        with pytest.raises(ValueError, match="'squash'"):
            image.fit(blurred(), (8, 8), "squash")  # type: ignore[arg-type]


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"agrikd\[train\]"):
        image.decode(b"\x89PNG\r\n\x1a\n IEND\xaeB`\x82", "x")
