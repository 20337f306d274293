"""How well hands land at the wrists of their people, on rendered scenes with known truth.

    python benchmarks/people_in_one_frame.py --scenes 30

Each scene has one to three people of Anny before one camera, whose meshes hold their hands. Boxes
and focal length are the true ones: measured are the two networks and how they are put together.
Counted are hands whose true wrist is seen in the picture.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree

import kinemesh
from kinemesh.data.synthetic.backgrounds import sample_background
from kinemesh.data.synthetic.cameras import body_rotation
from kinemesh.data.synthetic.degradation import degrade, develop
from kinemesh.data.synthetic.scene import SRGB_TO_LINEAR, load_stage, sample_light, sample_noise
from kinemesh.formats.picture import draw_overlay
from kinemesh.inference.people import PeoplePredictor, wrist_and_elbow

SIZE = (640, 480)
UNDER_SKIN_M = 0.1


@dataclass
class TruePerson:
    """Mesh (V, 3) and joints (17, 3), camera frame, metres; box and (17,) bool who is seen."""

    vertices: np.ndarray
    joints: np.ndarray
    box: tuple[float, ...]
    seen: np.ndarray | None = None


def draw_scene(rng: np.random.Generator, count: int) -> tuple[np.ndarray, list[TruePerson], float]:
    """A picture, who is in it and its focal length in pixels."""
    stage, size = load_stage("body"), np.array(SIZE)
    focal, light = max(SIZE) * rng.uniform(0.9, 1.6), sample_light(rng)
    colour = np.zeros((SIZE[1], SIZE[0], 3), np.float32)
    depth = np.full(colour.shape[:2], np.inf, np.float32)
    owner, people = np.full(depth.shape, -1), []
    pitch = np.radians(rng.normal(4, 6))
    for number in range(count):
        subject = stage.draw_subject(rng)
        turn = body_rotation(rng.normal(0, np.radians(40)), pitch, np.radians(rng.normal(0, 3)))
        turned = subject.vertices @ turn.T
        distance = focal * 1.7 / (rng.uniform(0.7, 1.3) * SIZE[1])
        place = [
            (number + 0.5) / count * SIZE[0] + rng.normal(0, 15),
            SIZE[1] * rng.uniform(0.45, 0.6),
        ]
        offset = (np.array(place) - size / 2) / focal * distance
        move = np.array([*offset, distance]) - (turned.min(0) + turned.max(0)) / 2
        move = move.astype(np.float32)
        dressed = stage.dress((turned + move)[None], [subject.look])
        drawn = stage.shade(
            dressed,
            [subject.look],
            focal_px=torch.tensor([focal], dtype=torch.float32),
            principal_px=torch.tensor(size / 2, dtype=torch.float32)[None],
            size=SIZE,
            light=[light],
            noise=[sample_noise(rng, "body")],
        )
        near = drawn.depth[0].numpy() < depth
        depth[near], owner[near] = drawn.depth[0].numpy()[near], number
        colour[near] = drawn.rgba[0, ..., :3].numpy()[near]
        seen_px = project(dressed[0].numpy(), focal)
        low, high = seen_px.min(0).clip(0, size), seen_px.max(0).clip(0, size)
        labels, joints = (points @ turn.T + move for points in (subject.labels, subject.joints))
        people.append(TruePerson(labels, joints, (*low.tolist(), *(high - low).tolist())))
    for number, person in enumerate(people):
        person.seen = seen_joints(person, owner == number, depth, focal)
    behind = SRGB_TO_LINEAR[sample_background(rng, max(SIZE), people=0.0)[: SIZE[1]]]
    linear = colour + behind * (owner < 0)[..., None].astype(np.float32)
    return (
        np.asarray(degrade(rng, develop(rng, linear)) * 255 + 0.5, np.uint8),
        people,
        float(focal),
    )


def project(points: np.ndarray, focal_px: float) -> np.ndarray:
    """Pixels of points, camera frame."""
    return points[:, :2] / points[:, 2:] * focal_px + np.array(SIZE) / 2


def seen_joints(
    person: TruePerson, mine: np.ndarray, depth: np.ndarray, focal: float
) -> np.ndarray:
    """Which joints have their own surface before them."""
    pixels = project(person.joints, focal)
    inside = ((pixels >= 0) & (pixels < SIZE)).all(1)
    x, y = np.where(inside[:, None], pixels, 0).astype(int).T
    return inside & mine[y, x] & (depth[y, x] > person.joints[:, 2] - UNDER_SKIN_M)


def hand_vertices() -> dict[str, np.ndarray]:
    """Vertices of the body's mesh that are those of the hand's, for the left hand mirrored."""
    body, hand = load_stage("body").rig, load_stage("hand").rig
    tree = cKDTree(body.template.numpy())
    shape = hand.template[hand.topology_index] - hand.bone_template[hand.bone_index("wrist.R")]
    right = (shape + body.bone_template[body.bone_index("wrist.R")]).numpy()
    return {"right": tree.query(right)[1], "left": tree.query(right * [-1, 1, 1])[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=30)
    parser.add_argument("--save", type=Path, help="folder for overlays of the first scenes")
    options = parser.parse_args()
    people = PeoplePredictor(kinemesh.load("body"), kinemesh.load("hand"))
    parts, rows, looked_for = hand_vertices(), [], 0
    for scene in range(options.scenes):
        pixels, truth, focal = draw_scene(np.random.default_rng([7, scene]), 1 + scene % 3)
        found = people.predict(pixels, [person.box for person in truth], focal)
        if options.save and scene < 12:
            options.save.mkdir(parents=True, exist_ok=True)
            picture = np.hstack([pixels, draw_overlay(pixels, found, skeleton=False)])
            cv2.imwrite(str(options.save / f"{scene:02}.jpg"), picture[..., ::-1])
        for number, person in enumerate(truth):
            for side in ("left", "right"):
                wrist = wrist_and_elbow(found[number], side)[0]
                looked_for += bool(person.seen[wrist])
                mine = [h for h in found if (h.owner, h.side) == (number, side)]
                if not mine or not person.seen[wrist]:
                    continue
                true = person.vertices[parts[side]]
                joints = people.hand.topology.joints(torch.from_numpy(true)[None])[0].numpy()
                other = person.joints[
                    wrist_and_elbow(found[number], "left" if side == "right" else "right")[0]
                ]
                rows.append(
                    measure(mine[0], found[number].joints[wrist], true, joints, other, focal)
                )
    report(np.array(rows), looked_for)


def measure(hand, wrist, true_vertices, true_joints, other_wrist, focal) -> list[float]:
    """Gap at the wrist, extents, errors: see `report`."""
    gap = np.linalg.norm(hand.joints[0] - wrist)
    extent = np.ptp(project(true_vertices, focal), axis=0).max()
    seen = np.ptp(project(hand.vertices, focal), axis=0).max()
    off = np.linalg.norm(hand.joints_px - project(true_joints, focal), axis=1).mean()
    size = [np.linalg.norm(j[9] - j[0]) for j in (hand.joints, true_joints)]
    posed = (hand.vertices - hand.joints[0]) - (true_vertices - true_joints[0])
    placed = np.linalg.norm(hand.joints - true_joints, axis=1).mean()
    own, other = (
        np.linalg.norm(hand.joints_px[0] - project(w[None], focal)[0])
        for w in (true_joints[0], other_wrist)
    )
    return [
        gap * 1000,
        off / extent,
        seen / extent,
        size[0] / size[1],
        np.linalg.norm(posed, axis=1).mean() * 1000,
        placed * 1000,
        own < other,
    ]


def report(rows: np.ndarray, looked_for: int) -> None:
    """Print medians."""
    print(f"{len(rows)} of {looked_for} seen hands found")
    print(f"gap between the wrists of hand and body: at most {rows[:, 0].max():.3f} mm")
    print(f"nearer to the true wrist of its own side: {rows[:, 6].mean():.0%}")
    names = ("2D joints off, of the hand's extent", "extent in the picture, of the true one")
    names += ("length of the palm, of the true one", "vertices about the wrist, mm", "joints, mm")
    for name, column in zip(names, rows.T[1:6], strict=True):
        low, middle, high = np.percentile(column, (25, 50, 75))
        print(f"{name}: median {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
