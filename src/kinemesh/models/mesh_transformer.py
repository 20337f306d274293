"""What METRO and Mesh Graphormer share: template, up-sampling, camera and their order.

METRO (Lin, Wang and Liu, CVPR 2021) and Mesh Graphormer (ICCV 2021) turn joint and vertex queries
into positions by transformer blocks of shrinking width. Learned linear maps lift the coarse mesh
to the full one, and a linear stack reads a weak-perspective camera. They differ in their queries
and blocks alone. Module names equal those of the published checkpoints.

Shape legend: B batch, J joints, N coarse vertices, Q = J + N queries, T >= Q tokens, V vertices,
S image side.
"""

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.bert_block import BlockChain, BlockSizes
from kinemesh.models.query_tokens import QueryTokens

CameraTokens = Literal["vertices", "joints+vertices"]


@dataclass(frozen=True)
class MeshTransformerConfig(BlockSizes):
    """Sizes of a `MeshTransformer`; the other fields are those of `BlockSizes`.

    Attributes:
        joints: J.
        coarse_vertices: N, vertices of the mesh inside the transformer.
        upsampled: Vertices after each learned up-sampling, coarse to full.
        camera_tokens: Outputs that the camera is read from.
        camera_hidden: Width inside the camera head.

    Raises:
        InputError: ``camera_tokens`` is none of its two values.
    """

    joints: int
    coarse_vertices: int
    upsampled: tuple[int, ...]
    camera_tokens: CameraTokens
    camera_hidden: int

    def __post_init__(self) -> None:
        check_choice("camera_tokens", self.camera_tokens, get_args(CameraTokens))


class MeshOutput(NamedTuple):
    """What a mesh network predicts.

    Attributes:
        camera: (B,3) weak perspective (s, tx, ty): ``p = s (xy + t)`` in [-1, 1] over the crop.
        joints: (B,J,3) metres, x right, y down, z forward; as trained, about the root joint.
        vertices: One (B,V,3) for each level, coarse to full, in the frame of the joints.
        hidden: Empty, or the hidden states of the last block, see `BlockOutput`.
        attention: Empty, or the attention of the last block; queries first, joints before vertices.
    """

    camera: Tensor
    joints: Tensor
    vertices: tuple[Tensor, ...]
    hidden: tuple[Tensor, ...] = ()
    attention: tuple[Tensor, ...] = ()


class MeshTransformer(nn.Module, ABC):
    """A network from image to mesh by a chain of transformer blocks.

    Args:
        config: Sizes.
        backbone: Module that makes of an image what `tokens` of the subclass wants.
        template_joints: (J,3) joints of the template, metres, about its root.
        template_coarse: (N,3) coarse vertices of the template, same frame.
        encoder: The blocks.

    Raises:
        InputError: A tensor does not have the sizes of ``config``, or the blocks do not end in 3.
    """

    template: Tensor

    def __init__(
        self,
        config: MeshTransformerConfig,
        backbone: nn.Module,
        template_joints: Tensor,
        template_coarse: Tensor,
        encoder: BlockChain,
    ) -> None:
        super().__init__()
        check_shape("template_joints", template_joints, (config.joints, 3))
        check_shape("template_coarse", template_coarse, (config.coarse_vertices, 3))
        if config.out_dims[-1] != 3:
            raise InputError(f"out_dims: expected 3 as the last, found {config.out_dims}.")
        self.backbone = backbone
        # The template comes from the mesh, not from training: it stays out of the state dict. Its
        # embedding is not cached: it is one product for the whole batch (about 1 MMAC of 40,000 a
        # crop), and a cache would go stale whenever weights are loaded, moved or trained.
        template_Q3 = torch.cat([template_joints, template_coarse]).float()
        self.register_buffer("template", template_Q3, persistent=False)
        self.trans_encoder = encoder
        self._build_heads(config)

    def _build_heads(self, config: MeshTransformerConfig) -> None:
        sizes = (config.coarse_vertices, *config.upsampled)
        self._upsampling_names = []
        for stage, (coarse, fine) in enumerate(itertools.pairwise(sizes), start=1):
            name = "upsampling" if stage == 1 else f"upsampling{stage}"
            self.add_module(name, nn.Linear(coarse, fine))
            self._upsampling_names.append(name)
        self._joints = config.joints
        self._camera_start = config.joints if config.camera_tokens == "vertices" else 0
        camera_tokens = config.joints + config.coarse_vertices - self._camera_start
        self.cam_param_fc = nn.Linear(3, 1)
        self.cam_param_fc2 = nn.Linear(camera_tokens, config.camera_hidden)
        self.cam_param_fc3 = nn.Linear(config.camera_hidden, 3)

    @abstractmethod
    def tokens(self, image: Tensor, keep_mask: Tensor | None = None) -> QueryTokens:
        """Run the backbone and make the tokens of the first block; arguments as of `forward`."""

    def forward(
        self,
        image: Tensor,
        keep_mask: Tensor | None = None,
        return_attention: bool = False,
    ) -> MeshOutput:
        """Predict camera, joints and mesh.

        Args:
            image: (B,3,S,S), normalised as the backbone wants it.
            keep_mask: (B,Q,1), 1 where a query is kept and 0 where it is masked (masked vertex
                modelling, used in training); None keeps all.
            return_attention: Also return hidden states and attention of the last block.

        Raises:
            InputError: ``keep_mask`` has another shape, the backbone's map another size than the
                network wants, or there are more tokens than positions.
        """
        tokens = self.tokens(image, keep_mask)
        encoded = self.trans_encoder.encode(tokens, return_attention)
        queries_BQ3 = encoded.tokens[:, : len(self.template)]
        joints_BJ3 = queries_BQ3[:, : self._joints]
        vertices = self._upsample(queries_BQ3[:, self._joints :])
        camera_B3 = self._camera(queries_BQ3[:, self._camera_start :])
        return MeshOutput(camera_B3, joints_BJ3, vertices, encoded.hidden, encoded.attention)

    def _check_mask(self, keep_mask: Tensor | None, batch: int) -> None:
        if keep_mask is not None:
            check_shape("keep_mask", keep_mask, (batch, len(self.template), 1))

    def _upsample(self, coarse_BN3: Tensor) -> tuple[Tensor, ...]:
        """All levels, coarse to full; a map acts along the vertices, alike for x, y and z."""
        levels = [coarse_BN3]
        for name in self._upsampling_names:
            levels.append(self.get_submodule(name)(levels[-1].transpose(1, 2)).transpose(1, 2))
        return tuple(levels)

    def _camera(self, tokens_BN3: Tensor) -> Tensor:
        x_B1N = self.cam_param_fc(tokens_BN3).transpose(1, 2)
        camera_B13: Tensor = self.cam_param_fc3(self.cam_param_fc2(x_B1N))
        return camera_B13[:, 0]


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise an `InputError` that names the argument unless ``tensor`` has this shape."""
    if tuple(tensor.shape) != shape:
        raise InputError(f"{name}: expected shape {shape}, found {tuple(tensor.shape)}.")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise an `InputError` that names the argument unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise InputError(f"{name}: expected {' or '.join(map(repr, choices))}, found {value!r}.")


def check_channels(backbone: nn.Module, attribute: str, expected: int) -> None:
    """Raise an `InputError` if the backbone says that it has another number of channels."""
    found = getattr(backbone, attribute, None)
    if found not in {None, expected}:
        raise InputError(
            f"backbone: the configuration expects {attribute}={expected}, this backbone has "
            f"{found}; build the configuration with {attribute}={found}."
        )
