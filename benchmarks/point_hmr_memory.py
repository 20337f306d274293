"""Peak memory and time of a training step of PointHMR, the plain way and as this package does it.

    python benchmarks/point_hmr_memory.py [--batch 8 32] [--device cpu] [--json FILE]

``plain`` writes everything down: heat maps enlarged to 112 x 112, a picture of ones and zeros for
each target, and the loss of all of their pixels; this is `tests/slow_heat_maps.py`. ``indexed`` is
the recipe's step: the same loss from the maps that the network samples with. ``recomputed`` keeps
the inputs of blocks alone as well (`checkpoint_activations`). All three give the same numbers
(`tests/test_point_losses.py`, `tests/test_point_hmr.py`). Every setting runs in a process of its
own, because a process remembers the highest memory it ever had: the peak is the resident set on the
CPU, and the allocator's on CUDA. The official release makes its targets of an identity matrix,
which would take 0.6 GiB more.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import slow_heat_maps

from _measure import machine
from kinemesh.bodies import load_topology
from kinemesh.files import write_json
from kinemesh.mesh_losses import MeshTargets, MeshTransformerLoss
from kinemesh.models.activation_checkpointing import checkpoint_activations
from kinemesh.models.point_hmr import PointHmrOutput
from kinemesh.models.variants import build_variant
from kinemesh.point_losses import PointHmrLoss, PointLossWeights

Mode = Literal["plain", "indexed", "recomputed"]


@dataclass(frozen=True)
class Options:
    """What to measure."""

    batch: tuple[int, ...] = (8, 32)
    modes: tuple[Mode, ...] = ("plain", "indexed", "recomputed")
    steps: int = 1
    """Timed steps, after one that is not; 0 times the first."""
    threads: int = 2
    device: str = "cpu"
    json: Path | None = None
    one: bool = False
    """Measure the first batch size and mode in this process and print JSON."""


def plain_loss(loss: PointHmrLoss, output: PointHmrOutput, targets: MeshTargets) -> Tensor:
    """The total with every heat map and target written down."""
    places = loss.heat_targets(output, targets)
    # the logarithm of shares are logits of the same softmax
    logits = output.heat.clamp(min=1e-38).log()
    dice, bce = slow_heat_maps.heat_map_terms(logits, *places, targets.has_mesh_B, 2)
    others = MeshTransformerLoss.forward(loss, output, targets)  # type: ignore[arg-type]
    weights = loss.weights
    return others["total"] + weights.heat * (dice + weights.cross_entropy * bce)


def make_step(options: Options) -> Callable[[], float]:
    """One step on random images and labels of plausible size; returns the loss."""
    batch, mode, device = options.batch[0], options.modes[0], options.device
    torch.manual_seed(0)
    topology = load_topology("anny-body")
    network = build_variant("point-hmr-body-w32", topology).to(device).train()
    if mode == "recomputed":
        checkpoint_activations(network)
    loss = PointHmrLoss(topology, PointLossWeights()).to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-5)
    image = torch.randn(batch, 3, 224, 224, device=device)
    J, V = len(topology.template_tokens[0]), len(topology.template)
    ones = torch.ones(batch, device=device)
    targets = MeshTargets(
        torch.rand(batch, J, 3, device=device),
        torch.rand(batch, J, 4, device=device),
        ones,
        topology.template.to(device).expand(batch, V, 3),
        ones,
    )

    def step() -> float:
        output = network(image)
        if mode == "plain":
            total = plain_loss(loss, output, targets)
        else:
            total = loss(output, targets)["total"]
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()
        return float(total.detach())

    return step


def measure_here(options: Options) -> dict[str, Any]:
    """First loss, seconds a step and peak memory in this process."""
    torch.set_num_threads(options.threads)
    step, seconds, losses = make_step(options), [], []
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cuda = options.device.startswith("cuda")
    return {
        "batch": options.batch[0],
        "mode": options.modes[0],
        "first_loss": losses[0],
        "seconds": min(seconds[1:] or seconds),
        "peak_gib": (torch.cuda.max_memory_allocated() if cuda else resident) / 2**30,
    }


def measure_elsewhere(batch: int, mode: Mode, options: Options) -> dict[str, Any]:
    """`measure_here` in a fresh process."""
    flags = ["--one", "--batch", str(batch), "--modes", mode]
    for name in ("steps", "threads", "device"):
        flags += [f"--{name}", str(getattr(options, name))]
    run = subprocess.run(
        [sys.executable, __file__, *flags], check=True, capture_output=True, text=True
    )
    row: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return row


def main(options: Options) -> None:
    if options.one:
        print(json.dumps(measure_here(options)))
        return
    record: dict[str, Any] = {"machine": machine(), "rows": []}
    print("batch  mode          first loss   s/step  peak GiB")
    for batch in options.batch:
        for mode in options.modes:
            row = measure_elsewhere(batch, mode, options)
            record["rows"].append(row)
            print(
                f"{batch:>5}  {mode:<12}{row['first_loss']:>12.3f}{row['seconds']:>9.2f}"
                f"{row['peak_gib']:>10.2f}",
                flush=True,
            )
    if options.json is not None:
        write_json(options.json, record)


if __name__ == "__main__":
    main(tyro.cli(Options))
