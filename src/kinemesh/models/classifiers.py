"""Trained image classifiers out of weight files."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from kinemesh.bodies.topology import strip_prefix
from kinemesh.errors import InputError
from kinemesh.models.potter_variants import build_potter_network
from kinemesh.models.registry import read_weights, weight_path

CLASSIFIER = "potter-classifier"


def load_classifier(name: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Build a classifier with its trained weights, in eval mode, on the CPU.

    Args:
        name: Path of a weight file.

    Returns:
        The network, and the record of the file: ``config`` with the number of ``classes``,
        ``resolution``, and where it was trained here ``class_names``.

    Raises:
        InputError: There is no such file, or it holds something else than a classifier.
    """
    path = weight_path(name)
    tensors, record = read_weights(path)
    if record.get("architecture") != CLASSIFIER:
        raise InputError(
            f"{path}: expected an image classifier ({CLASSIFIER}), found "
            f"{record.get('architecture')!r}. Classifiers alone are scored on imagenet:FOLDER."
        )
    state = strip_prefix(tensors, "model.")
    try:
        network = build_potter_network(record, blank=True)
        single = {
            key: value.to(torch.float32, copy=True) if value.is_floating_point() else value
            for key, value in state.items()
        }
        network.load_state_dict(single, assign=True)
    except (TypeError, KeyError, RuntimeError) as error:
        raise InputError(
            f"{path}: the file does not fit the architecture of this version ({error}). It was "
            "written by another version of kinemesh; use that one, or train the model again."
        ) from error
    return network.eval(), record
