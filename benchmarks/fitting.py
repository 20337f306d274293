"""How well and how fast body models are fitted: synthetic meshes, and what the networks predict.

    python benchmarks/fitting.py

Times are seconds of one core's work (``process_time``), so that a busy machine counts less.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import kinemesh
from kinemesh.bodies import load_rig
from kinemesh.bodies.bake_poses import random_body_poses, random_hand_poses
from kinemesh.bodies.fitting import BodyFitter, Fit
from kinemesh.bodies.parameters import BodyParameters, place
from kinemesh.bodies.posable import posable_body
from kinemesh.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from kinemesh.inference.fitting import PeopleFitter

PEOPLE = 8
POSES = {"anny-body": random_body_poses, "anny-hand": random_hand_poses}
PHOTOS = {"body": "astronaut.png", "hand": "hand.jpg"}
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def people_of(name: str) -> list[BodyParameters]:
    """Random shapes and poses, turned anyhow; every other hand is a left one."""
    rig, rng = load_rig(name), np.random.default_rng(0)
    rotations = POSES[name](rig, PEOPLE, rng)
    turns = axis_angle_to_matrix(torch.from_numpy(rng.normal(size=(PEOPLE, 3))).float())
    rotations[:, 0] = turns @ rotations[:, 0]
    sides = ("left", "right") if name == "anny-hand" else (None, None)
    place_m = np.array([0, 0, 3], np.float32)
    return [
        BodyParameters(
            name, one.numpy(), rig.sample_shape(rng).numpy(), place_m, 0.0, sides[row % 2]
        )
        for row, one in enumerate(rotations)
    ]


def a_moment_later(people: list[BodyParameters]) -> list[BodyParameters]:
    """The same people, each bone turned by about 2 degrees and all moved by 1 cm."""
    torch.manual_seed(0)
    turned = [
        torch.from_numpy(one.rotations)
        @ axis_angle_to_matrix(0.02 * torch.randn(len(one.rotations), 3))
        for one in people
    ]
    return [
        replace(
            one, rotations=rotations.numpy(), translation_m=one.translation_m + np.float32(0.01)
        )
        for one, rotations in zip(people, turned, strict=True)
    ]


def summary(fit: Fit, seconds: float) -> dict[str, float]:
    """Mean residual, steps and time of a fit."""
    return {
        "residual_mm": round(float(np.mean([one.residual_mm for one in fit.parameters])), 3),
        "worst_mm": round(max(one.residual_mm for one in fit.parameters), 3),
        "steps": round(float(np.mean(fit.steps)), 1),
        "ms_per_person": round(1000 * seconds / len(fit.steps)),
    }


def synthetic(name: str, error_m: float) -> dict[str, object]:
    """Fit meshes of the body itself, with a smooth error as that of a network."""
    fitter, people = BodyFitter(posable_body(name)), people_of(name)
    sides = [one.side for one in people]
    torch.manual_seed(1)
    template = fitter.body.template
    waves = torch.randn(3, 3) * 8 / template.std()
    error = error_m * torch.sin(template @ waves)
    first = place(fitter.body, people).vertices + error
    second = place(fitter.body, a_moment_later(people)).vertices + error
    fitter.fit(first[:2], sides=sides[:2])  # warm-up
    results: dict[str, object] = {}
    begin = time.process_time()
    cold = fitter.fit(first, sides=sides)
    results["cold"] = summary(cold, time.process_time() - begin)
    begin = time.process_time()
    again = fitter.fit(second, sides=sides)
    results["next frame, cold"] = summary(again, time.process_time() - begin)
    begin = time.process_time()
    warm = fitter.fit(second, start=cold.parameters, sides=sides)
    results["next frame, warm"] = summary(warm, time.process_time() - begin)
    shapes = torch.from_numpy(np.stack([one.shape for one in cold.parameters]))
    begin = time.process_time()
    kept = fitter.fit(second, start=cold.parameters, shape=shapes, sides=sides)
    results["next frame, warm, shape kept"] = summary(kept, time.process_time() - begin)
    turned = [
        fitter.body.kinematics(
            torch.from_numpy(np.stack([one.rotations for one in group])),
            torch.zeros(PEOPLE, len(fitter.body.bones), 3),
        )[0]
        for group in (cold.parameters, people)
    ]
    apart = matrix_to_axis_angle(turned[0].mT @ turned[1]).norm(dim=-1)
    results["world rotations, mean degrees"] = round(float(torch.rad2deg(apart).mean()), 2)
    return results


def predicted(task: str) -> dict[str, float]:
    """Fit what the shipped network says of a photo."""
    predictor = kinemesh.load(task)
    people = predictor.predict(EXAMPLES / PHOTOS[task], "whole")
    fitter = PeopleFitter([predictor.topology])
    fitter.fit(people)  # warm-up
    begin = time.process_time()
    (person,) = fitter.fit(people)
    seconds = time.process_time() - begin
    assert person.parameters is not None
    joints = torch.from_numpy(person.joints)
    placed = place(fitter.bodies[0], [person.parameters]).vertices
    away = (predictor.topology.joints(placed)[0] - joints).norm(dim=-1).mean()
    return {
        "residual_mm": round(person.parameters.residual_mm, 2),
        "joints_mm": round(1000 * float(away), 2),
        "ms": round(1000 * seconds),
    }


def main() -> None:
    """Print the results as JSON, a line each."""
    torch.set_num_threads(1)
    for name in POSES:
        for error_m in (0.0, 0.008 if name == "anny-body" else 0.003):
            print(f"{name}, error {1000 * error_m:g} mm", json.dumps(synthetic(name, error_m)))
    for task, photo in PHOTOS.items():
        print(f"shipped {task}, {photo}", json.dumps(predicted(task)))


if __name__ == "__main__":
    main()
