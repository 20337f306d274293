"""Images a second of the renderer: body and hand with light, shadow and texture.

python benchmarks/render.py --json out/render.json
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from _measure import gemm_gflops, machine, measure
from kinemesh.bodies import Rig, load_rig
from kinemesh.files import write_json
from kinemesh.rendering import Lighting, SurfaceNoise, shade
from kinemesh.rendering.overlay import draw_mesh

RIGS = ("anny-body", "anny-hand")
OVERLAYS = ((512, 512), (3000, 4000))


@dataclass(frozen=True)
class Options:
    """What to measure."""

    sizes: tuple[int, ...] = (128, 224)
    batch: int = 8
    waves: int = 14
    threads: int = 1
    warmup: int = 2
    repeats: int = 9
    device: str = "cpu"
    json: Path | None = None


def fitted_scene(rig: Rig, batch: int, waves: int, device: str) -> dict[str, Any]:
    """Arguments of ``shade`` without size and camera: turned templates that fill the picture."""
    generator = torch.Generator().manual_seed(0)
    template = rig.template - (rig.template.amax(0) + rig.template.amin(0)) / 2
    angle = torch.linspace(-2.5, 2.5, batch)
    zero, one = torch.zeros(batch), torch.ones(batch)
    turn = torch.stack(
        [angle.cos(), zero, angle.sin(), zero, one, zero, -angle.sin(), zero, angle.cos()], -1
    )
    distance = 2.5 * template.norm(dim=1).max()
    vertices = template @ turn.view(batch, 3, 3) + torch.stack([zero[0], zero[0], distance])
    direction = torch.nn.functional.normalize(
        torch.randn(batch, waves, 3, generator=generator), dim=-1
    )
    pitch = torch.exp(torch.rand(batch, waves, 1, generator=generator) * 3.5 + 2.5)
    noise = SurfaceNoise(
        frequency=direction * pitch,
        phase=torch.rand(batch, waves, generator=generator) * 2 * torch.pi,
        amplitude=torch.full((batch, waves, 3), 0.03),
        relief=torch.ones(batch, waves // 2),
    )
    return {
        "vertices": vertices.to(device),
        "faces": rig.faces.to(device),
        "albedo": torch.tensor([0.6, 0.42, 0.33, 1.0]).expand(batch, len(template), 4).to(device),
        "rest": template.to(device),
        "lighting": Lighting.studio(batch, device),
        "noise": noise.to(device),
    }


def measure_shading(rig: Rig, size: int, options: Options) -> dict[str, float]:
    scene = fitted_scene(rig, options.batch, options.waves, options.device)
    plane = scene["vertices"][..., :2] / scene["vertices"][..., 2:]
    focal = 0.45 * size / plane.abs().amax(dim=(1, 2))
    principal = torch.full((options.batch, 2), size / 2, device=options.device)

    def call() -> Any:
        return shade(focal_px=focal, principal_px=principal, height=size, width=size, **scene)

    covered = float(call().rgba[..., 3].mean())
    seconds = measure(call, options.warmup, options.repeats)
    return {
        "images_per_second": options.batch / seconds["median"],
        "images_per_cpu_second": options.batch / seconds["cpu_median"],
        "covered": covered,
        **seconds,
    }


def measure_overlay(rig: Rig, height: int, width: int, options: Options) -> dict[str, float]:
    vertices = rig.template + torch.tensor([0.0, 0.0, 4.0])
    photo = torch.full((height, width, 3), 128, dtype=torch.uint8).numpy()
    focal = 0.9 * height * 4 / 1.7

    def call() -> Any:
        return draw_mesh(photo, [vertices], [rig.faces], focal, (width / 2, height / 2))

    return measure(call, 1, max(3, options.repeats // 3))


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    record: dict[str, Any] = {
        "machine": machine(),
        "batch": options.batch,
        "device": options.device,
        "gemm_gflops": gemm_gflops(options.threads),
    }
    print(f"{record['machine']['cpu']}, {options.threads} threads, ", end="")
    print(f"{record['gemm_gflops']:.0f} GFLOP/s matrix product, torch {torch.__version__}")
    for name in RIGS:
        rig = load_rig(name)
        for size in options.sizes:
            row = record[f"{name}-{size}"] = measure_shading(rig, size, options)
            print(
                f"{name} {size} px: {row['images_per_second']:.0f} images/s "
                f"({row['images_per_cpu_second']:.0f} per CPU-second); ms per batch "
                f"{1e3 * row['median']:.0f} [{1e3 * row['q25']:.0f}, {1e3 * row['q75']:.0f}]"
            )
    for height, width in OVERLAYS if options.device == "cpu" else ():
        row = record[f"overlay-{width}x{height}"] = measure_overlay(
            load_rig("anny-body"), height, width, options
        )
        print(f"overlay of a body on {width}x{height}: {row['median']:.2f} s")
    if options.json is not None:
        write_json(options.json, record)


if __name__ == "__main__":
    main(tyro.cli(Options))
