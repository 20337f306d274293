"""``kinemesh convert``: official checkpoints to our weight files, and back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from kinemesh.cli._shared import Assets, Verb, shown_as
from kinemesh.errors import InputError

if TYPE_CHECKING:
    from kinemesh.models.conversion import Conversion

_FAMILIES = "metro-body|metro-hand|graphormer-body|graphormer-hand|hrnet-imagenet|resnet-imagenet"
CONVERT_HELP = """Turn an official checkpoint into a weight file of kinemesh, or back.

Only tensors are read; no code of the file is run. A whole pickled network (model.bin) is refused,
with the two lines that save its tensors where it was made.

Examples:
  kinemesh convert metro_hand_state_dict.bin --family metro-hand --assets body_models/
      with the mesh of your MANO files inside, ready for kinemesh predict --model
  kinemesh convert graphormer_h36m_state_dict.bin --family graphormer-body
      without a mesh; kinemesh predict then needs --assets
  kinemesh convert hrnetv2_w64_imagenet_pretrained.pth --family hrnet-imagenet
      a backbone to begin a training with
  kinemesh convert trained.safetensors --official --out trained_state_dict.bin
      back to the tensors that the official code reads
"""


def convert(
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")],
    family: Annotated[str | None, shown_as(_FAMILIES)] = None,
    assets: Assets = None,
    out: Annotated[Path | None, shown_as("PATH")] = None,
    heads: int = 4,
    official: bool = False,
    overwrite: bool = False,
) -> int:
    """Turn an official checkpoint into a weight file of kinemesh, or back.

    Args:
        file: State dict with official names (.bin, .pth, .pt, .safetensors); with --official a
            weight file of kinemesh.
        family: What the checkpoint is; left out, its names tell.
        assets: Folder with your SMPL or MANO files and the official sampling files; the mesh is
            stored in the new file.
        out: File to write; by default beside FILE, with another ending.
        heads: Attention heads, which a checkpoint does not tell; 4 in all published ones.
        official: Convert back: write the tensors that the official code reads.
        overwrite: Replace a file of that name.
    """
    from kinemesh.models.conversion import convert_checkpoint, export_official

    if official:
        if assets is not None:
            raise InputError("--assets is not used with --official; leave it out.")
        path, name, count = export_official(file, family, out=out, overwrite=overwrite)
        print(f"{path}: {count} tensors of the family {name}, those without influence as zeros.")
        return 0
    report = convert_checkpoint(
        file, family, out=out, assets=assets, heads=heads, overwrite=overwrite
    )
    print("\n".join(_report(file, report)))
    return 0


def _report(source: Path, done: "Conversion") -> list[str]:
    """What was taken, what was left out, and what to type next."""
    from kinemesh.models.checkpoints import FAMILIES
    from kinemesh.models.conversion import LICENSE

    found = done.converted
    values = sum(tensor.numel() for tensor in found.state.values())
    what = f", the registered {done.variant}" if done.variant else ""
    lines = [
        f"{source}: {found.family}{what}",
        f"  taken: {len(found.state)} tensors, {values:,} values, float32",
        f"  left out, without influence on any output: {len(found.dropped)} tensors",
    ]
    if found.added:
        lines.append(f"  counters that the file lacks, set to zero: {len(found.added)}")
    task = FAMILIES[found.family].task
    if task is not None:
        lines.append(f"  mesh: {_mesh(done)}")
    lines += [f"Written: {done.path}", LICENSE]
    if task is not None:
        assets = "" if done.topology is not None else " --assets FOLDER"
        lines.append(f"Next: kinemesh predict photo.jpg --task {task} --model {done.path}{assets}")
    return lines


def _mesh(done: "Conversion") -> str:
    if done.topology is None:
        return "not stored (no --assets)"
    return (
        f"{done.topology.name}, {len(done.topology.template):,} vertices, stored in the file, "
        "which the body model's licence then covers, too"
    )


VERBS = (
    Verb("convert", "official checkpoints to our weight files, and back", convert, CONVERT_HELP),
)
