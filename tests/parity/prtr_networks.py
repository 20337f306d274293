"""PRTR's networks, built and run as the manifest says.

Entries with a ``model`` are whole networks with a golden file of their own; those without are
modules, whose outputs are together in ``np_modules.npz`` (`tests.parity.prtr_modules`). Training
steps, which have ``targets``, are compared elsewhere.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kinemesh.models.frozen_batch_norm import FrozenNormResNet
from kinemesh.models.metro import HRNetMap
from kinemesh.models.prtr import KeypointSetOutput, Prtr, PrtrConfig
from kinemesh.models.prtr_deformable import DeformablePrtr, DeformablePrtrConfig
from kinemesh.models.prtr_sequential import (
    SequentialConfig,
    SequentialPrtr,
    pad_images,
    sample_cells,
)
from tests import parity
from tests.parity import Comparison, Tolerance, prtr_modules
from tests.parity.networks import Case
from tests.parity.prtr_weights import DrawnWeights
from tests.seeded_weights import input_image

FIRST_VALUES = 32  # of each tapped tensor
MODULES = "np_modules"
TAP = Tolerance(5e-5, 1e-5)  # features are up to thousands
PRE_NORM = Tolerance(1e-4)  # the official code itself is 5e-5 off its own values in float64
LOGITS, COORDS = Tolerance(5e-5), Tolerance(1e-5)
SEQUENTIAL_LOGITS, SEQUENTIAL_COORDS = Tolerance(1e-4), Tolerance(2e-5)
ABOUT_ALL_PERSONS = dict.fromkeys(
    ("tap/kpt.*", "tap/cropped_*", "pred_kpt_coord/stat", "pred_kpt_logits/stat"),
    "about all persons",
)
EXTRA = ("salt", "post_scale", "constant_buffers", "num_parameters", "num_trainable_parameters")


# Manifest ------------------------------------------------------------------------------------


def read_manifest(path: Path, golden_folder: Path) -> list[Case]:
    """The network cases, and one case for all modules if they have a golden file."""
    entries = json.loads(path.read_text("utf-8"))
    modules = {name: entry for name, entry in entries.items() if "model" not in _config(entry)}
    cases = [
        read_entry(name, entry, golden_folder)
        for name, entry in entries.items()
        if name not in modules and "targets" not in entry
    ]
    if (golden_folder / f"{MODULES}.npz").is_file():
        config = {"model": MODULES, "modules": modules}
        cases.append(Case(MODULES, config, {}, {}, (), golden_folder))
    return cases


def read_entry(name: str, entry: Mapping[str, Any], golden_folder: Path) -> Case:
    """One entry; what stands beside its configuration becomes part of it."""
    beside = {key: entry[key] for key in EXTRA if key in entry}
    return Case(
        name,
        _config(entry) | beside,
        {key: tuple(shape) for key, shape in entry["inputs"].items()},
        {key: tuple(shape) for key, shape in entry["state_dict"].items()},
        (),
        golden_folder,
    )


def _config(entry: Mapping[str, Any]) -> dict[str, Any]:
    return dict(entry.get("config", {}))


# Networks ------------------------------------------------------------------------------------

Network = Prtr | DeformablePrtr | SequentialPrtr


def build_network(config: Mapping[str, Any]) -> Network:
    """The network of a configuration, without storage for its parameters, in evaluation mode."""
    if config.get("dilation"):
        raise ValueError("dilation: the networks have none")
    with torch.device("meta"):
        network = _build(config)
    if isinstance(network, SequentialPrtr):
        network.register_constants()  # these are computed, not loaded
    return network.eval()


def _build(config: Mapping[str, Any]) -> Network:
    backbone = _backbone(config)
    if config["model"] == "pose_transformer":
        return Prtr(PrtrConfig(**_two_stage(config), pre_norm=config["pre_norm"]), backbone)
    if config["model"] == "deformable_pose_transformer":
        sizes = {
            "levels": config["num_feature_levels"],
            "encoder_points": config["enc_n_points"],
            "decoder_points": config["dec_n_points"],
        }
        return DeformablePrtr(DeformablePrtrConfig(**_two_stage(config), **sizes), backbone)
    if config["model"] == "prtr_sequential":
        return SequentialPrtr(_sequential(config), backbone)
    raise ValueError(f"model: there is no {config['model']!r}")


def _backbone(config: Mapping[str, Any]) -> Any:
    name = config["backbone"]
    if name != "hrnet":
        return FrozenNormResNet(int(name.removeprefix("resnet")))
    stages = [config[f"stage{number}"] for number in (2, 3, 4)]
    width = stages[0]["num_channels"][0]
    for branches, stage in enumerate(stages, start=2):
        channels = [width << branch for branch in range(branches)]
        expected = {"num_blocks": [4] * branches, "num_channels": channels, "block": "BASIC"}
        if any(stage[key] != value for key, value in expected.items()):
            raise ValueError(f"backbone: HRNet has {expected}, not {stage}")
    one, two, three = (stage["num_modules"] for stage in stages)
    return HRNetMap(width, modules=(one, two, three))


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "heads": config["nheads"],
        "encoder_layers": config["enc_layers"],
        "decoder_layers": config["dec_layers"],
        "feed_forward": config["dim_feedforward"],
        "dropout": config["dropout"],
    }


def _two_stage(config: Mapping[str, Any]) -> dict[str, Any]:
    return _common(config) | {
        "joints": config["num_joints"],
        "queries": config["num_queries"],
        "width": config["hidden_dim"],
        "positions": config["pos_embed_method"],
    }


def _sequential(config: Mapping[str, Any]) -> SequentialConfig:
    return SequentialConfig(
        **_common(config),
        joints=config["num_kpts"],
        person_queries=config["person_queries"],
        keypoint_queries=config["kpt_queries"],
        width=config["det_d_model"],
        keypoint_width=config["kpt_d_model"],
        pre_norm=config["pre_norm"],
        levels=tuple(config["level"]),
        rows=config["y_res"],
        columns=config["x_res"],
    )


def official_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Names and shapes of everything that our file of the network has."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def manifest_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Names and shapes of everything that the official file has."""
    constants = case.config.get("constant_buffers", {})
    return dict(case.shapes) | {name: tuple(shape) for name, shape in constants.items()}


@dataclass(eq=False)
class PrtrNetworks:
    """Compares the cases of `read_manifest`; one network is in memory at a time."""

    weights: DrawnWeights = field(default_factory=DrawnWeights)

    def order(self, cases: list[Case]) -> list[Case]:
        """The order in which most draws are shared."""

        def key(case: Case) -> tuple[str, ...]:
            config = case.config
            return (case.salt, config.get("backbone", ""), config["model"], case.name)

        return sorted(cases, key=key)

    def compare(self, case: Case, *, recorded_persons_only: bool = False) -> Comparison:
        """Everything in the golden file of one case.

        Args:
            case: Of `read_manifest`.
            recorded_persons_only: Leave out what is about all persons of a sequential network.
        """
        golden = case.golden()
        ours = self.values(case, golden, recorded_persons_only)
        if case.name == MODULES:
            return parity.compare(case.name, ours, golden, LOGITS, {"transformer_pre": PRE_NORM})
        counts = ("num_parameters", "num_trainable_parameters")
        golden |= {key: np.array(case.config[key]) for key in counts if key in case.config}
        # A tap or count that nobody recorded is no mistake; an output is.
        free = ("tap/", "num_")
        ours = {key: v for key, v in ours.items() if key in golden or not key.startswith(free)}
        skipped = ABOUT_ALL_PERSONS if recorded_persons_only else {}
        return parity.compare(case.name, ours, golden, TAP, _tolerances(case), skipped)

    def values(
        self, case: Case, golden: Mapping[str, np.ndarray], recorded_persons_only: bool = False
    ) -> dict[str, object]:
        """Our values by golden key; which persons are meant is read from the golden file."""
        if case.name == MODULES:
            return prtr_modules.arrays(case.config["modules"], golden)
        network = build_network(case.config)
        counts = parameter_counts(network)
        state = self.weights.state(case.shapes, case.salt, case.config.get("post_scale", ()))
        missing, unexpected = network.load_state_dict(state, strict=False, assign=True)
        if set(missing) != set(case.config.get("constant_buffers", ())) or unexpected:
            raise ValueError(f"state: ours has {missing} too and lacks {unexpected}")
        with torch.no_grad(), Recorder(network) as recorder:
            if not isinstance(network, SequentialPrtr):
                return counts | two_stage_arrays(network, case, recorder)
            shown = torch.from_numpy(golden["person_index"])
            return counts | sequential_arrays(network, case, recorder, shown, recorded_persons_only)


def parameter_counts(network: nn.Module) -> dict[str, object]:
    """How many numbers a network learns, and how many of them are not frozen."""
    parameters = list(network.parameters())
    return {
        "num_parameters": sum(p.numel() for p in parameters),
        "num_trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
    }


def _tolerances(case: Case) -> dict[str, Tolerance]:
    if case.config["model"] == "prtr_sequential":
        by_key = dict.fromkeys(("pred_logits", "pred_kpt_logits"), SEQUENTIAL_LOGITS)
        by_key |= dict.fromkeys(("pred_boxes", "pred_kpt_coord"), SEQUENTIAL_COORDS)
    else:
        by_key = {"pred_logits": LOGITS, "pred_coords": COORDS}
        for layer in range(case.config["dec_layers"] - 1):
            by_key |= {f"aux{layer}/pred_logits": LOGITS, f"aux{layer}/pred_coords": COORDS}
    return by_key | dict.fromkeys(("num_", "nested_"), parity.EXACT)


# Taps ----------------------------------------------------------------------------------------


class Recorder:
    """Keeps the outputs of all calls of a network's modules, while it is in a ``with`` block."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._handles: list[Any] = []
        self.outputs: dict[str, list[Any]] = {}

    def __enter__(self) -> "Recorder":
        for name, module in self._network.named_modules():
            if _is_tapped(name):
                self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def record(_module: nn.Module, _inputs: object, output: Any) -> None:
            self.outputs.setdefault(name, []).append(output)

        return record

    def __getitem__(self, name: str) -> Any:
        """Output of the last call."""
        return self.outputs[name][-1]

    def find(self, prefix: str, names: Any) -> Iterator[tuple[str, Any]]:
        """Outputs of the modules among ``names`` that ran, without the prefix."""
        for name in names:
            if prefix + str(name) in self.outputs:
                yield str(name), self[prefix + str(name)]


RESNET_TAPS = ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4")
HRNET_TAPS = {"layer1": "layer1", "final_layer": "final"} | {
    f"{ours}.{branch}": f"{theirs}.{branch}"
    for ours, theirs in (
        ("transition1", "transition1"),
        ("incre_modules", "incre"),
        ("downsamp_modules", "downsamp"),
    )
    for branch in range(4)
}


def _is_tapped(name: str) -> bool:
    body = name.removeprefix("backbone.0.body.")
    if body != name:
        return body in RESNET_TAPS or body in HRNET_TAPS or body in {"stage2", "stage3", "stage4"}
    return not name.startswith("backbone.0")


def body_taps(recorder: Recorder, hrnet: bool) -> dict[str, Tensor]:
    """Maps of the backbone by golden names."""
    prefix = "backbone.0.body."
    if not hrnet:
        return {f"resnet.{name}": value for name, value in recorder.find(prefix, RESNET_TAPS)}
    taps = {f"hrnet.{HRNET_TAPS[name]}": value for name, value in recorder.find(prefix, HRNET_TAPS)}
    for name, maps in recorder.find(prefix, ("stage2", "stage3", "stage4")):
        taps |= {f"hrnet.{name}.{branch}": value for branch, value in enumerate(maps)}
    return taps


def transformer_taps(
    recorder: Recorder, transformer: str, prefix: str = "", *, batch_first: bool = False
) -> dict[str, Tensor]:
    """Outputs of the layers; the official DETR has the batch in the second axis."""
    taps = {}
    for side in ("encoder", "decoder"):
        for number, value in recorder.find(f"{transformer}.{side}.layers.", range(99)):
            taps[f"{prefix}{side}.{number}"] = value if batch_first else value.transpose(0, 1)
    return taps


def tap_arrays(taps: Mapping[str, Tensor]) -> dict[str, object]:
    """Tensors as the goldens hold them: shape, [mean, deviation, largest], first values."""
    arrays: dict[str, object] = {}
    for name, value in taps.items():
        arrays[f"tap/{name}/shape"] = np.array(value.shape)
        arrays[f"tap/{name}/stat"] = statistics(value)
        arrays[f"tap/{name}/head"] = value.flatten()[:FIRST_VALUES]
    return arrays


def statistics(value: Tensor) -> Tensor:
    """Mean, standard deviation with the count as its divisor, and largest absolute value."""
    flat = value.double().flatten()
    return torch.stack([flat.mean(), flat.std(correction=0), flat.abs().amax()])


# Outputs -------------------------------------------------------------------------------------


def two_stage_arrays(
    network: Prtr | DeformablePrtr, case: Case, recorder: Recorder
) -> dict[str, object]:
    """Outputs and taps of a two-stage network."""
    output: KeypointSetOutput = network(input_image("images", case.inputs["images"], case.salt))
    arrays: dict[str, object] = {"pred_logits": output.logits, "pred_coords": output.coords}
    if case.config["aux_loss"]:
        for layer, auxiliary in enumerate(output.auxiliary):
            arrays[f"aux{layer}/pred_logits"] = auxiliary.logits
            arrays[f"aux{layer}/pred_coords"] = auxiliary.coords
    deformable, batch = isinstance(network, DeformablePrtr), len(output.logits)
    taps = body_taps(recorder, case.config["backbone"] == "hrnet")
    taps |= transformer_taps(recorder, "transformer", batch_first=deformable)
    for level, code in enumerate(recorder.outputs["backbone.1"]):
        taps[f"pos.{level}"] = code.expand(batch, -1, -1, -1)
    if deformable:
        taps |= dict(recorder.find("", (f"input_proj.{level}" for level in range(9))))
        taps["encoder.0.msda"] = recorder["transformer.encoder.layers.0.self_attn"]
        taps["decoder.0.msda"] = recorder["transformer.decoder.layers.0.cross_attn"]
        references = recorder["transformer.reference_points"]
        taps["reference_points_logit"] = references.expand(batch, -1, -1)
    else:
        taps["input_proj"] = recorder["input_proj"]
    return arrays | tap_arrays(taps)


def sequential_arrays(
    network: SequentialPrtr,
    case: Case,
    recorder: Recorder,
    recorded: Tensor,
    recorded_persons_only: bool,
) -> dict[str, object]:
    """Outputs and taps of the sequential network."""
    batch = pad_images(
        [
            input_image(name, shape, case.salt)
            for name, shape in sorted(case.inputs.items(), key=lambda item: _number(item[0]))
        ]
    )
    rows = recorded.expand(len(batch.images), -1)
    choose = (lambda _logits, _boxes: rows) if recorded_persons_only else None
    output = network(*batch, choose_persons=choose)
    ratios = batch.sizes / torch.tensor(batch.images.shape[-2:])
    arrays = {
        "pred_logits": output.logits,
        "pred_boxes": output.boxes,
        "person_index": recorded,
        "nested_shape_hw_ratio": ratios,
        "nested_batch_shape": np.array(batch.images.shape),
    }
    taps = body_taps(recorder, hrnet=False) | {"input_proj": recorder["input_proj"]}
    taps |= transformer_taps(recorder, "transformer", "det.")
    taps["boxes"] = output.boxes.flatten(0, 1)
    coords, logits = output.keypoint_coords, output.keypoint_logits
    cells, position = recorder["transformer_kpt.input_proj"], network.crop_position()
    shown_boxes = output.boxes[:, :1]
    if not recorded_persons_only:
        arrays |= {
            "pred_kpt_coord/stat": statistics(coords),
            "pred_kpt_logits/stat": statistics(logits),
        }
        coords, logits, shown_boxes = coords[:, recorded], logits[:, recorded], output.boxes
        taps |= transformer_taps(recorder, "transformer_kpt.transformer", "kpt.")
        taps["kpt.input_proj"] = cells
        taps["cropped_pos"] = position.expand(len(cells), -1, -1, -1)
    feature = cropped_feature(network, recorder, shown_boxes, ratios)
    if not recorded_persons_only:
        taps["cropped_feature"] = feature
    arrays |= {"pred_kpt_coord": coords, "pred_kpt_logits": logits}
    arrays["cropped_pos_person0_every64"] = position[0, ::64]
    arrays["cropped_feature_person0_ch0_8"] = feature[0, :8]
    return arrays | tap_arrays(taps)


def _number(name: str) -> int:
    """7 of "images.7"."""
    return int(name.rpartition(".")[2])


def cropped_feature(
    network: SequentialPrtr, recorder: Recorder, boxes_BP4: Tensor, ratios_B2: Tensor
) -> Tensor:
    """(N,C,h,w) cells before the projection, which the network itself may never form."""
    maps = [recorder[f"backbone.0.body.layer{level + 1}"] for level in network.config.levels]
    grid = network.crop_grid(boxes_BP4, ratios_B2)
    return torch.cat([sample_cells(level, grid) for level in maps], dim=1)
