"""Weight files of a `Detector`: everything that finding people in a photo needs."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kinemesh.bodies.topology import strip_prefix
from kinemesh.errors import InputError
from kinemesh.models.detector import CLASSES, Detector, DetectorConfig
from kinemesh.models.registry import (
    check_shipped,
    read_record,
    read_weights,
    save_model,
    weight_path,
)

ARCHITECTURE = "detector"
TASK = "detection"
SHIPPED_DETECTOR = "kinemesh-detector"
"""Name of the shipped detector: of its file, of its card, and for `load_detector_network`."""


def save_detector(path: str | Path, network: Detector, training: Mapping[str, Any]) -> None:
    """Write a weight file that `load_detector_network` reads; matrices in half precision.

    Args:
        path: Where to write, ``.safetensors``.
        network: A detector.
        training: Plain JSON values about its training.
    """
    record = {
        "architecture": ARCHITECTURE,
        "config": asdict(network.config),
        "task": TASK,
        "resolution": network.config.side,
        "classes": CLASSES,
        "training": dict(training),
    }
    save_model(path, network, None, record)


def load_detector_network(name: str | Path) -> tuple[Detector, dict[str, Any]]:
    """Build a detector with its trained weights, in eval mode, on the CPU.

    Args:
        name: `SHIPPED_DETECTOR`, or the path of a weight file.

    Returns:
        The network, and the record of its file.

    Raises:
        InputError: There is no such file, it is damaged, or it holds another kind of network.
    """
    path = weight_path(name)
    check_shipped(path)
    tensors, record = read_weights(path)
    if record.get("architecture") != ARCHITECTURE or tuple(record.get("classes", ())) != CLASSES:
        raise InputError(
            f"{path}: expected a detector of {', '.join(CLASSES)}, found "
            f"{record.get('architecture')!r}, a network of the task {record.get('task')!r}. Train "
            "one with: kinemesh train synthetic-detector"
        )
    state = {
        name: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in strip_prefix(tensors, "model.").items()
    }
    try:
        network = Detector(DetectorConfig(**record["config"]))
        network.load_state_dict(state)
    except (TypeError, KeyError, RuntimeError) as error:
        raise InputError(
            f"{path}: the file does not fit the detector of this version ({error}). It was written "
            "by another version of kinemesh; use that one, or train the detector again."
        ) from error
    return network.eval(), record


def is_detector_file(path: str | Path) -> bool:
    """Whether a file holds a detector.

    Raises:
        InputError: The file is not a weight file of this library.
    """
    return Path(path).is_file() and read_record(Path(path)).get("architecture") == ARCHITECTURE
