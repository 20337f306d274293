"""Light and surface texture of a rendered scene, and the formula that turns them into colour.

The model is a small empirical one: a hemisphere sky (ground colour below, sky colour above), two
directional lights with wrapped Lambert diffuse, and a Blinn-Phong highlight of the first light, the
sun. All colours are linear, not gamma-encoded.

Legend: B images, K waves, R waves with relief, N pixels. Inside the formula tensors are planar,
(C, N), and a light that is shared by all pixels is (C, 1).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor


class _Batched:
    """Shared moves of the dataclasses below, whose fields all start with the batch axis."""

    def __getitem__(self, images: slice | Tensor) -> Self:
        """The same settings for some of the images."""
        return self._map(lambda x: x[images])

    def to(self, device: torch.device | str) -> Self:
        """A copy on ``device``."""
        return self._map(lambda x: x.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {f.name: change(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]
        return type(self)(**values)


@dataclass(frozen=True)
class Lighting(_Batched):
    """Light of B scenes, camera frame, linear colour.

    Attributes:
        sky: (B, 3) light from straight above.
        ground: (B, 3) light from straight below.
        up: (B, 3) unit vector towards the sky; upright cameras have (0, -1, 0).
        sun_direction: (B, 3) unit vector from the surface towards the sun, which casts shadows.
        sun_color: (B, 3) strength of the sun.
        fill_direction: (B, 3) unit vector towards the second light, which casts no shadow.
        fill_color: (B, 3) strength of the second light.
        specular: (B,) strength of the sun's highlight, multiplied by the albedo's fourth channel.
        gloss: (B,) exponent of the highlight; larger is smaller and sharper.
        wrap: (B,) in [0, 1]: how far diffuse light reaches around the terminator.
        shadow: (B,) in [0, 1]: part of the sun that a shadow takes away.
        bump: (B,) scale of the normal tilt by :class:`SurfaceNoise`.
    """

    sky: Tensor
    ground: Tensor
    up: Tensor
    sun_direction: Tensor
    sun_color: Tensor
    fill_direction: Tensor
    fill_color: Tensor
    specular: Tensor
    gloss: Tensor
    wrap: Tensor
    shadow: Tensor
    bump: Tensor

    @classmethod
    def studio(cls, batch: int = 1, device: torch.device | str = "cpu") -> "Lighting":
        """Soft light from the upper left in front, a weaker one from the right."""

        def rows(*values: float) -> Tensor:
            return torch.tensor(values, device=device).expand(batch, -1).clone()

        def unit(*values: float) -> Tensor:
            return torch.nn.functional.normalize(rows(*values), dim=-1)

        return cls(
            sky=rows(0.46, 0.48, 0.52),
            ground=rows(0.16, 0.15, 0.15),
            up=rows(0.0, -1.0, 0.0),
            sun_direction=unit(-0.45, -0.6, -0.75),
            sun_color=rows(0.80, 0.78, 0.75),
            fill_direction=unit(0.9, -0.1, -0.35),
            fill_color=rows(0.16, 0.17, 0.20),
            specular=rows(0.12)[:, 0],
            gloss=rows(24.0)[:, 0],
            wrap=rows(0.3)[:, 0],
            shadow=rows(0.45)[:, 0],
            bump=rows(0.0)[:, 0],
        )


@dataclass(frozen=True)
class SurfaceNoise(_Batched):
    """A solid texture: sine waves in the rest frame, so that it moves with the body.

    Wave k adds ``amplitude[k] * sin(frequency[k] . x + phase[k])`` to the factor of the albedo. The
    last R waves also tilt the normal along their wave vector. The tilt is taken in
    camera axes: it gives the look of a rough surface, not the shading of a given relief.

    Attributes:
        frequency: (B, K, 3) wave vectors in radians per metre of the rest frame.
        phase: (B, K) radians.
        amplitude: (B, K, 3) relative change of red, green and blue.
        relief: (B, R) tilt of the normal by the last R waves (R <= K), scaled by ``Lighting.bump``.
    """

    frequency: Tensor
    phase: Tensor
    amplitude: Tensor
    relief: Tensor


def surface_color(
    normal: Tensor, view: Tensor, albedo: Tensor, sunlit: Tensor, light: dict[str, Tensor]
) -> Tensor:
    """Reflected light, the formula of this module.

    With n the normal, v the direction to the viewer, l a light's direction and h the unit half
    vector of l and v: diffuse(l) = max(n.l + wrap, 0) / (1 + wrap) and

    colour = albedo * (ground + (sky - ground) * (1 + n.up) / 2
    + sun * sunlit * diffuse(l_sun) + fill * diffuse(l_fill))
    + sun * sunlit * specular * max(n.h, 0)^gloss.

    Args:
        normal: (3, N) unit, camera frame.
        view: (3, N) unit, from the surface to the viewer.
        albedo: (4, N) linear RGB and the scale of the highlight.
        sunlit: (N,) part of the sun that reaches the surface.
        light: Fields of :class:`Lighting` as (C, N) or (C, 1) tensors.

    Returns:
        (3, N) linear RGB.
    """
    wrap = light["wrap"]
    sun = dot(normal, light["sun_direction"]).add_(wrap).clamp_(min=0).mul_(sunlit / (1 + wrap))
    fill = dot(normal, light["fill_direction"]).add_(wrap).clamp_(min=0).div_(1 + wrap)
    height = dot(normal, light["up"]).mul_(0.5).add_(0.5)
    received = light["ground"] + (light["sky"] - light["ground"]) * height
    received += light["sun_color"] * sun
    received += light["fill_color"] * fill
    half = unit_planar(light["sun_direction"] + view)
    # x**g as exp(g log x): much cheaper than a power with a tensor exponent.
    shine = dot(normal, half).clamp_(min=1e-6).log_().mul_(light["gloss"]).exp_()
    shine *= light["specular"] * albedo[3:] * sunlit
    return albedo[:3] * received + light["sun_color"] * shine


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot product (1, N) of planar vectors (3, N)."""
    return a[0:1] * b[0:1] + a[1:2] * b[1:2] + a[2:3] * b[2:3]


def unit_planar(vector: Tensor) -> Tensor:
    """Planar vectors (3, N) scaled to length 1."""
    return vector * (dot(vector, vector) + 1e-20).rsqrt_()
