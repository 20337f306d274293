"""Milliseconds, arithmetic and share of the GEMM rate of every network's forward pass on the CPU.

    python benchmarks/forward.py [--quick] [--models metro-body-w64 ...] [--json out/forward.json]

Three modes are measured: ``plain`` is the network as it is (bfloat16 by autocast), ``fused`` is
`kinemesh.models.optimised.optimise` (channels last, batch norm folded, activations and sums inside
the calls), ``compiled`` is the same network through `torch.compile`.

The share of the GEMM rate is the arithmetic of the *official* network over time and over the rate
of a float32 matrix product, measured in turns with the network. Arithmetic that is saved therefore
counts as speed. Weights are random: they take the same time as trained ones.

POTTER's published numbers are the official ones. Beside the plain network, fewer are executed: two
convolutions of the volume become one, and the last acts on its sums.

PRTR's networks are counted as they run: they multiply what the official ones do, but for the
sequential network, which leaves out what only training needs. It sees one photo of 800 x 1066
pixels and describes all 100 people that it may find.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from _measure import machine, measure_beside_gemm
from kinemesh.files import write_json
from kinemesh.models.counting import count_macs, official_gmac
from kinemesh.models.optimised import optimise
from kinemesh.models.point_hmr import PointHmrConfig
from kinemesh.models.potter_variants import POTTER_VARIANTS, build_potter_variant
from kinemesh.models.prtr_sequential import SequentialPrtr
from kinemesh.models.prtr_variants import (
    KEYPOINT_VARIANTS,
    build_keypoint_network,
    describe_keypoint_variant,
)
from kinemesh.models.registry import SHIPPED, load_model
from kinemesh.models.variants import VARIANTS, blank_network

Mode = Literal["plain", "fused", "compiled"]
Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUICK = (
    "graphormer-body-w64",
    "guided-graphormer-hand",
    "prtr-mpii-res50-256x256",
    "prtr-coco-deform-res50-384x288",
    "prtr-sequential",
)
PHOTO = (800, 1066)
"""Height and width of a photo of 480 x 640 pixels as the sequential network wants it."""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    models: tuple[str, ...] = (
        *VARIANTS,
        *KEYPOINT_VARIANTS,
        *POTTER_VARIANTS,
        *SHIPPED.values(),
    )
    batch: tuple[int, ...] = (1, 8)
    precision: tuple[Precision, ...] = ("fp32", "bf16")
    modes: tuple[Mode, ...] = ("plain", "fused", "compiled")
    repeats: int = 7
    threads: int = 2
    quick: bool = False
    """Five models, no compiler, three repeats."""
    json: Path | None = None


@dataclass(frozen=True)
class Subject:
    """A network, height and width of its images, and its 10^9 multiply-adds for one of them."""

    network: nn.Module
    size: tuple[int, int]
    official: float
    executed: float


def make_subject(name: str) -> Subject:
    """A variant in its published sizes with random weights, or a shipped model."""
    if name in KEYPOINT_VARIANTS:
        return make_keypoint_subject(name)
    if name in POTTER_VARIANTS:
        return make_potter_subject(name)
    if name not in VARIANTS:
        network, _, metadata = load_model(name)
        side = int(metadata["resolution"])
        executed = count_macs(network, torch.rand(1, 3, side, side)) / 1e9
        return Subject(network, (side, side), executed, executed)
    variant = VARIANTS[name]
    network = blank_network(variant.config, variant.backbone).eval()
    side = variant.resolution
    executed = count_macs(network, torch.empty(1, 3, side, side, device="meta")) / 1e9
    fill_randomly(network.to_empty(device="cpu"))
    if isinstance(variant.config, PointHmrConfig):  # nothing is repeated, so nothing is saved
        return Subject(network, (side, side), executed, executed)
    official = official_gmac(variant.config, variant.backbone, side)
    return Subject(network, (side, side), official, executed)


def make_keypoint_subject(name: str) -> Subject:
    """A network of 2D keypoints."""
    variant = KEYPOINT_VARIANTS[name]
    record = describe_keypoint_variant(variant)
    width, height = variant.size
    size = PHOTO if variant.finds_people else (height, width)
    shapes = build_keypoint_network(record, blank=True).eval()
    executed = count_macs(shapes, torch.empty(1, 3, *size, device="meta")) / 1e9
    network = build_keypoint_network(record).eval()
    fill_randomly(network)
    if isinstance(network, SequentialPrtr):
        network.register_constants()
    return Subject(network, size, executed, executed)


def make_potter_subject(name: str) -> Subject:
    """A network of POTTER up to the body model."""
    variant = POTTER_VARIANTS[name]
    side = variant.resolution
    network = build_potter_variant(name).eval()
    executed = count_macs(network, torch.rand(1, 3, side, side)) / 1e9
    fill_randomly(network)
    return Subject(network, (side, side), variant.gmac, executed)


@torch.no_grad()
def fill_randomly(network: nn.Module) -> None:
    """Weights of unit gain and plausible statistics, so that numbers stay of the order of one."""
    torch.manual_seed(0)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name.endswith("transformer.masks"):
            tensor.fill_(True)
        elif not tensor.is_floating_point():  # counters and masks
            tensor.zero_()
        elif name.endswith("running_var"):
            tensor.fill_(2.0)
        elif name.endswith("adjacency"):
            tensor.copy_(torch.eye(len(tensor)).roll(1, 0))
        elif tensor.dim() > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        else:
            tensor.normal_(std=0.1)
            if name.endswith("weight"):
                tensor.add_(1.0)


def make_call(network: nn.Module, mode: Mode, precision: Precision) -> Callable[[Tensor], Any]:
    """The network in one mode, as a function of the image."""
    if mode != "plain":
        return optimise(network, DTYPES[precision], "compiled" if mode == "compiled" else "eager")
    context = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()

    def call(image: Tensor) -> Any:
        with torch.no_grad(), context:
            return network(image)

    return call


def largest_difference(output: Any, reference: Any) -> float:
    """Largest difference of the full mesh (of the joints, if there is none), over its size."""
    points, expected = positions(output), positions(reference)
    return float((points.float() - expected).abs().max() / expected.abs().max())


def positions(output: Any) -> Any:
    """What a network is for: the full mesh, or the joints."""
    if isinstance(getattr(output, "vertices", None), tuple):
        return output.vertices[-1]
    if isinstance(output, Tensor):
        return output
    names = ("keypoint_coords", "coords", "joints", "joints_uvd")
    return next(getattr(output, name) for name in names if hasattr(output, name))


def measure_model(name: str, options: Options) -> list[dict[str, Any]]:
    """One row for each mode, precision and batch."""
    subject = make_subject(name)
    print(
        f"\n{name}: {subject.official:.2f} GMAC official, {subject.executed:.2f} executed\n"
        "  mode      prec  batch   ms min   median   GEMM share best  median   difference  first s"
    )
    images = {b: torch.rand(b, 3, *subject.size) for b in options.batch}
    with torch.no_grad():
        references = {b: subject.network(image) for b, image in images.items()}
    rows = []
    for mode in options.modes:
        for precision in options.precision:
            call = make_call(subject.network, mode, precision)
            for batch, image in images.items():
                row = measure_beside_gemm(lambda run=call, x=image: run(x), options.repeats)
                difference = largest_difference(call(image), references[batch])
                gflop = 2 * subject.official * batch
                row |= {
                    "share_best": gflop / row["min"] / row["gemm_max"],
                    "share_median": gflop / row["median"] / row["gemm_median"],
                    "difference": difference,
                    "gmac_official": subject.official,
                    "gmac_executed": subject.executed,
                }
                rows.append({"mode": mode, "precision": precision, "batch": batch, **row})
                print_row(rows[-1])
    return rows


def print_row(row: dict[str, Any]) -> None:
    print(
        f"  {row['mode']:<10}{row['precision']:<6}{row['batch']:>5}{1e3 * row['min']:>9.1f}"
        f"{1e3 * row['median']:>9.1f}{row['share_best']:>16.1%}{row['share_median']:>9.1%}"
        f"{row['difference']:>12.1e}{row['first']:>9.1f}",
        flush=True,
    )


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    if options.quick:
        options = replace(options, models=QUICK, modes=("plain", "fused"), repeats=3)
    record: dict[str, Any] = {"machine": machine(), "models": {}}
    print(f"{record['machine']['cpu']}, {options.threads} threads, torch {torch.__version__}")
    for name in options.models:
        torch._dynamo.reset()
        record["models"][name] = measure_model(name, options)
        if options.json is not None:
            write_json(options.json, record)


if __name__ == "__main__":
    main(tyro.cli(Options))
