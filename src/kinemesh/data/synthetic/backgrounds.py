"""Procedural backgrounds: studios, rooms, outdoor views, clutter and textures.

Nothing is read from disk, so that the training pictures carry no licence but our own. Every
function draws from the generator that it is given and works on sRGB ``uint8`` pictures, which
OpenCV fills quickly; :func:`sample_background` chooses one kind and finishes it with light, texture
and blur.
"""

from collections.abc import Callable
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from kinemesh.data.synthetic.appearance import sample_hair_rgb, sample_skin_rgb

Picture = NDArray[np.uint8]  # (S, S, 3) sRGB
Field = NDArray[np.float32]  # (S, S) or (S, S, C)
Colour = tuple[int, int, int]


def sample_background(rng: np.random.Generator, size: int, *, people: float = 0.15) -> Picture:
    """Draw one background.

    Args:
        rng: The only source of chance.
        size: Side S of the square picture in pixels.
        people: Probability of blurry figures, limbs or faces that are not the subject.

    Returns:
        (S, S, 3) uint8 sRGB.
    """
    kind = _KINDS[rng.choice(len(_KINDS), p=_KIND_WEIGHTS)]
    picture = kind(rng, size)
    if rng.random() < people:
        _draw_figures(rng, picture)
    return _finish(rng, picture)


def fractal_noise(
    rng: np.random.Generator, size: int, *, channels: int = 1, gain: float = 0.55
) -> Field:
    """Noise with a spectrum close to 1/f: octaves of white noise, each finer one weaker.

    Args:
        rng: The only source of chance.
        size: Side S of the square field in pixels.
        channels: Number of independent fields C.
        gain: Amplitude of an octave over that of the next coarser one; 0.5 is smooth, 0.8 is rough.

    Returns:
        (S, S, C) float32 of zero mean and unit variance, roughly.
    """
    field = rng.standard_normal((4, 4, channels), dtype=np.float32)
    side, amplitude, power = 4, 1.0, 1.0
    while side < size:
        side = min(side * 2, size)
        amplitude *= gain
        power += amplitude**2
        grown = cv2.resize(field, (side, side), interpolation=cv2.INTER_LINEAR)
        detail = rng.standard_normal((side, side, channels), dtype=np.float32)
        field = grown.reshape(side, side, channels) + np.float32(amplitude) * detail
    return cast(Field, field / np.float32(np.sqrt(power)))


def sample_colour(rng: np.random.Generator, *, brightness: float = 0.55) -> Colour:
    """Draw an everyday sRGB colour: mostly muted, now and then vivid."""
    grey = np.clip(rng.normal(brightness, 0.25), 0.03, 0.97)
    vividness = rng.beta(1.0, 2.5)
    rgb = grey + (rng.random(3) - 0.5) * vividness
    return _to_colour(rgb)


def _to_colour(rgb: NDArray[np.floating]) -> Colour:
    red, green, blue = (int(v) for v in np.clip(rgb * 255.0, 0, 255))
    return red, green, blue


def _vary(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    return _to_colour(np.array(colour) / 255.0 + rng.normal(0, spread) + rng.normal(0, 0.02, 3))


def _flat(size: int, colour: Colour) -> Picture:
    return np.full((size, size, 3), colour, dtype=np.uint8)


def _studio(rng: np.random.Generator, size: int) -> Picture:
    """A plain wall or backdrop with a soft gradient between two near colours."""
    colour = np.array(sample_colour(rng, brightness=0.65), dtype=np.float32)
    other = np.clip(colour + rng.normal(0, 35), 0, 255).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    ramp = np.clip(0.5 + axis[:, None] * np.sin(angle) + axis[None, :] * np.cos(angle), 0, 1)
    return np.asarray(colour + (other - colour) * ramp[..., None], dtype=np.uint8)


def _fractal(rng: np.random.Generator, size: int) -> Picture:
    """A rough texture such as fabric, foliage or plaster."""
    noise = fractal_noise(rng, size, channels=3, gain=rng.uniform(0.5, 0.95))
    shared = noise[..., :1]
    mixed = shared + (noise - shared) * rng.uniform(0, 0.8)
    colour = np.array(sample_colour(rng), dtype=np.float32)
    return np.asarray(np.clip(colour + mixed * rng.uniform(10, 60), 0, 255), dtype=np.uint8)


def _clutter(rng: np.random.Generator, size: int) -> Picture:
    """Overlapping boxes, discs, sticks and skin-coloured blobs."""
    picture = _flat(size, sample_colour(rng))
    _draw_shapes(rng, picture, int(rng.integers(6, 60)))
    return picture


def _tiles(rng: np.random.Generator, size: int) -> Picture:
    """A repeated cell (bricks, tiles, cloth, a keyboard) seen under a random homography."""
    cell = int(rng.integers(6, 28))
    count = 8
    tile = _flat(cell, sample_colour(rng))
    line = _vary(rng, cast(Colour, tuple(tile[0, 0].tolist())), 0.2)
    cv2.rectangle(tile, (0, 0), (cell - 1, cell - 1), line, int(rng.integers(1, 3)))
    if rng.random() < 0.4:
        cv2.circle(tile, (cell // 2, cell // 2), max(1, cell // 4), sample_colour(rng), -1)
    sheet = np.tile(tile, (count, count, 1))
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float32)
    target = (corners - 0.5) * rng.uniform(1.6, 3.5) + rng.normal(0, 0.12, (4, 2)) + 0.5
    turn = _rotation(rng.uniform(-np.pi, np.pi))
    target = (target - 0.5) @ turn.T + 0.5
    matrix = cv2.getPerspectiveTransform(
        corners * (cell * count), (target * size).astype(np.float32)
    )
    return cast(
        Picture,
        cv2.warpPerspective(sheet, matrix, (size, size), borderMode=cv2.BORDER_REFLECT_101),
    )


def _room(rng: np.random.Generator, size: int) -> Picture:
    """A wall and a floor or table with windows, frames, shelves and boxes."""
    wall, floor = sample_colour(rng, brightness=0.7), sample_colour(rng, brightness=0.45)
    picture = _flat(size, wall)
    horizon = rng.uniform(0.35, 1.1) * size
    slope = rng.normal(0, 0.08) * size
    for _ in range(int(rng.integers(0, 5))):
        _draw_wall_item(rng, picture, horizon)
    floor_edge = [[0, horizon - slope], [size, horizon + slope], [size, size * 2], [0, size * 2]]
    _fill(picture, floor_edge, floor)
    if rng.random() < 0.5:
        _draw_planks(rng, picture, horizon, _vary(rng, floor, 0.08))
    if rng.random() < 0.6:
        edge = [(0, int(horizon - slope)), (size, int(horizon + slope))]
        cv2.line(picture, edge[0], edge[1], _vary(rng, wall, 0.15), int(rng.integers(1, 5)))
    for _ in range(int(rng.integers(0, 4))):
        _draw_box(rng, picture, horizon)
    return picture


def _outdoor(rng: np.random.Generator, size: int) -> Picture:
    """A sky, a skyline of trees, hills or houses, and the ground."""
    sky = np.array([0.55, 0.7, 0.92]) * rng.uniform(0.7, 1.1) + rng.normal(0, 0.08, 3)
    haze = np.clip(sky + rng.uniform(0, 0.3), 0, 1)
    ramp = np.linspace(0, 1, size)[:, None, None]
    picture = np.clip((sky + (haze - sky) * ramp) * 255, 0, 255).astype(np.uint8)
    picture = np.ascontiguousarray(np.broadcast_to(picture, (size, size, 3)))
    horizon = rng.uniform(0.25, 0.9) * size
    for _ in range(int(rng.integers(0, 4))):
        _draw_house(rng, picture, horizon)
    greens = np.array([[0.25, 0.36, 0.16], [0.4, 0.38, 0.25], [0.5, 0.5, 0.5], [0.65, 0.58, 0.45]])
    if rng.random() < 0.7:
        _draw_ridge(rng, picture, horizon, _to_colour(greens[0] * rng.uniform(0.5, 1.4)))
    ground = _to_colour(greens[rng.integers(len(greens))] * rng.uniform(0.6, 1.4))
    cv2.rectangle(picture, (0, int(horizon)), (size, size), ground, -1)
    return _roughen(rng, picture, int(horizon))


def _roughen(rng: np.random.Generator, picture: Picture, horizon: int) -> Picture:
    """Leaves and grass: strong noise near and below the skyline, none in the sky."""
    size = len(picture)
    noise = fractal_noise(rng, size, gain=rng.uniform(0.7, 1.0)) * rng.uniform(5, 45)
    rows = np.arange(size, dtype=np.float32)[:, None, None]
    strength = np.clip((rows - horizon) / (0.2 * size) + 1.0, 0.05, 1.0)
    return np.asarray(np.clip(picture + noise * strength, 0, 255), dtype=np.uint8)


_KINDS: tuple[Callable[[np.random.Generator, int], Picture], ...] = (
    _studio,
    _fractal,
    _clutter,
    _tiles,
    _room,
    _outdoor,
)
_KIND_WEIGHTS = (0.2, 0.06, 0.2, 0.08, 0.32, 0.14)


def _finish(rng: np.random.Generator, picture: Picture) -> Picture:
    """Add uneven light and surface texture, then throw the picture out of focus."""
    size = len(picture)
    spots = rng.standard_normal((3, 3), dtype=np.float32)
    light = cv2.resize(spots, (size, size), interpolation=cv2.INTER_CUBIC)[..., None]
    texture = fractal_noise(rng, size, gain=rng.uniform(0.7, 1.2))
    factor = 1.0 + rng.uniform(0, 0.15) * light + rng.uniform(0, 0.36) ** 2 * texture
    lit = np.clip(picture * factor * rng.uniform(0.55, 1.2), 0, 255).astype(np.uint8)
    if rng.random() >= 0.5:
        return cast(Picture, lit)
    sigma = np.exp(rng.uniform(np.log(0.3), np.log(4.0))) * size / 128
    return cast(Picture, cv2.GaussianBlur(lit, (0, 0), sigma))


def _draw_shapes(rng: np.random.Generator, picture: Picture, count: int) -> None:
    size = len(picture)
    for chance, place, wide, narrow, turn, shape in rng.random((count, 6)):
        rgb = sample_skin_rgb(rng) if chance < 0.2 else None
        colour = sample_colour(rng) if rgb is None else _to_colour(rgb)
        centre = (place * size, rng.uniform(0, size))
        long = 3.0 * (size / 3.0) ** wide * 0.9 + 1.0
        short = max(1.0, long * narrow)
        if shape < 0.3:
            axes = (max(1, int(long / 2)), max(1, int(short / 2)))
            origin = (int(centre[0]), int(centre[1]))
            cv2.ellipse(picture, origin, axes, turn * 180, 0, 360, colour, -1, cv2.LINE_AA)
        elif shape < 0.7:
            _fill(picture, cv2.boxPoints((centre, (long, short), turn * 180)), colour)
        else:
            tip = np.array(centre) + long * np.array([np.cos(turn * 6), np.sin(turn * 6)])
            start = (int(centre[0]), int(centre[1]))
            cv2.line(
                picture, start, tip.astype(int).tolist(), colour, int(1 + narrow * 9), cv2.LINE_AA
            )


def _draw_wall_item(rng: np.random.Generator, picture: Picture, horizon: float) -> None:
    """A window, a framed picture, a door or a shelf of books above the floor line."""
    size = len(picture)
    x0, width = rng.uniform(-0.2, 0.9) * size, rng.uniform(0.12, 0.5) * size
    y0, height = rng.uniform(-0.2, 0.6) * horizon, rng.uniform(0.15, 0.6) * size
    top, bottom = (int(x0), int(y0)), (int(x0 + width), int(y0 + height))
    cv2.rectangle(picture, top, bottom, sample_colour(rng, brightness=rng.choice([0.3, 0.9])), -1)
    if rng.random() < 0.5:
        cv2.rectangle(picture, top, bottom, sample_colour(rng), int(rng.integers(1, 5)))
    if rng.random() < 0.35:
        x = x0
        while x < x0 + width:
            step = rng.uniform(0.015, 0.06) * size + 1
            tip = (int(x), int(y0 + height * rng.uniform(0.1, 0.5)))
            foot = (int(x + step), int(y0 + height))
            cv2.rectangle(picture, tip, foot, sample_colour(rng), -1)
            x += step


def _draw_planks(
    rng: np.random.Generator, picture: Picture, horizon: float, colour: Colour
) -> None:
    """Floor lines that meet in one vanishing point above the floor line."""
    size = len(picture)
    vanish = np.array([rng.uniform(0, 1) * size, horizon - rng.uniform(0.05, 0.6) * size])
    for x in np.arange(-2.0, 3.0, rng.uniform(0.12, 0.4)):
        foot = np.array([x * size, size * 1.2])
        start = vanish + (foot - vanish) * np.clip(
            (horizon - vanish[1]) / max(foot[1] - vanish[1], 1e-3), 0, 1
        )
        first, last = start.astype(int).tolist(), foot.astype(int).tolist()
        cv2.line(picture, first, last, colour, 1, cv2.LINE_AA)


def _draw_box(rng: np.random.Generator, picture: Picture, horizon: float) -> None:
    """A box of furniture that stands on the floor, front and side in two tones."""
    size = len(picture)
    colour = sample_colour(rng, brightness=0.4)
    x0, y1 = rng.uniform(-0.2, 1.0) * size, min(horizon + rng.uniform(0, 0.5) * size, 1.3 * size)
    width, height = rng.uniform(0.1, 0.5) * size, rng.uniform(0.1, 0.6) * size
    corner = (int(x0 + width), int(y1))
    cv2.rectangle(picture, (int(x0), int(y1 - height)), corner, colour, -1)
    depth = rng.uniform(-0.3, 0.3) * width
    side = [[x0, y1 - height], [x0 + depth, y1 - height * 1.1]]
    side += [[x0 + width + depth, y1 - height * 1.1], [x0 + width, y1 - height]]
    _fill(picture, side, _vary(rng, colour, 0.15))


def _draw_house(rng: np.random.Generator, picture: Picture, horizon: float) -> None:
    size = len(picture)
    colour = sample_colour(rng)
    x0, width = rng.uniform(-0.2, 0.9) * size, rng.uniform(0.15, 0.5) * size
    height = rng.uniform(0.15, 0.9) * size
    top = (int(x0), int(horizon - height))
    cv2.rectangle(picture, top, (int(x0 + width), int(horizon)), colour, -1)
    pane, step = _vary(rng, colour, 0.3), rng.uniform(0.05, 0.12) * size
    for x in np.arange(x0 + step / 2, x0 + width - step / 2, step):
        for y in np.arange(top[1] + step / 2, horizon - step, step * 1.3):
            far = (int(x + step * 0.5), int(y + step * 0.7))
            cv2.rectangle(picture, (int(x), int(y)), far, pane, -1)


def _draw_ridge(rng: np.random.Generator, picture: Picture, horizon: float, colour: Colour) -> None:
    """A line of hills or tree tops as a random walk, filled down to the ground."""
    size = len(picture)
    steps = int(rng.integers(6, 30))
    heights = np.abs(np.cumsum(rng.normal(0, 0.05, steps))) * size + rng.uniform(0, 0.2) * size
    xs = np.linspace(0, size, steps)
    line = np.stack([xs, horizon - heights], axis=1).tolist()
    _fill(picture, [*line, [size, horizon + 2], [0, horizon + 2]], colour)


def _draw_figures(rng: np.random.Generator, picture: Picture) -> None:
    """Capsule people, or parts of them, so that skin and limbs alone do not mean the subject."""
    size = len(picture)
    for _ in range(int(rng.integers(1, 4))):
        scale = size * np.exp(rng.uniform(np.log(0.08), np.log(0.6)))
        skin = _to_colour(sample_skin_rgb(rng))
        shirt, trousers = sample_colour(rng), sample_colour(rng, brightness=0.3)
        neck = np.array([rng.uniform(0, size), rng.uniform(0.0, 0.8) * size])
        hip = neck + np.array([rng.normal(0, 0.1), 1.3]) * scale
        for side in (-1, 1):
            shoulder = neck + np.array([side * 0.42, 0.15]) * scale
            elbow = shoulder + rng.normal([side * 0.15, 0.6], 0.2) * scale
            wrist = elbow + rng.normal([0, 0.3], 0.35) * scale
            knee = hip + rng.normal([side * 0.2, 0.8], 0.12) * scale
            ankle = knee + rng.normal([0, 0.85], 0.12) * scale
            _limb(picture, [hip, knee, ankle], trousers, 0.3 * scale)
            _limb(picture, [elbow, wrist], skin, 0.17 * scale)
            _limb(picture, [shoulder, elbow], shirt, 0.22 * scale)
        _limb(picture, [neck + np.array([0, 0.3]) * scale, hip], shirt, 0.75 * scale)
        head = (neck - [0, 0.32 * scale]).astype(int).tolist()
        axes = (max(1, int(0.22 * scale)), max(1, int(0.3 * scale)))
        hair = _to_colour(sample_hair_rgb(rng))
        crown = [head[0], head[1] - axes[1] // 4]
        cv2.ellipse(picture, crown, (axes[0] + 1, axes[1]), 0, 0, 360, hair, -1, cv2.LINE_AA)
        cv2.ellipse(picture, head, axes, 0, -20, 200, skin, -1, cv2.LINE_AA)


def _limb(
    picture: Picture, points: list[NDArray[np.floating]], colour: Colour, width: float
) -> None:
    line = np.round(np.stack(points)).astype(np.int32)
    cv2.polylines(picture, [line], False, colour, max(1, int(width)), cv2.LINE_AA)


def _fill(picture: Picture, corners: object, colour: Colour) -> None:
    polygon = np.round(np.asarray(corners)).astype(np.int32)
    cv2.fillPoly(picture, [polygon], colour, cv2.LINE_AA)


def _rotation(angle_rad: float) -> NDArray[np.floating]:
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cos, -sin], [sin, cos]])
