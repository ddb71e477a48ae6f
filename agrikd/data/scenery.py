"""What stands around a drawn leaf: the ground, the light, the camera, and pictures of no plant at all.

A scene is float32 [3, H, W] RGB, 0 to 1, before the camera (planes, so that a mask spreads over them quickly); a
plane is float32 [H, W]. Nothing here is measured from real photos: the numbers were chosen by eye, so that a
person recognises what is drawn.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agrikd.image import opencv
from agrikd.types import Image

Plane = NDArray[np.float32]
Scene = NDArray[np.float32]
Colour = NDArray[np.float32]
Rng = np.random.Generator

_SUBPIXEL = 4
"""OpenCV draws at fixed-point coordinates with this many fractional bits."""


@dataclass(frozen=True)
class Season:
    """How a year looks. yellowing: 0 (lush) to 1 (straw). light: gain of the exposure. warmth: red over blue.
    severity_pct: the median of what is drawn for a diseased leaf."""

    yellowing: float
    light: float
    warmth: float
    severity_pct: float


@dataclass(frozen=True)
class Camera:
    """How a camera sees. white_balance: gain of R, G, B. blur: sigma as a fraction of the picture's side.
    noise: spread of the sensor noise, 0 to 1. vignette: light lost in the corners, 0 to 1."""

    white_balance: tuple[float, float, float]
    blur: float
    noise: float
    vignette: float


SEASONS = {
    "2025": Season(yellowing=0.10, light=1.00, warmth=1.00, severity_pct=4.5),
    "2026": Season(yellowing=0.38, light=1.18, warmth=1.10, severity_pct=8.0),
}
CAMERAS = {
    "phone": Camera(white_balance=(1.00, 1.00, 1.00), blur=0.0020, noise=0.012, vignette=0.10),
    "field_camera": Camera(white_balance=(0.90, 1.00, 1.13), blur=0.0048, noise=0.040, vignette=0.40),
}


def noise(rng: Rng, size: int, cells: int, octaves: int = 1) -> Plane:
    """A smooth random plane of about zero mean and unit spread, with `cells` bumps along a side; every further
    octave is twice as fine and half as strong."""
    cv2 = opencv()
    total: Plane = rng.standard_normal((cells, cells), np.float32)
    for octave in range(1, octaves):
        side = cells * 2**octave
        fine = rng.standard_normal((side, side), np.float32) * np.float32(0.5**octave)
        total = cv2.resize(total, (side, side), interpolation=cv2.INTER_CUBIC) + fine
    whole: Plane = cv2.resize(total, (size, size), interpolation=cv2.INTER_CUBIC)
    return whole


def near(rng: Rng, colour: Sequence[int] | NDArray[Any], spread: float = 0.08) -> Colour:
    """A colour (0 to 255) as floats 0 to 1, a little lighter or darker, a little to one side; or many, [N, 3]."""
    base = np.asarray(colour, np.float64) / 255
    shift = rng.normal(0, spread, (*base.shape[:-1], 1)) + rng.normal(0, spread / 3, base.shape)
    return np.minimum(base * np.exp(shift), 1).astype(np.float32)


def plain(colour: Colour, size: int) -> Scene:
    """A scene of one colour."""
    return np.full((3, size, size), colour[:, None, None], np.float32)


def mix(scene: Scene, colour: Colour, weight: Plane) -> None:
    """Lay `colour` over `scene` in place, where `weight` (0 to 1) says how opaque it is."""
    for channel, value in enumerate(colour):
        scene[channel] += weight * (value - scene[channel])


def shade(scene: Scene, weight: Plane) -> None:
    """Darken in place: 0 leaves the light, 1 takes it."""
    scene *= 1 - weight


def shifted(plane: Plane, right: float, down: float) -> Plane:
    """The plane moved by whole pixels, zero where nothing came from."""
    move = np.asarray([[1, 0, round(right)], [0, 1, round(down)]], np.float32)
    moved: Plane = opencv().warpAffine(plane, move, plane.shape[::-1], flags=opencv().INTER_NEAREST)
    return moved


def smoothstep(value: Plane, low: float, high: float) -> Plane:
    """0 below `low`, 1 above `high`, a smooth rise between."""
    step: Plane = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return step * step * (3 - 2 * step)


def blurred(plane: Plane, sigma: float) -> Plane:
    """Gaussian blur; sigma in pixels, nothing done below 0.3."""
    if sigma < 0.3:
        return plane
    soft: Plane = opencv().GaussianBlur(plane, (0, 0), sigma)
    return soft


def fixed(points: NDArray[Any]) -> NDArray[np.int32]:
    """Pixel coordinates or lengths in OpenCV's fixed-point form; drawn with shift=SUBPIXEL."""
    return np.round(np.asarray(points) * (1 << _SUBPIXEL)).astype(np.int32)


def polygon(size: int, *outlines: NDArray[Any]) -> Plane:
    """Coverage, 0 to 1, of filled outlines [N, 2] in pixels."""
    cv2 = opencv()
    mask = np.zeros((size, size), np.uint8)
    for outline in outlines:
        cv2.fillPoly(mask, [fixed(outline)], 255, cv2.LINE_AA, _SUBPIXEL)
    return mask.astype(np.float32) / np.float32(255)


def discs(size: int, centres: NDArray[Any], radii: NDArray[Any]) -> Plane:
    """Coverage, 0 to 1, of discs; centres [N, 2] and radii [N] in pixels."""
    cv2 = opencv()
    mask = np.zeros((size, size), np.uint8)
    for (x, y), radius in zip(fixed(centres).tolist(), fixed(radii).tolist(), strict=True):
        cv2.circle(mask, (x, y), radius, 255, -1, cv2.LINE_AA, _SUBPIXEL)
    return mask.astype(np.float32) / np.float32(255)


def strokes(size: int, lines: list[NDArray[Any]], thickness: int) -> Plane:
    """Coverage, 0 to 1, of polylines [N, 2] in pixels."""
    cv2 = opencv()
    mask = np.zeros((size, size), np.uint8)
    cv2.polylines(mask, [fixed(line) for line in lines], False, 255, thickness, cv2.LINE_AA, _SUBPIXEL)
    return mask.astype(np.float32) / np.float32(255)


def background(rng: Rng, name: str, size: int) -> Scene:
    """The ground of that name, a little out of focus."""
    return _each_blurred(BACKGROUNDS[name](rng, size), size * rng.uniform(0.002, 0.009))


def photograph(rng: Rng, scene: Scene, season: Season, camera: Camera) -> Image:
    """What the camera makes of the scene: the day's light, shade, vignette, blur, sensor noise. No pixel moves."""
    size = scene.shape[1]
    warmth = season.warmth * np.exp(rng.normal(0, 0.06))
    tint = np.asarray(camera.white_balance) * (warmth, 1.0, 1 / warmth) * np.exp(rng.normal(0, 0.04, 3))
    side = np.linspace(-1, 1, size, dtype=np.float32)
    slope_x, slope_y = rng.normal(0, 0.12, 2).astype(np.float32)
    field = np.float32(season.light * np.exp(rng.normal(0, 0.16))) * (1 + slope_x * side + slope_y * side[:, None])
    field *= 1 - np.float32(camera.vignette / 2) * (side**2 + side[:, None] ** 2)
    if rng.random() < 0.35:  # the shade of other leaves
        field *= 1 - np.float32(rng.uniform(0.2, 0.5)) * smoothstep(noise(rng, size, 4, 2), 0.1, 0.9)
    seen = scene * field
    seen *= tint.astype(np.float32)[:, None, None]
    seen = _each_blurred(seen, size * camera.blur * rng.uniform(0.7, 1.6))
    contrast, level = rng.uniform(0.85, 1.15), rng.uniform(0.6, 1.4) * camera.noise
    # The sum of two bytes has a triangular spread of 104: near enough to a bell, and ten times faster.
    grain = rng.integers(0, 256, (2, *seen.shape), np.uint8).astype(np.float32)
    grain = grain[0] + grain[1]
    grain *= np.float32(level * 255 / 104)
    seen *= np.float32(contrast * 255)
    seen += grain
    seen += np.float32(0.4 * (1 - contrast) * 255 - level * 255 / 104 * 255)
    return np.ascontiguousarray(np.clip(seen, 0, 255, out=seen).astype(np.uint8).transpose(1, 2, 0))


def not_a_plant(rng: Rng, size: int) -> tuple[Scene, str]:
    """A scene without a leaf, and the name of its kind."""
    kind = tuple(OTHERS)[rng.integers(len(OTHERS))]
    return OTHERS[kind](rng, size), kind


def _each_blurred(scene: Scene, sigma: float) -> Scene:
    return np.stack([blurred(plane, sigma) for plane in scene])


def _any_background(rng: Rng, size: int) -> Scene:
    return background(rng, tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))], size)


def _soil(rng: Rng, size: int) -> Scene:
    height = noise(rng, size + 2, 6, 5)
    relief = (height[2:, 2:] - height[:-2, :-2]) * np.float32(size / 256)  # lit from one corner
    scene = plain(near(rng, ((112, 84, 60), (140, 112, 84), (92, 74, 62))[rng.integers(3)], 0.15), size)
    scene *= 1 + np.float32(0.10) * height[1:-1, 1:-1] + np.float32(0.55) * relief
    return scene


def _straw(rng: Rng, size: int) -> Scene:
    stalks = ((196, 170, 112), (170, 140, 88), (214, 196, 150))
    return _litter(rng, _soil(rng, size) * np.float32(0.6), stalks, 90)


def _grass(rng: Rng, size: int) -> Scene:
    scene = _soil(rng, size) * np.asarray((0.55, 0.75, 0.5), np.float32)[:, None, None]
    return _litter(rng, scene, ((84, 122, 56), (106, 144, 68), (66, 100, 50), (142, 154, 86)), 120)


def _table(rng: Rng, size: int) -> Scene:
    scene = plain(near(rng, (150, 150, 152), 0.25), size)
    scene *= 1 + np.float32(0.03) * noise(rng, size, 3, 2) + np.float32(0.02) * noise(rng, size, 96)
    return scene


def _litter(rng: Rng, scene: Scene, colours: tuple[tuple[int, int, int], ...], count: int) -> Scene:
    """Thin blades strewn over the ground, lying roughly one way."""
    cv2 = opencv()
    size = scene.shape[1]
    paper = np.ascontiguousarray(np.clip(scene * 255, 0, 255).astype(np.uint8).transpose(1, 2, 0))
    angles = rng.uniform(0, np.pi) + rng.normal(0, 0.7, count)
    way = np.stack([np.cos(angles), np.sin(angles)], 1)
    start = rng.uniform(-0.1, 1.1, (count, 2)) * size
    side = way[:, ::-1] * (-1, 1) * rng.uniform(0.004, 0.011, (count, 1)) * size
    tip = start + way * rng.uniform(0.08, 0.28, (count, 1)) * size
    blades = fixed(np.stack([start - side, start + side, tip], 1))
    shadows = blades + fixed(np.asarray(0.007 * size))
    inks = near(rng, np.asarray(colours)[rng.integers(len(colours), size=count)], 0.16) * 255
    for blade, shadow, ink in zip(blades, shadows, inks.tolist(), strict=True):
        cv2.fillPoly(paper, [shadow], [value * 0.3 for value in ink], cv2.LINE_AA, _SUBPIXEL)
        cv2.fillPoly(paper, [blade], ink, cv2.LINE_AA, _SUBPIXEL)
    return np.ascontiguousarray(paper.transpose(2, 0, 1), np.float32) / np.float32(255)


def _sky(rng: Rng, size: int) -> Scene:
    height = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    scene = plain(near(rng, (72, 120, 190), 0.15), size)
    mix(scene, near(rng, (176, 204, 228), 0.06), height)
    cover = rng.uniform(-0.6, 0.9)
    mix(scene, near(rng, (238, 238, 240), 0.05), smoothstep(noise(rng, size, 3, 5), cover, cover + 1.4))
    return scene


def _ground(rng: Rng, size: int) -> Scene:
    scene = _soil(rng, size)
    count = rng.integers(0, 14)
    centres, radii = rng.uniform(0, size, (count, 2)), rng.uniform(0.015, 0.07, count) * size
    shade(scene, 0.5 * discs(size, centres + 0.015 * size, radii))
    mix(
        scene,
        near(rng, (150, 142, 134), 0.2),
        discs(size, centres, radii) * (0.85 + 0.1 * noise(rng, size, 24)),
    )
    return scene


def _hand(rng: Rng, size: int) -> Scene:
    scene = _any_background(rng, size)
    scale = size * rng.uniform(0.8, 1.2)
    palm = size * rng.uniform(0.42, 0.58, 2)
    spread = rng.uniform(0.16, 0.32)
    fan = rng.uniform(0, 2 * np.pi) + spread * np.asarray([-3.6, -1.5, -0.5, 0.5, 1.5]) + rng.normal(0, 0.04, 5)
    way = np.stack([np.cos(fan), np.sin(fan)], 1)
    tips = palm + way * scale * np.asarray([0.30, 0.45, 0.50, 0.47, 0.38])[:, None]
    roots = palm + way * scale * np.asarray([0.05, 0.10, 0.10, 0.10, 0.10])[:, None]
    arm = palm - (way[2] + way[3]) * scale
    body = strokes(size, list(np.stack([roots, tips], 1)), max(2, round(scale * 0.07)))
    body = np.maximum(body, strokes(size, [np.stack([palm, arm])], max(2, round(scale * 0.16))))
    body = np.maximum(body, discs(size, palm[None], np.asarray([scale * 0.145])))
    skin = near(rng, ((224, 172, 140), (190, 132, 98), (128, 84, 60), (86, 58, 44))[rng.integers(4)], 0.08)
    shade(scene, 0.45 * blurred(body, size * 0.03))
    mix(scene, skin, body)
    shade(scene, body * np.clip(1.1 - 1.1 * blurred(body, size * 0.02), 0, 1))
    scene *= 1 + np.float32(0.03) * noise(rng, size, 40)
    return scene


def _tool(rng: Rng, size: int) -> Scene:
    scene = _any_background(rng, size)
    angle = rng.uniform(0, 2 * np.pi)
    way = np.asarray([np.cos(angle), np.sin(angle)])
    neck = size * rng.normal(0.5, 0.06, 2)
    side = way[::-1] * (-1, 1) * rng.uniform(0.08, 0.2) * size
    tip = neck + way * rng.uniform(0.2, 0.36) * size
    handle = strokes(size, [np.stack([neck, neck - way * size])], max(2, round(size * rng.uniform(0.04, 0.08))))
    blade = polygon(size, np.stack([neck - side, neck + side, tip + side * 0.7, tip - side * 0.7]))
    both = np.maximum(handle, blade)
    shade(scene, 0.5 * blurred(shifted(both, size * 0.02, size * 0.02), size * 0.012))
    mix(
        scene,
        near(rng, ((150, 104, 62), (40, 40, 44), (190, 60, 40), (60, 120, 70))[rng.integers(4)]),
        handle,
    )
    gloss = np.clip(0.85 + np.float32(0.12) * noise(rng, size, 5), 0, 1)
    mix(scene, near(rng, (156, 160, 166), 0.15), blade * gloss)
    return scene


def _cloth(rng: Rng, size: int) -> Scene:
    axis = np.arange(size, dtype=np.float32) / size
    angle, waves = rng.uniform(0, np.pi / 2), rng.uniform(3, 12)
    fold = noise(rng, size + 2, 3, 2)
    crease = np.float32(0.02) * fold[1:-1, 1:-1]
    checks = np.sin(2 * np.pi * waves * (axis * np.cos(angle) + axis[:, None] * np.sin(angle) + crease))
    if rng.random() < 0.6:
        checks *= np.sin(2 * np.pi * waves * (axis[:, None] * np.cos(angle) - axis * np.sin(angle) + crease))
    first, second = near(rng, rng.integers(30, 230, (2, 3)))
    scene = plain(first, size)
    mix(scene, second, smoothstep(checks, -0.1, 0.1))
    scene *= 1 + np.float32(size / 256) * (fold[2:, 2:] - fold[:-2, :-2])
    return scene


def _sign(rng: Rng, size: int) -> Scene:
    cv2 = opencv()
    scene = _any_background(rng, size)
    left, top = size * rng.uniform(0.06, 0.22, 2)
    right, bottom = size * rng.uniform(0.78, 0.94, 2)
    board = np.asarray([(left, top), (right, top), (right, bottom), (left, bottom)])
    colours = ((236, 232, 220), (240, 200, 40), (40, 110, 70), (180, 40, 36), (40, 70, 140))
    paint = near(rng, colours[rng.integers(len(colours))])
    ink = np.zeros((size, size), np.uint8)
    lines = rng.integers(1, 5)
    for line in range(lines):
        text = "".join(rng.choice(list(string.ascii_uppercase + string.digits), rng.integers(3, 8)))
        start = (round(left + 0.05 * size), round(top + (line + 0.75) * (bottom - top) / lines))
        scale = size / 256 * rng.uniform(0.9, 1.4)
        cv2.putText(ink, text, start, 0, scale, 255, max(1, round(2.5 * scale)), cv2.LINE_AA)
    mix(scene, paint, polygon(size, board + rng.normal(0, 0.02 * size, (4, 2))))
    mix(scene, np.full(3, paint.mean() < 0.5, np.float32), ink.astype(np.float32) * np.float32(0.85 / 255))
    return scene


Draw = Callable[[Rng, int], Scene]
BACKGROUNDS: dict[str, Draw] = {"soil": _soil, "straw": _straw, "grass": _grass, "table": _table}
OTHERS: dict[str, Draw] = {
    "sky": _sky,
    "ground": _ground,
    "hand": _hand,
    "tool": _tool,
    "cloth": _cloth,
    "sign": _sign,
}
