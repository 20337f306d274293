"""Shadow map of a directional light: the mesh's depth as the light sees it.

Legend: B images, V vertices, S side of the map in texels, N visible pixels (planar: C, N).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kinemesh.rendering.rasterizer import rasterize_depth

_BORDER = 4.0  # texels around the mesh, so that lifted and filtered look-ups stay inside the map


@dataclass(frozen=True)
class ShadowMap:
    """Depth maps of B scenes seen from the light.

    Attributes:
        depth: (B, S, S) metres along the light's rays, infinite where a ray misses the mesh.
        receivers: (B, V, 3) x and y in texels and depth in metres of the vertices, lifted from
            the surface; blended over a visible pixel they say where to look it up.
    """

    depth: Tensor
    receivers: Tensor

    @classmethod
    def cast(
        cls,
        vertices: Tensor,
        normals: Tensor,
        faces: Tensor,
        towards_light: Tensor,
        resolution: int,
        bias: float | None = None,
        cull: bool = False,
    ) -> "ShadowMap":
        """Rasterise meshes from the light.

        Args:
            vertices: (B, V, 3) metres, camera frame.
            normals: (B, V, 3) unit vertex normals.
            faces: (F, 3) int64.
            towards_light: (B, 3) unit vector from the surface to the light.
            resolution: Texels along each side of the map.
            bias: Metres to lift the receivers along their normals; by default 1.5 texels.
            cull: Only faces that are turned to the light cast shadows: the same for closed meshes.
        """
        axes = _light_axes(towards_light)
        seen = _rotate(axes, vertices)
        low = seen.amin(dim=1, keepdim=True)
        extent = (seen.amax(dim=1, keepdim=True) - low)[..., :2].amax(-1, keepdim=True)
        texels_per_m = (resolution - 2 * _BORDER) / extent.clamp(min=1e-6)
        lift = 1.5 / texels_per_m if bias is None else bias
        lifted = _rotate(axes, vertices + normals * lift)
        to_map = (low, texels_per_m)
        points = _to_texels(seen, *to_map)
        depth = rasterize_depth(points, faces, resolution, resolution, cull=cull, orthographic=True)
        return cls(depth, _to_texels(lifted, *to_map))

    def occlusion(self, image: Tensor, receivers: Tensor) -> Tensor:
        """Part of the sun that is hidden, by percentage-closer filtering (Reeves et al., 1987).

        The 3 x 3 texels around the receiver are compared one by one; weights that change linearly
        with its position within the middle texel keep the border of the shadow free of steps.

        Args:
            image: (N,) int64 index of the map.
            receivers: (3, N) interpolated receivers.

        Returns:
            (1, N) in [0, 1].
        """
        side = self.depth.shape[-1]
        column, row = texel = receivers[:2].long().clamp_(1, side - 2)
        across, down = (receivers[:2] - texel).clamp_(0, 1)
        first = ((image * side + row) * side + column) - (side + 1)
        depth, flat = receivers[2], self.depth.view(-1)
        hidden = torch.zeros_like(depth)
        for y, weight_y in enumerate((1 - down, 1.0, down)):
            for x, weight_x in enumerate((1 - across, 1.0, across)):
                nearer = flat.index_select(0, first + (y * side + x)) < depth
                hidden += nearer * (weight_x * weight_y)
        return hidden[None] / 4


def _light_axes(towards_light: Tensor) -> Tensor:
    """(B, 3, 3) rows of a right-handed frame: two axes across the rays and the rays' direction."""
    x_axis, y_axis = torch.eye(3, device=towards_light.device)[:2]
    helper = torch.where(towards_light[:, 1:2].abs() < 0.9, y_axis, x_axis)
    across = normalize(torch.linalg.cross(helper, towards_light), dim=-1)
    return torch.stack([across, torch.linalg.cross(across, towards_light), -towards_light], dim=1)


def _rotate(axes: Tensor, vectors: Tensor) -> Tensor:
    return vectors @ axes.transpose(1, 2)


def _to_texels(seen: Tensor, low: Tensor, texels_per_m: Tensor) -> Tensor:
    # One metre is added because the rasteriser drops what is not in front of the viewer.
    plane = (seen[..., :2] - low[..., :2]) * texels_per_m + _BORDER
    return torch.cat([plane, seen[..., 2:] - low[..., 2:] + 1], dim=-1)
