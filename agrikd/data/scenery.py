"""What stands around a drawn leaf: the ground, the light, the camera, and pictures of no plant at all.

A scene is float32 [H, W, 3] RGB, 0 to 1, before the camera; a plane is float32 [H, W]. Nothing here is measured
from real photos: the numbers were chosen by eye, so that a person recognises what is drawn.
"""

from __future__ import annotations

import string
from collections.abc import Callable
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
    "2025": Season(yellowing=0.10, light=1.00, warmth=1.00, severity_pct=5.0),
    "2026": Season(yellowing=0.38, light=1.18, warmth=1.10, severity_pct=9.0),
}
CAMERAS = {
    "phone": Camera(white_balance=(1.00, 1.00, 1.00), blur=0.0022, noise=0.020, vignette=0.10),
    "field_camera": Camera(white_balance=(0.90, 1.00, 1.13), blur=0.0050, noise=0.048, vignette=0.40),
}


def noise(rng: Rng, size: int, cells: int, octaves: int = 1) -> Plane:
    """A smooth random plane of about zero mean and unit spread, with `cells` bumps along a side; every further
    octave is twice as fine and half as strong."""
    cv2 = opencv()
    total: Plane = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        side = cells * 2**octave
        grid = rng.standard_normal((side, side), np.float32) * np.float32(0.5**octave)
        total += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    return total


def near(rng: Rng, colour: tuple[int, int, int], spread: float = 0.08) -> Colour:
    """A colour (0 to 255) as floats 0 to 1, a little lighter or darker, a little to one side."""
    shifted = np.asarray(colour, np.float32) / 255 * np.exp(rng.normal(0, spread) + rng.normal(0, spread / 3, 3))
    return np.clip(shifted, 0, 1).astype(np.float32)


def mix(scene: Scene, colour: Colour, weight: Plane) -> None:
    """Lay `colour` over `scene` in place, where `weight` (0 to 1) says how opaque it is."""
    scene += weight[..., None] * (colour - scene)


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
    scene: Scene = opencv().GaussianBlur(BACKGROUNDS[name](rng, size), (0, 0), size * rng.uniform(0.002, 0.009))
    return scene


def photograph(rng: Rng, scene: Scene, season: Season, camera: Camera) -> Image:
    """What the camera makes of the scene: the day's light, shade, vignette, blur, sensor noise. No pixel moves."""
    size = len(scene)
    gain = season.light * np.exp(rng.normal(0, 0.2))
    warmth = season.warmth * np.exp(rng.normal(0, 0.06))
    tint = np.asarray(camera.white_balance) * (warmth, 1.0, 1 / warmth) * np.exp(rng.normal(0, 0.03, 3))
    side = np.linspace(-1, 1, size, dtype=np.float32)
    slope_x, slope_y = rng.normal(0, 0.12, 2)
    field = 1 + slope_x * side + slope_y * side[:, None]
    field = field - field * camera.vignette * (side**2 + side[:, None] ** 2) / 2
    if rng.random() < 0.35:  # the shade of other leaves
        field = field * (1 - rng.uniform(0.2, 0.5) * smoothstep(noise(rng, size, 4, 2), 0.1, 0.9))
    seen = scene * (field * gain).astype(np.float32)[..., None] * tint.astype(np.float32)
    seen = opencv().GaussianBlur(seen, (0, 0), max(size * camera.blur * rng.uniform(0.7, 1.6), 0.3))
    contrast = np.float32(rng.uniform(0.85, 1.15) * 255)
    # The sum of two bytes has a triangular spread of 104: near enough to a bell, and ten times faster.
    grain = rng.integers(0, 256, (2, *seen.shape), np.uint8).astype(np.uint16).sum(0, np.uint16)
    level = np.float32(camera.noise * rng.uniform(0.6, 1.4) * 255 / 104)
    exposed = (seen - np.float32(0.4)) * contrast + np.float32(0.4 * 255)
    exposed += (grain.astype(np.float32) - np.float32(255)) * level
    return np.clip(exposed, 0, 255).astype(np.uint8)


def not_a_plant(rng: Rng, size: int) -> tuple[Scene, str]:
    """A scene without a leaf, and the name of its kind."""
    kind = tuple(OTHERS)[rng.integers(len(OTHERS))]
    return OTHERS[kind](rng, size), kind


def _soil(rng: Rng, size: int) -> Scene:
    height = noise(rng, size, 6, 5)
    relief = (height - np.roll(height, 2, (0, 1))) * np.float32(size / 256)  # lit from one corner
    colour = near(rng, ((112, 84, 60), (140, 112, 84), (92, 74, 62))[rng.integers(3)], 0.15)
    return colour * (1 + 0.10 * height + 0.55 * relief)[..., None].astype(np.float32)


def _straw(rng: Rng, size: int) -> Scene:
    return _litter(rng, _soil(rng, size) * np.float32(0.6), ((196, 170, 112), (170, 140, 88), (214, 196, 150)), 120)


def _grass(rng: Rng, size: int) -> Scene:
    scene = _soil(rng, size) * np.asarray((0.45, 0.6, 0.4), np.float32)
    return _litter(rng, scene, ((74, 112, 50), (96, 134, 62), (58, 92, 46), (132, 146, 80)), 150)


def _table(rng: Rng, size: int) -> Scene:
    grain = 1 + 0.03 * noise(rng, size, 3, 2) + 0.02 * noise(rng, size, 96)
    return near(rng, (150, 150, 152), 0.25) * grain[..., None].astype(np.float32)


def _litter(rng: Rng, scene: Scene, colours: tuple[tuple[int, int, int], ...], count: int) -> Scene:
    """Thin blades strewn over the ground, lying roughly one way."""
    cv2 = opencv()
    size = len(scene)
    paper = np.clip(scene * 255, 0, 255).astype(np.uint8)
    lie = rng.uniform(0, np.pi)
    angles = lie + rng.normal(0, 0.7, count)
    reach = rng.uniform(0.08, 0.28, count) * size
    way = np.stack([np.cos(angles), np.sin(angles)], 1)
    start = rng.uniform(-0.1, 1.1, (count, 2)) * size
    width = rng.uniform(0.004, 0.011, count) * size
    side = np.stack([-way[:, 1], way[:, 0]], 1) * width[:, None]
    blades = np.stack([start - side, start + side, start + way * reach[:, None]], 1)
    for blade in fixed(blades):
        colour = (near(rng, colours[rng.integers(len(colours))], 0.16) * 255).tolist()
        cv2.fillPoly(paper, [blade + int(width.mean() * 14)], [c * 0.3 for c in colour], cv2.LINE_AA, _SUBPIXEL)
        cv2.fillPoly(paper, [blade], colour, cv2.LINE_AA, _SUBPIXEL)
    return paper.astype(np.float32) / np.float32(255)


def _sky(rng: Rng, size: int) -> Scene:
    height = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    top, low = near(rng, (72, 120, 190), 0.15), near(rng, (176, 204, 228), 0.06)
    scene: Scene = np.repeat(top + (low - top) * height, size, 1)
    cover = rng.uniform(-0.6, 0.9)
    cloud = noise(rng, size, 3, 5)
    mix(scene, near(rng, (238, 238, 240), 0.05), smoothstep(cloud, cover, cover + 1.4))
    return scene


def _ground(rng: Rng, size: int) -> Scene:
    scene = _soil(rng, size)
    count = rng.integers(0, 14)
    centres, radii = rng.uniform(0, size, (count, 2)), rng.uniform(0.015, 0.07, count) * size
    mix(scene, np.zeros(3, np.float32), 0.5 * discs(size, centres + 0.015 * size, radii))
    mix(scene, near(rng, (150, 142, 134), 0.2), discs(size, centres, radii) * (0.85 + 0.1 * noise(rng, size, 24)))
    return scene


def _hand(rng: Rng, size: int) -> Scene:
    scene = background(rng, tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))], size)
    turn = rng.uniform(0, 2 * np.pi)
    scale = size * rng.uniform(0.75, 1.1)
    wrist = size * rng.uniform(0.42, 0.58, 2)
    fan = turn + np.asarray([-1.15, -0.36, -0.12, 0.12, 0.36]) + rng.normal(0, 0.04, 5)
    way = np.stack([np.cos(fan), np.sin(fan)], 1)
    reach = scale * np.asarray([0.30, 0.45, 0.50, 0.47, 0.38])[:, None]
    root = wrist + way * scale * 0.12
    body = strokes(
        size, [np.stack([a, b]) for a, b in zip(root, wrist + way * reach, strict=True)], round(scale * 0.085)
    )
    palm = strokes(size, [np.stack([wrist, wrist - 0.8 * scale * way.mean(0)])], round(scale * 0.2))
    body = np.maximum(
        np.maximum(body, palm), discs(size, wrist[None] + way[2] * scale * 0.07, np.asarray([scale * 0.17]))
    )
    skin = near(rng, ((224, 172, 140), (190, 132, 98), (128, 84, 60), (86, 58, 44))[rng.integers(4)], 0.08)
    mix(scene, np.zeros(3, np.float32), 0.45 * blurred(body, size * 0.03))
    mix(scene, skin, body)
    rim = np.clip(1 - blurred(body, size * 0.02), 0, 1) * body
    mix(scene, skin * np.float32(0.45), np.clip(rim * 1.4, 0, 1))
    return scene * (1 + 0.03 * noise(rng, size, 40))[..., None].astype(np.float32)


def _tool(rng: Rng, size: int) -> Scene:
    scene = background(rng, tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))], size)
    angle = rng.uniform(0, np.pi)
    way = np.asarray([np.cos(angle), np.sin(angle)])
    side = np.asarray([-way[1], way[0]])
    neck = size * (0.5 + rng.normal(0, 0.06, 2)) + way * size * 0.1
    handle = strokes(size, [np.stack([neck, neck - way * size])], max(2, round(size * rng.uniform(0.04, 0.08))))
    spread, length = rng.uniform(0.08, 0.2) * size, rng.uniform(0.2, 0.36) * size
    tip = neck + way * length
    blade = polygon(
        size,
        np.stack([neck - side * spread, neck + side * spread, tip + side * spread * 0.7, tip - side * spread * 0.7]),
    )
    mix(
        scene,
        np.zeros(3, np.float32),
        0.5 * blurred(np.roll(np.maximum(handle, blade), round(size * 0.02), (0, 1)), size * 0.012),
    )
    mix(scene, near(rng, ((150, 104, 62), (40, 40, 44), (190, 60, 40), (60, 120, 70))[rng.integers(4)]), handle)
    metal = np.clip(0.85 + 0.12 * noise(rng, size, 5), 0, 1)
    mix(scene, near(rng, (156, 160, 166), 0.15), blade * metal)
    return scene


def _cloth(rng: Rng, size: int) -> Scene:
    axis = np.arange(size, dtype=np.float32) / size
    angle, waves = rng.uniform(0, np.pi / 2), rng.uniform(3, 12)
    fold = 0.02 * noise(rng, size, 3, 2)
    along = axis * np.cos(angle) + axis[:, None] * np.sin(angle) + fold
    across = axis[:, None] * np.cos(angle) - axis * np.sin(angle) + fold
    checks = np.sin(2 * np.pi * waves * along)
    if rng.random() < 0.6:
        checks = checks * np.sin(2 * np.pi * waves * across)
    first, second = near(rng, tuple(rng.integers(30, 230, 3))), near(rng, tuple(rng.integers(30, 230, 3)))
    scene: Scene = np.tile(first, (size, size, 1))
    mix(scene, second, smoothstep(checks.astype(np.float32), -0.1, 0.1))
    return scene * (1 + 4 * (fold - np.roll(fold, 3, (0, 1))))[..., None].astype(np.float32)


def _sign(rng: Rng, size: int) -> Scene:
    cv2 = opencv()
    scene = background(rng, tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))], size)
    low, high = size * rng.uniform(0.06, 0.22, 2), size * rng.uniform(0.78, 0.94, 2)
    board = np.asarray([low, (high[0], low[1]), high, (low[0], high[1])]) + rng.normal(0, 0.02 * size, (4, 2))
    colours = ((236, 232, 220), (240, 200, 40), (40, 110, 70), (180, 40, 36), (40, 70, 140))
    ground = near(rng, colours[rng.integers(len(colours))])
    ink = np.zeros((size, size), np.uint8)
    lines = rng.integers(1, 5)
    for line in range(lines):
        text = "".join(rng.choice(list(string.ascii_uppercase + string.digits), rng.integers(3, 8)))
        y = low[1] + (line + 0.75) * (high[1] - low[1]) / lines
        scale = size / 256 * rng.uniform(0.9, 1.4)
        cv2.putText(
            ink, text, (round(low[0] + 0.05 * size), round(y)), 0, scale, 255, max(1, round(2.5 * scale)), cv2.LINE_AA
        )
    mix(scene, ground, polygon(size, board))
    mix(scene, np.full(3, float(ground.mean() < 0.5), np.float32), 0.85 * ink.astype(np.float32) / np.float32(255))
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
