"""Seconds of PA-MPJPE over 35,515 samples of 14 joints: a batch against a loop over the samples.

    python benchmarks/metrics.py [--samples 35515] [--repeats 9] [--threads N] [--out metrics.json]

The loop is how the official code of METRO and Mesh Graphormer does it: NumPy, one singular value
decomposition a sample. It is timed on a part of the samples, by turns with the batch, so that both
see the same machine, and scaled up. "decomposition" is the same batch with
`torch.linalg.svd` in place of the Jacobi method, to show what each part brings.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from _measure import gemm_gflops, machine
from kinemesh.files import write_json
from kinemesh.geometry import procrustes
from kinemesh.metrics import f_scores, pa_mpjpe_mm, pa_mpvpe_mm

JOINTS, HAND_VERTICES = 14, 778


def loop(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """PA-MPJPE of each sample in metres, one after the other."""
    errors = np.zeros(len(predictions))
    for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        centre, true_centre = prediction.mean(axis=0), target.mean(axis=0)
        x, y = prediction - centre, target - true_centre
        k = x.T @ y
        u, _, vt = np.linalg.svd(k)
        z = np.eye(3)
        z[2, 2] = np.sign(np.linalg.det(u @ vt))
        rotation = vt.T @ z @ u.T
        scale = np.trace(rotation @ k) / np.sum(x**2)
        aligned = scale * prediction @ rotation.T + true_centre - scale * rotation @ centre
        errors[i] = np.sqrt(((aligned - target) ** 2).sum(axis=-1)).mean()
    return errors


def decomposed(matrix: torch.Tensor, reflection: bool = False) -> torch.Tensor:
    """The closest rotations by `torch.linalg.svd`."""
    u, s, vh = torch.linalg.svd(matrix)
    signs = torch.ones_like(s)
    if not reflection:
        signs[:, 2] = torch.det(u @ vh).sign()
    return u * signs[:, None] @ vh


def seconds(fn: Callable[[], object]) -> tuple[float, float]:
    """Wall clock and CPU time; on a busy machine the second is steadier, for one thread."""
    start = time.perf_counter(), time.process_time()
    fn()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def spread(values: list[float]) -> dict[str, float]:
    q25, median, q75 = statistics.quantiles(values, n=4, method="inclusive")
    return {"min": min(values), "q25": q25, "median": median, "q75": q75}


def compare(samples: int, repeats: int, part: int) -> dict[str, Any]:
    """Times of both ways by turns, and how far their results are apart."""
    prediction = 0.3 * torch.randn(samples, JOINTS, 3)
    target = prediction + 0.05 * torch.randn(samples, JOINTS, 3)
    few = prediction[:part].numpy(), target[:part].numpy()

    def with_decomposition() -> torch.Tensor:
        with mock.patch.object(procrustes, "closest_rotation", decomposed):
            return pa_mpjpe_mm(prediction, target)

    times: dict[str, list[tuple[float, float]]] = {"loop": [], "batch": [], "decomposition": []}
    loop(*few), pa_mpjpe_mm(prediction, target), with_decomposition()
    for _ in range(repeats):
        times["loop"].append(seconds(lambda: loop(*few)))
        times["batch"].append(seconds(lambda: pa_mpjpe_mm(prediction, target)))
        times["decomposition"].append(seconds(with_decomposition))
    times["loop"] = [(wall * samples / part, cpu * samples / part) for wall, cpu in times["loop"]]
    exact = torch.from_numpy(1000 * loop(*(points.astype(np.float64) for points in few)))
    return {
        "samples": samples,
        **{name: spread([wall for wall, _ in values]) for name, values in times.items()},
        "ratio": spread(_ratios(times, 0)),
        "cpu_ratio": spread(_ratios(times, 1)),
        "largest_difference_mm": {
            "batch": _difference(pa_mpjpe_mm(prediction[:part], target[:part]), exact),
            "decomposition": _difference(with_decomposition()[:part], exact),
            "loop": _difference(torch.from_numpy(1000 * loop(*few)), exact),
        },
    }


def _ratios(times: dict[str, list[tuple[float, float]]], clock: int) -> list[float]:
    return [
        slow[clock] / fast[clock] for slow, fast in zip(times["loop"], times["batch"], strict=True)
    ]


def _difference(found: torch.Tensor, exact: torch.Tensor) -> float:
    return (found.double() - exact).abs().max().item()


def hands(batch: int, repeats: int) -> dict[str, dict[str, float]]:
    """Scores of whole hand meshes, seconds for a batch."""
    target = 0.04 * torch.randn(batch, HAND_VERTICES, 3)
    prediction = target + 0.006 * torch.randn(batch, HAND_VERTICES, 3)
    limits = torch.tensor([0.005, 0.015])
    rows: dict[str, Callable[[], object]] = {
        "PA-MPVPE": lambda: pa_mpvpe_mm(prediction, target, reflection=True),
        "F-scores": lambda: f_scores(prediction, target, limits),
    }
    found = {}
    for name, fn in rows.items():
        fn()
        found[name] = spread([seconds(fn)[0] for _ in range(repeats)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=35515)
    parser.add_argument("--part", type=int, default=4000, help="samples of the loop that are timed")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    record = {
        "machine": machine(),
        "gemm_gflops": gemm_gflops(options.threads),
        "pa_mpjpe": compare(options.samples, options.repeats, min(options.part, options.samples)),
        "hands_32": hands(32, options.repeats),
    }
    _print(record, options.threads)
    if options.out is not None:
        write_json(options.out, record)


def _print(record: dict[str, Any], threads: int) -> None:
    found = record["pa_mpjpe"]
    print(
        f"{record['machine']['cpu']}, {threads} threads, GEMM {record['gemm_gflops']:.0f} GFLOP/s"
    )
    print(f"PA-MPJPE of {found['samples']} samples, {JOINTS} joints; ms")
    print(f"{'':16}{'min':>10}{'q25':>10}{'median':>10}{'q75':>10}{'off by, mm':>14}")
    for name in ("loop", "decomposition", "batch"):
        cells = "".join(f"{1000 * value:10.1f}" for value in found[name].values())
        print(f"{name:16}{cells}{found['largest_difference_mm'][name]:14.1e}")
    for label, name in (("loop / batch", "ratio"), ("  by CPU time", "cpu_ratio")):
        print(f"{label:16}" + "".join(f"{value:10.1f}" for value in found[name].values()))
    print("a batch of 32 hand meshes; ms")
    for name, times in record["hands_32"].items():
        print(f"{name:16}" + "".join(f"{1000 * value:10.1f}" for value in times.values()))


if __name__ == "__main__":
    main()
