"""POTTER's body: inverse kinematics, the whole network, crops, labels, losses and metrics."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinemesh.bodies.hybrik_bodies import SMPL_FLIP_PAIRS, HybrikMesh, SmplHybrik
from kinemesh.data import hybrik_augmentation as augmentation
from kinemesh.data import hybrik_targets
from kinemesh.data.hybrik_crop import (
    corners_of_box,
    crop_affine,
    inverse_affine,
    move_points,
    normalised,
    square_of,
    warp,
)
from kinemesh.data.hybrik_labels import SOURCES, HybrikLabel, HybrikName, targets_of
from kinemesh.evaluation.hybrik import axis_errors_mm, place_accuracy, protocol_errors_mm
from kinemesh.metrics import best_aligned
from kinemesh.models.potter_body import PotterBody, PotterBodyOutput
from kinemesh.potter_losses import BodyPrediction, PotterLossWeights, body_loss, is_late
from tests import parity
from tests.parity import EXACT, Comparison, Tolerance
from tests.parity.networks import Case
from tests.parity.potter_mesh_inputs import (
    draw,
    golden_body,
    loss_inputs,
    metric_inputs,
    picture,
)
from tests.parity.potter_networks import (
    BEHIND_THE_BODY,
    build_network,
    cases_of,
    load,
    salt_of,
)
from tests.seeded_weights import input_image

EVERY = 53  # of the vertices are in a golden file
KINEMATICS, PRE_POST, EVALUATION = "hybrik_ik", "hmr_pre_post", "hmr_eval"
# a change of a micrometre in a joint moves quaternions by up to 4e-4
ROTATIONS, VERTICES, JOINTS = Tolerance(1e-3), Tolerance(1e-3), Tolerance(1e-4)
UNIT_M = 2.2  # of the labels' depth
TURNING_PAIRS = SMPL_FLIP_PAIRS[:9]


def compare(golden_folder: Path, manifest: Path | None = None) -> list[Comparison]:
    """Everything of the mesh network but what it predicts before the body model.

    Args:
        golden_folder: Where the golden files are.
        manifest: Says the networks and the salts; None takes ``manifest.json`` beside the folder.
    """
    manifest = manifest or golden_folder.parent / "manifest.json"
    results = []
    kinematics = golden_folder / f"{KINEMATICS}.npz"
    if kinematics.is_file():
        results.append(compare_kinematics(kinematics, salt_of(manifest, KINEMATICS, "mesh")))
    for case in cases_of(manifest, "mesh", golden_folder):
        if not any(_is_behind(key) for key in case.golden()):
            continue
        if kinematics.is_file():
            results.append(compare_body(case, golden_of(kinematics)))
        else:
            why = f"{kinematics}: there is no such file, so what the body makes is not compared"
            results.append(Comparison.broken(f"{case.name}/body", why))
    if (golden_folder / f"{PRE_POST}.npz").is_file():
        results += compare_pre_post(golden_folder, salt_of(manifest, PRE_POST, "mesh"))
    if (golden_folder / f"{EVALUATION}.json").is_file():
        path = golden_folder / f"{EVALUATION}.json"
        results.append(compare_metrics(path, salt_of(manifest, EVALUATION, "mesh")))
    return results


def golden_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


# Body ----------------------------------------------------------------------------------------


def body_of(kinematics: Mapping[str, np.ndarray]) -> SmplHybrik:
    return golden_body(kinematics["synthetic_rest"].astype(np.float64).tobytes())


def _mesh_arrays(prefix: str, mesh: HybrikMesh) -> dict[str, object]:
    return {
        f"{prefix}/joints": mesh.joints,
        f"{prefix}/joints17": mesh.regressed,
        f"{prefix}/verts_every53": mesh.vertices[:, ::EVERY],
    }


def compare_kinematics(path: Path, salt: str = "") -> Comparison:
    """Both solutions and plain skinning, from the file's own inputs."""
    golden = golden_of(path)
    body = body_of(golden)
    skeleton, betas, phis = (
        torch.from_numpy(golden[name]) for name in ("pose_skeleton", "betas", "phis")
    )
    people = len(betas)
    ours: dict[str, object] = {
        "rest_joints": body.rest_joints(betas),
        "children_map": np.array([*body.tree.guides, *golden["children_map"][24:]]),
        "parents": np.array(body.tree.parents),
        "betas": 0.5 * draw("ik.betas", (people, 10), salt),
        "phis": draw("ik.phis", (people, 23, 2), salt),
    }
    for name, adaptive in (("eval", True), ("train", False)):
        mesh = body(skeleton, betas, phis, adaptive=adaptive)
        ours |= _mesh_arrays(name, mesh)
        ours[f"{name}/rot_mats"] = mesh.rotations
        ours[f"{name}/rot_quat"] = mesh.quaternions.flatten(1)
    quaternions = torch.from_numpy(golden["eval/rot_quat"]).unflatten(1, (-1, 4))
    ours |= _mesh_arrays("lbs_quat", body.posed_by_quaternions(quaternions, betas))
    angles = torch.from_numpy(0.5 * draw("ik.theta", (people, 24, 3), salt)).float()
    ours |= _mesh_arrays("lbs_aa", body.posed_by_axis_angles(angles, betas))
    special = {key: ROTATIONS for key in golden if "/rot_" in key}
    special |= {key: VERTICES for key in golden if key.endswith("verts_every53")}
    special |= {"children_map": EXACT, "parents": EXACT}
    inputs = dict.fromkeys(("pose_skeleton", "synthetic_rest"), "an input")
    skipped = inputs | {"check/*": "samples of the inputs' arrays, which the other keys depend on"}
    return parity.compare(KINEMATICS, ours, golden, JOINTS, special, skipped)


@torch.no_grad()
def compare_body(case: Case, kinematics: Mapping[str, np.ndarray]) -> Comparison:
    """What the body model makes of a network's output, with and without the flip test."""
    network = build_network(case)
    load(network, case)
    body = PotterBody(network, body_of(kinematics)).eval()
    image = input_image("images", case.inputs["images"], case.salt)
    plain = body(image)
    assert isinstance(plain, PotterBodyOutput)
    unit_m = network.config.depth_range_m
    ours = _output_arrays("", plain, unit_m)
    golden = {key: value for key, value in case.golden().items() if _is_behind(key)}
    if any(key.startswith("flip/") for key in golden):
        merged = body(image, flip_test=True).raw
        # the official code keeps camera and places of the second pass
        mirrored = network(image.flip(-1))._replace(
            joints_xyz=merged.joints_xyz, twist=merged.twist, shape=merged.shape
        )
        flipped = body.complete(mirrored)
        ours |= _output_arrays("flip/", flipped, unit_m)
        ours |= {
            "flip/pred_xyz_jts_29": mirrored.joints_xyz.flatten(1),
            "flip/pred_phi": mirrored.twist,
            "flip/pred_shape": mirrored.shape,
            "flip/pred_uvd_jts": mirrored.joints_uvd.flatten(1),
            "flip/cam_root": mirrored.camera_root,
        }
    special = {f"{p}pred_theta_mats": ROTATIONS for p in ("", "flip/")}
    special |= {f"{p}pred_vertices": VERTICES for p in ("", "flip/")}
    return parity.compare(f"{case.name}/body", ours, golden, JOINTS, special)


def _is_behind(key: str) -> bool:
    return any(
        key == known or (known.endswith("*") and key.startswith(known[:-1]))
        for known in BEHIND_THE_BODY
    )


def _output_arrays(prefix: str, output: PotterBodyOutput, unit_m: float) -> dict[str, object]:
    mesh = output.mesh
    return {
        f"{prefix}pred_theta_mats": mesh.quaternions.flatten(1),
        f"{prefix}pred_xyz_jts_24": output.raw.joints_xyz[:, :24].flatten(1),
        f"{prefix}pred_xyz_jts_24_struct": mesh.joints.flatten(1) / unit_m,
        f"{prefix}pred_xyz_jts_17": mesh.regressed.flatten(1) / unit_m,
        f"{prefix}transl": output.translation,
        f"{prefix}pred_vertices/every53": mesh.vertices[:, ::EVERY],
    }


# Crops, labels, losses -----------------------------------------------------------------------


def compare_pre_post(golden_folder: Path, salt: str = "") -> list[Comparison]:
    """All of ``hmr_pre_post.npz``, one case for each family of its keys."""
    golden = golden_of(golden_folder / f"{PRE_POST}.npz")
    images = json.loads((golden_folder / f"{EVALUATION}.json").read_text("utf-8"))["images"]
    drawn = {name for name in images if name.startswith("seeded.")}
    photos = {f"test_transform/{name}/*" for name in images if name not in drawn}
    results = [
        _family(golden, "test_transform", _crops(images, drawn), photos),
        _family(golden, "clip", _clipped()),
        _family(golden, "aug", _augmented(), atol=2e-5),
        _family(golden, "loss", _losses(salt), atol=1e-5),
        _family(golden, "metric", _metric_arrays(), atol=1e-6),
    ]
    for name in ("pw3d", "h36m"):
        arrays = {key.split("/", 1)[1]: v for key, v in golden.items() if f"_{name}/" in key}
        unread = {f"labels_{name}/in/*", *(f"labels_{name}/out/{key}" for key in UNREAD)}
        results.append(_family(golden, f"labels_{name}", _labels(name, arrays), unread))
    coco = {k.split("/", 1)[1]: v for k, v in golden.items() if k.startswith("labels_coco/")}
    results.append(_family(golden, "labels_coco", _coco(coco), {"labels_coco/in/*"}))
    hp3d = {k.split("/", 1)[1]: v for k, v in golden.items() if k.startswith("labels_hp3d/")}
    results.append(_family(golden, "labels_hp3d", _hp3d(hp3d), {"labels_hp3d/in/*"}))
    return results


UNREAD = ("intrinsic_param", "joint_root", "depth_factor", "target_weight_17")


def _family(
    golden: Mapping[str, np.ndarray],
    family: str,
    ours: Mapping[str, object],
    left_out: set[str] | None = None,
    atol: float = 1e-4,
) -> Comparison:
    chosen = {k: v for k, v in golden.items() if k.split("/")[0] == family}
    why = "an input, a photograph, or a number that neither network nor loss reads"
    skipped = dict.fromkeys(left_out or (), why)
    # the mean residual of a camera that fits badly, in millimetres
    special = {f"{family}/out/camera_error": Tolerance(1e-4)}
    return parity.compare(
        f"{PRE_POST}/{family}", ours, chosen, Tolerance(atol, 1e-6), special, skipped
    )


def _crops(images: Mapping[str, Any], drawn: set[str]) -> dict[str, object]:
    ours: dict[str, object] = {}
    for name in drawn:
        height, width, _ = images[name]["shape"]
        center, side = square_of(np.array(images[name]["bbox"]))
        crop = normalised(warp(picture(name, height, width), crop_affine(center, side)))
        ours |= {
            f"test_transform/{name}/slice": crop[:, ::16, ::16],
            f"test_transform/{name}/row128": crop[:, 128],
            f"test_transform/{name}/mean_std": np.array([crop.mean(), crop.std()]),
            f"test_transform/{name}/bbox": _square(center, side),
        }
    return ours


def _square(center: np.ndarray, side: float) -> np.ndarray:
    return np.concatenate([center - side / 2, center + side / 2])


def _clipped() -> dict[str, object]:
    boxes = ([-3.5, 10.2, 300.7, 0.4], [5.5, 10.2, 30.7, 40.4])
    return {"clip": np.stack([corners_of_box(np.array(box), 480, 400) for box in boxes])}


def _augmented() -> dict[str, object]:
    joints = draw("aug.j", (29, 3, 2))
    xyz, theta = draw("aug.xyz", (24, 3)), draw("aug.theta", (24, 3))
    phi, weight = draw("aug.phi", (23, 2)), (draw("aug.pw", (23, 2)) > 0).astype(np.float64)
    seen = (joints[..., 1] > -1).astype(np.float64)
    places, seen = augmentation.flip_places(joints[..., 0], seen, 480, SMPL_FLIP_PAIRS)
    twist, weight = augmentation.flip_twists(phi, weight, TURNING_PAIRS)
    mirrored = augmentation.flip_camera_points(xyz - xyz[:1], 0, TURNING_PAIRS)
    center = np.array([200.0, 150.0])
    return {
        "aug/flip_joints_3d": np.stack([places, seen], axis=-1),
        "aug/flip_cam_xyz": augmentation.flip_camera_points(xyz, 0, TURNING_PAIRS),
        # about the origin in place of the root: the root's place is mirrored, too
        "aug/flip_xyz": mirrored + xyz[:1] * [-1, 1, 1],
        "aug/flip_thetas": augmentation.flip_axis_angles(theta, TURNING_PAIRS),
        "aug/flip_twist": twist,
        "aug/flip_twist_weight": weight,
        "aug/rotate_xyz_25": augmentation.turn_points(xyz, 25.0),
        "aug/rot_aa_25": augmentation.turn_axis_angle(theta[0], 25.0),
        "aug/rodrigues": hybrik_targets.rotation_matrices(theta),
        "aug/quat_target": hybrik_targets.quaternion_targets(theta),
        "aug/affine_rot25": crop_affine(center, 310.0, 25.0),
        "aug/affine_rot25_inv": inverse_affine(center, 310.0, 25.0),
    }


def _labels(name: str, golden: Mapping[str, np.ndarray]) -> dict[str, object]:
    """A person of 3DPW (metres) or Human3.6M (millimetres)."""
    source: HybrikName = "h36m" if name == "h36m" else "3dpw"
    metre = 1000.0 if name == "h36m" else 1.0
    held = {key[3:]: v.astype(np.float64) for key, v in golden.items() if key.startswith("in/")}
    places = held["joint_img_29"].copy()
    places[:, 2] /= metre
    label = HybrikLabel(
        source=SOURCES[source],
        picture=Path(),
        corners=held["bbox"],
        places=places,
        visible=held["joint_vis_29"],
        points=held["joint_cam_29"][:24] / metre,
        joints_17=held["joint_cam_17"] / metre,
        theta=held["theta"],
        betas=held["beta"],
        twist=held["twist_phi"],
        twist_weight=held["twist_weight"],
    )
    center, side = square_of(label.corners, SOURCES[source].box_factor)
    affine = crop_affine(center, side)
    found = targets_of(label, affine)
    camera = hybrik_targets.camera_target(
        label.points - label.points[:1],  # type: ignore[operator,index]
        found["uvd"][:24].double().numpy(),
        found["uvd_weight"][:24].double().numpy(),
    )
    crop = normalised(warp(picture("seeded.p", 400, 480), affine))
    ours = {
        "target_theta": found["theta"].flatten(),
        "target_theta_weight": found["theta_weight"].flatten(),
        "target_beta": found["betas"],
        "target_smpl_weight": found["smpl_weight"],
        "target_uvd_29": found["uvd"].flatten(),
        "target_weight_29": found["uvd_weight"].flatten(),
        "target_weight_24": found["uvd_weight"][:24].flatten(),
        "target_xyz_24": found["xyz"].flatten(),
        "target_xyz_weight_24": found["xyz_weight"].flatten(),
        "target_xyz_17": found["joints_17"].flatten() / UNIT_M,
        "target_twist": found["twist"],
        "target_twist_weight": found["twist_weight"],
        "trans_inv": inverse_affine(center, side),
        "bbox": _square(center, side),
        "camera_scale": found["camera_scale"],
        "camera_trans": found["camera_shift"],
        "camera_valid": float(camera.valid),
        "camera_error": camera.error_mm,
        "image_slice": crop[:, ::16, ::16],
    }
    return {f"labels_{name}/out/{key}": value for key, value in ours.items()}


def _coco(golden: Mapping[str, np.ndarray]) -> dict[str, object]:
    """Places alone; the box is what the published enlargement makes the recorded one."""
    joints = golden["in/joints"].astype(np.float64)
    left, top, right, bottom = golden["out/bbox"].astype(np.float64)
    center, side = np.array([left + right, top + bottom]) / 2, float(right - left)
    places, seen = joints[:, :2, 0], joints[:, :2, 1]
    moved = move_points(places, crop_affine(center, side), seen)
    target, weight = hybrik_targets.place_targets(moved, seen)
    ours = {"target": target.ravel(), "target_weight": weight.ravel()}
    ours["bbox"] = _square(center, side)
    return {f"labels_coco/out/{key}": value for key, value in ours.items()}


def _hp3d(golden: Mapping[str, np.ndarray]) -> dict[str, object]:
    """28 joints in millimetres; the square follows from where two of them went."""
    pixels = golden["in/joint_img"].astype(np.float64)
    recorded = golden["out/target"].astype(np.float64).reshape(-1, 3)
    slope = np.polyfit(recorded[:, 0], pixels[:, 0], 1)
    side, center = slope[0], np.array([slope[1], np.polyfit(recorded[:, 1], pixels[:, 1], 1)[1]])
    places = pixels.copy()
    places[:, 2] /= 1000
    moved = move_points(places, crop_affine(center.round(3), float(side.round(3))))
    target, weight = hybrik_targets.place_targets(moved, np.ones_like(moved))
    points = golden["in/joint_cam"].astype(np.float64) / 1000
    relative = points - points[SOURCES["3dhp"].root]
    camera = hybrik_targets.camera_target(relative, target, weight)
    ours = {
        "target": target.ravel(),
        "target_weight": weight.ravel(),
        "target_xyz": relative.ravel() / UNIT_M,
        "target_xyz_weight": np.ones(relative.size),
        "camera_scale": np.array([camera.scale]),
        "camera_trans": camera.shift,
        "camera_valid": float(camera.valid),
        "camera_error": camera.error_mm,
    }
    return {f"labels_hp3d/out/{key}": value for key, value in ours.items()}


def _losses(salt: str) -> dict[str, object]:
    predicted, target = loss_inputs(salt)
    prediction, weights = BodyPrediction(**predicted), PotterLossWeights()
    terms = {
        epoch: body_loss(prediction, target, weights, late=is_late(epoch, weights))
        for epoch in (0, 40, 41)
    }
    ours: dict[str, object] = {f"loss/epoch{e}": found["total"] for e, found in terms.items()}
    names = {"beta": "shape", "theta": "rotations", "twist": "twist", "uvd": "uvd", "xyz": "xyz"}
    return ours | {f"loss/{name}": terms[0][own] for name, own in names.items()}


def _metric_arrays() -> dict[str, object]:
    target = torch.from_numpy(0.4 * draw("pa.gt", (14, 3)))
    noisy = target + torch.from_numpy(0.05 * draw("pa.n", (14, 3)))
    aligned, _ = best_aligned(noisy[None], target[None])
    places = torch.from_numpy(0.2 * draw("acc.p", (3, 29 * 3)))
    labels = places + torch.from_numpy(0.05 * draw("acc.n", (3, 29 * 3)))
    weight = torch.from_numpy(draw("acc.w", (3, 29 * 3))) > -1
    triples = (value.unflatten(1, (-1, 3)) for value in (places, labels, weight.double()))
    return {
        "metric/pa_aligned": aligned[0],
        "metric/coord_acc": place_accuracy(*triples),
    }


# Metrics -------------------------------------------------------------------------------------

_PRINTED = re.compile(
    r"PA-MPJPE: ([\d.]+) \| MPJPE: ([\d.]+), x: ([\d.]+), y: ([\d.]+), z: ([\d.]+)"
)
_NAMED = re.compile(r"([A-Za-z]+): ([\d.]+)(?= )")


def compare_metrics(path: Path, salt: str = "") -> Comparison:
    """Returned and printed numbers; the printed y is rounded to two digits."""
    golden: dict[str, np.ndarray] = {}
    ours: dict[str, object] = {}
    for dataset, expected in json.loads(path.read_text("utf-8"))["metrics"].items():
        protocol = "h36m" if dataset == "h36m" else "3dpw"
        columns = metric_inputs(1000.0 if dataset == "h36m" else 1.0, salt)
        lines = [line for line in expected["printed"] if "PA-MPJPE" in line]
        actions = [line for line in expected["printed"] if "PA-MPJPE" not in line]
        for line, joints, name in zip(lines, ("17", "24"), (protocol, "own"), strict=True):
            found = _PRINTED.search(line)
            assert found is not None
            predicted, target = columns[f"pred{joints}"], columns[f"gt{joints}"]
            plain, aligned = protocol_errors_mm(predicted, target, name)
            axes = axis_errors_mm(predicted, target, name)
            golden[f"{dataset}/{joints}"] = np.array([float(x) for x in found.groups()])
            ours[f"{dataset}/{joints}"] = np.array([aligned.mean(), plain.mean(), *axes])
            # the score that chooses the best weights: PA of 17, plain of 24
            golden[f"{dataset}/returned_{joints}"] = np.array(expected[f"returned_{joints}"])
            chosen = aligned if joints == "17" else plain
            ours[f"{dataset}/returned_{joints}"] = chosen.double().mean().numpy()
            if actions:
                shown = _NAMED.findall(actions.pop(0))
                golden[f"{dataset}/{joints}/actions"] = np.array([float(v) for _, v in shown])
                ours[f"{dataset}/{joints}/actions"] = plain.mean(dim=1)
    return parity.compare(EVALUATION, ours, golden, Tolerance(6e-3))
