"""Weights to start a training run from: ImageNet backbones, official checkpoints and our own."""

from pathlib import Path

from torch import Tensor, nn

from kinemesh.bodies.topology import strip_prefix
from kinemesh.errors import InputError
from kinemesh.models.checkpoints import FAMILIES, family_of, from_official, read_tensors


def load_initial(network: nn.Module, path: Path) -> str:
    """Fill a network, or its backbone alone, from a file; nothing in it is run.

    Args:
        network: A `Metro`, `MeshGraphormer` or `PoseGraphormer`.
        path: A weight file of this library, an official checkpoint of METRO or Mesh Graphormer, or
            an ImageNet checkpoint of HRNet or ResNet.

    Returns:
        What was loaded, for the record.

    Raises:
        InputError: The file is none of these or has other sizes than the network.
    """
    if not path.is_file():
        raise InputError(f"--init: there is no file '{path}'. Give weights to start from.")
    state = read_tensors(path)
    own = strip_prefix(state, "model.")
    if any(name.startswith("backbone.") for name in own):
        _fill(network, own, path)
        return f"all weights from {path.name}"
    if own:
        _fill(network.get_submodule("backbone"), own, path)
        return f"the backbone from {path.name}"
    family = family_of(state)
    if family is None:
        raise InputError(
            f"--init: '{path}' holds none of {', '.join(FAMILIES)} and no weights of this library; "
            f"its first tensor is '{next(iter(state), '')}'."
        )
    config = getattr(network, "config", None)
    converted = from_official(
        state, family, heads=getattr(config, "heads", 4), joints=getattr(config, "joints", None)
    )
    if FAMILIES[family].is_backbone:
        _fill(network.get_submodule("backbone"), converted.state, path)
        return f"the backbone from {path.name} ({family})"
    _fill(network, converted.state, path)
    return f"all weights from {path.name} ({family})"


def _fill(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    different = [name for name in wanted if found.get(name) != wanted[name]]
    different += [name for name in found if name not in wanted]
    if different:
        name = different[0]
        raise InputError(
            f"--init: '{path}' does not fit the network of the recipe: '{name}' has the shape "
            f"{found.get(name, 'absent')} in the file and {wanted.get(name, 'absent')} in the "
            f"network; {len(different) - 1} more differ. Choose the variant it was made for."
        )
    module.load_state_dict(state)
