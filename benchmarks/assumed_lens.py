"""How far a weak-perspective network's joints land from their place, by the lens that is assumed.

    python benchmarks/assumed_lens.py --count 40

For synthetic samples with a known camera, the true 3D joints and the weak-perspective camera that
fits their 2D places best stand for a network without error. They are placed in a pinhole camera as
``kinemesh predict`` does, with the true focal length and with two guesses; the picture is the crop
itself. Printed is the median over the samples of the mean distance between the placed joints'
projections and the true 2D joints, in pixels of a crop of 224.
"""

import argparse
import math

import numpy as np

from kinemesh.data.synthetic import SyntheticDataset
from kinemesh.inference.crop_rule import WEAK_PERSPECTIVE_SIDES
from kinemesh.inference.placement import place_in_camera


def best_weak_projection(joints_J3: np.ndarray, joints_px: np.ndarray) -> np.ndarray:
    places = joints_J3[:, :2]
    free, seen = places - places.mean(0), joints_px - joints_px.mean(0)
    return (free * seen).sum() / (free**2).sum() * free + joints_px.mean(0)


def errors_of(sample: dict, resolution: int) -> list[float]:
    joints = sample["joints_3d"][:, :3].double().numpy()
    truth = sample["joints_2d"][:, :2].double().numpy()
    middle = (resolution / 2, resolution / 2)
    weak = best_weak_projection(joints, truth)
    row = []
    for focal in (
        float(sample["focal_px"]),
        WEAK_PERSPECTIVE_SIDES * resolution,
        math.sqrt(2) * resolution,
    ):
        placed = joints + place_in_camera(joints, weak, focal, middle)
        projected = focal * placed[:, :2] / placed[:, 2:] + resolution / 2
        row.append(float(np.linalg.norm(projected - truth, axis=1).mean()) * 224 / resolution)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("        true focal length   1000/224 sides   diagonal")
    for kind in ("body", "hand"):
        dataset = SyntheticDataset(kind, options.seed)
        samples = (dataset[index] for index in range(options.count))
        rows = [errors_of(sample, sample["image"].shape[-1]) for sample in samples]
        known, long_lens, diagonal = np.median(rows, axis=0)
        print(f"{kind}    {known:12.2f} px {long_lens:13.2f} px {diagonal:7.2f} px")


if __name__ == "__main__":
    main()
