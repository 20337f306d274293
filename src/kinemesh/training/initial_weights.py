"""Weights to start a training run from, as the option --init names them."""

from pathlib import Path

from torch import nn

from kinemesh.errors import InputError
from kinemesh.models import pretrained


def load_initial(network: nn.Module, path: Path) -> str:
    """As `pretrained.load_initial`; messages name the option of the command line."""
    try:
        return pretrained.load_initial(network, path)
    except InputError as error:
        raise InputError(f"--init: {error}") from error
