"""PointHMR's losses, heat-map targets, schedule and first step against the official ones."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kinemesh.bodies.topology import Topology
from kinemesh.geometry.cameras import WeakPerspective
from kinemesh.mesh_losses import MeshTargets, MeshTransformerLoss
from kinemesh.models.mesh_transformer import MeshOutput
from kinemesh.models.point_hmr import PointHmr, PointHmrOutput
from kinemesh.models.point_hmr_checkpoints import dead_names
from kinemesh.point_losses import (
    HeatTargets,
    PointHmrLoss,
    PointLossWeights,
    heat_map_terms,
    heat_targets,
)
from kinemesh.training.config import OptimConfig, ScheduleConfig
from kinemesh.training.schedules import lr_factor
from kinemesh.training.task import default_parameter_groups
from tests import parity, slow_heat_maps
from tests.parity import EXACT, Comparison, Tolerance
from tests.parity.pointhmr_mesh import body_topology, draw, salt_of
from tests.parity.pointhmr_networks import (
    DrawnWeights,
    filled_network,
    input_blocks,
    outputs,
    read_entry,
)

SIDE = 112
TERMS = Tolerance(1e-6, 2e-6)
RATES = Tolerance(0.0, 1e-12)
STEP_OUTPUTS, STEP_TERMS = Tolerance(1e-4), Tolerance(0.0, 5e-5)
GRADIENTS = Tolerance(0.0, 2e-3)
"""Of the norm: the official float32 code is itself up to 6e-4 from its values in float64."""
FIRST_LAYER = Tolerance(0.0, 1e-2)
"""Single values behind 200 batch norms of two pictures, over the largest of them. With the order of
sums of the golden file (one thread, AVX-512) ours are 3e-6 from it; with another order (two threads
or AVX2) 4.4e-3 and 4.8e-3, though no value changed but by rounding. The golden file itself is
1.3e-3 from the same step in float64."""
STATISTICS = Tolerance(1e-5)
UPDATE = Tolerance(2e-6)
"""A fiftieth of the learning rate: where a gradient is tiny, Adam's first step divides noise."""
ADAM = OptimConfig(lr=1e-4, weight_decay=0.0, clip_norm=None)
STEP = "train_step"
LABELLED = {"has_3d": (1.0, 0.0, 1.0), "has_smpl": (1.0, 0.0, 1.0)}
FIRST_VALUES = 32


def compare(golden_folder: Path) -> list[Comparison]:
    """``losses``, ``heatmap_target``, ``lr_schedule`` and ``train_step`` of a folder, if there."""
    parts = {
        "losses": lambda golden: compare_losses(golden, salt_of(golden_folder, "losses")),
        "heatmap_target": compare_heat_targets,
        "lr_schedule": compare_schedule,
    }
    found = [
        part(_load(golden_folder / f"{name}.npz"))
        for name, part in parts.items()
        if (golden_folder / f"{name}.npz").is_file()
    ]
    manifest = golden_folder.parent / "manifest.json"
    if (golden_folder / f"{STEP}.npz").is_file() and manifest.is_file():
        found.append(compare_step(json.loads(manifest.read_text("utf-8")), golden_folder))
    return found


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


# Losses --------------------------------------------------------------------------------------


def compare_losses(golden: dict[str, np.ndarray], salt: str) -> Comparison:
    topology = body_topology()
    loss = PointHmrLoss(topology, PointLossWeights())
    batch = len(golden["gt_pelvis"])
    prediction = _predictions(topology, batch, salt)
    known, pelvis_B13 = targets(loss, batch, salt)
    shape = (batch, len(topology.coarse), SIDE * SIDE)
    heat_BNP = draw("loss.heatmap_logits", shape, salt, 2.0).softmax(dim=-1)
    with torch.no_grad():
        output = PointHmrOutput(*prediction[:3], heat=heat_BNP.view(*shape[:2], SIDE, SIDE))
        # the drawn maps have the large size already, so nothing is to be enlarged
        projected = WeakPerspective.from_vector(output.camera).project(
            known.vertices_BV3[:, topology.coarse.vertex_index]
        )
        places = heat_targets(projected, SIDE)
        heat = heat_map_terms(output.heat, places, known.has_mesh_B, enlargement=1)
        # the loss of the other terms, whatever the heat maps are
        terms = MeshTransformerLoss.forward(loss, _without_heat(output), known)
    weights = loss.weights
    heat_loss = heat.dice + weights.cross_entropy * heat.cross_entropy
    labelled = known.has_mesh_B > 0
    regressed = loss.joints(output.vertices[-1])
    kept, index = places.kept_BN[labelled], places.index_BN[labelled]
    ours: dict[str, object] = {**_official_terms(terms)} | {
        "total": terms["total"] + weights.heat * heat_loss,
        "total_without_heatmap": terms["total"],
        "heatmap": heat_loss,
        "heatmap_bce_mean": heat.cross_entropy,
        "heatmap_dice": heat.dice,
        "dice_direct": _dice_direct(weights, salt),
        "target_flag": kept,
        "target_index_in_bounds": index[kept],
        "n_in_bounds": np.int32(kept.sum()),
        "proj_gt_coarse": projected,
        "pred_2d_joints_from_mesh": WeakPerspective.from_vector(output.camera).project(regressed),
        "gt_pelvis": pelvis_B13[:, 0],
    }
    special = {"target_": EXACT, "n_in_bounds": EXACT}
    return parity.compare("losses", ours, golden, TERMS, special)


def _official_terms(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    levels = [terms[f"loss_v_{name}"] for name in ("sub2", "sub", "full")]
    return {
        "loss_2d": terms["loss_2d_token"] + terms["loss_2d_mesh"],
        "loss_3d": terms["loss_3d_token"] + terms["loss_3d_mesh"],
        "loss_vertices": 0.33 * torch.stack(levels).sum(),
        "kp3d_token": terms["loss_3d_token"],
        "kp3d_mesh": terms["loss_3d_mesh"],
        "kp2d_token": terms["loss_2d_token"],
        "kp2d_mesh": terms["loss_2d_mesh"],
        "v_coarse": levels[0],
        "v_mid": levels[1],
        "v_full": levels[2],
    }


def _without_heat(output: PointHmrOutput) -> MeshOutput:
    return MeshOutput(output.camera, output.joints, output.vertices)


def _predictions(
    topology: Topology, batch: int, salt: str
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    sizes = {
        "_sub2": len(topology.coarse),
        "_sub": len(topology.levels[0]),
        "": len(topology.template),
    }
    camera = draw("loss.pred_camera", (batch, 3), salt, 0.1) + torch.tensor([2.5, 0.0, 0.0])
    joints = draw("loss.pred_3d_joints", (batch, len(topology.token_skeleton), 3), salt, 0.3)
    vertices = tuple(
        draw(f"loss.pred_vertices{name}", (batch, count, 3), salt, 0.3)
        for name, count in sizes.items()
    )
    return camera, joints, vertices


def targets(
    loss: MeshTransformerLoss, batch: int, salt: str, *, all_known: bool = False
) -> tuple[MeshTargets, Tensor]:
    """Drawn labels of the loss case and of the training step, and the pelvis of their mesh."""
    J, V = loss.regressor_TV.shape

    def flags(name: str) -> Tensor:
        return torch.ones(batch) if all_known else torch.tensor(LABELLED[name][:batch])

    def confidence(name: str) -> Tensor:
        return (draw(name, (batch, J, 1), salt) > -0.5).float()

    vertices_BV3 = draw("loss.gt_vertices", (batch, V, 3), salt, 0.3)
    pelvis_B13 = loss.root(vertices_BV3)
    joints_3d = draw("loss.gt_3d_joints", (batch, J, 3), salt, 0.3)
    joints_2d = draw("loss.gt_2d_joints", (batch, J, 2), salt, 0.5)
    known = MeshTargets(
        torch.cat([joints_2d, confidence("loss.conf2d")], dim=-1),
        torch.cat([joints_3d, confidence("loss.conf3d")], dim=-1),
        flags("has_3d"),
        vertices_BV3 - pelvis_B13,
        flags("has_smpl"),
    )
    return known, pelvis_B13


def _dice_direct(weights: PointLossWeights, salt: str) -> Tensor:
    """Maps with several positive positions, which training never has: the written-out loss."""
    drawn = draw("loss.dice.pred", (5, 1, 64), salt)[:, 0]
    target = (drawn.roll(3, dims=-1) > 1).float()
    dice, bce = slow_heat_maps.terms_of_maps(drawn.sigmoid(), target)
    return (dice + weights.cross_entropy * bce).mean()


def compare_heat_targets(golden: dict[str, np.ndarray]) -> Comparison:
    found: HeatTargets = heat_targets(torch.from_numpy(golden["points"])[None], SIDE)
    kept, index = found.kept_BN[0], found.index_BN[0]
    ours = {"kept": kept, "flat_index": torch.where(kept, index, -1)}
    why = {"points": "an input"}
    return parity.compare("heatmap_target", ours, golden, EXACT, skipped=why)


def compare_schedule(golden: dict[str, np.ndarray]) -> Comparison:
    """Rates by epoch index; one update an epoch, counted from one, so index 0 is never reached."""
    ours: dict[str, object] = {}
    for key in golden:
        epochs, rate = re.fullmatch(r"E(\d+)_lr([\d.e-]+)_f64", key).groups()  # type: ignore[union-attr]
        E = int(epochs)
        schedule = ScheduleConfig(kind="epochs", epochs=E, steps_per_epoch=1)
        factors = [lr_factor(schedule, index - 1, E, (index - 1) / E) for index in range(E + 1)]
        ours[key] = float(rate) * np.array(factors)
    return parity.compare("lr_schedule", ours, golden, RATES)


# Training step -------------------------------------------------------------------------------


def compare_step(entries: Mapping[str, Any], folder: Path) -> Comparison:
    """One update of the whole network, whose names and sizes are those of a network case."""
    entry, golden = entries[STEP], _load(folder / f"{STEP}.npz")
    network_entry = next(
        other
        for name, other in entries.items()
        if not name.startswith("_")
        and set(entry["grad_norm_order"]) <= set(other["state_dict"])
        and other["config"]["num_vertices"] == len(golden["verts_coarse"][0])
    )
    described = network_entry | entry
    described |= {name: network_entry[name] for name in ("config", "state_dict")}
    described["config"] = described["config"] | {"dropout": 0.0}
    case = read_entry(STEP, described, folder)
    network = filled_network(case, DrawnWeights()).train()
    image = input_blocks(case.inputs, case.salt)
    with one_thread():
        ours = step_values(network, image, case.salt, described["grad_norm_order"], golden)
    special = {
        "grad": GRADIENTS,
        "grad32.backbone.": FIRST_LAYER,
        "adam_delta32": UPDATE,
        "loss_": STEP_TERMS,
        "total": STEP_TERMS,
        "bn1_": STATISTICS,
        "heat_bn2_": STATISTICS,
    }
    units = np.maximum(golden["grad_norms"], 1e-6)  # each norm in its own golden value
    ours["grad_norms"], golden["grad_norms"] = (
        ours["grad_norms"] / units,
        golden["grad_norms"] / units,
    )
    without = [n for n, p in network.named_parameters() if p.grad is None]
    result = parity.compare(STEP, ours, golden, STEP_OUTPUTS, special)
    return result if not without else Comparison.broken(STEP, f"no gradient: {without}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in the order of the golden file; 200 batch norms make differences of it grow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _norm(parameter: nn.Parameter) -> float:
    assert parameter.grad is not None
    return float(parameter.grad.norm())


def step_values(
    network: PointHmr,
    image: Tensor,
    salt: str,
    order: list[str],
    golden: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Outputs, losses, gradients, statistics and the first update."""
    loss = PointHmrLoss(body_topology(), PointLossWeights())
    output = network(image)
    known, _ = targets(loss, len(image), salt, all_known=True)
    terms = loss(output, known)
    parameters = dict(network.named_parameters())
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimiser = torch.optim.AdamW(default_parameter_groups(network, ADAM), betas=ADAM.betas)
    terms["total"].backward()
    optimiser.step()
    arrays: dict[str, Any] = {
        key: value.detach() for key, value in outputs(output).items() if key in golden
    }
    arrays |= {
        key: value.detach() for key, value in _official_terms(terms).items() if key in golden
    }
    arrays["total"] = terms["total"].detach()
    # of tensors without influence, which are not built, the golden file says zero
    dead = set(dead_names(order))
    norms = [0.0 if name in dead else _norm(parameters[name]) for name in order]
    arrays["grad_norms"] = np.array(norms)
    for key in golden:
        kind, _, name = key.partition(".")
        if kind == "grad32":
            arrays[key] = parameters[name].grad.flatten()[:FIRST_VALUES]  # type: ignore[union-attr]
        if kind == "adam_delta32":
            arrays[key] = (parameters[name].detach() - before[name]).flatten()[:FIRST_VALUES]
    backbone, heat = network.backbone, network.heatmap_layer[1]
    arrays["bn1_running_mean"] = backbone.bn1.running_mean  # type: ignore[union-attr]
    arrays["bn1_running_var"] = backbone.bn1.running_var  # type: ignore[union-attr]
    # the golden file keeps the first channels
    count = len(golden["heat_bn2_running_mean"])
    arrays["heat_bn2_running_mean"] = heat.bn2.running_mean[:count]  # type: ignore[index, union-attr]
    return arrays
