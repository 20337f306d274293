"""Skin, hair, nails, sleeves and clothes: linear colours per vertex, drawn from a generator.

A painter is built once for a rig and holds the static masks; :meth:`HandPainter.paint` and
:meth:`BodyPainter.paint` draw one look. Colours are linear-light albedo, made from sRGB tones by a
power of 2.2.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from kinemesh.bodies import Rig

Array = NDArray[np.float32]

# sRGB tones from light to dark; every draw lies between two neighbours.
_SKIN_TONES = np.array(
    [
        [0.95, 0.81, 0.74],
        [0.90, 0.72, 0.61],
        [0.83, 0.63, 0.50],
        [0.75, 0.53, 0.40],
        [0.63, 0.43, 0.31],
        [0.47, 0.31, 0.22],
        [0.33, 0.21, 0.15],
        [0.24, 0.16, 0.12],
    ]
)
_HAIR_TONES = np.array(
    [[0.06, 0.05, 0.05], [0.16, 0.10, 0.07], [0.33, 0.20, 0.11], [0.62, 0.46, 0.27], [0.7] * 3]
)
_HAIR_WEIGHTS = (0.4, 0.25, 0.17, 0.1, 0.08)
# Where trousers and sleeves end: 0 at the hip or shoulder, 1 at the ankle or wrist.
_LEG_LENGTHS = (0.12, 0.3, 0.48, 0.75, 0.96, 1.02)
_LEG_WEIGHTS = (0.06, 0.1, 0.16, 0.06, 0.32, 0.3)
_SLEEVE_LENGTHS = (-0.05, 0.12, 0.32, 0.5, 0.97, 1.05)
_SLEEVE_WEIGHTS = (0.1, 0.06, 0.3, 0.08, 0.2, 0.26)


@dataclass(frozen=True)
class Appearance:
    """How one subject looks.

    Attributes:
        albedo: (V, 3) float32, linear light.
        gloss: (V,) float32, factor on the specular strength: 1 for skin, lower for cloth.
        inflation_m: (V,) float32, metres by which clothes and hair lift the surface.
        skin_rgb: (3,) sRGB in [0, 1], the tone that all skin was made from.
    """

    albedo: Array
    gloss: Array
    inflation_m: Array
    skin_rgb: NDArray[np.floating]


class Painter(Protocol):
    """Anything that draws looks for one rig."""

    def paint(self, rng: np.random.Generator) -> Appearance:
        """Draw one look."""
        ...


def to_linear(rgb: NDArray[np.floating]) -> NDArray[np.floating]:
    """The sRGB values of a colour as linear light (power 2.2)."""
    return np.asarray(np.clip(rgb, 0.0, 1.0) ** 2.2)


def sample_skin_rgb(rng: np.random.Generator) -> NDArray[np.floating]:
    """Draw a skin tone, sRGB in [0, 1], shape (3,)."""
    place = rng.beta(1.0, 1.25) * (len(_SKIN_TONES) - 1.001)
    low = int(place)
    tone = _SKIN_TONES[low] + (place - low) * (_SKIN_TONES[low + 1] - _SKIN_TONES[low])
    varied = tone * rng.normal(1.0, 0.06) * (1.0 + rng.normal(0, 0.025, 3))
    return np.asarray(np.clip(varied, 0.05, 1.0))


def sample_hair_rgb(rng: np.random.Generator) -> NDArray[np.floating]:
    """Draw a hair colour, sRGB in [0, 1], shape (3,)."""
    tone = _HAIR_TONES[rng.choice(len(_HAIR_TONES), p=_HAIR_WEIGHTS)]
    varied = tone * rng.uniform(0.7, 1.3) + rng.normal(0, 0.015, 3)
    return np.asarray(np.clip(varied, 0.02, 1.0))


def sample_cloth_rgb(rng: np.random.Generator) -> NDArray[np.floating]:
    """Draw a fabric colour, sRGB in [0, 1], shape (3,): black, white, denim, muted or vivid."""
    kind = rng.random()
    if kind < 0.2:
        rgb = np.full(3, rng.uniform(0.04, 0.2))
    elif kind < 0.38:
        rgb = np.full(3, rng.uniform(0.75, 0.97))
    elif kind < 0.5:
        rgb = np.array([0.2, 0.28, 0.42]) * rng.uniform(0.5, 1.7)
    else:
        rgb = rng.uniform(0.1, 0.85) + (rng.random(3) - 0.5) * rng.beta(1.2, 1.5) * 1.1
    return np.clip(rgb + rng.normal(0, 0.02, 3), 0.02, 0.98)


def sample_pattern(rng: np.random.Generator, points: Array, *, scale_m: float) -> Array:
    """Draw a fabric print over rest-pose points.

    Args:
        rng: The only source of chance.
        points: (V, 3) rest-pose positions, metres.
        scale_m: Smallest period of the print; below the spacing of the vertices it would alias.

    Returns:
        (V,) float32 in [0, 1]: the share of the second colour. Zero everywhere for plain cloth.
    """
    kind = rng.random()
    if kind < 0.55:
        return np.zeros(len(points), dtype=np.float32)
    period = scale_m * np.exp(rng.uniform(0.0, 1.6))
    axis = np.array([0.0, 1.0, 0.0]) if rng.random() < 0.6 else rng.normal(size=3)
    wave = np.sin(points @ (axis / np.linalg.norm(axis)) * (2 * np.pi / period) + rng.uniform(0, 6))
    if kind > 0.85:
        across = np.cross(axis, rng.normal(size=3))
        across /= np.linalg.norm(across)
        wave = wave * np.sin(points @ across * (2 * np.pi / period))
    sharpness = rng.choice([0.5, 4.0])
    return np.asarray(np.clip(0.5 + sharpness * wave, 0, 1), dtype=np.float32)


class _Canvas:
    """Colours under construction: later layers cover earlier ones."""

    def __init__(self, skin_rgb: NDArray[np.floating], count: int) -> None:
        self.skin_rgb = skin_rgb
        self.albedo = np.broadcast_to(to_linear(skin_rgb), (count, 3)).astype(np.float32)
        self.gloss = np.ones(count, dtype=np.float32)
        self.inflation_m = np.zeros(count, dtype=np.float32)

    def blend(self, weight: Array, colour: NDArray[np.floating]) -> None:
        """Mix ``colour`` (3,) or (V, 3) in by ``weight`` (V,) in [0, 1]."""
        self.albedo += weight[:, None] * (colour - self.albedo)

    def cover(
        self,
        chosen: NDArray[np.bool_],
        colour: NDArray[np.floating],
        *,
        gloss: float,
        lift_m: float,
    ) -> None:
        """Lay an opaque layer where ``chosen`` (V,) is true."""
        self.albedo[chosen] = colour[chosen] if colour.ndim == 2 else colour
        self.gloss[chosen] = gloss
        self.inflation_m[chosen] = lift_m

    def finish(self) -> Appearance:
        albedo = np.clip(self.albedo, 0.005, 0.95)
        return Appearance(albedo, self.gloss, self.inflation_m, self.skin_rgb)


def _printed_cloth(rng: np.random.Generator, points: Array, scale_m: float) -> Array:
    first, second = to_linear(sample_cloth_rgb(rng)), to_linear(sample_cloth_rgb(rng))
    share = sample_pattern(rng, points, scale_m=scale_m)[:, None]
    return (first + (second - first) * share).astype(np.float32)


class HandPainter:
    """Skin with palm, knuckles and nails, and a forearm that may wear a sleeve, band or glove."""

    def __init__(self, rig: "Rig") -> None:
        self._points = _numpy(rig.template)
        self._palm = _numpy(rig.masks["palm"])
        self._nail = _numpy(rig.masks["nail"])
        self._sleeve = _numpy(rig.masks["sleeve"])
        heads = _numpy(rig.bone_template)
        phalanges = [i for i, name in enumerate(rig.bones) if "finger" in name]
        distance = np.linalg.norm(self._points[:, None] - heads[None, phalanges], axis=-1).min(1)
        self._knuckle = np.exp(-((distance / 0.009) ** 2)).astype(np.float32)

    def paint(self, rng: np.random.Generator) -> Appearance:
        """Draw one hand."""
        skin_rgb = sample_skin_rgb(rng)
        canvas = _Canvas(skin_rgb, len(self._points))
        self._paint_skin(rng, canvas, skin_rgb)
        self._paint_nails(rng, canvas, skin_rgb)
        if rng.random() < 0.55:
            self._paint_sleeve(rng, canvas)
        if rng.random() < 0.12:
            self._paint_band(rng, canvas)
        if rng.random() < 0.02:
            cloth = _printed_cloth(rng, self._points, 0.02)
            bare = self._sleeve > rng.uniform(0.8, 1.0)
            canvas.cover(bare, cloth, gloss=rng.uniform(0.1, 1.0), lift_m=0.001)
        return canvas.finish()

    def _paint_skin(
        self, rng: np.random.Generator, canvas: _Canvas, skin_rgb: NDArray[np.floating]
    ) -> None:
        # Palms hold little melanin: they move toward a light pink, most visibly on dark skin.
        pink = np.array([0.87, 0.66, 0.57]) * rng.uniform(0.9, 1.1)
        palm_rgb = skin_rgb + rng.uniform(0.15, 0.55) * (pink - skin_rgb)
        canvas.blend(self._palm, to_linear(palm_rgb))
        ruddy = skin_rgb * np.array([0.98, 0.78, 0.76])
        canvas.blend(self._knuckle * np.float32(rng.uniform(0, 0.55)), to_linear(ruddy))

    def _paint_nails(
        self, rng: np.random.Generator, canvas: _Canvas, skin_rgb: NDArray[np.floating]
    ) -> None:
        natural = skin_rgb + rng.uniform(0.0, 0.4) * (np.array([0.95, 0.8, 0.77]) - skin_rgb)
        nail_rgb = natural if rng.random() < 0.85 else sample_cloth_rgb(rng)
        canvas.blend(np.clip(self._nail, 0, 1), to_linear(nail_rgb))
        canvas.gloss += np.clip(self._nail, 0, 1) * np.float32(rng.uniform(0, 2))

    def _paint_sleeve(self, rng: np.random.Generator, canvas: _Canvas) -> None:
        end = 1.02 - abs(rng.normal(0, 0.3))
        cloth = _printed_cloth(rng, self._points, 0.015)
        lift = rng.uniform(0.001, 0.012)
        canvas.cover(self._sleeve < end, cloth, gloss=0.15, lift_m=lift)
        if rng.random() < 0.3:
            cuff = (self._sleeve < end) & (self._sleeve > end - rng.uniform(0.03, 0.15))
            canvas.cover(cuff, to_linear(sample_cloth_rgb(rng)), gloss=0.15, lift_m=lift + 0.001)

    def _paint_band(self, rng: np.random.Generator, canvas: _Canvas) -> None:
        centre, half = rng.uniform(0.78, 0.95), rng.uniform(0.015, 0.06)
        band = np.abs(self._sleeve - centre) < half
        colour = to_linear(sample_cloth_rgb(rng))
        canvas.cover(band, colour, gloss=rng.uniform(0.3, 3.0), lift_m=0.002)


class BodyPainter:
    """Skin, face, hair and clothes: trousers or briefs, shirts or jackets, shoes, maybe a cap."""

    def __init__(self, rig: "Rig") -> None:
        self._mask = {name: _numpy(mask) for name, mask in rig.masks.items()}
        self._points = _numpy(rig.template)
        heads = {name: i for i, name in enumerate(rig.bones)}
        bones = _numpy(rig.bone_template)
        self._neck_y = float(bones[heads["neck01"], 1])
        self._crotch_y = float(bones[heads["upperleg01.L"], 1])
        self._face = _FaceMap(self._points, self._mask)

    def paint(self, rng: np.random.Generator) -> Appearance:
        """Draw one person."""
        skin_rgb = sample_skin_rgb(rng)
        canvas = _Canvas(skin_rgb, len(self._points))
        self._face.paint(rng, canvas, skin_rgb)
        self._paint_hair(rng, canvas)
        self._paint_socks_and_shoes(rng, canvas)
        self._paint_trousers(rng, canvas)
        if rng.random() < 0.96:
            self._paint_shirt(rng, canvas)
        if rng.random() < 0.03:
            gloves = self._mask["hands"] > 0.5
            canvas.cover(gloves, to_linear(sample_cloth_rgb(rng)), gloss=0.3, lift_m=0.003)
        return canvas.finish()

    def _paint_hair(self, rng: np.random.Generator, canvas: _Canvas) -> None:
        head = self._mask["head"] > 0.5
        if rng.random() < 0.7:
            head = head & ~self._face.ears
        if rng.random() < 0.9:
            # The mask runs from the hair line (0) up and back; a larger threshold is balder.
            hair = head & (self._mask["hair"] > rng.uniform(0.08, 0.45))
            colour = to_linear(sample_hair_rgb(rng))
            lift = rng.uniform(0.0, 0.03)
            canvas.cover(hair, colour, gloss=rng.uniform(0.2, 1.2), lift_m=lift)
        if rng.random() < 0.1:
            cap = head & (self._mask["hair"] > rng.uniform(0.2, 0.5))
            canvas.cover(cap, to_linear(sample_cloth_rgb(rng)), gloss=0.3, lift_m=0.02)

    def _paint_socks_and_shoes(self, rng: np.random.Generator, canvas: _Canvas) -> None:
        feet, leg = self._mask["feet"] > 0.5, self._mask["leg"] > 0.5
        if rng.random() < 0.5:
            socks = feet | (leg & (self._mask["leg_coord"] > rng.uniform(0.75, 0.98)))
            canvas.cover(socks, to_linear(sample_cloth_rgb(rng)), gloss=0.15, lift_m=0.002)
        if rng.random() < 0.8:
            colour = to_linear(sample_cloth_rgb(rng))
            canvas.cover(feet, colour, gloss=rng.uniform(0.2, 1.5), lift_m=rng.uniform(0.002, 0.01))

    def _paint_trousers(self, rng: np.random.Generator, canvas: _Canvas) -> None:
        mask = self._mask
        length = rng.choice(_LEG_LENGTHS, p=_LEG_WEIGHTS)
        waist_y = self._crotch_y - rng.uniform(0.05, 0.2)
        lower = (mask["leg"] + mask["hip"] + mask["torso"] > 0.5) & (self._points[:, 1] > waist_y)
        worn = lower & (mask["leg_coord"] < length) & (mask["feet"] < 0.5) & (mask["arm"] < 0.5)
        cloth = _printed_cloth(rng, self._points, 0.06)
        canvas.cover(worn, cloth, gloss=0.2, lift_m=rng.uniform(0.001, 0.02))

    def _paint_shirt(self, rng: np.random.Generator, canvas: _Canvas) -> None:
        mask, height = self._mask, self._points[:, 1]
        sleeve = rng.choice(_SLEEVE_LENGTHS, p=_SLEEVE_WEIGHTS)
        hem_y = self._crotch_y + rng.uniform(-0.18, 0.1)
        collar_y = self._neck_y + rng.uniform(-0.05, 0.05)
        body = mask["torso"] + mask["hip"] + mask["arm"] + mask["leg"] > 0.4
        arms = (mask["arm"] < 0.5) | (mask["arm_coord"] < sleeve)
        free = (mask["head"] < 0.5) & (mask["hands"] < 0.5)
        worn = body & arms & free & (height < hem_y) & (height > collar_y)
        lift = rng.uniform(0.001, 0.025)
        cloth = _printed_cloth(rng, self._points, 0.06)
        canvas.cover(worn, cloth, gloss=0.2, lift_m=lift)
        self._paint_front(rng, canvas, worn & (mask["arm"] < 0.5), lift)

    def _paint_front(
        self, rng: np.random.Generator, canvas: _Canvas, torso: NDArray[np.bool_], lift_m: float
    ) -> None:
        """An open jacket, or a badge on the chest."""
        front = torso & (self._points[:, 2] < 0.0)
        across, height = self._points[:, 0], self._points[:, 1]
        kind = rng.random()
        if kind < 0.15:
            opening = front & (np.abs(across) < rng.uniform(0.01, 0.08))
            colour = to_linear(sample_cloth_rgb(rng))
            canvas.cover(opening, colour, gloss=0.2, lift_m=lift_m * 0.5)
        elif kind < 0.35:
            centre_y = self._neck_y + rng.uniform(0.12, 0.3)
            wide, tall = rng.uniform(0.03, 0.12, 2)
            badge = front & ((across / wide) ** 4 + ((height - centre_y) / tall) ** 4 < 1)
            colour = to_linear(sample_cloth_rgb(rng))
            canvas.cover(badge, colour, gloss=0.2, lift_m=lift_m)


class _FaceMap:
    """Eyes, brows, lips, ears and jaw, placed by the eyeballs of the template."""

    def __init__(self, points: Array, mask: dict[str, Array]) -> None:
        eyes = mask["eyes"] > 0.5
        left = points[eyes & (points[:, 0] > 0)].mean(0)
        offset = (points - left) * np.where(points[:, :1] < 0, [[-1, 1, 1]], [[1, 1, 1]])
        offset[:, 0] = np.abs(points[:, 0]) - left[0]
        head = (mask["head"] > 0.5) & ~eyes
        front = head & (points[:, 2] < left[2] + 0.012)
        centre = np.abs(points[:, 0])
        self.eyes = eyes
        self.iris = eyes & (np.hypot(offset[:, 0], offset[:, 1]) < 0.0062)
        self.brow = front & _inside(offset[:, 0], offset[:, 1] + 0.021, 0.021, 0.0045)
        self.lips = front & _inside(centre, offset[:, 1] - 0.071, 0.026, 0.009)
        beside = head & (offset[:, 1] > -0.02) & (offset[:, 1] < 0.055)
        self.ears = beside & (centre > centre[beside].max() - 0.018)
        self.jaw = front & (offset[:, 1] > 0.045) & ~self.lips

    def paint(
        self, rng: np.random.Generator, canvas: _Canvas, skin_rgb: NDArray[np.floating]
    ) -> None:
        """Lay eyes, brows, lips and perhaps a beard on the skin."""
        hair = sample_hair_rgb(rng)
        white = np.full(3, rng.uniform(0.6, 0.85))
        canvas.cover(self.eyes, white, gloss=1.5, lift_m=0.0)
        iris = to_linear(rng.uniform(0.05, 0.45) * np.array([1.0, 0.85, 0.75]))
        canvas.cover(self.iris, iris, gloss=1.5, lift_m=0.0)
        canvas.blend(self.brow.astype(np.float32) * 0.8, to_linear(hair))
        lips = to_linear(skin_rgb * np.array([0.95, 0.66, 0.66]) * rng.uniform(0.7, 1.1))
        canvas.blend(self.lips.astype(np.float32) * np.float32(rng.uniform(0.3, 1.0)), lips)
        if rng.random() < 0.15:
            density = np.float32(rng.uniform(0.3, 0.95))
            canvas.blend(self.jaw.astype(np.float32) * density, to_linear(hair))


def _inside(x: Array, y: Array, half_width: float, half_height: float) -> NDArray[np.bool_]:
    return (x / half_width) ** 2 + (y / half_height) ** 2 < 1.0


def _numpy(values: object) -> Array:
    return np.asarray(values, dtype=np.float32)
