"""One synthetic scene: who, in which pose, from where, under which light, and the picture of it.

The parts are drawn in a fixed order from the generator of the sample: pose and shape, look, view,
light, surface, and, after the subject has been rendered, background, occluders and the camera's
defects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinemesh.bodies import Rig, Topology, load_rig, load_topology
from kinemesh.bodies.topology import Kind
from kinemesh.data.synthetic.appearance import Appearance, BodyPainter, HandPainter, Painter
from kinemesh.data.synthetic.backgrounds import sample_background
from kinemesh.data.synthetic.body_poses import sample_body_pose
from kinemesh.data.synthetic.cameras import (
    BodyFramer,
    View,
    sample_body_rotation,
    sample_hand_view,
)
from kinemesh.data.synthetic.degradation import degrade, develop
from kinemesh.data.synthetic.hand_poses import sample_hand_pose
from kinemesh.data.synthetic.occluders import cover, sample_occluders
from kinemesh.rendering import Lighting, Rendering, SurfaceNoise, shade, vertex_normals

Array = NDArray[np.float32]

OVERSAMPLING = 1.5  # side of the rendered picture over that of the crop: smooth outlines
_WAVES, _RELIEF_WAVES = 10, 6
_SHADOW_TEXELS = {"hand": 96, "body": 128}
# Shortest and longest wave of skin and cloth, metres: colour mottling, then relief.
_WAVELENGTHS_M = {"hand": ((0.04, 0.4), (0.004, 0.03)), "body": ((0.1, 0.8), (0.012, 0.15))}
SRGB_TO_LINEAR = ((np.arange(256) / 255.0) ** 2.2).astype(np.float32)
"""(256,) linear light of each level of a picture."""


@dataclass(frozen=True)
class Scene:
    """Everything that the renderer needs to know of one sample, and the labels.

    Attributes:
        vertices: (V, 3) float32 rig vertices without clothes, camera frame, metres.
        labels: (Vt, 3) float32 topology vertices, camera frame, metres.
        joints: (J, 3) float32, camera frame, metres.
        root: (3,) float32, the root joint, camera frame, metres.
        view: the camera.
        look: colours and clothes.
        light: fields of :class:`kinemesh.rendering.Lighting`, one row each.
        noise: fields of :class:`kinemesh.rendering.SurfaceNoise`, one row each.
    """

    vertices: Array
    labels: Array
    joints: Array
    root: Array
    view: View
    look: Appearance
    light: dict[str, Array]
    noise: dict[str, Array]


@dataclass(frozen=True)
class Subject:
    """Somebody who has not been placed before a camera yet; all points in the rest frame, metres.

    Attributes:
        vertices: (V, 3) float32 rig vertices without clothes.
        labels: (Vt, 3) float32 topology vertices.
        joints: (J, 3) float32.
        root: (3,) float32, the root joint.
        look: colours and clothes.
        age: Anny's phenotype: 1/3 is a child, 2/3 a young adult, 1 an old one.
    """

    vertices: Array
    labels: Array
    joints: Array
    root: Array
    look: Appearance
    age: float


@dataclass(frozen=True)
class Stage:
    """What all samples of one kind share; made once in each process by :func:`load_stage`."""

    kind: Kind
    rig: Rig
    topology: Topology
    painter: Painter
    framer: BodyFramer | None

    def sample(self, rng: np.random.Generator, resolution: int) -> Scene:
        """Draw a scene for a crop of side ``resolution`` pixels."""
        subject = self.draw_subject(rng)
        vertices, joints = subject.vertices, subject.joints
        view = self._view(rng, vertices, joints, resolution)
        return Scene(
            vertices=view.place(vertices),
            labels=view.place(subject.labels),
            joints=view.place(joints),
            root=view.place(subject.root),
            view=view,
            look=subject.look,
            light=sample_light(rng),
            noise=sample_noise(rng, self.kind),
        )

    def draw_subject(self, rng: np.random.Generator) -> "Subject":
        """Draw somebody, in a pose, and how they look."""
        draw_pose = sample_hand_pose if self.kind == "hand" else sample_body_pose
        rotations = torch.as_tensor(draw_pose(rng, self.rig), dtype=torch.float32)
        mix = self.rig.sample_mix(rng)
        shape = mix.of(self.rig.shape_bank)
        # One subject at a time: products over a batch would round differently for each batch size.
        posed = self.rig.pose(rotations[None], shape[None])
        labels = self.rig.topology_vertices(posed)
        joints_BJ3 = self.topology.joints(labels)
        return Subject(
            vertices=posed.vertices[0].numpy(),
            labels=labels[0].numpy(),
            joints=joints_BJ3[0].numpy(),
            root=self.topology.root(joints_BJ3)[0, 0].numpy(),
            look=self.painter.paint(rng),
            age=self.rig.phenotype("age", mix),
        )

    def render(self, scenes: list[Scene], resolution: int) -> tuple[Array, Array]:
        """Render subjects without background.

        Returns:
            (B, S, S, 4) float32 linear colour premultiplied by coverage, and (B, S, S) depth in
            metres relative to the root joint, infinite beside the subject.
        """
        size = round(resolution * OVERSAMPLING)
        focal = [scene.view.focal_px * size / resolution for scene in scenes]
        looks = [scene.look for scene in scenes]
        rendering = self.shade(
            self.dress(np.stack([scene.vertices for scene in scenes]), looks),
            looks,
            focal_px=torch.tensor(focal),
            principal_px=torch.full((len(scenes), 2), size / 2),
            size=(size, size),
            light=[scene.light for scene in scenes],
            noise=[scene.noise for scene in scenes],
        )
        crop = (resolution, resolution)
        rgba = [cv2.resize(x, crop, interpolation=cv2.INTER_AREA) for x in rendering.rgba.numpy()]
        depth = [
            cv2.resize(x, crop, interpolation=cv2.INTER_NEAREST) - scene.root[2]
            for x, scene in zip(rendering.depth.numpy(), scenes, strict=True)
        ]
        return np.stack(rgba), np.stack(depth)

    def dress(self, vertices: Array, looks: list[Appearance]) -> Tensor:
        """Vertices (B, V, 3) lifted by the clothes and hair of as many looks."""
        naked = torch.from_numpy(vertices)
        lift = torch.from_numpy(np.stack([look.inflation_m for look in looks]))
        if not bool(lift.any()):
            return naked
        return naked + lift[..., None] * vertex_normals(naked, self.rig.faces)

    def shade(
        self,
        vertices: Tensor,
        looks: list[Appearance],
        *,
        focal_px: Tensor,
        principal_px: Tensor,
        size: tuple[int, int],
        light: list[dict[str, Array]],
        noise: list[dict[str, Array]],
    ) -> Rendering:
        """Render dressed subjects.

        Args:
            vertices: (B, V, 3) camera frame, metres, from `dress`.
            looks: How the B subjects look.
            focal_px: (B,) pixels.
            principal_px: (B, 2) pixels.
            size: Width and height of the pictures.
            light: From `sample_light`, for each.
            noise: From `sample_noise`, for each.
        """
        albedo = [np.column_stack([look.albedo, look.gloss]) for look in looks]
        return shade(
            vertices,
            self.rig.faces,
            focal_px=focal_px,
            principal_px=principal_px,
            height=size[1],
            width=size[0],
            albedo=torch.from_numpy(np.stack(albedo)),
            rest=self.rig.template,
            lighting=Lighting(**_stack(light)),
            noise=SurfaceNoise(**_stack(noise)),
            shadow_resolution=_SHADOW_TEXELS[self.kind],
            cull=self.kind == "body",
        )

    def _view(
        self, rng: np.random.Generator, vertices: Array, joints: Array, resolution: int
    ) -> View:
        if self.framer is None:
            return sample_hand_view(rng, joints, vertices, resolution)
        return self.framer.sample(rng, vertices, sample_body_rotation(rng), resolution)


@cache
def load_stage(kind: Kind) -> Stage:
    """Load rig and topology of a kind and prepare its painter; kept for the life of the process."""
    rig, topology = load_rig(f"anny-{kind}"), load_topology(f"anny-{kind}")
    if kind == "hand":
        return Stage(kind, rig, topology, HandPainter(rig), None)
    heights = {
        "neck": float(rig.bone_template[rig.bone_index("neck01"), 1]),
        "hip": float(rig.bone_template[rig.bone_index("upperleg01.L"), 1]),
    }
    framer = BodyFramer(rig.template.numpy(), heights, rig.masks["arm"].numpy())
    return Stage(kind, rig, topology, BodyPainter(rig), framer)


def compose(
    rng: np.random.Generator,
    rgba: Array,
    depth_m: Array,
    kind: Kind,
    *,
    behind: Sequence[Array] = (),
    before: Sequence[Array] = (),
    border: NDArray[np.int64] | None = None,
) -> Array:
    """Put a rendered subject before a background, add occluders and the camera's defects.

    Args:
        rng: The only source of chance.
        rgba: (S, S, 4) float32 linear colour premultiplied by coverage.
        depth_m: (S, S) float32, relative to the root joint, infinite beside the subject.
        kind: "hand" or "body".
        behind: Others behind the subject, as ``rgba``.
        before: Others before it.
        border: (4,) first column and row, last column and row of the photo, whose outermost pixels
            are repeated beyond them; the whole crop is photo if None.

    Returns:
        (S, S, 3) float32 sRGB in [0, 1].
    """
    size = len(rgba)
    background = SRGB_TO_LINEAR[sample_background(rng, size)]
    background = background * np.float32(np.exp(rng.normal(0.0, 0.3)))
    linear = background
    for layer in (*behind, rgba):
        linear = layer[..., :3] + linear * (1 - layer[..., 3:])
    for occluder in sample_occluders(rng, size, kind):
        linear = cover(linear, depth_m, occluder)
    for layer in before:
        linear = layer[..., :3] + linear * (1 - layer[..., 3:])
    image = degrade(rng, develop(rng, linear))
    return image if border is None else _repeat_outermost(image, border)


def _repeat_outermost(image: Array, border: NDArray[np.int64]) -> Array:
    columns, rows = (np.arange(len(image)).clip(border[i], border[i + 2]) for i in (0, 1))
    return np.ascontiguousarray(image[rows][:, columns])


def sample_light(rng: np.random.Generator) -> dict[str, Array]:
    """Draw sky, sun and fill light; fields of :class:`kinemesh.rendering.Lighting`."""
    energy = np.exp(rng.normal(0.0, 0.3))
    ambient = rng.uniform(0.25, 0.8)
    sun = _unit(rng.normal(size=3) * [1.0, 1.0, 0.8] + [0.0, -0.6, -0.7])
    draws: dict[str, object] = {
        "sky": energy * ambient * _tint(rng, 0.08),
        "ground": energy * ambient * rng.uniform(0.25, 0.9) * _tint(rng, 0.1),
        "up": _unit(np.array([0.0, -1.0, 0.0]) + 0.4 * rng.normal(size=3)),
        "sun_direction": sun,
        "sun_color": energy * (1.15 - ambient) * 1.5 * _tint(rng, 0.1),
        "fill_direction": _unit(rng.normal(size=3)),
        "fill_color": energy * rng.uniform(0.0, 0.45) * _tint(rng, 0.15),
        "specular": rng.uniform(0.0, 0.12) if rng.random() < 0.85 else rng.uniform(0.12, 0.35),
        "gloss": rng.uniform(5.0, 50.0),
        "wrap": rng.uniform(0.05, 0.45),
        "shadow": rng.uniform(0.3, 1.0),
        "bump": rng.uniform(0.0, 1.0),
    }
    return {name: np.asarray(value, dtype=np.float32) for name, value in draws.items()}


def sample_noise(rng: np.random.Generator, kind: Kind) -> dict[str, Array]:
    """Draw the mottling and relief of skin and cloth; fields of ``rendering.SurfaceNoise``."""
    coarse, fine = _WAVELENGTHS_M[kind]
    low, high = np.array([coarse] * (_WAVES - _RELIEF_WAVES) + [fine] * _RELIEF_WAVES).T
    length = np.exp(rng.uniform(np.log(low), np.log(high)))
    direction = rng.normal(size=(_WAVES, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    strength = np.where(np.arange(_WAVES) < _WAVES - _RELIEF_WAVES, 0.05, 0.025)
    amplitude = rng.uniform(0, 1, (_WAVES, 1)) * strength[:, None] * rng.normal(1, 0.3, (_WAVES, 3))
    fields = {
        "frequency": direction * (2 * np.pi / length)[:, None],
        "phase": rng.uniform(0, 2 * np.pi, _WAVES),
        "amplitude": amplitude,
        "relief": rng.uniform(0.0, 0.12, _RELIEF_WAVES),
    }
    return {name: value.astype(np.float32) for name, value in fields.items()}


def _stack(rows: list[dict[str, Array]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def _tint(rng: np.random.Generator, spread: float) -> NDArray[np.floating]:
    """Near-white light: mostly between warm and cool, a little of any hue."""
    warmth = rng.normal(0, spread) * np.array([1.0, 0.1, -1.0])
    return np.clip(1.0 + warmth + rng.normal(0, spread / 3, 3), 0.5, 1.5)


def _unit(vector: NDArray[np.floating]) -> NDArray[np.floating]:
    return vector / np.linalg.norm(vector)
