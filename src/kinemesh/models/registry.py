"""Names of models, their cards, and the weight files behind them.

A weight file is one safetensors file with everything that prediction needs: the network's tensors
(``model.*``), the mesh it speaks about (``topology.*``), and a JSON record in the header that says
how to build the network. A card (JSON, same name) stands beside it.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kinemesh.bodies.topology import Topology, strip_prefix
from kinemesh.errors import InputError
from kinemesh.files import atomic_path, sha256, write_json
from kinemesh.models.guided_graphormer import GuidedGraphormer, GuidedGraphormerConfig

FORMAT = 1
WEIGHTS_DIR = Path(__file__).resolve().parents[1] / "weights"
SHIPPED = {"body": "guided-graphormer-body", "hand": "guided-graphormer-hand"}
"""Short names of the default model of each task."""

Builder = Callable[[Mapping[str, Any], Topology], nn.Module]


def _build_guided_graphormer(config: Mapping[str, Any], topology: Topology) -> nn.Module:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    return GuidedGraphormer(GuidedGraphormerConfig(**values), topology)


ARCHITECTURES: dict[str, Builder] = {"guided-graphormer": _build_guided_graphormer}


def save_model(
    path: str | Path,
    network: nn.Module,
    topology: Topology,
    metadata: Mapping[str, Any],
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write a weight file, and its card with the file's SHA-256 if one is given.

    Matrices are stored in float16, vectors (biases, norms, their statistics) in float32.

    Args:
        path: Where to write, ``.safetensors``.
        network: Module whose state dict is stored.
        topology: Mesh that the network predicts.
        metadata: At least ``architecture`` (a key of `ARCHITECTURES`), ``config``, ``task`` and
            ``resolution``; must be JSON.
        card: What a user should know: licence, origin, data, scores with their protocol.
    """
    path = Path(path)
    tensors = {f"model.{name}": _compact(value) for name, value in network.state_dict().items()}
    tensors |= {f"topology.{name}": value for name, value in topology.to_tensors().items()}
    record = {"format": FORMAT, **metadata, "topology": topology.metadata()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"kinemesh": json.dumps(record)})
    if card is not None:
        write_json(path.with_suffix(".json"), {**card, "sha256": sha256(path)})


def load_model(name: str | Path) -> tuple[nn.Module, Topology, dict[str, Any]]:
    """Build a network with its trained weights, in eval mode, on the CPU.

    Args:
        name: A shipped model ("body", "hand", or a name that `cards` lists) or the path of a
            weight file.

    Returns:
        The network, its topology, and the metadata that `save_model` was given.

    Raises:
        InputError: Nothing has this name, or the file is not a weight file of this library.
    """
    path = weight_path(name)
    if path.parent == WEIGHTS_DIR:
        _check_shipped(path)
    tensors, record = _read(path)
    build = ARCHITECTURES.get(record.get("architecture", ""))
    if build is None:
        raise InputError(
            f"{path}: architecture {record.get('architecture')!r} is unknown here; this version "
            f"knows {', '.join(ARCHITECTURES)}. Update kinemesh."
        )
    state = {key: value.float() for key, value in strip_prefix(tensors, "model.").items()}
    try:
        topology = Topology.from_tensors(strip_prefix(tensors, "topology."), record["topology"])
        network = build(record["config"], topology)
        network.load_state_dict(state)
    except (TypeError, KeyError, RuntimeError) as error:
        raise InputError(
            f"{path}: the file does not fit the architecture of this version ({error}). It was "
            "written by another version of kinemesh; use that one, or train the model again."
        ) from error
    return network.eval(), topology, record


def weight_path(name: str | Path) -> Path:
    """Path of a shipped model by name, or of a file that the user names."""
    text = str(name)
    shipped = WEIGHTS_DIR / f"{SHIPPED.get(text, text)}.safetensors"
    if shipped.is_file():
        return shipped
    if text in SHIPPED or shipped.with_suffix(".json").is_file():
        raise InputError(
            f"{shipped}: the weight file of the shipped model {text!r} is missing. "
            "See what else is, and how to mend it, with: kinemesh doctor"
        )
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix == ".safetensors":
        raise InputError(f"{path}: there is no such file. Check the path of the weight file.")
    known = ", ".join([*SHIPPED, *SHIPPED.values()])
    raise InputError(
        f"No model named {text!r}: expected one of {known}, or the path of a .safetensors file. "
        "List them with: kinemesh models"
    )


def _check_shipped(path: Path) -> None:
    """Compare a shipped weight file with its card: a flipped bit would silently mislead."""
    card = path.with_suffix(".json")
    if not card.is_file():
        problem = f"its card {card.name} is missing"
    elif _read_card(card).get("sha256") != sha256(path):
        problem = f"its SHA-256 differs from that in {card.name}, so the file is damaged"
    else:
        return
    raise InputError(f"{path}: {problem}. See how to mend it with: kinemesh doctor")


def cards() -> list[dict[str, Any]]:
    """Cards of all shipped models, by name."""
    return [_read_card(path) for path in sorted(WEIGHTS_DIR.glob("*.json"))]


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text("utf-8"))
        return {"name": path.stem, **card}
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path}: expected a JSON card, but it cannot be read ({error}). "
            "Install kinemesh again."
        ) from error


def _compact(value: Tensor) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.half() if value.is_floating_point() and value.ndim > 1 else value


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get("kinemesh", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a readable safetensors file ({error}). Expected a weight file written "
            "by kinemesh; train one with: kinemesh train"
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(
            f"{path}: a safetensors file without the kinemesh record of format {FORMAT} in its "
            "header. Expected a weight file written by kinemesh.train or save_model."
        )
    return tensors, record


def parameter_count(network: nn.Module) -> int:
    """Number of values in the parameters, frozen ones included."""
    return sum(p.numel() for p in network.parameters())
