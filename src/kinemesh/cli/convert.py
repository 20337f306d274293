"""``kinemesh convert``: official checkpoints to our weight files, and back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from kinemesh.cli._shared import Assets, Verb, shown_as
from kinemesh.errors import InputError

if TYPE_CHECKING:
    from kinemesh.models.conversion import Conversion

_FAMILIES = (
    "metro-body|metro-hand|graphormer-body|graphormer-hand|hrnet-imagenet|resnet-imagenet|"
    "prtr|prtr-deformable|prtr-sequential|point-hmr|potter-hand|potter-mesh|potter-classifier"
)
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
  kinemesh convert model_best.pth --family prtr --size 512x384
      a training checkpoint of PRTR, for crops 512 pixels high and 384 wide
  kinemesh convert best_model_weight.pth.tar --family potter-hand
      a hand network of POTTER; its classifiers and mesh networks are read, too
  kinemesh convert trained.safetensors --official --out trained_state_dict.bin
      back to the tensors that the official code reads
"""


def convert(
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")],
    family: Annotated[str | None, shown_as(_FAMILIES)] = None,
    assets: Assets = None,
    out: Annotated[Path | None, shown_as("PATH")] = None,
    heads: Annotated[int | None, shown_as("NUMBER")] = None,
    size: Annotated[str | None, shown_as("HEIGHTxWIDTH")] = None,
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
        heads: Attention heads, which a checkpoint does not tell; 4 in all published ones, 8 in
            PRTR's.
        size: Crop of a network of PRTR, which a checkpoint does not tell; 384x288 for COCO and
            256x256 for MPII if left out.
        official: Convert back: write the tensors that the official code reads.
        overwrite: Replace a file of that name.
    """
    from kinemesh.models.conversion import convert_checkpoint, export_official, note_on_sizes

    if official:
        if assets is not None:
            raise InputError("--assets is not used with --official; leave it out.")
        path, name, count = export_official(file, family, out=out, overwrite=overwrite)
        print(f"{path}: {count} tensors of the family {name}, those without influence as zeros.")
        if note := note_on_sizes(file):
            print(f"Note: {note}")
        return 0
    report = convert_checkpoint(
        file,
        family,
        out=out,
        assets=assets,
        heads=heads,
        size=None if size is None else _read_size(size),
        overwrite=overwrite,
    )
    print("\n".join(_report(file, report)))
    return 0


def _read_size(text: str) -> tuple[int, int]:
    """Width and height of "512x384", which is height x width as in the names of published files."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise InputError(f"--size: expected HEIGHTxWIDTH such as 384x288, found {text!r}.")
    return int(width), int(height)


def _report(source: Path, done: "Conversion") -> list[str]:
    """What was taken, what was left out, and what to type next."""
    from kinemesh.models.checkpoint_check import note_on_values
    from kinemesh.models.checkpoints import FAMILIES
    from kinemesh.models.conversion import LICENSE, sizes_of
    from kinemesh.models.graphormer import GraphormerConfig
    from kinemesh.models.metro import MetroConfig

    found = done.converted
    values = sum(tensor.numel() for tensor in found.state.values())
    what = f", the registered {done.variant}" if done.variant else ""
    lines = [
        f"{source}: {found.family}{what}",
        f"  taken: {len(found.state)} tensors, {values:,} values, float32",
        f"  left out, {_reason(found.family)}: {len(found.dropped)} tensors",
    ]
    if done.variant is None and isinstance(found.config, MetroConfig | GraphormerConfig):
        sizes = sizes_of(found.config, found.backbone)
        lines.append(f"  sizes, those of no registered network: {sizes}")
    if found.added:
        lines.append(f"  counters and constants that the file lacks: {len(found.added)}")
    task = FAMILIES[found.family].task
    if task == "pose2d":
        lines.append(f"  input: {_input(done)}")
    elif task is not None and not found.family.startswith("potter-"):
        lines.append(f"  mesh: {_mesh(done)}")
    if note := note_on_values(found.state):
        lines.append(f"  Warning: {note}")
    lines += [f"Written: {done.path}", LICENSE]
    if task is not None:
        meshless = task == "pose2d" or found.family == "potter-hand"
        assets = "" if done.topology is not None or meshless else " --assets FOLDER"
        lines.append(f"Next: kinemesh predict photo.jpg --task {task} --model {done.path}{assets}")
    return lines


def _reason(family: str) -> str:
    if family == "potter-mesh":
        return "the body model, which comes from your own file"
    return "without influence on any output"


def _input(done: "Conversion") -> str:
    from kinemesh.models.registry import read_weights

    _, record = read_weights(done.path)
    width, height = record["resolution"]
    if record["architecture"] == "prtr-sequential":
        return f"whole images, {record['skeleton']}, channels {record['color_order'].upper()}"
    return (
        f"{height} x {width} pixels (height x width; --size says otherwise), "
        f"{record['skeleton']}, channels {record['color_order'].upper()}"
    )


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
