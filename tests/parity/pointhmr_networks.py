"""PointHMR's networks, built and run as the manifest says."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kinemesh.geometry.cameras import WeakPerspective
from kinemesh.models.point_hmr import MeshConstants, PointHmr, PointHmrConfig, PointHmrOutput
from kinemesh.models.point_hmr_backbones import PointHRNet, PointResNet
from kinemesh.models.point_hmr_checkpoints import (
    from_official_point_hmr,
    to_official_point_hmr,
)
from tests import parity
from tests.parity import Comparison, Tolerance
from tests.parity.networks import Case, Taps
from tests.parity.pointhmr_mesh import topology_of
from tests.seeded_weights import COUNTERS, input_image, parameter

FIRST_VALUES = 32
OUTPUT = Tolerance(2e-5)
TAP = Tolerance(2e-5, 2e-5)
PLAIN_OUTPUT, PLAIN_TAP = Tolerance(3e-4), Tolerance(3e-4, 1e-4)
"""Without rescaling, hidden numbers reach thousands and the sampling is nearly one-hot."""
BLOCK = 32  # pixels of an input cell
DEAD_TAPS = ("backbone.stage4.branch1", "backbone.stage4.branch2")
NOT_BUILT = "not built: nothing reads it"


# Manifest ------------------------------------------------------------------------------------


def read_manifest(path: Path, golden_folder: Path) -> list[Case]:
    """The network cases: entries with names and shapes of tensors."""
    entries = json.loads(path.read_text("utf-8"))
    return [
        read_entry(name, entry, golden_folder)
        for name, entry in entries.items()
        if not name.startswith("_") and entry["state_dict"]
    ]


def read_entry(name: str, entry: Mapping[str, Any], golden_folder: Path) -> Case:
    """One entry as a case; its salt becomes part of the configuration."""
    return Case(
        name,
        entry["config"] | {"salt": entry.get("salt", "")},
        {key: tuple(shape) for key, shape in entry["inputs"].items()},
        {key: tuple(shape) for key, shape in entry["state_dict"].items()},
        (entry["weight_rule"],),
        golden_folder,
    )


@dataclass(frozen=True)
class Rescaling:
    """A factor on the tensors whose names match."""

    pattern: re.Pattern[str]
    factor: np.float32
    vectors_only: bool

    def applies(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor is meant."""
        return bool(self.pattern.search(name)) and not (self.vectors_only and len(shape) != 1)


_START = re.compile(r"seeded\.load( then multiply in place( \(float32\))?: |, nothing rescaled$)")
_RULE = re.compile(
    r"(?P<pattern>\^.*\$)(?P<vectors> \(1-D tensors only\))? by (?P<factor>[\d.eE+-]+)"
)


def parse_rule(text: str) -> list[Rescaling]:
    """What a ``weight_rule`` does after drawing.

    Raises:
        ValueError: It is written in a way that is not understood.
    """
    start = _START.match(text)
    if start is None:
        raise ValueError(f"weight_rule: cannot understand {text!r}")
    parts = [part for part in text[start.end() :].split("; ") if part]
    rules = []
    for part in parts:
        match = _RULE.fullmatch(part)
        if match is None:
            raise ValueError(f"weight_rule: cannot understand {part!r}")
        factor = np.float32(match["factor"])
        rules.append(Rescaling(re.compile(match["pattern"]), factor, bool(match["vectors"])))
    return rules


@dataclass(eq=False)
class DrawnWeights:
    """Tensors by official name; the draws of the network before are used again."""

    _drawn: dict[tuple[object, ...], np.ndarray] = field(default_factory=dict)

    def state(self, case: Case) -> dict[str, Tensor]:
        """All official tensors of a case."""
        rules = parse_rule(case.rules[0])
        kept: dict[tuple[object, ...], np.ndarray] = {}
        state = {}
        for name, shape in case.shapes.items():
            if name.endswith(COUNTERS):
                state[name] = torch.zeros(shape, dtype=torch.int64)
                continue
            key = (name, shape, case.salt)
            value = self._drawn.get(key)
            kept[key] = value = parameter(name, shape, case.salt) if value is None else value
            for rule in rules:
                if rule.applies(name, shape):
                    value = value * rule.factor
            state[name] = torch.tensor(value)
        self._drawn = kept
        return state


# Network -------------------------------------------------------------------------------------


def build_network(config: Mapping[str, Any]) -> PointHmr:
    """The network that a configuration describes, in eval mode.

    Raises:
        ValueError: The configuration asks for something that is not built.
    """
    name = config["backbone"]
    backbone: nn.Module
    if match := re.fullmatch(r"hrnet_w(\d+)", name):
        backbone = PointHRNet(int(match[1]))
    elif match := re.fullmatch(r"resnet(\d+)\+3deconv", name):
        backbone = PointResNet(int(match[1]))
    else:
        raise ValueError(f"backbone: there is no {name!r}")
    topology = topology_of(config["num_vertices"])
    levels = (*(len(level) for level in reversed(topology.levels)), len(topology.template))
    sizes = PointHmrConfig(
        joints=config["num_joints"],
        coarse_vertices=levels[0],
        upsampled=levels[1:],
        width=config["model_dim"],
        position_width=config["position_dim"],
        second_width=config.get("second_stage_dim", 128),
        feed_forward=(config["feedforward_dim_1"], config["feedforward_dim_2"]),
        heads=config["transformer_nhead"],
        dropout=config["dropout"],
        activation=config["activation"],
    )
    return PointHmr(sizes, backbone, MeshConstants.of(topology)).eval()


def filled_network(case: Case, weights: DrawnWeights) -> PointHmr:
    """The network of a case with its weights, through the adapter of official checkpoints."""
    network = build_network(case.config)
    network.load_state_dict(from_official_point_hmr(weights.state(case)).state)
    return network


def input_blocks(inputs: Mapping[str, tuple[int, ...]], salt: str) -> Tensor:
    """Images: noise as it is, or doubled noise of which every cell fills a block."""
    (name, shape), *more = inputs.items()
    if more or name not in {"images", "images_blocks"}:
        raise ValueError(f"inputs: cannot understand {dict(inputs)}")
    drawn = input_image(name, shape, salt)
    if name == "images":
        return drawn
    return (2 * drawn).repeat_interleave(BLOCK, dim=2).repeat_interleave(BLOCK, dim=3)


@dataclass(eq=False)
class PointHmrNetworks:
    """Compares the network cases."""

    _weights: DrawnWeights = field(default_factory=DrawnWeights)

    def order(self, cases: list[Case]) -> list[Case]:
        """The order in which most draws are shared."""
        return sorted(
            cases, key=lambda case: (case.config["num_vertices"], case.config["backbone"])
        )

    def compare(self, case: Case) -> Comparison:
        """Everything in the golden file of one case."""
        golden = case.golden()
        ours = {key: value for key, value in self.values(case, golden).items() if key in golden}
        rescaled = bool(parse_rule(case.rules[0]))
        output, tap = (OUTPUT, TAP) if rescaled else (PLAIN_OUTPUT, PLAIN_TAP)
        skipped = {f"tap.{name}.*": NOT_BUILT for name in DEAD_TAPS}
        special = dict.fromkeys(("tap.", "sampled_", "cam_token", "grid_tokens"), tap)
        return parity.compare(case.name, ours, golden, output, special, skipped)

    @torch.no_grad()
    def values(self, case: Case, golden: Mapping[str, np.ndarray]) -> dict[str, object]:
        """Our values under the golden keys; taps are those that the golden file names."""
        network = filled_network(case, self._weights)
        image = input_blocks(case.inputs, case.salt)
        wanted = {match[1] for key in golden if (match := re.match(r"tap\.(.*)\.shape$", key))}
        stages = {name.rpartition(".")[0] for name in wanted if ".branch" in name}
        branches: dict[str, Tensor] = {}
        hooks = [_keep_branches(network, stage, branches) for stage in stages]
        fed: list[Tensor] = []
        hooks.append(
            network.transformer.register_forward_pre_hook(lambda _, given: fed.append(given[0]))
        )
        with Taps(network, wanted=wanted) as taps:
            output: PointHmrOutput = network(image)
        for hook in hooks:
            hook.remove()
        named = {name: _official_layout(name, value) for name, value in taps.items()}
        (tokens,), heat = fed, output.heat
        named |= branches | _derived_taps(network, named, tokens, heat)
        arrays: dict[str, object] = dict(_tap_arrays(named))
        arrays |= _token_arrays(network, tokens) | outputs(output) | _heat_arrays(heat, golden)
        return arrays | _mesh_arrays(case, output)


def _keep_branches(network: PointHmr, stage: str, kept: dict[str, Tensor]) -> Any:
    def record(module: nn.Module, _inputs: object, maps: list[Tensor]) -> None:
        last = module[-1]  # type: ignore[index]
        names = getattr(last, "outer_rows", range(len(maps)))
        kept.update({f"{stage}.branch{n}": x for n, x in zip(names, maps, strict=True)})

    return network.get_submodule(stage).register_forward_hook(record)


def _official_layout(name: str, value: Tensor) -> Tensor:
    """The official transformer puts tokens first and keeps one token for the camera."""
    if name == "cam_layer":
        return value
    if name == "transformer.cam_predictor":
        return value[None]
    if name.startswith("transformer.") and name != "transformer.xyz_regressor":
        return value.transpose(0, 1)
    return value


def _derived_taps(
    network: PointHmr, taps: Mapping[str, Tensor], tokens: Tensor, heat: Tensor
) -> dict[str, Tensor]:
    features = taps["feature_extract_layer"]
    large = heat.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) / 4
    grid, joints = slice(1, network.joint_tokens.start), network.joint_tokens
    return {
        "tokens": tokens,
        "token.cam": tokens[:, :1],
        "token.grid": tokens[:, grid],
        "token.joint": tokens[:, joints],
        "token.vertex": tokens[:, network.vertex_tokens],
        "heat56_prob": heat.flatten(2),
        "heat112_prob": large.flatten(2),
        "feature_plus_pe": features + network.position_code,
    }


def _tap_arrays(taps: Mapping[str, Tensor]) -> Iterator[tuple[str, object]]:
    for name, value in taps.items():
        numbers = value.detach().double().reshape(-1)
        yield f"tap.{name}.shape", np.array(value.shape)
        mean_std = torch.stack([numbers.mean(), numbers.std(correction=0)])
        yield f"tap.{name}.mean_std", mean_std
        yield f"tap.{name}.first32", numbers[:FIRST_VALUES]


def _token_arrays(network: PointHmr, tokens: Tensor) -> dict[str, object]:
    content = tokens[..., : network.config.width]
    return {
        "sampled_features_v0_7": content[:, network.vertex_tokens][:, :8],
        "cam_token": content[:, 0],
        "grid_tokens_0_3": content[:, 1:5],
    }


def outputs(output: PointHmrOutput) -> dict[str, Tensor]:
    """Camera, joints and levels by their golden names; a hand has no level between."""
    coarse, *middle, full = output.vertices
    arrays = {
        "camera": output.camera,
        "joints": output.joints,
        "verts_coarse": coarse,
        "verts_full": full,
    }
    return arrays | dict(zip(("verts_mid",), middle, strict=False))


def _heat_arrays(heat: Tensor, golden: Mapping[str, np.ndarray]) -> dict[str, object]:
    """The published maps have twice the side: each cell repeated in a block of four quarters."""
    side = heat.shape[-1]
    largest, cell = heat.flatten(2).max(dim=-1)
    shown = golden.get("heat112_vertex_ids", np.arange(0))
    return {
        "heat112_vertex_ids": shown,
        "heat112_slice": heat[:, shown.tolist()] / 4,
        "heat112_argmax": cell // side * 2 * (2 * side) + cell % side * 2,
        "heat112_max": largest / 4,
    }


def _mesh_arrays(case: Case, output: PointHmrOutput) -> dict[str, object]:
    topology = topology_of(case.config["num_vertices"])
    camera = WeakPerspective.from_vector(output.camera)
    from_mesh = topology.token_joint_positions(output.vertices[-1])
    return {
        "joints17_from_mesh": topology.joints(output.vertices[-1]),
        "joints14_from_mesh": from_mesh,
        "proj2d_joints": camera.project(output.joints),
        "proj2d_joints_from_mesh": camera.project(from_mesh),
        "proj2d_verts_coarse": camera.project(output.vertices[0]),
    }


def official_shapes(network: PointHmr) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official tensors."""
    official = to_official_point_hmr(network.state_dict())
    return {name: tuple(value.shape) for name, value in official.items()}
