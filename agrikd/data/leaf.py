"""One drawn picture of a leaf, healthy or sick, with the truth about it.

Synthetic: no real plant stands behind these pictures, and a score on them says nothing about the field. They
exist so that the whole journey can be shown and tested without a download. The five looks follow how field
guides describe the symptoms; sizes and colours were chosen by eye, and made hard on purpose: hue, light, dust,
glare and yellowing vary more than the diseases do, and young rust and young leaf spot look alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agrikd.data.manifest import NOT_A_PLANT
from agrikd.data.scenery import (
    CAMERAS,
    SEASONS,
    Plane,
    Rng,
    Scene,
    Season,
    background,
    blurred,
    discs,
    mix,
    near,
    noise,
    not_a_plant,
    photograph,
    plain,
    polygon,
    shade,
    shifted,
    smoothstep,
    strokes,
)
from agrikd.image import opencv
from agrikd.types import Image

VISIBLE = 0.3
"""A pixel belongs to a lesion where the disease (its halo too) covers at least this much of it."""


@dataclass(frozen=True)
class Spec:
    """All that decides a picture.

    plant: photos with the same seed and plant show one plant (its shape, colour and habit) in other poses.
    target: a disease, "healthy" or NOT_A_PLANT. severity_pct: how much of the leaf should be sick, 0 to 100;
    what was drawn is in the Sample. size: side in pixels. seed, plant and photo are in [0, 2**32).
    """

    seed: int
    plant: int
    photo: int
    target: str
    severity_pct: float = 5.0
    season: str = "2025"
    camera: str = "phone"
    background: str = "soil"
    size: int = 256


@dataclass(frozen=True)
class Sample:
    """A picture and the truth about it.

    image: uint8 [H, W, 3] RGB. boxes: xyxy in pixels, half-open, a lesion or a cluster of touching ones each.
    severity_pct: lesion pixels in per cent of leaf pixels. background: of no plant, what is shown instead.
    leaf, lesions: bool [H, W].
    """

    image: Image
    target: str
    boxes: tuple[tuple[float, float, float, float], ...]
    severity_pct: float
    season: str
    camera: str
    background: str
    leaf: NDArray[np.bool_]
    lesions: NDArray[np.bool_]


@dataclass(frozen=True)
class Shape:
    """A leaf's frame in the picture. `along` runs from stem (0) to tip (1), `across` from margin (-1) over the
    midrib (0) to margin (1)."""

    centre: NDArray[np.float64]
    way: NDArray[np.float64]
    length: float
    width: float
    swell: float
    taper: float
    bend: float
    fold: float

    def at(self, along: NDArray[Any], across: NDArray[Any] | float) -> NDArray[np.float64]:
        """Pixel coordinates [N, 2]."""
        side = np.asarray([-self.way[1], self.way[0]])
        out = across * self.breadth(along) * np.where(np.asarray(across) > 0, self.fold, 1.0)
        out = out + self.bend * self.length * 4 * along * (1 - along)
        ahead = (along - 0.5) * self.length
        points: NDArray[np.float64] = self.centre + ahead[:, None] * self.way + out[:, None] * side
        return points

    def breadth(self, along: NDArray[Any]) -> NDArray[np.float64]:
        """Half the leaf's width in pixels."""
        inside = np.clip(along, 0, 1)
        peak = self.swell / (self.swell + self.taper)
        most = peak**self.swell * (1 - peak) ** self.taper
        half: NDArray[np.float64] = inside**self.swell * (1 - inside) ** self.taper / most * self.width
        return half


@dataclass
class Leaf:
    """The leaf being drawn. alpha: where it covers the ground, 0 to 1. damage: how much the disease covers."""

    rng: Rng
    shape: Shape
    alpha: Plane
    colour: Scene
    damage: Plane

    @property
    def size(self) -> int:
        return len(self.alpha)

    def infect(self, colour: NDArray[np.float32], opacity: Plane) -> None:
        """Paint a part of a lesion, and remember that it is one."""
        mix(self.colour, colour, opacity)
        np.maximum(self.damage, opacity, out=self.damage)

    def places(self, count: int) -> NDArray[np.float64]:
        """Up to `count` points on the visible leaf, [N, 2] in pixels, even over its area."""
        tries = 64 + 4 * count
        along = self.rng.uniform(0.02, 0.98, tries)
        keep = self.rng.random(tries) * self.shape.width < self.shape.breadth(along)
        points = self.shape.at(along, self.rng.uniform(-0.95, 0.95, tries))[keep]
        return self.visible(points)[:count]

    def visible(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Those of the points that lie on the leaf and in the picture."""
        cells = np.floor(points).astype(int)
        inside = ((cells >= 0) & (cells < self.size)).all(1)
        x, y = np.clip(cells, 0, self.size - 1).T
        seen: NDArray[np.float64] = points[inside & (self.alpha[y, x] > 0.9)]
        return seen


def draw(spec: Spec) -> Sample:
    """Draw what `spec` says: a pure function of it.

    The same pixels on every run with the same OpenCV, numpy and kind of processor. Another may round a pixel in
    ten thousand by 1 (OpenCV without its SIMD code does), and JPEG bytes differ more readily than pixels do.
    """
    if spec.target not in (*DISEASES, NOT_A_PLANT):
        raise ValueError(f"target is {spec.target!r}, expected one of {', '.join(DISEASES)}, {NOT_A_PLANT}")
    season, camera = SEASONS[spec.season], CAMERAS[spec.camera]
    # Photos count from 1 here: a trailing zero would give the plant's own stream again.
    photo = np.random.default_rng([spec.seed, spec.plant, spec.photo + 1])
    if spec.target == NOT_A_PLANT:
        scene, kind = not_a_plant(photo, spec.size)
        nothing = np.zeros((spec.size, spec.size), np.bool_)
        image = photograph(photo, scene, season, camera)
        return Sample(image, spec.target, (), 0.0, spec.season, spec.camera, kind, nothing, nothing)
    leaf = _grow(np.random.default_rng([spec.seed, spec.plant]), photo, spec.size, season)
    _weather(leaf)
    if spec.severity_pct > 0:
        DISEASES[spec.target](leaf, spec.severity_pct)
    scene = background(photo, spec.background, spec.size)
    shadow = shifted(leaf.alpha, *photo.uniform(-0.03, 0.03, 2) * spec.size)
    shade(scene, np.float32(photo.uniform(0.3, 0.7)) * blurred(shadow, spec.size * 0.015))
    scene += leaf.alpha * (leaf.colour - scene)
    visible = leaf.alpha > 0.5
    lesions = visible & (leaf.damage >= VISIBLE)
    severity_pct = 100.0 * int(lesions.sum()) / max(int(visible.sum()), 1)
    return Sample(
        image=photograph(photo, scene, season, camera),
        target=spec.target,
        boxes=_boxes(lesions),
        severity_pct=severity_pct,
        season=spec.season,
        camera=spec.camera,
        background=spec.background,
        leaf=visible,
        lesions=lesions,
    )


def _grow(plant: Rng, photo: Rng, size: int, season: Season) -> Leaf:
    """A healthy leaf: the plant decides shape, teeth, veins and hue, the photo decides the pose."""
    angle = photo.uniform(0, 2 * np.pi)
    length = size * photo.uniform(0.85, 1.2)
    shape = Shape(
        centre=size * (0.5 + photo.normal(0, 0.04, 2)),
        way=np.asarray([np.cos(angle), np.sin(angle)]),
        length=length,
        width=length * plant.uniform(0.21, 0.40),
        swell=plant.uniform(0.45, 0.85),
        taper=plant.uniform(0.6, 1.2),
        bend=photo.normal(0, 0.04),
        fold=photo.uniform(0.72, 1.0),
    )
    alpha = _outline(plant, shape, size)
    lush = ((66, 118, 46), (52, 104, 58), (92, 134, 52), (44, 84, 40), (110, 140, 70))[plant.integers(5)]
    colour = plain(near(plant, lush, 0.10), size)
    colour *= 1 + np.float32(0.09) * noise(photo, size, 4, 3) + np.float32(0.04) * noise(photo, size, 48, 2)
    veins = _veins(plant, shape, size)
    yellowing = np.float32(0.12) * noise(photo, size, 3, 2) - np.float32(0.15) * veins
    yellowing += np.float32(season.yellowing + 0.35 * plant.beta(1, 3))
    mix(colour, near(plant, (180, 166, 76), 0.08), np.clip(yellowing, 0, 0.75))
    half = np.linspace(0, 1, 24)
    lit = polygon(size, np.concatenate([shape.at(half, 0.0), shape.at(half[::-1], 1.3)]))
    shade(colour, np.float32(photo.uniform(-0.16, 0.16)) * blurred(lit, size * 0.004))
    shade(colour, np.float32(0.22) * blurred(veins, size * 0.012) - np.float32(0.09) * veins)
    mix(colour, near(plant, (168, 188, 118), 0.06), np.float32(plant.uniform(0.25, 0.6)) * veins)
    return Leaf(photo, shape, alpha, colour, np.zeros((size, size), np.float32))


def _outline(plant: Rng, shape: Shape, size: int) -> Plane:
    along = np.linspace(0, 1, 160)
    teeth, depth = plant.integers(8, 26), plant.choice([0.0, 0.05, 0.10])
    lobes, swing = plant.integers(2, 5), plant.choice([0.0, 0.0, 0.14])
    margin = 1 + depth * ((along * teeth) % 1 - 0.5) + swing * np.cos(2 * np.pi * lobes * along)
    ripple = [np.interp(along, np.linspace(0, 1, 9), plant.normal(0, 0.035, 9)) for _ in range(2)]
    left, right = shape.at(along, -margin - ripple[0]), shape.at(along, margin + ripple[1])
    blade = polygon(size, np.concatenate([left, right[::-1]]))
    stalk = strokes(size, [shape.at(np.linspace(-0.2, 0.02, 6), 0.0)], max(1, round(size * 0.014)))
    whole: Plane = np.maximum(blade, stalk)
    return whole


def _veins(plant: Rng, shape: Shape, size: int) -> Plane:
    """Midrib and side veins, 0 to 1."""
    pairs, lean = plant.integers(5, 11), plant.uniform(0.10, 0.26)
    run = np.linspace(0, 1, 8)
    lines = []
    for start in np.linspace(0.04, 0.82, pairs):
        for side in (-0.92, 0.92):
            along = start + lean * run**1.3 * (1 - 0.5 * start) + plant.normal(0, 0.006)
            lines.append(shape.at(np.minimum(along, 0.98), side * run))
    fine = strokes(size, lines, max(1, round(size / 256)))
    middle = strokes(size, [shape.at(np.linspace(0, 0.97, 16), 0.0)], max(1, round(size * 0.009)))
    both: Plane = np.maximum(np.float32(0.6) * fine, middle)
    return both


def _weather(leaf: Leaf) -> None:
    """What any leaf may carry and no label speaks of: soil specks, holes, glare."""
    rng, size = leaf.rng, leaf.size
    specks = leaf.places(int(rng.integers(1, 30)))
    dust = discs(size, specks, size * rng.uniform(0.002, rng.uniform(0.005, 0.008), len(specks)))
    mix(leaf.colour, near(rng, (112, 82, 54), 0.2), np.float32(rng.uniform(0.3, 0.8)) * dust)
    if rng.random() < 0.5:
        shine = smoothstep(noise(rng, size, 4), 0.5, 2.2)
        mix(leaf.colour, near(rng, (226, 232, 226), 0.03), np.float32(rng.uniform(0.2, 0.6)) * shine)
    if rng.random() < 0.3:
        eaten = leaf.places(int(rng.integers(1, 5)))
        holes = discs(size, eaten, size * rng.uniform(0.008, 0.028, len(eaten)))
        mix(leaf.colour, near(rng, (140, 120, 70)), blurred(holes, size * 0.006))
        leaf.alpha *= 1 - holes


def _healthy(leaf: Leaf, severity_pct: float) -> None:
    """Nothing to draw."""


def _rust(leaf: Leaf, severity_pct: float) -> None:
    """Many small orange to brown pustules in loose swarms, each with a faint yellow rim."""
    rng, size = leaf.rng, leaf.size
    swarms = leaf.places(int(rng.integers(3, 9)))
    spread = rng.uniform(0.05, 0.14) * size
    around = swarms[rng.integers(len(swarms), size=1500)] + rng.normal(0, spread, (1500, 2))
    points = rng.permutation(np.concatenate([leaf.visible(around), leaf.places(250)]))
    points, radii = _until(leaf, severity_pct, points, rng.uniform(0.0045, 0.0105, len(points)) * size)
    leaf.infect(near(rng, (196, 176, 70)), 0.25 * discs(size, points, radii * 1.9))
    leaf.infect(near(rng, ((152, 84, 38), (128, 78, 44))[rng.integers(2)], 0.16), 0.9 * discs(size, points, radii))
    bright = np.float32(rng.uniform(0.15, 0.6)) * discs(size, points - radii[:, None] * 0.2, radii * 0.5)
    mix(leaf.colour, near(rng, (192, 122, 62), 0.12), bright)


def _leaf_spot(leaf: Leaf, severity_pct: float) -> None:
    """Round spots: a dark ring, a pale centre; the more there is, the older and larger they are."""
    rng, size = leaf.rng, leaf.size
    points = leaf.places(400)
    age = min(severity_pct / 15, 1.0)
    radii = size * (0.007 + (0.008 + 0.026 * age) * rng.beta(1.2, 2.0, len(points)))
    points, radii = _until(leaf, severity_pct, points, radii)
    leaf.infect(near(rng, (176, 160, 74)), 0.25 * discs(size, points, radii * 1.5))
    leaf.infect(near(rng, ((104, 62, 40), (132, 82, 46))[rng.integers(2)], 0.18), 0.9 * discs(size, points, radii))
    centre = np.float32(0.35 + 0.5 * age) * discs(size, points, radii * rng.uniform(0.35, 0.65))
    mix(leaf.colour, near(rng, (186, 166, 132), 0.1), centre)


def _blight(leaf: Leaf, severity_pct: float) -> None:
    """Large ragged dark patches in a yellow halo, most of them from the margin."""
    rng, size = leaf.rng, leaf.size
    field = _patches(leaf, int(rng.integers(1, 4)), 0.35)
    inward = opencv().distanceTransform((leaf.alpha > 0.5).astype(np.uint8), 2, 3) / np.float32(size)
    field = field - np.float32(rng.uniform(1.0, 6.0)) * inward + 0.22 * noise(rng, size, 10, 3)
    edge = _edge(leaf, field, severity_pct)
    width = rng.uniform(0.06, 0.16)
    leaf.infect(near(rng, (190, 168, 62)), 0.65 * smoothstep(field, edge - 0.03, edge + 0.03))
    leaf.infect(near(rng, (92, 66, 42), 0.2), 0.92 * smoothstep(field, edge + width, edge + width + 0.08))
    zones = smoothstep(field + 0.1 * noise(rng, size, 20, 2), edge + 2.2 * width, edge + 4 * width)
    mix(
        leaf.colour,
        near(rng, ((134, 108, 74), (58, 42, 32))[rng.integers(2)], 0.1),
        0.6 * zones * (leaf.damage > 0.7),
    )


def _mildew(leaf: Leaf, severity_pct: float) -> None:
    """White powder in diffuse patches; the leaf shows through."""
    rng, size = leaf.rng, leaf.size
    field = _patches(leaf, int(rng.integers(2, 9)), 0.18) + 0.14 * noise(rng, size, 8, 3)
    edge = _edge(leaf, field, severity_pct)
    powder = np.float32(rng.uniform(0.5, 0.9)) + np.float32(0.16) * noise(rng, size, 64, 2)
    cover = smoothstep(field, edge - 0.22, edge + 0.30) * np.clip(powder, 0.1, 1)
    mix(leaf.colour, near(rng, (216, 218, 208), 0.05), cover)
    leaf.damage = (field >= edge).astype(np.float32)  # powder has no rim; here it covers about VISIBLE


DISEASES: dict[str, Callable[[Leaf, float], None]] = {
    "healthy": _healthy,
    "rust": _rust,
    "blight": _blight,
    "leaf_spot": _leaf_spot,
    "mildew": _mildew,
}


def _until(
    leaf: Leaf, severity_pct: float, points: NDArray[np.float64], radii: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first lesions whose areas sum to the severity, at least one; no radius below 1 pixel."""
    radii = np.maximum(radii, 1.0)
    goal = severity_pct / 100 * float(leaf.alpha.sum())
    drawn = np.pi * (radii + 0.35) ** 2  # a disc's soft rim counts as well
    count = max(1, int(np.searchsorted(np.cumsum(drawn), goal)))
    return points[:count], radii[:count]


def _patches(leaf: Leaf, count: int, reach: float) -> Plane:
    """A plane that peaks (at 0) in `count` random places of the leaf and falls by 1 per `reach` of the picture."""
    rng, size = leaf.rng, leaf.size
    axis = np.arange(size, dtype=np.float32) / size
    nearest: Plane = np.full((size, size), 9, np.float32)
    for x, y in leaf.places(count) / size:
        distance = (axis - np.float32(x)) ** 2 + (axis[:, None] - np.float32(y)) ** 2
        np.minimum(nearest, distance * np.float32(rng.uniform(0.6, 2.2)), out=nearest)
    np.sqrt(nearest, out=nearest)
    return nearest * np.float32(-1 / reach)


def _edge(leaf: Leaf, field: Plane, severity_pct: float) -> float:
    """The height above which `severity_pct` of the leaf lies."""
    heights = field[leaf.alpha > 0.5]
    rank = min(int(len(heights) * (1 - severity_pct / 100)), len(heights) - 1)
    return float(np.partition(heights, rank)[rank])


def _boxes(lesions: NDArray[np.bool_]) -> tuple[tuple[float, float, float, float], ...]:
    """A box round every cluster: lesions closer than twice the reach are one."""
    cv2 = opencv()
    reach = max(1, round(len(lesions) * 0.008))
    mask = cv2.copyMakeBorder(lesions.astype(np.uint8), *[reach] * 4, cv2.BORDER_CONSTANT)
    grown = cv2.dilate(mask, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    _, _, stats, _ = cv2.connectedComponentsWithStats(grown)
    # Growing moved every edge by the reach, the border moved the origin by as much: both undo each other.
    return tuple(
        (float(x), float(y), float(x + w - 2 * reach), float(y + h - 2 * reach)) for x, y, w, h, _ in stats[1:]
    )
