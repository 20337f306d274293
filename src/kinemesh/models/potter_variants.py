"""The registered networks of POTTER by name: hand, body and the two classifiers.

A variant states numbers. `describe_potter_variant` says the same in plain JSON, which a weight file
stores, and `build_potter_network` builds from that.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import nn

from kinemesh.errors import InputError
from kinemesh.models.hand_pose_networks import hand_pose_record
from kinemesh.models.joint_statistics import JointStatistics
from kinemesh.models.potter_body import potter_mesh_record
from kinemesh.models.potter_classifier import PotterClassifier, PotterClassifierConfig
from kinemesh.models.potter_hand import PotterHand, PotterHandConfig
from kinemesh.models.potter_mesh import PotterMesh, PotterMeshConfig

PotterConfig = PotterHandConfig | PotterMeshConfig | PotterClassifierConfig
PotterArchitecture = Literal["potter-hand", "potter-mesh", "potter-classifier"]

POTTER_CONFIGS: dict[PotterArchitecture, type[PotterConfig]] = {
    "potter-hand": PotterHandConfig,
    "potter-mesh": PotterMeshConfig,
    "potter-classifier": PotterClassifierConfig,
}
"""Configuration class of each architecture; also the families of official checkpoints."""
_NETWORKS: dict[PotterArchitecture, Any] = {
    "potter-hand": PotterHand,
    "potter-mesh": PotterMesh,
    "potter-classifier": PotterClassifier,
}
_TASKS: dict[PotterArchitecture, str] = {
    "potter-hand": "hand",
    "potter-mesh": "body",
    "potter-classifier": "classification",
}
_PAPER = (
    "POTTER: Zheng, Liu, Qi and Chen, Pooling Attention Transformer for Efficient Human Mesh "
    "Recovery, CVPR 2023"
)
_CLASSIFIER_SIDE = 224


@dataclass(frozen=True)
class PotterVariant:
    """A network by name, with the sizes it was published in.

    Attributes:
        name: For example "potter-hand".
        config: Sizes.
        parameters: Values in the parameters, the frozen ones included.
        gmac: 10^9 multiply-adds of the official code for one crop.
        published: Published scores with their protocol; nothing that was measured here.
    """

    name: str
    config: PotterConfig
    parameters: int
    gmac: float
    published: tuple[str, ...]

    @property
    def architecture(self) -> PotterArchitecture:
        """Key of `POTTER_CONFIGS`, and the family of official checkpoints that fit."""
        return potter_architecture_of(self.config)

    @property
    def resolution(self) -> int:
        """Side of the square input crop, pixels."""
        return side_of(self.config)

    def card(self) -> dict[str, Any]:
        """What a user should know before choosing it, for ``kinemesh models``."""
        return {
            "name": self.name,
            "task": _TASKS[self.architecture],
            "architecture": self.architecture,
            "paper": _PAPER,
            "resolution": self.resolution,
            "parameters": self.parameters,
            "gmac": self.gmac,
            "license": "Apache-2.0 (this code); weights keep the licence they came with",
            "published": "\n".join(self.published),
            "weights": "none shipped; train it, or convert your own: kinemesh convert FILE "
            f"--family {self.architecture}",
        }


_ALL = (
    PotterVariant(
        "potter-hand",
        PotterHandConfig(),
        14_572_363,
        5.233,
        (
            "Ego-Exo4D hand pose, test, trained on manual labels: MPJPE 32.71, PA-MPJPE 11.74 mm "
            "(published, not measured here)",
            "the same, on manual and automatic labels: MPJPE 32.02, PA-MPJPE 11.62 mm "
            "(published, not measured here)",
        ),
    ),
    PotterVariant(
        "potter-mesh",
        PotterMeshConfig(),
        16_295_291,
        7.794,
        (
            "Human3.6M P2: MPJPE 56.5, PA-MPJPE 35.1 mm (published, not measured here)",
            "3DPW: MPVE 87.4, MPJPE 75.0, PA-MPJPE 44.8 mm (published, not measured here)",
        ),
    ),
    PotterVariant(
        "potter-cls-s12",
        PotterClassifierConfig(),
        12_021_672,
        1.848,
        ("ImageNet-1k val: top-1 79.0 % (published, not measured here)",),
    ),
    PotterVariant(
        "potter-cls-s24",
        PotterClassifierConfig.s24(),
        21_601_960,
        3.464,
        ("ImageNet-1k val: top-1 81.4 % (published, not measured here)",),
    ),
)
POTTER_VARIANTS: dict[str, PotterVariant] = {variant.name: variant for variant in _ALL}
"""Every registered network by name."""


def get_potter_variant(name: str) -> PotterVariant:
    """The registered variant of this name.

    Raises:
        InputError: There is none; the message lists them.
    """
    if name not in POTTER_VARIANTS:
        raise InputError(
            f"There is no variant {name!r}; expected one of {', '.join(POTTER_VARIANTS)}."
        )
    return POTTER_VARIANTS[name]


def potter_variant_of(config: PotterConfig) -> str | None:
    """Name of the registered variant with these sizes, None if there is none.

    Dropout changes nothing in the tensors, and a depth may be written out or left to the side.
    """
    return next((v.name for v in _ALL if _sizes(v.config) == _sizes(config)), None)


def _sizes(config: PotterConfig) -> dict[str, Any]:
    sizes = {"": potter_architecture_of(config), **asdict(config)}
    if not isinstance(config, PotterClassifierConfig):
        sizes["depth"] = config.depth_cells
    return {name: value for name, value in sizes.items() if "drop" not in name}


def potter_architecture_of(config: PotterConfig) -> PotterArchitecture:
    """Key of `POTTER_CONFIGS`."""
    return next(name for name, kind in POTTER_CONFIGS.items() if type(config) is kind)


def side_of(config: PotterConfig) -> int:
    """Side of the square input crop, pixels; a classifier takes others, too."""
    return _CLASSIFIER_SIDE if isinstance(config, PotterClassifierConfig) else config.side


# Records and networks --------------------------------------------------------------------------


def describe_potter_variant(variant: str | PotterVariant, **overrides: Any) -> dict[str, Any]:
    """The metadata of a weight file for a variant.

    Args:
        variant: A `PotterVariant` or the name of a registered one.
        overrides: Fields of the configuration, for smaller or other networks.

    Returns:
        What `potter_record` returns.

    Raises:
        InputError: The name or a field is unknown, or a value does not fit.
    """
    variant = variant if isinstance(variant, PotterVariant) else get_potter_variant(variant)
    known = {field.name for field in fields(variant.config)}
    if unknown := sorted(set(overrides) - known):
        raise InputError(
            f"{variant.name}: there is no field {', '.join(map(repr, unknown))}; expected one of "
            f"{', '.join(sorted(known))}."
        )
    return potter_record(replace(variant.config, **overrides))


def potter_record(config: PotterConfig) -> dict[str, Any]:
    """Plain JSON that tells how to build a network and what the published weights want to see.

    Returns:
        What `hand_pose_record`, `potter_mesh_record` or `classifier_record` returns, with
        ``family`` and ``variant``.
    """
    if isinstance(config, PotterHandConfig):
        statistics = JointStatistics.EGOEXO4D
        record = hand_pose_record(config, statistics, sides="both", crops="ego-exo4d")
    elif isinstance(config, PotterMeshConfig):
        record = potter_mesh_record(config, "smpl")
    else:
        record = classifier_record(config)
    return {
        **record,
        "family": potter_architecture_of(config),
        "variant": potter_variant_of(config),
    }


def classifier_record(
    config: PotterClassifierConfig, side: int = _CLASSIFIER_SIDE
) -> dict[str, Any]:
    """The metadata of a classifier's weight file.

    Args:
        config: Sizes.
        side: Of the images that it was trained on, pixels.

    Returns:
        ``architecture``, ``config``, ``task`` (None, as of a backbone), ``resolution`` and
        ``normalisation`` ("imagenet").
    """
    return {
        "architecture": "potter-classifier",
        "config": asdict(config),
        "task": None,
        "resolution": side,
        "normalisation": "imagenet",
    }


def build_potter_variant(variant: str | PotterVariant, **overrides: Any) -> nn.Module:
    """Build a network with fresh weights, in training mode; see `describe_potter_variant`."""
    return build_potter_network(describe_potter_variant(variant, **overrides))


def build_potter_network(record: Mapping[str, Any], *, blank: bool = False) -> nn.Module:
    """Build a `PotterHand`, `PotterMesh` or `PotterClassifier` from the metadata of a weight file.

    Args:
        record: What `potter_record` returned.
        blank: Leave everything without storage (device "meta"), to be filled by
            ``load_state_dict(..., assign=True)``.

    Raises:
        InputError: A value does not fit.
    """
    config = potter_config_from(record)
    with torch.device("meta") if blank else contextlib.nullcontext():
        network: nn.Module = _NETWORKS[record["architecture"]](config)
    return network


def potter_config_from(record: Mapping[str, Any]) -> PotterConfig:
    """The configuration that the metadata of a weight file hold."""
    kind: type[Any] = POTTER_CONFIGS[record["architecture"]]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in record["config"].items()}
    config: PotterConfig = kind(**values)
    return config
