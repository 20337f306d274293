"""Samples a second of the synthetic data sets, with the share of each stage.

python benchmarks/synthetic.py --json out/synthetic.json

One thread, chunks of 16 samples. The stages are timed on the same 16 samples: "scene" draws pose,
look, view and light and poses the rig; "render" rasterises and shades the subject; "compose" adds
background, occluders and the camera's defects.
"""

import argparse
from typing import Any

import cv2
import numpy as np
import torch

from _measure import gemm_gflops, machine, measure
from kinemesh.data.synthetic.dataset import CHUNK, SyntheticDataset
from kinemesh.data.synthetic.scene import Kind, compose, load_stage
from kinemesh.files import write_json

KINDS: tuple[Kind, ...] = ("hand", "body")


def measure_kind(kind: Kind, resolution: int, repeats: int) -> dict[str, Any]:
    """Samples a second and milliseconds a sample of each stage."""
    stage = load_stage(kind)
    dataset = SyntheticDataset(kind, seed=0, resolution=resolution)

    def generators() -> list[np.random.Generator]:
        return [np.random.default_rng([0, 0, i]) for i in range(CHUNK)]

    scenes = [stage.sample(rng, resolution) for rng in generators()]
    rgba, depth = stage.render(scenes, resolution)
    calls = {
        "all": lambda: dataset.__getitems__(range(CHUNK)),
        "scene": lambda: [stage.sample(rng, resolution) for rng in generators()],
        "render": lambda: stage.render(scenes, resolution),
        "compose": lambda: [
            compose(rng, *one, kind) for rng, *one in zip(generators(), rgba, depth, strict=True)
        ],
    }
    seconds = {name: measure(call, repeats=repeats) for name, call in calls.items()}
    return {
        "kind": kind,
        "resolution": resolution,
        "samples_per_second": CHUNK / seconds["all"]["median"],
        "samples_per_cpu_second": CHUNK / seconds["all"]["cpu_median"],
        "ms_per_sample": {
            name: {key: value / CHUNK * 1e3 for key, value in times.items()}
            for name, times in seconds.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[128, 224])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--json", help="write the record to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    record: dict[str, Any] = {"machine": machine(), "gemm_gflops": gemm_gflops(1), "results": []}
    print(f"GEMM {record['gemm_gflops']:.0f} GFLOP/s with one thread")
    for kind in KINDS:
        for resolution in options.resolutions:
            result = measure_kind(kind, resolution, options.repeats)
            record["results"].append(result)
            stages = ", ".join(
                f"{name} {times['cpu_median']:.1f}"
                for name, times in result["ms_per_sample"].items()
            )
            print(
                f"{kind} {resolution} px: {result['samples_per_second']:.1f} samples/s "
                f"({result['samples_per_cpu_second']:.1f} a CPU-second); CPU ms a sample: {stages}"
            )
    if options.json:
        write_json(options.json, record)


if __name__ == "__main__":
    main()
