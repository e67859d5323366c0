"""Images of ten shapes, made up on the spot: a data set with a knob for its difficulty, where there is none on disk.

A shape is a set of points given by inequalities in its own coordinates; images are these sets, turned, scaled, moved,
textured, partly covered, and surrounded by clutter. All of it is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fxprune.errors import InputError

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SIDE = 32
_CHUNK = 256  # images made at a time: bounds the memory for intermediate arrays


def _star(x: Array, y: Array) -> Bools:
    angle = np.mod(np.arctan2(y, x) * 5 / (2 * np.pi), 1.0)
    reach = 0.42 + 0.58 * np.abs(2 * angle - 1) ** 1.5
    inside: Bools = np.hypot(x, y) < reach
    return inside


def _cross(x: Array, y: Array) -> Bools:
    a, b = np.abs(x), np.abs(y)
    return (np.maximum(a, b) < 0.9) & (np.minimum(a, b) < 0.28)


# No shape is another one turned, mirrored or scaled.
_SHAPES: dict[str, Callable[[Array, Array], Bools]] = {
    "disc": lambda x, y: np.hypot(x, y) < 0.85,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.68) < 0.24,
    "triangle": lambda x, y: (y > -0.5) & (y + np.sqrt(3) * np.abs(x) < 1.0),
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.72,
    "cross": _cross,
    "star": _star,
    "crescent": lambda x, y: (np.hypot(x, y) < 0.9) & (np.hypot(x - 0.42, y) > 0.68),
    "bar": lambda x, y: (np.abs(x) < 1.0) & (np.abs(y) < 0.3),
    "pair": lambda x, y: np.hypot(np.abs(x) - 0.58, y) < 0.4,
    "angle": lambda x, y: (np.maximum(np.abs(x), np.abs(y)) < 0.8) & ((x < -0.3) | (y < -0.3)),
}
SHAPES = tuple(_SHAPES)


def make_shapes(
    count: int, seed: int = 0, difficulty: float = 0.5
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return images of shapes and their classes.

    Args:
        count: Number of images; classes take turns, so that all are as frequent as can be.
        seed: Of everything random.
        difficulty: From 0 (large, upright, bright, clean) to 1 (any angle, small, low contrast, noisy, half covered
            among clutter).

    Returns:
        Images (count, 3, 32, 32) in 0..255, and labels (count,) that index :data:`SHAPES`.

    Raises:
        InputError: The difficulty is not in [0, 1], or the count is negative.
    """
    if not 0 <= difficulty <= 1:
        raise InputError(f"the difficulty of the shapes is {difficulty}; give a number from 0 (easy) to 1 (hard)")
    if count < 0:
        raise InputError(f"{count} shapes cannot be made; give a count of 0 or above")
    labels = np.arange(count, dtype=np.int64) % len(SHAPES)
    rng = np.random.default_rng(seed)
    rng.shuffle(labels)
    images = np.empty((count, 3, SIDE, SIDE), dtype=np.uint8)
    for start in range(0, count, _CHUNK):
        part = slice(start, min(start + _CHUNK, count))
        images[part] = _draw(labels[part], rng, difficulty)
    return images, labels


def _draw(labels: npt.NDArray[np.int64], rng: np.random.Generator, difficulty: float) -> npt.NDArray[np.uint8]:
    n = len(labels)
    image = _texture(rng, n, difficulty)
    for _ in range(round(5 * difficulty)):  # clutter lies behind
        mask = _place(np.zeros(n), rng, scale=(0.1, 0.25), spread=0.95, turn=np.pi, kind=_speck(rng, n))
        image = _paint(image, mask, _texture(rng, n, difficulty))
    reach = 0.05 + 0.3 * difficulty
    shape = _place(
        labels, rng, (0.75 - 0.35 * difficulty, 0.85 - 0.1 * difficulty), reach, np.pi * min(1, 2 * difficulty)
    )
    colour = _apart(image, shape, _texture(rng, n, difficulty), 0.6 - 0.4 * difficulty)
    image = _paint(image, shape, colour)
    covered = rng.random(n) < 0.7 * difficulty
    cover = _place(np.zeros(n), rng, scale=(0.2, 0.35), spread=0.6, turn=np.pi, kind=_speck(rng, n))
    image = _paint(image, cover * covered[:, None, None], _texture(rng, n, difficulty))
    image = image * rng.uniform(1 - 0.4 * difficulty, 1, (n, 3, 1, 1))  # the colour of the light
    image = image + rng.normal(0, 0.01 + 0.12 * difficulty, image.shape)
    result: npt.NDArray[np.uint8] = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    return result


def _grid(points: int) -> tuple[Array, Array]:
    """Return coordinates from -1 to 1 of some points by as many in every pixel; their mean softens edges."""
    line = (2 * np.arange(points * SIDE) + 1) / (points * SIDE) - 1
    y, x = np.meshgrid(line, line, indexing="ij")
    return x, y


def _place(
    labels: npt.NDArray[np.int64] | Array,
    rng: np.random.Generator,
    scale: tuple[float, float],
    spread: float,
    turn: float,
    kind: Callable[[int, Array, Array], Bools] | None = None,
) -> Array:
    """Return how much of each pixel the shapes cover, (n, 32, 32) in 0..1, at random places, angles and sizes."""
    n = len(labels)
    points = 1 if kind else 2  # clutter may have rough edges
    x, y = _grid(points)
    sizes, angles = rng.uniform(*scale, n), rng.uniform(-turn, turn, n)
    offsets = rng.uniform(-spread, spread, (n, 2))
    masks = np.empty((n, SIDE, SIDE))
    for i, (label, size, angle, (dx, dy)) in enumerate(zip(labels, sizes, angles, offsets, strict=True)):
        c, s = np.cos(angle) / size, np.sin(angle) / size
        u, v = c * (x - dx) + s * (y - dy), c * (y - dy) - s * (x - dx)
        inside = kind(i, u, v) if kind else _SHAPES[SHAPES[int(label)]](u, v)
        masks[i] = inside.reshape(SIDE, points, SIDE, points).mean((1, 3))
    return masks


def _speck(rng: np.random.Generator, n: int) -> Callable[[int, Array, Array], Bools]:
    """Return rectangles and ellipses of random proportions, one for each image."""
    flat, oval = rng.uniform(0.3, 1, n), rng.random(n) < 0.5

    def inside(i: int, x: Array, y: Array) -> Bools:
        y = y / flat[i]
        found: Bools = np.hypot(x, y) < 1 if oval[i] else np.maximum(np.abs(x), np.abs(y)) < 1
        return found

    return inside


def _texture(rng: np.random.Generator, n: int, difficulty: float) -> Array:
    """Return (n, 3, 32, 32): a colour, waves of another one across it in a random direction, and a slow gradient."""
    line = np.linspace(-1, 1, SIDE)
    y, x = np.meshgrid(line, line, indexing="ij")
    base, other = rng.random((2, n, 3, 1, 1))
    angle, phase, slope = (rng.uniform(0, 2 * np.pi, (n, 1, 1, 1)) for _ in range(3))
    frequency = rng.uniform(2, 16, (n, 1, 1, 1))
    waves = 0.5 + 0.5 * np.sin(frequency * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    shade = 0.15 * (np.cos(slope) * x + np.sin(slope) * y)
    mixed: Array = base + (0.1 + 0.5 * difficulty) * waves * (other - base) + shade
    return mixed


def _apart(image: Array, mask: Array, colour: Array, least: float) -> Array:
    """Shift colours so that a shape's mean brightness is at least ``least`` from that of what it covers."""
    weight = mask[:, None] / np.maximum(mask.sum((1, 2)), 1e-9)[:, None, None, None]
    behind, ours = ((what * weight).sum((2, 3)).mean(1) for what in (image, colour))
    sign = np.where(behind < 0.5, 1.0, -1.0)
    shift = np.maximum(0, least - sign * (ours - behind)) * sign
    shifted: Array = colour + shift[:, None, None, None]
    return shifted


def _paint(image: Array, mask: Array, colour: Array) -> Array:
    alpha = mask[:, None]
    painted: Array = image * (1 - alpha) + colour * alpha
    return painted
