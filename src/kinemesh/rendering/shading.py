"""Shaded pictures of meshes: rasteriser, shadow map, texture and light put together.

Frames: vertices and lights in the camera frame (x right, y down, z forward, metres); textures live
in the rest frame of the mesh. Colours are linear; :mod:`kinemesh.rendering.color` encodes them.

Legend: B images, V vertices, F faces, H height, W width, K waves, N visible pixels (planar: C, N).
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from kinemesh.errors import InputError
from kinemesh.rendering.lighting import Lighting, SurfaceNoise, surface_color, unit_planar
from kinemesh.rendering.rasterizer import (
    Fragments,
    Surface,
    blend_corners,
    images_per_pass,
    project_points,
    rasterize,
    vertex_normals,
    visible_surface,
)
from kinemesh.rendering.shadow import ShadowMap

# Vectorised loops round sines and exponentials of left-over elements differently. Whole vectors
# make the colours of an image independent of the rest of its batch, to the last bit.
_LANES = 64


@dataclass(frozen=True)
class Rendering:
    """Pictures of B scenes.

    Attributes:
        rgba: (B, H, W, 4) linear colour premultiplied by coverage, and the coverage in [0, 1].
        depth: (B, H, W) metres of the nearest surface in the pixel, infinite where it is empty.
        normals: (B, H, W, 3) its unit normal without texture, camera frame, 0 where it is empty.
        face: (B, H, W) int64 its face, -1 where it is empty.
    """

    rgba: Tensor
    depth: Tensor
    normals: Tensor
    face: Tensor


@torch.no_grad()
def shade(
    vertices: Tensor,
    faces: Tensor,
    focal_px: Tensor,
    principal_px: Tensor,
    height: int,
    width: int,
    albedo: Tensor,
    rest: Tensor,
    lighting: Lighting,
    noise: SurfaceNoise | None = None,
    supersample: int = 1,
    shadow_resolution: int = 128,
    shadow_bias: float | None = None,
    cull: bool = True,
) -> Rendering:
    """Render meshes with light, shadow and texture.

    With one CPU thread an image is the same, to the last bit, whatever else is in its batch.

    Args:
        vertices: (B, V, 3) metres, camera frame.
        faces: (F, 3) int64, shared by the batch.
        focal_px: (B,) focal length in pixels.
        principal_px: (B, 2) principal point in pixels.
        height: Rows of the picture.
        width: Columns of the picture.
        albedo: (B, V, 4) linear RGB and the scale of the highlight.
        rest: (V, 3) or (B, V, 3) rest-frame position of each vertex, metres; where ``noise`` lives.
        lighting: Lights of the B scenes.
        noise: Texture of the B surfaces.
        supersample: Samples per pixel along each axis.
        shadow_resolution: Texels along each side of the sun's shadow map; 0 for no shadows.
        shadow_bias: Metres that the surface is lifted before its shadow is looked up, against false
            shadows of a surface on itself. By default 1.5 texels of the shadow map.
        cull: Leave out faces seen from behind. Set it to False for open meshes whose inside shows.

    Raises:
        InputError: A shape does not fit.
    """
    _check(vertices, albedo, rest, lighting, noise, supersample)
    rest = rest.expand(vertices.shape[0], -1, -1)
    size = (height * supersample, width * supersample)
    step = images_per_pass(faces.shape[0], size[0] * size[1], vertices.device)
    passes = []
    for first in range(0, vertices.shape[0], step):
        part = slice(first, first + step)
        points = project_points(
            vertices[part], focal_px[part] * supersample, principal_px[part] * supersample
        )
        fragments = rasterize(points, faces, *size, cull=cull)
        normals = vertex_normals(vertices[part], faces)
        shadow = None
        if shadow_resolution > 0:
            sun = lighting.sun_direction[part]
            shadow = ShadowMap.cast(
                vertices[part], normals, faces, sun, shadow_resolution, shadow_bias, cull
            )
        scene = _Scene(
            faces, normals, albedo[part], rest[part], lighting[part], noise and noise[part], shadow
        )
        rendering = _shade_pixels(fragments, scene, focal_px[part], principal_px[part], supersample)
        passes.append(_reduce(rendering, supersample))
    return _join(passes)


@dataclass(frozen=True)
class _Scene:
    """What one pass shades: vertex attributes (B, V, C) and the settings of its images."""

    faces: Tensor
    normals: Tensor
    albedo: Tensor
    rest: Tensor
    lighting: Lighting
    noise: SurfaceNoise | None
    shadow: ShadowMap | None


def _check(
    vertices: Tensor,
    albedo: Tensor,
    rest: Tensor,
    lighting: Lighting,
    noise: SurfaceNoise | None,
    supersample: int,
) -> None:
    if vertices.ndim != 3 or albedo.shape != (*vertices.shape[:2], 4):
        raise InputError(
            f"albedo: expected (B, V, 4) for vertices (B, V, 3), found {tuple(albedo.shape)} for "
            f"{tuple(vertices.shape)}. Give linear RGB and a highlight scale for every vertex."
        )
    if rest.shape[-2:] != vertices.shape[1:]:
        raise InputError(
            f"rest: expected (V, 3) or (B, V, 3) with V = {vertices.shape[1]}, found "
            f"{tuple(rest.shape)}. Give the template's vertices."
        )
    settings = {"lighting": lighting.sky}
    if noise is not None:
        settings["noise"] = noise.phase
    for name, setting in settings.items():
        if setting.shape[0] != vertices.shape[0]:
            raise InputError(
                f"{name}: expected settings for {vertices.shape[0]} images, found "
                f"{setting.shape[0]}. Give one row an image."
            )
    if supersample < 1:
        raise InputError(f"supersample: expected at least 1, found {supersample}.")


def _shade_pixels(
    fragments: Fragments,
    scene: _Scene,
    focal_px: Tensor,
    principal_px: Tensor,
    supersample: int,
) -> Rendering:
    visible = visible_surface(fragments, scene.faces).padded(_LANES)
    image = visible.image
    parts = [scene.normals, scene.albedo, scene.rest]
    if scene.shadow is not None:
        parts.append(scene.shadow.receivers)
    surface = blend_corners(torch.cat(parts, dim=-1), visible).t().contiguous()
    light = {
        field.name: _at_pixels(getattr(scene.lighting, field.name), image)
        for field in fields(scene.lighting)
    }
    smooth = unit_planar(surface[0:3])
    normal, albedo = smooth, surface[3:7]
    if scene.noise is not None:
        normal, albedo = _texture(scene.noise, image, surface[7:10], normal, albedo, light["bump"])
    sunlit = torch.ones_like(surface[:1])
    if scene.shadow is not None:
        sunlit = 1 - light["shadow"] * scene.shadow.occlusion(image, surface[10:13])
    view = _towards_viewer(visible, fragments, focal_px, principal_px, supersample)
    color = surface_color(normal, view, albedo, sunlit, light)
    rgba = torch.cat([color, torch.ones_like(color[:1])])
    shape = fragments.face.shape
    return Rendering(
        _to_picture(rgba, visible.pixel, shape),
        fragments.depth,
        _to_picture(smooth, visible.pixel, shape),
        fragments.face,
    )


def _towards_viewer(
    visible: Surface, fragments: Fragments, focal_px: Tensor, principal_px: Tensor, factor: int
) -> Tensor:
    """(3, N) unit vectors from the visible points to the camera."""
    _, height, width = fragments.face.shape
    line = visible.pixel.div(width, rounding_mode="floor")
    column, row = visible.pixel - line * width, line - visible.image * height
    plane = (torch.stack([column, row]) + 0.5) / factor
    towards = (_at_pixels(principal_px, visible.image) - plane) / _at_pixels(
        focal_px, visible.image
    )
    return unit_planar(torch.cat([towards, -torch.ones_like(towards[:1])]))


def _to_picture(values: Tensor, pixel: Tensor, shape: torch.Size) -> Tensor:
    """Planar values (C, N) at flat pixels as a picture (B, H, W, C)."""
    picture = values.new_zeros((shape.numel(), values.shape[0]))
    return picture.index_copy_(0, pixel, values.t()).view(*shape, values.shape[0])


def _at_pixels(setting: Tensor, image: Tensor) -> Tensor:
    """Settings (B,) or (B, C) of each pixel's image, planar: (C, N), or (C, 1) if B is 1."""
    planar = setting.reshape(setting.shape[0], -1).t().contiguous()
    return planar if planar.shape[1] == 1 else planar.index_select(1, image)


def _texture(
    noise: SurfaceNoise,
    image: Tensor,
    rest: Tensor,
    normal: Tensor,
    albedo: Tensor,
    bump: Tensor,
) -> tuple[Tensor, Tensor]:
    """Change normal and albedo by the waves at the rest position (3, N)."""
    waves = noise.phase.shape[1]
    frequency = (_at_pixels(noise.frequency[..., axis], image) for axis in range(3))
    phase = _at_pixels(noise.phase, image)
    phase = sum((f * x for f, x in zip(frequency, rest, strict=True)), start=phase)
    sine = phase.sin()
    change = [
        (_at_pixels(noise.amplitude[..., channel], image) * sine).sum(0) for channel in range(3)
    ]
    albedo = torch.cat([albedo[:3] * (1 + torch.stack(change)).clamp_(min=0), albedo[3:]])
    bumpy = noise.relief.shape[1]
    if bumpy == 0:
        return normal, albedo
    direction = torch.nn.functional.normalize(noise.frequency[:, waves - bumpy :], dim=-1)
    slope = phase[waves - bumpy :].cos()
    tilt = [
        (_at_pixels(direction[..., axis] * noise.relief, image) * slope).sum(0) for axis in range(3)
    ]
    return unit_planar(normal + bump * torch.stack(tilt)), albedo


def _reduce(rendering: Rendering, factor: int) -> Rendering:
    """Average colour over blocks of samples; take the rest from the nearest sample of a block."""
    if factor == 1:
        return rendering
    rgba = torch.nn.functional.avg_pool2d(rendering.rgba.permute(0, 3, 1, 2), factor)
    batch, height, width = rendering.depth.shape
    shape = (batch, height // factor, factor, width // factor, factor)
    order = (0, 1, 3, 2, 4)
    depth = rendering.depth.view(shape).permute(order).flatten(3)
    depth, nearest = depth.min(dim=-1, keepdim=True)
    face = rendering.face.view(shape).permute(order).flatten(3).gather(-1, nearest)[..., 0]
    normals = rendering.normals.view(*shape, 3).permute(*order, 5).flatten(3, 4)
    normals = normals.gather(3, nearest[..., None].expand(-1, -1, -1, -1, 3))[..., 0, :]
    return Rendering(rgba.permute(0, 2, 3, 1).contiguous(), depth[..., 0], normals, face)


def _join(passes: list[Rendering]) -> Rendering:
    if len(passes) == 1:
        return passes[0]
    return Rendering(
        *(torch.cat([getattr(p, field.name) for p in passes]) for field in fields(Rendering))
    )
