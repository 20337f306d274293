"""The registered PRTR networks: the 18 published configurations, and the end-to-end one.

A variant states numbers and what the network wants to see: size, order of colours, joint set.
`describe_keypoint_variant` says the same in plain JSON, which a weight file stores, and
`build_keypoint_network` builds from that. Names give height x width, as the published files do.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import nn

from kinemesh.errors import InputError
from kinemesh.models.frozen_batch_norm import FrozenNormResNet
from kinemesh.models.metro import HRNetMap
from kinemesh.models.prtr import Prtr, PrtrConfig
from kinemesh.models.prtr_deformable import DeformablePrtr, DeformablePrtrConfig
from kinemesh.models.prtr_sequential import SequentialConfig, SequentialPrtr
from kinemesh.skeletons import SKELETONS, Skeleton, get_skeleton

KeypointConfig = PrtrConfig | DeformablePrtrConfig | SequentialConfig
KeypointArchitecture = Literal["prtr", "prtr-deformable", "prtr-sequential"]
ColorOrder = Literal["bgr", "rgb"]
Size = tuple[int, int]

POSE2D = "pose2d"
"""Task of these networks in weight files and on the command line."""
KEYPOINT_CONFIGS: dict[KeypointArchitecture, type[KeypointConfig]] = {
    "prtr": PrtrConfig,
    "prtr-deformable": DeformablePrtrConfig,
    "prtr-sequential": SequentialConfig,
}
"""Configuration class of each architecture."""
_NETWORKS: dict[KeypointArchitecture, Any] = {
    "prtr": Prtr,
    "prtr-deformable": DeformablePrtr,
    "prtr-sequential": SequentialPrtr,
}
_BACKBONES: dict[tuple[KeypointArchitecture, str], type[nn.Module]] = {
    ("prtr", "resnet"): FrozenNormResNet,
    ("prtr", "hrnet"): HRNetMap,
    ("prtr-deformable", "resnet"): FrozenNormResNet,
    ("prtr-sequential", "resnet"): FrozenNormResNet,
}
_STRIDE = 32
_PAPER = "PRTR: Li, Wang, Zhang, Zhang, Tu, Pose Recognition with Cascade Transformers, CVPR 2021"


@dataclass(frozen=True)
class KeypointVariant:
    """A network by name, with the sizes it was published in.

    Attributes:
        name: For example "prtr-coco-res50-384x288".
        config: Sizes.
        backbone: Name ("resnet" or "hrnet") and arguments of the backbone's class, as JSON.
        skeleton: Joint set, a key of `kinemesh.skeletons.SKELETONS`.
        size: Width and height of the crop, pixels. Of the sequential network: what the shorter
            side of an image is resized to, and the most that the longer side may get.
        order: Order of the colour channels that the network sees.
        parameters: Values in the parameters, the frozen ones included.
        gmac: Published 10^9 multiply-adds; None where none are.
        published: Published scores with their protocol; nothing that was measured here.
    """

    name: str
    config: KeypointConfig
    backbone: Mapping[str, Any]
    skeleton: str
    size: Size
    order: ColorOrder
    parameters: int
    gmac: float | None = None
    published: tuple[str, ...] = ()

    @property
    def architecture(self) -> KeypointArchitecture:
        """Key of `KEYPOINT_CONFIGS`, and the family of official checkpoints that fit."""
        return keypoint_architecture_of(self.config)

    @property
    def finds_people(self) -> bool:
        """Whether it takes whole images; else it takes the crop of one person."""
        return isinstance(self.config, SequentialConfig)

    @property
    def joints(self) -> Skeleton:
        """The joint set."""
        return get_skeleton(self.skeleton)

    def card(self) -> dict[str, Any]:
        """What a user should know before choosing it, for ``kinemesh models``."""
        width, height = self.size
        view = f"{height} x {width} pixels (height x width)"
        if self.finds_people:
            view = f"whole images, shorter side {width} pixels, longer side at most {height}"
        gmac = {} if self.gmac is None else {"gmac": self.gmac}
        return {
            "name": self.name,
            "task": POSE2D,
            "architecture": self.architecture,
            "paper": _PAPER,
            "backbone": " ".join(str(value) for value in self.backbone.values()),
            "skeleton": self.skeleton,
            "size": f"{view}, channels in the order {self.order.upper()}",
            "parameters": self.parameters,
            **gmac,
            "license": "Apache-2.0 (this code); weights keep the licence they came with",
            "published": "\n".join(self.published) or "none for this variant",
            "weights": "none shipped; train it, or convert your own: kinemesh convert FILE "
            f"--family {self.architecture}",
        }


# The published configurations ------------------------------------------------------------------

_RESNETS = {"res50": 50, "res101": 101, "res152": 152}
_PARAMETERS = {
    "res50": 41_505_236,
    "res101": 60_445_140,
    "res152": 76_042_708,
    "w32": 57_234_004,
    "deform-res50": 46_251_734,
    "deform-res101": 65_191_638,
}
"""With COCO's joints."""
_ONE_JOINT_LESS = 257
_COCO_NAMES = ("AP", "AP.50", "AP.75", "AP(M)", "AP(L)", "AR", "AR.50", "AR.75", "AR(M)", "AR(L)")
_MPII_NAMES = ("Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle", "Mean", "PCKh@0.11")

_COCO: tuple[tuple[str, str, float, tuple[float, ...], tuple[float, ...]], ...] = (
    (
        "res50",
        "384x288",
        11.0,
        (68.2, 88.2, 75.2, 63.2, 76.2, 76.0, 92.9, 82.4, 70.9, 83.3),
        (67.4, 89.3, 75.6, 62.9, 74.8, 75.2, 93.8, 82.4, 70.2, 82.1),
    ),
    (
        "res50",
        "512x384",
        18.8,
        (71.0, 89.3, 78.0, 66.4, 78.8, 78.0, 93.5, 84.1, 73.0, 85.1),
        (69.6, 90.2, 77.4, 65.1, 77.0, 77.0, 94.4, 83.9, 72.0, 83.9),
    ),
    (
        "res101",
        "384x288",
        19.1,
        (70.1, 88.8, 77.6, 65.7, 77.4, 77.5, 93.6, 84.1, 72.8, 84.2),
        (68.8, 89.9, 76.9, 64.7, 75.8, 76.6, 94.4, 83.7, 71.8, 83.0),
    ),
    (
        "res101",
        "512x384",
        33.4,
        (72.0, 89.3, 79.4, 67.3, 79.7, 79.2, 93.8, 85.4, 74.3, 86.1),
        (70.6, 90.3, 78.5, 66.2, 77.7, 78.1, 94.6, 84.9, 73.2, 84.6),
    ),
    (
        "w32",
        "384x288",
        21.6,
        (73.1, 89.4, 79.8, 68.8, 80.4, 79.8, 93.8, 85.6, 75.3, 86.2),
        (71.7, 90.6, 79.6, 67.6, 78.4, 78.8, 94.7, 85.7, 74.4, 84.8),
    ),
    (
        "w32",
        "512x384",
        37.8,
        (73.3, 89.2, 79.9, 69.0, 80.9, 80.2, 93.6, 85.7, 75.5, 86.8),
        (72.1, 90.4, 79.6, 68.1, 79.0, 79.4, 94.7, 85.8, 74.8, 85.7),
    ),
    (
        "deform-res50",
        "384x288",
        29.1,
        (70.8, 88.5, 77.5, 66.8, 78.3, 78.3, 93.2, 84.1, 73.4, 85.1),
        (69.3, 89.5, 76.9, 65.5, 76.3, 77.3, 94.1, 83.9, 72.4, 83.9),
    ),
    (
        "deform-res101",
        "384x288",
        37.3,
        (71.0, 88.7, 77.8, 66.9, 78.4, 78.4, 93.3, 84.3, 73.6, 85.3),
        (69.3, 89.7, 76.8, 65.7, 76.1, 77.3, 94.3, 83.8, 72.7, 83.6),
    ),
)
"""Backbone, height x width, GMAC, scores on val2017 and on test-dev2017."""
_MPII: tuple[tuple[str, str, tuple[float, ...]], ...] = (
    ("res50", "256x256", (94.577, 93.088, 83.109, 74.079, 84.733, 74.732, 69.367, 82.865, 22.602)),
    ("res50", "384x384", (96.010, 94.124, 86.586, 79.940, 86.464, 81.604, 74.563, 86.310, 28.704)),
    ("res50", "512x512", (96.555, 95.007, 88.597, 83.383, 88.731, 84.002, 79.121, 88.493, 34.036)),
    ("res101", "256x256", (94.816, 93.461, 84.728, 76.853, 87.000, 79.730, 72.768, 84.975, 25.517)),
    ("res101", "384x384", (96.282, 94.990, 88.307, 82.353, 88.125, 83.639, 77.445, 87.916, 31.642)),
    ("res101", "512x512", (96.828, 95.839, 90.234, 84.633, 89.302, 85.049, 80.043, 89.409, 37.198)),
    ("res152", "256x256", (96.146, 94.480, 86.108, 78.515, 87.658, 81.826, 74.634, 86.313, 26.885)),
    ("res152", "384x384", (96.419, 94.871, 88.444, 82.627, 88.575, 84.143, 78.365, 88.215, 32.160)),
    ("w32", "256x256", (96.794, 95.584, 89.603, 83.143, 88.731, 83.739, 78.012, 88.584, 33.206)),
    ("w32", "384x384", (97.340, 96.009, 90.557, 84.479, 89.700, 85.533, 78.956, 89.526, 35.410)),
)
"""Backbone, height x width, scores on the validation split."""


def _two_stage(
    data: str, short: str, size: str, gmac: float | None, published: tuple[str, ...]
) -> KeypointVariant:
    deformable, backbone = short.startswith("deform-"), short.removeprefix("deform-")
    coco = data == "coco"
    kind: type[PrtrConfig] = DeformablePrtrConfig if deformable else PrtrConfig
    height, width = (int(side) for side in size.split("x"))
    spec: dict[str, Any] = {"name": "hrnet", "width": 32}
    if backbone in _RESNETS:
        spec = {"name": "resnet", "depth": _RESNETS[backbone]}
    return KeypointVariant(
        name=f"prtr-{data}-{short}-{size}",
        config=kind(joints=17 if coco else 16),
        backbone=spec,
        skeleton="coco17" if coco else "mpii16",
        size=(width, height),
        order=published_order(spec),
        parameters=_PARAMETERS[short] - (0 if coco else _ONE_JOINT_LESS),
        gmac=gmac,
        published=published,
    )


def published_order(backbone: Mapping[str, Any]) -> ColorOrder:
    """Order of the channels that the released weights of a backbone were trained on."""
    return "rgb" if backbone["name"] == "hrnet" else "bgr"


def _scores(protocol: str, names: tuple[str, ...], values: tuple[float, ...]) -> str:
    listed = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
    return f"{protocol}: {listed} (published, not measured here)"


def _coco(
    short: str, size: str, gmac: float, val: tuple[float, ...], test: tuple[float, ...]
) -> KeypointVariant:
    published = (
        _scores("COCO val2017, DETR's boxes, flip test", _COCO_NAMES, val),
        _scores("COCO test-dev2017, DETR's boxes, flip test", _COCO_NAMES, test),
    )
    return _two_stage("coco", short, size, gmac, published)


def _mpii(short: str, size: str, val: tuple[float, ...]) -> KeypointVariant:
    published = (_scores("MPII val, PCKh@0.5, labelled places, flip test", _MPII_NAMES, val),)
    return _two_stage("mpii", short, size, None, published)


_SEQUENTIAL = KeypointVariant(
    name="prtr-sequential",
    config=SequentialConfig(),
    backbone={"name": "resnet", "depth": 50},
    skeleton="coco17",
    size=(800, 1333),
    order="rgb",
    parameters=88_066_010,
)
_ALL = (*(_coco(*row) for row in _COCO), *(_mpii(*row) for row in _MPII), _SEQUENTIAL)
KEYPOINT_VARIANTS: dict[str, KeypointVariant] = {variant.name: variant for variant in _ALL}
"""Every registered network by name."""


def get_keypoint_variant(name: str) -> KeypointVariant:
    """The registered variant of this name.

    Raises:
        InputError: There is none; the message lists them.
    """
    if name not in KEYPOINT_VARIANTS:
        raise InputError(
            f"There is no variant {name!r}; expected one of {', '.join(KEYPOINT_VARIANTS)}."
        )
    return KEYPOINT_VARIANTS[name]


# Records and networks --------------------------------------------------------------------------


def describe_keypoint_variant(variant: str | KeypointVariant, **overrides: Any) -> dict[str, Any]:
    """The metadata of a weight file for a variant.

    Args:
        variant: A `KeypointVariant` or the name of a registered one.
        overrides: ``backbone``, ``size``, ``order``, ``skeleton`` and any field of the
            configuration, for smaller or other networks. ``joints`` follows from ``skeleton``.

    Returns:
        What `keypoint_record` returns.

    Raises:
        InputError: The name or a field is unknown, or a value does not fit.
    """
    variant = variant if isinstance(variant, KeypointVariant) else get_keypoint_variant(variant)
    own = {name: overrides[name] for name in ("backbone", "size", "order") if name in overrides}
    skeleton = overrides.get("skeleton", variant.skeleton)
    changes = {k: v for k, v in overrides.items() if k not in own and k != "skeleton"}
    known = {field.name for field in fields(variant.config)}
    if unknown := sorted(set(changes) - known):
        raise InputError(
            f"{variant.name}: there is no field {', '.join(map(repr, unknown))}; expected "
            f"backbone, size, order, skeleton or one of {', '.join(sorted(known))}."
        )
    config = replace(variant.config, **{"joints": len(get_skeleton(skeleton)), **changes})
    values: dict[str, Any] = {
        "backbone": variant.backbone,
        "size": variant.size,
        "order": variant.order,
        "variant": None if overrides else variant.name,
    }
    return keypoint_record(config, skeleton=skeleton, **(values | own))


def keypoint_record(
    config: KeypointConfig,
    *,
    backbone: Mapping[str, Any],
    skeleton: str,
    size: Size,
    order: ColorOrder,
    variant: str | None = None,
) -> dict[str, Any]:
    """Plain JSON that tells how to build a network and what it wants to see.

    Returns:
        ``architecture``, ``config``, ``backbone``, ``task`` ("pose2d"), ``skeleton``, ``joints``
        (names), ``resolution`` ([width, height] of the crop, or [shorter, longer] side of the
        sequential network), ``color_order`` ("bgr" or "rgb"), ``normalisation`` ("imagenet"),
        ``family`` and ``variant``.

    Raises:
        InputError: Joints, size or order do not fit.
    """
    architecture = keypoint_architecture_of(config)
    joints = get_skeleton(skeleton)
    if len(joints) != config.joints:
        fitting = ", ".join(n for n, s in SKELETONS.items() if len(s) == config.joints)
        raise InputError(
            f"skeleton: expected one of {config.joints} joints ({fitting or 'there is none'}), "
            f"found {skeleton!r} with {len(joints)}."
        )
    if order not in ("bgr", "rgb"):
        raise InputError(f"order: expected 'bgr' or 'rgb', found {order!r}.")
    sides = tuple(int(side) for side in size)
    whole = architecture != "prtr" or all(side % _STRIDE == 0 for side in sides)
    if len(sides) != 2 or min(sides) < _STRIDE or not whole:
        raise InputError(
            f"size: expected width and height of at least {_STRIDE} pixels, multiples of it for "
            f"'prtr', found {tuple(size)}."
        )
    return {
        "architecture": architecture,
        "config": asdict(config),
        "backbone": dict(backbone),
        "task": POSE2D,
        "skeleton": skeleton,
        "joints": list(joints.joints),
        "resolution": list(sides),
        "color_order": order,
        "normalisation": "imagenet",
        "family": architecture,
        "variant": variant,
    }


def build_keypoint_variant(variant: str | KeypointVariant, **overrides: Any) -> nn.Module:
    """Build a network with fresh weights, in training mode.

    Arguments as of `describe_keypoint_variant`.
    """
    return build_keypoint_network(describe_keypoint_variant(variant, **overrides))


def build_keypoint_network(record: Mapping[str, Any], *, blank: bool = False) -> nn.Module:
    """Build a `Prtr`, `DeformablePrtr` or `SequentialPrtr` from the metadata of a weight file.

    Args:
        record: What `keypoint_record` returned.
        blank: Leave everything without storage (device "meta"), to be filled by
            ``load_state_dict(..., assign=True)``: all of it is in the state dict.

    Raises:
        InputError: A value does not fit.
    """
    architecture = record["architecture"]
    config = keypoint_config_from(record)
    with torch.device("meta") if blank else contextlib.nullcontext():
        backbone = build_keypoint_backbone(record["backbone"], architecture)
        network: nn.Module = _NETWORKS[architecture](config, backbone)
    return network


def keypoint_config_from(record: Mapping[str, Any]) -> KeypointConfig:
    """The configuration that the metadata of a weight file hold."""
    kind: type[Any] = KEYPOINT_CONFIGS[record["architecture"]]
    config: KeypointConfig = kind(**{k: _tuples(v) for k, v in record["config"].items()})
    return config


def build_keypoint_backbone(
    spec: Mapping[str, Any], architecture: KeypointArchitecture
) -> nn.Module:
    """Build the backbone of an architecture.

    Raises:
        InputError: The architecture does not run on this backbone, or has no such argument.
    """
    arguments = {name: _tuples(value) for name, value in spec.items()}
    name = str(arguments.pop("name", None))
    kind = _BACKBONES.get((architecture, name))
    if kind is None:
        known = [backbone for system, backbone in _BACKBONES if system == architecture]
        raise InputError(
            f"backbone: {architecture} runs on {' or '.join(known)}, found {dict(spec)}."
        )
    try:
        return kind(**arguments)
    except TypeError as error:
        raise InputError(f"backbone: {error}; found the arguments {arguments}.") from error


def keypoint_architecture_of(config: KeypointConfig) -> KeypointArchitecture:
    """Key of `KEYPOINT_CONFIGS`."""
    return next(name for name, kind in KEYPOINT_CONFIGS.items() if type(config) is kind)


def _tuples(value: Any) -> Any:
    """JSON has lists where the classes have tuples."""
    return tuple(value) if isinstance(value, list) else value
