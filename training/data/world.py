"""The studio's picture world: a caption fixes the content, eight style axes are left open.

A picture is a pure function of (caption, style, seed): flat shapes as signed distance fields,
anti-aliased analytically, in [-1, 1]² with y downwards. Each style axis is visible to a person
and can be read back from pixels alone (``judge.py``); captions say nothing about any of them.

Frozen: ``fingerprint.py`` hashes this file; a change voids every published figure (issue #2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating]

SIDE = 128
SIZES = ("small", "large")
SUBJECTS = ("house", "tree", "boat", "star", "balloon", "mushroom", "cactus", "lighthouse")
SETTINGS = ("lake", "field", "city", "desert", "snow", "forest")
AXES = ("warmth", "brightness", "colour", "outline", "hatching", "confetti", "vignette", "frame")

PAPER = np.array([0.97, 0.95, 0.90], np.float32)
FRAME_MAX_PX = 11
_PIXEL = 2.0 / SIDE
_Y, _X = np.meshgrid(
    np.linspace(-1, 1, SIDE, dtype=np.float32),
    np.linspace(-1, 1, SIDE, dtype=np.float32),
    indexing="ij",
)


class Caption(NamedTuple):
    size: str
    subject: str
    setting: str

    def __str__(self) -> str:
        place = "by the" if self.setting == "lake" else "in the"
        return f"a {self.size} {self.subject} {place} {self.setting}"


CAPTIONS = tuple(Caption(z, s, g) for z in SIZES for s in SUBJECTS for g in SETTINGS)
# Two of six settings per subject would be too many to learn from; one is held out, in both sizes.
_HELD_OUT = {(s, SETTINGS[(5 * i + 2) % len(SETTINGS)]) for i, s in enumerate(SUBJECTS)}
TRAIN_CAPTIONS = tuple(c for c in CAPTIONS if (c.subject, c.setting) not in _HELD_OUT)
HELD_OUT_CAPTIONS = tuple(c for c in CAPTIONS if (c.subject, c.setting) in _HELD_OUT)


# --- signed distances (negative inside) -----------------------------------------------------


def _box(x: Field, y: Field, cx: float, cy: float, hx: float, hy: float) -> Field:
    return np.maximum(np.abs(x - cx) - hx, np.abs(y - cy) - hy)


def _disc(x: Field, y: Field, cx: float, cy: float, r: float) -> Field:
    return np.sqrt((x - cx) ** 2 + (y - cy) ** 2) - r


def _triangle(x: Field, y: Field, cx: float, top: float, bottom: float, half: float) -> Field:
    slope = half / (bottom - top)
    side = (np.abs(x - cx) - (y - top) * slope) / np.sqrt(1 + slope * slope)
    return np.maximum(side, y - bottom)


def _star(x: Field, y: Field, r: float) -> Field:
    turn = np.arctan2(x, -y) / (2 * np.pi) * 5
    spike = np.abs((turn + 0.5) % 1 - 0.5) * 2
    return (np.sqrt(x * x + y * y) - r * (1 - 0.52 * spike)) * 0.7


Colour = tuple[float, float, float]
Part = tuple[Field, Colour]


def _house(x: Field, y: Field) -> list[Part]:
    return [
        (_box(x, y, 0, 0.35, 0.62, 0.5), (0.93, 0.84, 0.64)),
        (_box(x, y, 0.42, -0.5, 0.1, 0.25), (0.62, 0.3, 0.24)),
        (_triangle(x, y, 0, -0.85, -0.08, 0.85), (0.80, 0.27, 0.22)),
        (_box(x, y, -0.2, 0.53, 0.16, 0.32), (0.42, 0.26, 0.17)),
        (_box(x, y, 0.28, 0.28, 0.15, 0.15), (0.55, 0.78, 0.90)),
    ]


def _tree(x: Field, y: Field) -> list[Part]:
    crown = np.minimum(
        _disc(x, y, 0, -0.38, 0.5),
        np.minimum(_disc(x, y, -0.36, -0.02, 0.4), _disc(x, y, 0.36, -0.02, 0.4)),
    )
    return [
        (_box(x, y, 0, 0.55, 0.13, 0.32), (0.48, 0.31, 0.17)),
        (crown, (0.24, 0.62, 0.28)),
    ]


def _boat(x: Field, y: Field) -> list[Part]:
    hull = np.maximum(_box(x, y, 0, 0.55, 0.95, 0.25), np.abs(x) + y * 0.6 - 1.0)
    return [
        (_box(x, y, 0, -0.15, 0.04, 0.7), (0.32, 0.22, 0.13)),
        (np.maximum(_triangle(x, y, 0.04, -0.85, 0.2, 0.75), 0.06 - x), (0.97, 0.96, 0.92)),
        (np.maximum(_triangle(x, y, -0.04, -0.7, 0.2, 0.55), x + 0.06), (0.93, 0.55, 0.25)),
        (hull, (0.55, 0.30, 0.18)),
    ]


def _five_points(x: Field, y: Field) -> list[Part]:
    return [(_star(x, y, 0.95), (0.98, 0.83, 0.22))]


def _balloon(x: Field, y: Field) -> list[Part]:
    bag = np.minimum(_disc(x, y, 0, -0.3, 0.62), _triangle(x, -y, 0, -0.55, 0.1, 0.4))
    stripe = np.maximum(_disc(x, y, 0, -0.3, 0.62), np.abs(x) - 0.2)
    return [
        (_box(x, y, 0, 0.55, 0.12, 0.2), (0.35, 0.28, 0.24)),
        (bag, (0.90, 0.32, 0.52)),
        (stripe, (0.98, 0.78, 0.84)),
        (_box(x, y, 0, 0.78, 0.2, 0.14), (0.62, 0.42, 0.22)),
    ]


def _mushroom(x: Field, y: Field) -> list[Part]:
    return [
        (_box(x, y, 0, 0.42, 0.2, 0.45), (0.95, 0.90, 0.80)),
        (np.maximum(_disc(x, y, 0, 0.08, 0.82), y - 0.12), (0.84, 0.18, 0.20)),
        (_disc(x, y, -0.34, -0.22, 0.14), (1.0, 0.98, 0.94)),
        (_disc(x, y, 0.3, -0.14, 0.14), (1.0, 0.98, 0.94)),
        (_disc(x, y, 0.0, -0.5, 0.13), (1.0, 0.98, 0.94)),
    ]


def _cactus(x: Field, y: Field) -> list[Part]:
    body = _box(x, y, 0, 0.03, 0.15, 0.78) - 0.06
    left = np.minimum(_box(x, y, -0.4, 0.15, 0.3, 0.06), _box(x, y, -0.62, -0.1, 0.06, 0.3)) - 0.06
    right = np.minimum(_box(x, y, 0.4, 0.35, 0.3, 0.06), _box(x, y, 0.62, 0.1, 0.06, 0.3)) - 0.06
    green = (0.16, 0.55, 0.42)
    return [(np.minimum(body, np.minimum(left, right)), green)]


def _lighthouse(x: Field, y: Field) -> list[Part]:
    half = 0.24 + 0.12 * (y + 0.5)
    tower = np.maximum(np.abs(x) - half, np.abs(y - 0.17) - 0.7)
    bands = np.maximum(tower, np.minimum(np.abs(y - 0.0) - 0.14, np.abs(y - 0.6) - 0.14))
    return [
        (tower, (0.96, 0.95, 0.93)),
        (bands, (0.82, 0.16, 0.20)),
        (_box(x, y, 0, -0.66, 0.18, 0.14), (0.99, 0.88, 0.40)),
        (_triangle(x, y, 0, -1.0, -0.78, 0.28), (0.25, 0.27, 0.38)),
    ]


_PARTS: dict[str, Callable[[Field, Field], list[Part]]] = dict(
    zip(
        SUBJECTS,
        (_house, _tree, _boat, _five_points, _balloon, _mushroom, _cactus, _lighthouse),
        strict=True,
    )
)
_GROUND: dict[str, Colour] = {
    "lake": (0.22, 0.48, 0.78),
    "field": (0.50, 0.74, 0.30),
    "city": (0.55, 0.55, 0.58),
    "desert": (0.91, 0.74, 0.46),
    "snow": (0.90, 0.92, 0.96),
    "forest": (0.27, 0.45, 0.22),
}


class _Canvas:
    """Paints shapes back to front and keeps the ink lines of what stays visible."""

    def __init__(self, line_width: float) -> None:
        self.rgb = np.empty((SIDE, SIDE, 3), np.float32)
        self.ink = np.zeros((SIDE, SIDE), np.float32)
        self.line_width = line_width

    @staticmethod
    def cover(distance: Field) -> Field:
        return np.clip(0.5 - distance / _PIXEL, 0, 1)

    def put(self, distance: Field, colour: Colour, shade: float = 0.0) -> None:
        cover = self.cover(distance)
        fill = np.array(colour, np.float32)
        if shade:  # light from the upper left
            light = (1 - shade * (_X + _Y) * 0.5)[..., None]
            fill = np.clip(fill * light, 0, 1)
        self.rgb += (fill - self.rgb) * cover[..., None]
        self.ink *= 1 - cover
        if self.line_width > 0.2 * _PIXEL:
            line = self.cover(np.abs(distance) - self.line_width / 2)
            np.maximum(self.ink, line * min(1.0, self.line_width / _PIXEL), out=self.ink)


def _scenery(canvas: _Canvas, setting: str, horizon: float, rng: np.random.Generator) -> None:
    depth = np.clip((_Y + 1) / (horizon + 1), 0, 1)[..., None]
    top, low = np.array([0.36, 0.58, 0.86], np.float32), np.array([0.76, 0.86, 0.93], np.float32)
    canvas.rgb[:] = top + (low - top) * depth
    ground = _GROUND[setting]
    if setting == "city":
        for k in range(8):
            height = rng.uniform(0.22, 0.62)
            grey = 0.44 + 0.05 * (k % 3)
            tower = _box(_X, _Y, -0.92 + 0.263 * k, horizon - height / 2, 0.13, height / 2)
            canvas.put(tower, (grey, grey, grey + 0.06))
    elif setting == "forest":
        for k in range(7):
            height = rng.uniform(0.42, 0.66)
            x = -0.96 + 0.32 * k
            pine = _triangle(_X, _Y, x, horizon - height, horizon + 0.1, 0.22)
            canvas.put(pine, (0.13, 0.36, 0.24))
    elif setting in ("desert", "snow"):
        far = 0.10 * np.sin(_X * 2.4 + rng.uniform(0, 6.3)) - 0.10
        colour = (0.84, 0.62, 0.42) if setting == "desert" else (0.74, 0.81, 0.92)
        canvas.put(horizon + far - _Y, colour)
        horizon_line = horizon + 0.06 * np.sin(_X * 3 + rng.uniform(0, 6.3))
        canvas.put(horizon_line - _Y, ground, shade=0.15)
        return
    canvas.put(horizon - _Y, ground, shade=0.15)
    below = horizon < _Y
    if setting == "lake":
        ripple = np.sin(26 * np.sqrt(np.maximum(_Y - horizon, 0)))
        canvas.rgb += np.where(below, 0.05 * ripple, 0)[..., None].astype(np.float32)
    elif setting == "field":
        rows = np.sin(_X * 9 / (0.35 + np.maximum(_Y - horizon, 0)))
        canvas.rgb -= np.where(below, 0.04 * rows, 0)[..., None].astype(np.float32)


def _subject(canvas: _Canvas, caption: Caption, horizon: float, rng: np.random.Generator) -> None:
    radius = 0.40 if caption.size == "small" else 0.66
    cx = rng.uniform(-0.28, 0.28) * (1.0 if caption.size == "small" else 0.5)
    flies = caption.subject in ("star", "balloon")
    cy = -0.26 + rng.uniform(-0.05, 0.05) if flies else horizon + 0.30 - radius * 0.45
    if not flies:
        shadow = _disc(_X, (_Y - cy - 0.86 * radius) * 4.5, cx, 0, radius * 0.8) / 4.5
        canvas.rgb *= 1 - 0.22 * canvas.cover(shadow)[..., None]
    x, y = (_X - cx) / radius, (_Y - cy) / radius
    for distance, colour in _PARTS[caption.subject](x, y):
        canvas.put(distance * radius, colour, shade=0.22)


def _confetti(rgb: Field, count: int, rng: np.random.Generator) -> None:
    for _ in range(count):
        px, py = rng.uniform(-0.82, 0.82, 2)
        r = rng.uniform(0.034, 0.050)
        i, j = int((py + 1) / 2 * SIDE), int((px + 1) / 2 * SIDE)
        at = np.s_[max(0, i - 6) : i + 7, max(0, j - 6) : j + 7]
        cover = _Canvas.cover(_disc(_X[at], _Y[at], px, py, r))[..., None]
        rgb[at] += (np.array([1.0, 0.99, 0.93], np.float32) - rgb[at]) * cover


def render(caption: Caption, style: NDArray[np.floating], seed: int) -> NDArray[np.uint8]:
    """Paint ``caption`` in ``style`` (``[8]`` in [-1, 1], order of AXES): ``[128, 128, 3]`` uint8.

    ``seed`` decides what neither caption nor style says (position, hills, skyline).
    """
    rng = np.random.default_rng(seed)
    amount = (np.asarray(style, np.float32) + 1) / 2
    warmth, brightness, colour = (float(v) for v in style[:3])
    outline, hatching, confetti, vignette, frame = (float(v) for v in amount[3:])

    canvas = _Canvas(line_width=outline * 3.6 * _PIXEL)
    horizon = rng.uniform(0.05, 0.2)
    _scenery(canvas, caption.setting, horizon, rng)
    _subject(canvas, caption, horizon, rng)

    rgb = canvas.rgb
    grey = rgb.mean(-1, keepdims=True)
    rgb = grey + (rgb - grey) * (1.0 + 0.8 * colour)
    rgb = rgb + np.array([0.16, 0.02, -0.16], np.float32) * warmth
    waves = np.sin((_X + _Y) * (np.pi * 6))[..., None]
    rgb = np.clip(rgb, 0, 1) + 0.13 * hatching * waves
    rgb = rgb * (1 - 0.88 * canvas.ink[..., None])
    rgb = np.clip(rgb, 0, 1)
    _confetti(rgb, round(confetti * 24), rng)
    rgb = rgb ** (1 - 0.42 * brightness) if brightness > 0 else rgb * (1 + 0.5 * brightness)
    corner = np.clip((_X**2 + _Y**2) / 1.3, 0, 1)[..., None]
    rgb = rgb * (1 - 0.72 * vignette * corner)
    edge = 1 - np.maximum(np.abs(_X), np.abs(_Y))
    mat = _Canvas.cover(edge - frame * FRAME_MAX_PX * _PIXEL)[..., None]
    rgb = rgb + (PAPER - rgb) * mat
    return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)


def sample_style(rng: np.random.Generator) -> NDArray[np.float32]:
    """One style, uniform over the axes: ``[8]`` in [-1, 1]."""
    return rng.uniform(-1, 1, len(AXES)).astype(np.float32)
