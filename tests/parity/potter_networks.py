"""POTTER's networks and their parts, built and run as the manifest says.

Entries with a ``state_dict`` are networks, each with a golden file of its own. ``units`` are parts,
together in one file, with the bins of adaptive pooling, which no entry lists. The hand network that
was given a classifier's weights has a golden file and no entry: it is the first hand entry. What
the body model makes of the mesh network's output is compared elsewhere (`BEHIND_THE_BODY`).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kinemesh.models.potter_checkpoints import take_weights
from kinemesh.models.potter_classifier import PotterClassifier, PotterClassifierConfig
from kinemesh.models.potter_hand import PotterHand, PotterHandConfig
from kinemesh.models.potter_mesh import PotterMesh, PotterMeshConfig, PotterMeshRaw
from kinemesh.models.potter_trunk import PotterBackbone, PyramidConfig
from tests import parity
from tests.parity import EXACT, Comparison, Tolerance, potter_units
from tests.parity.networks import Case
from tests.parity.potter_twins import WrittenOutHand, WrittenOutMesh
from tests.seeded_weights import input_image, parameter

UNITS, TRANSFERRED = "units", "hand_from_cls"
FIRST_VALUES = 32  # of each tapped tensor
OUTPUT, TAP = Tolerance(1e-4), Tolerance(2e-5, 1e-5)
BEHIND_THE_BODY = dict.fromkeys(
    (
        *("pred_theta_mats", "pred_xyz_jts_24", "pred_xyz_jts_24_struct", "pred_xyz_jts_17"),
        *("transl", "pred_vertices/*", "flip/*"),
    ),
    "made by the body model",
)
HAND = {"PoolAttnHRCam_Pose_3D", "PoolAttnHR_Pose_3D"}
IGNORED = {"NAME", "TYPE", "PRETRAINED", "TRY_LOAD", "NUM_DECONV_FILTERS", "NUM_LAYERS", "POST"}
IGNORED_EXTRA = {"SIGMA", "CROP", "AUGMENT", "PRESET", "PRETRAINED"}
"""Read or stored by the official code without changing anything."""


# Manifest ------------------------------------------------------------------------------------


def read_manifest(path: Path, golden_folder: Path) -> list[Case]:
    """The networks, and of the golden files without an entry those that are here."""
    entries = json.loads(path.read_text("utf-8"))
    networks = {name: entry for name, entry in entries.items() if "state_dict" in entry}
    cases = [_case(name, entry, golden_folder) for name, entry in networks.items()]
    if UNITS in entries and (golden_folder / f"{UNITS}.npz").is_file():
        cases.append(Case(UNITS, {"parts": entries[UNITS]}, {}, {}, (), golden_folder))
    hands = [case for case in cases if kind_of(case.config) == "hand"]
    if hands and (golden_folder / f"{TRANSFERRED}.npz").is_file():
        config = {**hands[0].config, "classifier_salt": transfer_salt(entries)}
        cases.append(replace(hands[0], name=TRANSFERRED, config=config))
    return cases


def transfer_salt(entries: Mapping[str, Any]) -> str:
    """Salt of the classifier whose weights were taken over: only the manifest's remarks say it."""
    remark = str(entries.get("_meta", {}).get(TRANSFERRED, ""))
    found = re.search(r'checkpoint seeded with salt "([^"]*)"', remark)
    if found is None:
        raise ValueError(
            f"_meta, {TRANSFERRED}: expected 'checkpoint seeded with salt \"...\"', found "
            f"{remark!r}"
        )
    return found[1]


def _case(name: str, entry: Mapping[str, Any], golden_folder: Path) -> Case:
    """One entry; what stands beside its configuration becomes part of it."""
    known = {"config", "inputs", "state_dict", "outputs", "salt"}
    rules = {"not_seeded", "rescaled", "constants"}
    if unknown := entry.keys() - known - rules:
        raise ValueError(f"{name}: cannot understand {sorted(unknown)}")
    beside = {key: entry[key] for key in ("salt", *rules) if key in entry}
    return Case(
        name,
        {**entry["config"], **beside},
        {key: tuple(shape) for key, shape in entry["inputs"].items()},
        {key: tuple(shape) for key, shape in entry["state_dict"].items()},
        (),
        golden_folder,
    )


def cases_of(manifest: Path, kind: str, golden_folder: Path | None = None) -> list[Case]:
    """The networks of one kind (`kind_of`) in a manifest; none where there is no manifest.

    Args:
        manifest: Its file.
        kind: "hand" or "mesh".
        golden_folder: None takes ``golden`` beside the manifest.
    """
    if not manifest.is_file():
        return []
    cases = read_manifest(manifest, golden_folder or manifest.parent / "golden")
    return [case for case in cases if kind_of(case.config) == kind]


def salt_of(manifest: Path, name: str, kind: str) -> str:
    """The salt of a golden file: of its own entry, else that of all networks of its kind.

    Raises:
        ValueError: The file has no entry, and the networks have several salts.
    """
    entries = json.loads(manifest.read_text("utf-8")) if manifest.is_file() else {}
    own = entries.get(name)
    if isinstance(own, dict) and "salt" in own:
        return str(own["salt"])
    salts = {case.salt for case in cases_of(manifest, kind)} or {""}
    if len(salts) > 1:
        raise ValueError(
            f"{manifest}: the {kind} networks have the salts {sorted(salts)}, so that of '{name}' "
            f'is not known. Add an entry "{name}": {{"salt": ...}}.'
        )
    return salts.pop()


def kind_of(config: Mapping[str, Any]) -> str:
    """ "hand", "mesh", "classifier", "backbone" or "units"."""
    if "parts" in config:
        return "units"
    if "builder" in config:
        return "backbone" if config.get("fork_feat") else "classifier"
    if config.get("TYPE") == "PoolAttnHRCam":
        return "mesh"
    if config.get("NAME") in HAND:
        return "hand"
    raise ValueError(f"config: there is no such network: {dict(config)}")


# Networks ------------------------------------------------------------------------------------

DEPTHS = {"poolattnformer_s12": (2, 2, 6, 2), "poolattnformer_s24": (4, 4, 12, 4)}


def build_network(case: Case) -> nn.Module:
    """The network of a case, without storage for its parameters, in evaluation mode."""
    config = case.config
    makers: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
        "hand": lambda c: PotterHand(hand_config(c)),
        "mesh": lambda c: PotterMesh(mesh_config(c)),
        "classifier": lambda c: PotterClassifier(classifier_config(c, case.shapes)),
        "backbone": lambda c: PotterBackbone(PyramidConfig(layers=DEPTHS[c["builder"]])),
    }
    with torch.device("meta"):
        return makers[kind_of(config)](config).eval()


def classifier_config(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> PotterClassifierConfig:
    """Sizes of a classifier."""
    return PotterClassifierConfig(
        layers=DEPTHS[config["builder"]], classes=shapes["head.weight"][0]
    )


def hand_config(config: Mapping[str, Any]) -> PotterHandConfig:
    """Sizes of a hand network."""
    return PotterHandConfig(**_pose_sizes(config))


def mesh_config(config: Mapping[str, Any]) -> PotterMeshConfig:
    """Sizes of a mesh network."""
    sizes = _pose_sizes(config)
    ranges = set(config["BBOX_3D_SHAPE"])
    if config["POST"] != {"NORM_TYPE": "softmax"} or len(ranges) != 1:
        raise ValueError(f"config: expected softmax and one range of depth: {dict(config)}")
    return PotterMeshConfig(
        **sizes, focal_px=config["FOCAL_LENGTH"], depth_range_m=ranges.pop() / 1000
    )


def _pose_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    extra = config["EXTRA"]
    read = {"IMAGE_SIZE", "HEATMAP_SIZE", "NUM_JOINTS", "EXTRA", "BBOX_3D_SHAPE", "FOCAL_LENGTH"}
    rules = {"salt", "not_seeded", "rescaled", "constants", "classifier_salt"}
    read_extra = {"HEATMAP_SIZE", "DEPTH_DIM", "LAYERS", "EMBED_DIMS", "MLP_RATIOS"}
    unknown = config.keys() - read - IGNORED - rules
    unknown |= extra.keys() - read_extra - IGNORED_EXTRA - {"DROP_RATE", "DROP_PATH_RATE"}
    side, other = config["IMAGE_SIZE"]
    cells = extra.get("HEATMAP_SIZE", config.get("HEATMAP_SIZE"))
    if unknown or side != other or cells != [side // 4] * 2:
        raise ValueError(f"config: cannot understand {sorted(unknown)}, {side}, {other}, {cells}")
    return {
        "side": side,
        "joints": config["NUM_JOINTS"],
        "depth": extra["DEPTH_DIM"],
        "layers": tuple(extra["LAYERS"]),
        "widths": tuple(extra["EMBED_DIMS"]),
        "mlp_ratios": tuple(extra["MLP_RATIOS"]),
        # in evaluation mode neither changes anything
        "dropout": extra.get("DROP_RATE", 0.0),
        "drop_path": extra.get("DROP_PATH_RATE", 0.0),
    }


def drawn_state(case: Case) -> dict[str, Tensor]:
    """Weights by official name, but for those of the body model."""
    config = case.config
    constants, rescaled = config.get("constants", {}), config.get("rescaled", {})
    state = {}
    for name, shape in case.shapes.items():
        if name in constants:
            state[name] = torch.tensor(constants[name], dtype=torch.float32)
        elif not _is_left_out(name, config.get("not_seeded", ())):
            drawn = torch.from_numpy(parameter(name, shape, case.salt))
            state[name] = drawn * rescaled.get(name, 1.0)
    if lost := rescaled.keys() - state.keys():
        raise ValueError(f"rescaled: there is no {sorted(lost)}")
    return state


def _is_left_out(name: str, patterns: Any) -> bool:
    return any(name == p or (p.endswith("*") and name.startswith(p[:-1])) for p in patterns)


def load(network: nn.Module, case: Case) -> None:
    """Give a network all its tensors; one too many or too few is an error."""
    network.load_state_dict(drawn_state(case), assign=True)
    if "classifier_salt" in case.config:
        backbone = network.get_submodule("poolattnformer_pose.poolattn_cls")
        with torch.device("meta"):
            sizes = {
                key: getattr(network.config, key) for key in ("layers", "widths", "mlp_ratios")
            }
            shapes = PotterClassifier(PotterClassifierConfig(**sizes)).state_dict()
        salt = case.config["classifier_salt"]
        drawn = {n: parameter(n, tuple(value.shape), salt) for n, value in shapes.items()}
        take_weights(backbone, {n: torch.from_numpy(value) for n, value in drawn.items()})


# Comparison ----------------------------------------------------------------------------------


class PotterNetworks:
    """Compares the cases of `read_manifest`; one network is in memory at a time."""

    def order(self, cases: list[Case]) -> list[Case]:
        """As the manifest has them."""
        return cases

    def compare(self, case: Case) -> Comparison:
        """Everything in the golden file of one case."""
        golden = case.golden()
        if case.name == UNITS:
            ours = potter_units.arrays(case.config["parts"], golden)
            exact = {"adaptive_pool": EXACT}
            return parity.compare(case.name, ours, golden, Tolerance(1e-5), exact)
        special = {"tap/": TAP} | {key: EXACT for key in golden if key.endswith("/shape")}
        skipped = BEHIND_THE_BODY if kind_of(case.config) == "mesh" else {}
        ours = self.values(case, golden)
        return parity.compare(case.name, ours, golden, OUTPUT, special, skipped)

    @torch.no_grad()
    def values(self, case: Case, golden: Mapping[str, np.ndarray]) -> dict[str, object]:
        """Our values by golden key; taps are those that the golden file speaks about."""
        network = build_network(case)
        load(network, case)
        image = input_image("images", case.inputs["images"], case.salt)
        arrays = dict(output_arrays(network, image, golden))
        wanted = {key.split("/")[1] for key in golden if key.startswith("tap/")}
        if not wanted:
            return arrays
        with Taps(written_out(network), wanted) as taps:
            written_out(network)(image)
        return arrays | tap_arrays(taps)


def output_arrays(
    network: nn.Module, image: Tensor, golden: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, object]]:
    """Outputs by golden key."""
    output = network(image)
    if isinstance(network, PotterMesh):
        yield from mesh_arrays(output, network.config.depth_range_m)
        if "train_mode/pred_xyz_jts_29" in golden:
            yield "train_mode/pred_xyz_jts_29", in_training(network, image).joints_xyz.flatten(1)
    elif isinstance(network, PotterBackbone):
        for index, value in enumerate(output):
            yield from statistics(f"feat{index}", value)
            yield f"feat{index}/slice", value[:, ::8, ::4, ::4]
    else:
        yield ("logits" if isinstance(network, PotterClassifier) else "joints"), output


def mesh_arrays(output: PotterMeshRaw, unit_m: float) -> Iterator[tuple[str, object]]:
    """What a mesh network predicts, and what it gives the body model, by golden key."""
    yield "pred_uvd_jts", output.joints_uvd.flatten(1)
    yield "pred_xyz_jts_29", output.joints_xyz.flatten(1)
    yield "pred_phi", output.twist
    yield "pred_shape", output.shape
    yield "pred_delta_shape", output.shape_offset
    yield "cam_scale", output.camera_scale
    yield "cam_trans", output.camera_shift
    yield "cam_root", output.camera_root
    yield "maxvals", output.confidence[..., None]
    yield "smpl_in/pose_skeleton", output.joints_xyz * unit_m
    yield "smpl_in/betas", output.shape
    yield "smpl_in/phis", output.twist


def in_training(network: PotterMesh, image: Tensor) -> PotterMeshRaw:
    """Its output in training mode without anything random."""
    network.train()
    for module in network.modules():
        if module is not network:
            module.eval()
    output: PotterMeshRaw = network(image)
    network.eval()
    return output


# Taps ----------------------------------------------------------------------------------------


def written_out(network: nn.Module) -> nn.Module:
    """The network with the official order of operations, on the same tensors."""
    twins = {PotterHand: WrittenOutHand, PotterMesh: WrittenOutMesh}
    if type(network) in twins:
        network.__class__ = twins[type(network)]  # type: ignore[assignment]
    return network


class Taps:
    """Records outputs, and inputs (``NAME:input``), of submodules in a ``with`` block."""

    def __init__(self, network: nn.Module, wanted: set[str]) -> None:
        self._network, self._wanted = network, wanted
        self._found: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> dict[str, Tensor]:
        for name, module in self._network.named_modules():
            self._handles.append(module.register_forward_hook(self._hook(name)))
        return self._found

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_module: nn.Module, inputs: Any, output: Any) -> None:
            if name in self._wanted:
                self._found[name] = output
            if f"{name}:input" in self._wanted:
                self._found[f"{name}:input"] = inputs[0]

        return record


def tap_arrays(taps: Mapping[str, Tensor]) -> dict[str, object]:
    """Tensors as the goldens hold them."""
    arrays: dict[str, object] = {}
    for name, value in taps.items():
        arrays |= dict(statistics(f"tap/{name}", value))
        arrays[f"tap/{name}/head"] = value.flatten()[:FIRST_VALUES]
    return arrays


def statistics(key: str, value: Tensor) -> Iterator[tuple[str, object]]:
    """Shape, mean, and deviation with the count as its divisor."""
    flat = value.double().flatten()
    yield f"{key}/shape", np.array(value.shape)
    yield f"{key}/mean", flat.mean()
    yield f"{key}/std", flat.std(correction=0)
