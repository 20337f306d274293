"""Milliseconds per image of each stage of prediction, beside this machine's GEMM rate.

    python benchmarks/predict.py [--task hand] [--repeats 20] [--out predict.json]

The photo is a JPEG of 12 megapixels made here; the person fills a box of 1500 pixels. Without
shipped weights the network is the same one with random weights, which takes the same time.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

import kinemesh
from _measure import gemm_gflops, machine, measure
from kinemesh.bodies import load_topology
from kinemesh.errors import InputError
from kinemesh.files import write_bytes, write_json
from kinemesh.formats.glb import encode_glb
from kinemesh.formats.obj import encode_obj
from kinemesh.formats.people_json import encode_people
from kinemesh.formats.people_npz import encode_people_npz
from kinemesh.formats.picture import draw_overlay, encode_overlay
from kinemesh.geometry.crops import box_to_square, crop_matrix, warp_crop
from kinemesh.inference.images import load_image
from kinemesh.inference.own_detector import OwnDetector
from kinemesh.inference.predictor import Predictor
from kinemesh.models.detector import CLASSES, Detector
from kinemesh.models.detector_files import SHIPPED_DETECTOR
from kinemesh.models.guided_graphormer import GuidedGraphormer, GuidedGraphormerConfig
from kinemesh.models.optimised import optimise

WIDTH, HEIGHT = 4000, 3000
BOX = (1250.0, 750.0, 1500.0, 1500.0)


def make_predictor(task: str) -> tuple[Predictor, str]:
    """The shipped predictor, or its network with random weights."""
    try:
        return kinemesh.load(task, "cpu"), "shipped"
    except InputError:
        topology = load_topology(f"anny-{task}")
        config = GuidedGraphormerConfig()
        network = GuidedGraphormer(config, topology)
        return Predictor(network, topology, {"resolution": config.resolution}, "cpu"), "random"


def make_detector() -> OwnDetector:
    """The shipped detector, or its network with random weights."""
    try:
        return OwnDetector.load(SHIPPED_DETECTOR, "cpu", kind="both")
    except InputError:
        return OwnDetector(optimise(Detector()), {"classes": CLASSES}, kind="both")


def make_photo(path: Path) -> None:
    """A photo-like JPEG: smooth colours with some grain."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 255, (30, 40, 3), np.uint8), (WIDTH, HEIGHT))
    grain = rng.integers(0, 12, smooth.shape, np.uint8)
    cv2.imwrite(str(path), cv2.add(smooth, grain))


def stages(predictor: Predictor, folder: Path) -> dict[str, Callable[[], object]]:
    """One call for each stage, on the same photo."""
    make_photo(folder / "photo.jpg")
    photo = load_image(folder / "photo.jpg")
    centers, sides = box_to_square(torch.tensor([BOX]), 1.1)
    matrix = crop_matrix(centers, sides, predictor.resolution)[0]
    cut = warp_crop(photo.pixels, matrix, predictor.resolution, border="replicate")
    people = predictor.predict(photo, [BOX])
    detector = make_detector()

    def write() -> None:
        write_bytes(folder / "a.glb", encode_glb(people))
        write_bytes(folder / "a.obj", encode_obj(people))
        write_bytes(folder / "a.json", encode_people(people, photo.size))
        write_bytes(folder / "a.npz", encode_people_npz(people, photo.size))

    return {
        "decode": lambda: load_image(folder / "photo.jpg"),
        "find people and hands": lambda: detector.detect(photo),
        "crop": lambda: warp_crop(photo.pixels, matrix, predictor.resolution, border="replicate"),
        "network": lambda: predictor.run_network([cut]),
        "predict (crop, network, placement)": lambda: predictor.predict(photo, [BOX]),
        "draw": lambda: draw_overlay(photo.pixels, people),
        "draw and write overlay.png": lambda: write_bytes(
            folder / "a.png", encode_overlay(photo.pixels, people)
        ),
        "write glb, obj, json, npz": write,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=["body", "hand"], default="body")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    predictor, weights = make_predictor(options.task)
    record = {"machine": machine(), "task": options.task, "weights": weights, "runs": {}}
    print(f"{options.task}, {weights} weights, photo {WIDTH}x{HEIGHT}, box {BOX[2]:.0f} px")
    with tempfile.TemporaryDirectory() as name:
        calls = stages(predictor, Path(name))
        for threads in options.threads:
            torch.set_num_threads(threads)
            cv2.setNumThreads(threads)
            rate = gemm_gflops(threads)
            times = {stage: measure(call, 3, options.repeats) for stage, call in calls.items()}
            record["runs"][threads] = {"gemm_gflops": rate, "seconds": times}
            print(f"{threads} threads, GEMM {rate:.0f} GFLOP/s; ms: median (quartiles)")
            for stage, time in times.items():
                low, middle, high = (1e3 * time[key] for key in ("q25", "median", "q75"))
                print(f"  {stage:<36}{middle:8.1f}  ({low:.1f} .. {high:.1f})")
    if options.out is not None:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
