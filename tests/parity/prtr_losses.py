"""PRTR's matching, losses, optimiser and first training step against the official ones."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kinemesh.keypoint_losses import KeypointSetLoss, KeypointTargets
from kinemesh.matching import match
from kinemesh.models.frozen_batch_norm import FrozenNormResNet
from kinemesh.models.metro import HRNetMap
from kinemesh.models.prtr import KeypointSetOutput, Prtr, PrtrConfig
from kinemesh.models.prtr_deformable import DeformablePrtr, DeformablePrtrConfig
from kinemesh.training.config import OptimConfig
from kinemesh.training.prtr_networks import prtr_parameter_groups
from tests import parity
from tests.parity import EXACT, Comparison, Tolerance
from tests.parity.networks import Case
from tests.parity.prtr_networks import build_network, read_entry
from tests.parity.prtr_weights import DrawnWeights
from tests.seeded_weights import input_image

LOSSES = Tolerance(0.0, 1e-6)  # of the value: the same sums, in another order
STEP_LOSSES, STEP_NORM = Tolerance(0.0, 1e-4), Tolerance(0.0, 1e-3)
DEVIATIONS = 5  # allowed, times the official code's own deviation from float64
HEAD = 16  # first numbers of a gradient or an update
NETWORKS = {
    "res50_coco": lambda: Prtr(PrtrConfig(), FrozenNormResNet(50)),
    "hrnet32_coco": lambda: Prtr(PrtrConfig(), HRNetMap(32)),
    "deform_res50_coco": lambda: DeformablePrtr(DeformablePrtrConfig(), FrozenNormResNet(50)),
}
BACKBONE_LR = {"res50_coco": 0.1, "hrnet32_coco": 1.0, "deform_res50_coco": 0.1}


def compare(golden_folder: Path, salt: str | None = None) -> list[Comparison]:
    """Every ``np_loss_*``, ``np_optim`` and ``np_trainstep_*`` in a folder.

    Without a salt, that of the manifest's training steps counts for all.
    """
    manifest = golden_folder.parent / "manifest.json"
    entries = json.loads(manifest.read_text("utf-8")) if manifest.is_file() else {}
    steps = sorted(golden_folder.glob("np_trainstep_*.npz"))
    if salt is None:
        salts = {entries[path.stem].get("salt", "") for path in steps if path.stem in entries}
        salt = salts.pop() if len(salts) == 1 else ""
    results = [compare_losses(path, salt) for path in sorted(golden_folder.glob("np_loss_*.npz"))]
    if (golden_folder / "np_optim.json").is_file():
        results.append(compare_groups(golden_folder / "np_optim.json"))
    return results + [
        _compare_step(read_entry(path.stem, entries[path.stem], golden_folder)) for path in steps
    ]


# Losses --------------------------------------------------------------------------------------


def targets(people: int, joints: int, salt: str) -> KeypointTargets:
    """Drawn labels; about a third of the joints have none."""
    weight = (input_image("loss.vis", (people, joints, 1), salt) > -0.5).float()
    places = 0.5 + 0.25 * input_image("loss.target", (people, joints, 2), salt)
    return KeypointTargets(places * weight, weight)


def compare_losses(path: Path, salt: str = "") -> Comparison:
    with np.load(path) as file:
        golden = dict(file)
    people, joints, queries = (int(size) for size in golden["shape_B_J_Q"])
    drawn_logits = input_image("loss.pred_logits", (6, people, queries, joints + 1), salt)
    drawn_coords = input_image("loss.pred_coords", (6, people, queries, 2), salt)
    logits = (2 * drawn_logits).requires_grad_()
    coords = (0.5 + 0.2 * drawn_coords).clamp(0, 1).requires_grad_()
    labels = targets(people, joints, salt)
    losses = KeypointSetLoss()(KeypointSetOutput.of_layers(logits, coords), labels)
    losses["total"].backward()
    query = match(logits, coords, labels.places_BJ2)
    last = query[-1][..., None]
    ours: dict[str, object] = _named(losses)
    ours |= {f"match/layer{layer}/query_of_joint": one for layer, one in enumerate(query)}
    chosen = coords[-1].gather(1, last.expand(-1, -1, 2))
    ours |= {
        "pred_matched_times_weight": chosen * labels.weight_BJ1,
        "grad_logits/stat": _sizes(logits.grad),
        "grad_coords/stat": _sizes(coords.grad),
        "grad_logits/last_b0_q0_8": logits.grad[-1, 0, :8],
        "grad_coords/last_b0_nonzero_rows": coords.grad[-1, 0, query[-1, 0]],
        "shape_B_J_Q": np.array([people, joints, queries]),
    }
    special = {"match/": EXACT, "shape": EXACT, "loss/cardinality": EXACT}
    return parity.compare(path.stem, ours, golden, LOSSES, special)


def _named(losses: Mapping[str, Tensor]) -> dict[str, object]:
    return {("" if name == "total" else "loss/") + name: x.detach() for name, x in losses.items()}


def _sizes(gradient: Tensor) -> np.ndarray:
    """Sum of absolute values, and root of the sum of squares, summed in float64."""
    wide = gradient.double()
    return np.array([float(wide.abs().sum()), float(wide.norm())])


# Optimiser -----------------------------------------------------------------------------------


def compare_groups(path: Path) -> Comparison:
    """Groups, their numbers, their order of names and what is frozen; all of it exactly."""
    content = json.loads(path.read_text("utf-8"))
    golden, ours = {}, {}
    for name, expected in content.items():
        described = _described(name)
        golden |= _flat(name, expected)
        ours |= _flat(name, described)
        for number, group in enumerate(expected["groups"]):
            named = {*group["first"], group["last"]}
            key = f"{name}/{number}/members"
            golden[key] = np.array(sorted(named), dtype=str)
            ours[key] = np.array(sorted(named & {*described["groups"][number]["members"]}), str)
    return parity.compare(path.stem, ours, golden, Tolerance(0.0, 1e-12))


def _described(name: str) -> dict[str, Any]:
    with torch.device("meta"):
        network = NETWORKS[name]()
    names = {parameter: key for key, parameter in network.named_parameters()}
    optim = OptimConfig(lr=1e-4, weight_decay=1e-4, backbone_lr_scale=BACKBONE_LR[name])
    adam = torch.optim.AdamW(prtr_parameter_groups(network, optim), betas=optim.betas)
    described: dict[str, Any] = {"type": type(adam).__name__, "groups": []}
    for group in adam.param_groups:
        members = [names[parameter] for parameter in group["params"]]
        described["groups"].append(
            {key: group[key] for key in ("lr", "weight_decay", "betas", "eps")}
            | {
                "tensors": len(members),
                "elements": sum(parameter.numel() for parameter in group["params"]),
                "members": members,
            }
        )
    described["frozen_parameters"] = [
        key for key, parameter in network.named_parameters() if not parameter.requires_grad
    ]
    if isinstance(network, DeformablePrtr):
        described["lr_1e-5_linear_proj"] = described["groups"][2]["members"]
    return described


def _flat(name: str, content: Mapping[str, Any]) -> dict[str, np.ndarray]:
    flat = {f"{name}/type": np.array(content["type"])}
    for key in ("frozen_parameters", "lr_1e-5_linear_proj"):
        if key in content:
            flat[f"{name}/{key}"] = np.array(sorted(content[key]), dtype=str)
    for number, group in enumerate(content["groups"]):
        for key in ("lr", "weight_decay", "betas", "eps", "tensors", "elements"):
            flat[f"{name}/{number}/{key}"] = np.array(group[key])
    return flat


# Training step -------------------------------------------------------------------------------


def _compare_step(case: Case) -> Comparison:
    """One step from drawn weights: losses, gradients after and the update that clipping allows.

    Updates come from a step in float64: AdamW's first one divides each gradient by itself, so that
    the rounding of one near its epsilon, 1e-8, is all there is to see.
    """
    golden = case.golden()
    ours, largest = _step(case, golden, torch.float32)
    precise, _ = _step(case, golden, torch.float64)
    ours |= {key: value for key, value in precise.items() if key.startswith("delta/")}
    measured = {key: why for key in golden if (why := _measure(key))}
    special = _step_tolerances(golden, largest)
    return parity.compare(case.name, ours, golden, STEP_LOSSES, special, measured)


def _step(
    case: Case, golden: Mapping[str, np.ndarray], dtype: torch.dtype
) -> tuple[dict[str, object], dict[str, float]]:
    """Values by golden key, and the largest number of each gradient."""
    config = case.config
    network = build_network(config)
    state = DrawnWeights().state(case.shapes, case.salt, config.get("post_scale", ()))
    network.load_state_dict(state, assign=True)
    network.to(dtype).train()
    shape = case.inputs["images"]
    labels = targets(shape[0], config["num_joints"], case.salt)
    loss = KeypointSetLoss(config["kpt_loss_coef"], config["eos_coef"])
    losses = loss(network(input_image("images", shape, case.salt).to(dtype)), labels)
    losses["total"].backward()
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    norm = nn.utils.clip_grad_norm_(learned, config["clip_max_norm"])
    wanted = {key.split("/")[1] for key in golden if key.startswith("grad/")}
    watched = {name: p for name, p in network.named_parameters() if name in wanted}
    before = {name: parameter.detach().clone() for name, parameter in watched.items()}
    optimiser(network, config).step()

    ours = _named(losses) | {"grad_norm_before_clip": norm}
    ours["shape_B_J_H_W"] = np.array([shape[0], config["num_joints"], *shape[2:]])
    for name, parameter in watched.items():
        ours[f"grad/{name}/norm"] = parameter.grad.norm()
        ours[f"grad/{name}/head"] = parameter.grad.flatten()[:HEAD]
        ours[f"delta/{name}/head"] = (parameter.detach() - before[name]).flatten()[:HEAD]
    if "bn1_running_mean_head" in golden:
        mean = network.state_dict()["backbone.0.body.bn1.running_mean"]
        ours["bn1_running_mean_head"] = mean[:HEAD]
    return ours, {name: float(p.grad.abs().max()) for name, p in watched.items()}


def optimiser(network: nn.Module, config: Mapping[str, Any]) -> torch.optim.AdamW:
    """AdamW with the numbers of the manifest."""
    optim = OptimConfig(
        lr=config["lr"],
        weight_decay=config["weight_decay"],
        backbone_lr_scale=config["lr_backbone"] / config["lr"],
    )
    return torch.optim.AdamW(prtr_parameter_groups(network, optim), betas=optim.betas)


def _measure(key: str) -> str:
    return "a tolerance, not a result" if "_err_vs_float64" in key else ""


def _step_tolerances(
    golden: Mapping[str, np.ndarray], largest: Mapping[str, float]
) -> dict[str, Tolerance]:
    """Relative deviations were measured on whole gradients, of which only the head is stored."""
    special = {"grad_norm_before_clip": STEP_NORM, "shape": EXACT, "loss/cardinality": EXACT}
    for key, value in golden.items():
        kind, _, rest = key.partition("/")
        name = rest.rsplit("/", 1)[0]
        allowed = DEVIATIONS * float(value) if _measure(key) else 0.0
        if key.endswith("rel_err_vs_float64"):
            special[f"{kind}/{name}/norm"] = Tolerance(0.0, allowed)
            special[f"{kind}/{name}/head"] = Tolerance(allowed * largest[name])
        elif key.endswith("max_err_vs_float64"):
            special[f"{kind}/{name}/head"] = Tolerance(allowed)
    return special
