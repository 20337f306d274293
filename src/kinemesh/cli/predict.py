"""``kinemesh predict``: photos to overlays, meshes and numbers."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

import kinemesh
from kinemesh.cli._shared import Assets, DeviceName, Verb, console, one_of, shown_as
from kinemesh.errors import InputError
from kinemesh.formats import (
    ALL_FORMATS,
    MESH_FORMATS,
    SaveFormat,
    check_folder,
    possible_formats,
    read_formats,
)

if TYPE_CHECKING:
    from kinemesh.inference.boxes import Box
    from kinemesh.inference.hand_joints import HandJointPredictor
    from kinemesh.inference.images import LoadedImage
    from kinemesh.inference.keypoints import KeypointPredictor
    from kinemesh.inference.person import Person
    from kinemesh.inference.predictor import Predictor

    Find = Callable[[LoadedImage, tuple[Box, ...] | None], list[Person]]

Images = Annotated[tyro.conf.Positional[tuple[str, ...]], shown_as("IMAGE|FOLDER|GLOB...")]
Boxes = Annotated[str | None, shown_as("'X,Y,W,H;...'|FILE.json")]
Model = Annotated[str | None, shown_as("NAME|FILE")]
Task = Annotated[
    Literal["body", "hand", "pose2d"] | None, one_of("body", "hand", "pose2d"), shown_as()
]
Side = Annotated[
    Literal["left", "right", "auto"] | None, one_of("left", "right", "auto"), shown_as()
]
Score = Annotated[float | None, shown_as("0..1")]
Pixels = Annotated[float | None, shown_as("PIXELS")]
JointNames = Annotated[str | None, shown_as("NAME,...")]
Formats = Annotated[tuple[str, ...], tyro.conf.arg(metavar=f"{'|'.join(ALL_FORMATS)}...")]

_HELP = """Find people or hands in photos; write pictures, meshes and numbers.

Examples:
  kinemesh predict photo.jpg
      one person that fills the photo; results in out/
  kinemesh predict photo.jpg --boxes '40,30,200,260;300,20,180,240' --out found/
      two people, each given by x,y,width,height in pixels
  kinemesh predict hands/ --task hand --side left --save overlay,json
      a folder of left hands, without mesh files (images come before --save)
  kinemesh predict 'holiday/**/*.jpg' --boxes boxes.json
      photos in sub-folders, with boxes by file name
  kinemesh predict photo.jpg --model metro_3dpw.safetensors --assets smpl/
      an official checkpoint, made ours by: kinemesh convert
  kinemesh predict photo.jpg --explain --explain-joints right_wrist,left_knee
      also a picture of what the network looked at
  kinemesh predict hand.jpg --task hand --model runs/potter-hand/best/weights.safetensors
      21 joints of a hand: on the photo, and in 3D from three sides
  kinemesh predict street.jpg --task pose2d --model prtr.safetensors --boxes boxes.json
      2D keypoints of the people in the boxes
  kinemesh predict street.jpg --task pose2d --model sequential.safetensors --min-score 0.7
      2D keypoints of everybody that the sequential network finds

Exit code: 0 all done, 1 some images failed (they are listed), 2 wrong usage, 130 Ctrl-C.
"""


def predict(
    images: Images,
    out: Path = Path("out"),
    task: Task = None,
    model: Model = None,
    boxes: Boxes = None,
    side: Side = None,
    focal_px: Pixels = None,
    device: DeviceName = "auto",
    save: Formats = ALL_FORMATS,
    overlay: Literal["png", "jpg"] = "png",
    skeleton: bool = False,
    assets: Assets = None,
    flip_test: bool = False,
    min_score: Score = None,
    include_background: bool = False,
    explain: bool = False,
    explain_joints: JointNames = None,
) -> int:
    """Find people or hands in photos.

    Args:
        images: Image files, folders, or patterns in quotes.
        out: Folder for the results; made if it is not there.
        task: What to look for; without it what the model recovers, or bodies without a model too.
        model: A model from `kinemesh models` or a .safetensors file, in place of the default one.
        boxes: Where the people are; without it each image is one crop. Left, top, width, height.
        side: For hands: which one is shown, right if left out; auto tries both.
        focal_px: Focal length; else taken from EXIF, else the diagonal of the image.
        device: Where the network runs.
        save: Files to write for each image, with commas or spaces between; images come before.
        overlay: File type of the overlay picture.
        skeleton: Draw the joints found in the image on the overlay.
        assets: Your SMPL or MANO files, for a converted model that does not hold its mesh.
        flip_test: For pose2d: average over each crop and its mirror image.
        min_score: For pose2d without boxes: least score of a person, 0.5 if left out.
        include_background: For pose2d with boxes: let the background take part in the softmax of
            the read-out, which published scores do not.
        explain: Also write a picture of what the network looked at, a row for each person.
        explain_joints: Joints whose attention --explain shows, with commas between; unknown names
            are answered with all of them.
    """
    from kinemesh.formats.names import FileKind, check_run
    from kinemesh.inference.boxes import read_boxes
    from kinemesh.inference.hand_joints import HandJointPredictor
    from kinemesh.inference.images import find_images, load_image, skipped_pictures
    from kinemesh.inference.messages import print_low_scores, print_run, print_skipped
    from kinemesh.inference.person import check_focal_px
    from kinemesh.inference.run import output_stems, run_images

    formats = read_formats(save)
    paths = find_images(images)
    print_skipped(skipped_pictures(images))
    table = None if boxes is None else read_boxes(boxes)
    if focal_px is not None:
        check_focal_px(focal_px)
    check_folder(out)
    wanted_joints = _wanted_joints(explain, explain_joints)
    kinds: tuple[FileKind, ...] = (*formats, "explain") if explain else formats
    check_run(paths, output_stems(paths), out, kinds, _SUFFIXES[overlay], boxes)
    output = console(stderr=True)
    if task == "pose2d" and model is None:
        raise InputError(
            "--task pose2d: no model of 2D keypoints is shipped. Name yours with --model FILE; "
            "train one with kinemesh train, or convert an official checkpoint."
        )
    predictor = kinemesh.load(model or task or "body", device, assets)
    _check_task(predictor.task, task, side)
    if isinstance(predictor, kinemesh.Predictor | HandJointPredictor):
        _check_mesh_options(flip_test, min_score, include_background)
        find = _mesh_finder(predictor, side, focal_px, wanted_joints)
    else:
        _refuse_to_explain(wanted_joints)
        find = _keypoint_finder(
            predictor, boxes is not None, focal_px, flip_test, min_score, include_background
        )
    formats = _possible_formats(formats, predictor.has_mesh, predictor.task)

    def process(path: Path, stem: str) -> list[Path]:
        photo = load_image(path)
        wanted = None if table is None else table.for_image(path)
        people = find(photo, wanted)
        print_low_scores(path, people, output)
        return kinemesh.save(
            people,
            photo,
            out,
            stem=stem,
            formats=formats,
            overlay_suffix=_SUFFIXES[overlay],
            skeleton=skeleton,
        )

    report = run_images(paths, process, output)
    print_run(report, out)
    return report.exit_code


_SUFFIXES: dict[str, Literal[".png", ".jpg"]] = {"png": ".png", "jpg": ".jpg"}


def _check_task(found: str, task: str | None, side: str | None) -> None:
    """Refuse options that the loaded model would silently ignore."""
    if task is not None and task != found:
        raise InputError(
            f"--task is {task}, but the model given with --model recovers a {found}. "
            "Leave --task out, or choose another model from: kinemesh models"
        )
    if side is not None and found != "hand":
        raise InputError(
            f"--side {side} is for hands, but the model recovers a {found}. "
            "Add --task hand, or leave --side out."
        )


def _check_mesh_options(flip_test: bool, min_score: float | None, include_background: bool) -> None:
    options = {
        "--flip-test": flip_test,
        "--min-score": min_score is not None,
        "--include-background": include_background,
    }
    given = [option for option, is_given in options.items() if is_given]
    if given:
        raise InputError(
            f"{given[0]} is for models of 2D keypoints (--task pose2d --model FILE), which this is "
            "not. Leave it out."
        )


def _mesh_finder(
    predictor: "Predictor | HandJointPredictor",
    side: Literal["left", "right", "auto"] | None,
    focal_px: float | None,
    explain: bool | tuple[str, ...],
) -> "Find":
    """What finds people with a model of bodies or hands, once its options are checked."""
    _check_side(predictor.tells_sides, side)
    if isinstance(predictor, kinemesh.Predictor):
        explained = predictor
        explained.check_explain(explain)

        def find(photo: "LoadedImage", wanted: "tuple[Box, ...] | None") -> "list[Person]":
            return explained.predict(photo, wanted, side or "right", focal_px, explain)

        return find
    _refuse_to_explain(explain)
    hands = predictor

    def find_hands(photo: "LoadedImage", wanted: "tuple[Box, ...] | None") -> "list[Person]":
        return hands.predict(photo, wanted, side or "right", focal_px)

    return find_hands


def _keypoint_finder(
    predictor: "KeypointPredictor",
    has_boxes: bool,
    focal_px: float | None,
    flip_test: bool,
    min_score: float | None,
    include_background: bool,
) -> "Find":
    """What finds people with a model of 2D keypoints, once its options are checked."""
    if focal_px is not None:
        raise InputError(
            "--focal-px: a model of 2D keypoints has no use for a focal length. Leave it out."
        )
    predictor.check_options(has_boxes, flip_test, min_score, include_background)

    def find(photo: "LoadedImage", wanted: "tuple[Box, ...] | None") -> "list[Person]":
        return predictor.predict(
            photo,
            wanted,
            flip_test=flip_test,
            min_score=min_score,
            include_background=include_background,
        )

    return find


def _wanted_joints(explain: bool, names: str | None) -> bool | tuple[str, ...]:
    """What `Predictor.predict` calls ``explain``."""
    if names is None:
        return explain
    if not explain:
        raise InputError("--explain-joints says what --explain shows. Add --explain.")
    return tuple(name.strip() for name in names.split(",") if name.strip())


def _refuse_to_explain(explain: bool | tuple[str, ...]) -> None:
    from kinemesh.inference.explanation import CANNOT_EXPLAIN

    if explain is not False:
        raise InputError(f"--explain: {CANNOT_EXPLAIN}")


def _check_side(tells_sides: bool, side: str | None) -> None:
    if side == "auto" and not tells_sides:
        raise InputError(
            "--side auto: this model does not say how sure it is, so it cannot tell left hands "
            "from right ones. Give --side left or --side right."
        )


def _possible_formats(
    formats: tuple[SaveFormat, ...], has_mesh: bool, task: str
) -> tuple[SaveFormat, ...]:
    """Leave out the files that cannot be written, or refuse if they were asked for."""
    possible = possible_formats(formats, mesh=has_mesh, depth=task != "pose2d")
    left_out = ", ".join(name for name in formats if name in MESH_FORMATS and not has_mesh)
    if left_out:
        print(f"The model recovers joints without a mesh: no {left_out}.", file=sys.stderr)
    return possible


VERBS = (Verb("predict", "photos to overlays, meshes and joints", predict, _HELP),)
