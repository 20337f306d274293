"""``kinemesh predict``: photos to overlays, meshes and numbers."""

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

import kinemesh
from kinemesh.cli._shared import Assets, DeviceName, Verb, console, one_of, shown_as
from kinemesh.cli.video import VideoOptions, is_video
from kinemesh.errors import InputError
from kinemesh.formats import (
    ALL_FORMATS,
    DEFAULT_FORMATS,
    MESH_FORMATS,
    PARAMETER_FORMATS,
    SaveFormat,
    check_folder,
    possible_formats,
    read_formats,
)

if TYPE_CHECKING:
    from kinemesh.cli._finders import Finder, Wishes
    from kinemesh.inference.fitting import PeopleFitter
    from kinemesh.inference.focal import FocalLength

Images = Annotated[
    tyro.conf.Positional[tuple[str, ...]], shown_as("IMAGE|FOLDER|GLOB...|VIDEO|CAMERA")
]
Boxes = Annotated[str | None, shown_as("'X,Y,W,H;...'|FILE.json")]
DetectorName = Annotated[str | None, shown_as("own|none|rtdetr|dfine|FOLDER|FILE")]
Model = Annotated[str | None, shown_as("NAME|FILE")]
_TASKS = ("body", "hand", "body,hand", "pose2d")
_ANY_ORDER = replace(
    one_of(*_TASKS),
    choices=(*_TASKS, "hand,body"),
    instance_from_str=lambda words: "body,hand" if words[0] == "hand,body" else words[0],
)
Task = Annotated[Literal["body", "hand", "body,hand", "pose2d"] | None, _ANY_ORDER, shown_as()]
Side = Annotated[
    Literal["left", "right", "auto"] | None, one_of("left", "right", "auto"), shown_as()
]
Score = Annotated[float | None, shown_as("0..1")]
Focal = Annotated[str, shown_as("auto|PIXELS|DEGREESdeg")]
Pixels = Annotated[float | None, shown_as("PIXELS")]
JointNames = Annotated[str | None, shown_as("NAME,...")]
Formats = Annotated[tuple[str, ...], tyro.conf.arg(metavar=f"{'|'.join(ALL_FORMATS)}...")]

_HELP = """Find people or hands in photos and videos; write pictures, meshes and numbers.

Examples:
  kinemesh predict photo.jpg
      everybody in the photo; results in out/
  kinemesh predict photo.jpg --boxes '40,30,200,260;300,20,180,240' --out found/
      two people, each given by x,y,width,height in pixels
  kinemesh predict hands/ --task hand --side left --detector none --save overlay,json
      a folder of left hands that fill their photos, no mesh files (images come before --save)
  kinemesh predict photo.jpg --task body,hand --focal 60deg
      a body with its hands at its wrists; a lens of 60 degrees across the longer side
  kinemesh predict street.jpg --detector rtdetr --min-box-score 0.6
      everybody whom a larger detector finds, which is downloaded once
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
  kinemesh predict walk.mp4 --smooth 0.7
      a video: people followed from frame to frame, and smoothed
  kinemesh predict photo.jpg --parameters
      also pose and shape of the body model

Exit code: 0 all done, 1 some images failed (they are listed), 2 wrong usage, 130 Ctrl-C.
"""


def predict(
    images: Images,
    out: Path = Path("out"),
    task: Task = None,
    model: Model = None,
    hand_model: Model = None,
    boxes: Boxes = None,
    detector: DetectorName = None,
    min_box_score: Score = None,
    min_wrist_score: Score = None,
    side: Side = None,
    focal: Focal = "auto",
    focal_px: Pixels = None,
    device: DeviceName = "auto",
    save: Formats = DEFAULT_FORMATS,
    parameters: bool = False,
    overlay: Literal["png", "jpg"] = "png",
    skeleton: bool = False,
    assets: Assets = None,
    flip_test: bool = False,
    min_score: Score = None,
    include_background: bool = False,
    explain: bool = False,
    explain_joints: JointNames = None,
    video: tyro.conf.OmitArgPrefixes[VideoOptions] = VideoOptions(),  # noqa: B008  # frozen
) -> int:
    """Find people or hands in photos.

    Args:
        images: Image files, folders, or patterns in quotes; or one video file or camera number.
        out: Folder for the results; made if it is not there.
        task: What to look for; without it what the model recovers, or bodies without a model too.
        model: A model from `kinemesh models` or a .safetensors file, in place of the default one.
        hand_model: The same for the hands of body,hand.
        boxes: Where the people or hands are: left, top, width, height. Without it they are found.
        detector: What finds them: the shipped network (own), nothing (none: each image is one
            crop), a published network, which is downloaded once, a folder with one, or a file. If
            left out, own; and where it finds nobody in a photo, the photo is taken for one crop.
        min_box_score: Boxes with a lower score are left out; of a detector 0.6 (own) or 0.5
            (others) if left out.
        min_wrist_score: For body,hand: wrists that are less sure get no hand, 0.3 if left out.
        side: For hands: which one is shown; auto tries both. If left out, what the detector says,
            else right.
        focal: Focal length: pixels, or field of view across the longer side; auto takes it from
            EXIF, or else the diagonal of the image.
        focal_px: The same as --focal PIXELS.
        device: Where the network runs.
        save: Files to write for each image, with commas or spaces between; images come before.
            Views are of joints without a mesh, and left out where there are meshes.
        parameters: Also fit the pose and shape of the body model; bvh and skinned do so anyway.
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
        video: Options for videos.
    """
    from kinemesh.cli._finders import Wishes

    formats = read_formats(save)
    check_folder(out)
    wishes = Wishes(
        task=task,
        model=model,
        hand_model=hand_model,
        device=device,
        assets=assets,
        side=side,
        focal=_read_lens(focal, focal_px),
        has_boxes=boxes is not None,
        detector=detector,
        min_box_score=min_box_score,
        min_wrist_score=min_wrist_score,
        flip_test=flip_test,
        min_score=min_score,
        include_background=include_background,
        explain=_wanted_joints(explain, explain_joints),
    )
    results = Results(
        out,
        formats,
        _SUFFIXES[overlay],
        skeleton,
        parameters or any(name in PARAMETER_FORMATS for name in formats),
    )
    if is_video(images, video):
        # what moves is fitted when the video is known, with one shape for each track
        each_frame = replace(results, parameters=parameters)
        return _predict_video(images[0], video, wishes, boxes, each_frame)
    return _predict_photos(images, wishes, boxes, results)


@dataclass(frozen=True)
class Results:
    """What is written.

    Attributes:
        out: Folder.
        formats: Files of each photo.
        suffix: Of pictures.
        skeleton: Whether joints are drawn.
        parameters: Whether body models are fitted.
    """

    out: Path
    formats: tuple[SaveFormat, ...]
    suffix: Literal[".png", ".jpg"]
    skeleton: bool
    parameters: bool


def _predict_photos(
    images: tuple[str, ...], wishes: "Wishes", boxes: str | None, to: Results
) -> int:
    from kinemesh.cli._finders import make_finder
    from kinemesh.formats.names import FileKind, check_run
    from kinemesh.inference.boxes import read_boxes
    from kinemesh.inference.images import find_images, load_image, skipped_pictures
    from kinemesh.inference.messages import (
        print_low_scores,
        print_no_detector,
        print_nobody,
        print_run,
        print_skipped,
        print_unmatched,
        print_without_hands,
    )
    from kinemesh.inference.run import output_stems, run_images

    paths = find_images(images)
    print_skipped(skipped_pictures(images))
    table = None if boxes is None else read_boxes(boxes)
    kinds: tuple[FileKind, ...] = to.formats
    kinds += () if wishes.explain is False else ("explain",)
    check_run(paths, output_stems(paths), to.out, kinds, to.suffix, boxes)
    if table is not None:
        print_unmatched(table, paths)
    output = console(stderr=True)
    finder = make_finder(wishes)
    formats = _possible_formats(to.formats, finder.has_mesh, finder.task)
    fitter = _make_fitter(finder, to.parameters, wishes.assets)
    bodies = {} if fitter is None else {body.name: body for body in fitter.bodies}
    locate = finder.detector if table is None else table
    if finder.lacks_detector:
        print_no_detector(output)

    def process(path: Path, stem: str) -> list[Path]:
        photo = load_image(path)
        places = None if locate is None else tuple(locate.detect(photo))
        if finder.detector is not None and not places:
            print_nobody(path, finder.task, output, takes_whole=finder.is_default)
            places = None if finder.is_default else places
        people = finder.find(photo, places)
        print_low_scores(path, people, output)
        if finder.task == "body,hand":
            print_without_hands(path, people, output)
        return kinemesh.save(
            people if fitter is None else fitter.fit(people),
            photo,
            to.out,
            stem=stem,
            formats=formats,
            overlay_suffix=to.suffix,
            skeleton=to.skeleton,
            bodies=bodies,
        )

    report = run_images(paths, process, output)
    print_run(report, to.out)
    return report.exit_code


def _predict_video(
    source: str, options: VideoOptions, wishes: "Wishes", boxes: str | None, to: Results
) -> int:
    from kinemesh.cli._finders import make_finder
    from kinemesh.cli._video_exports import check_video_exports, write_video_exports
    from kinemesh.cli.video import predict_video
    from kinemesh.inference.messages import print_no_detector

    if wishes.explain is not False:
        raise InputError("--explain is for photos. Take a frame of the video as a picture.")
    if to.suffix != ".png":
        raise InputError("--overlay is for photos; that of a video is an MP4 file. Leave it out.")
    no_choice = DEFAULT_FORMATS if set(DEFAULT_FORMATS) <= set(to.formats) else ()
    others = [name for name in to.formats if name not in (*_OF_VIDEOS, *no_choice)]
    if others:
        raise InputError(
            f"--save {others[0]} is for photos. A video gives its frames as JSON and NPZ, with "
            "'overlay' a video, and csv, coco, bvh and skinned; see docs/video.md."
        )
    check_video_exports(source, to.out, to.formats)
    finder = make_finder(wishes)
    if finder.lacks_detector:
        print_no_detector(console(stderr=True))
    fitter = _make_fitter(finder, to.parameters, wishes.assets)
    moving = any(name in PARAMETER_FORMATS for name in to.formats)
    mover = fitter or _make_fitter(finder, moving, wishes.assets)
    code = predict_video(
        source,
        options,
        find=finder.find_many,
        fit=None if fitter is None else fitter.fit,
        out=to.out,
        detect=None if finder.detector is None else finder.detector.detect,
        boxes=boxes,
        overlay="overlay" in to.formats,
        skeleton=to.skeleton,
        record=_record(wishes, finder) | {"parameters": to.parameters},
    )
    write_video_exports(source, to.out, to.formats, mover)  # of a damaged one what came before
    return code


_SUFFIXES: dict[str, Literal[".png", ".jpg"]] = {"png": ".png", "jpg": ".jpg"}
_OF_VIDEOS: tuple[SaveFormat, ...] = ("overlay", "json", "npz", "csv", "coco", *PARAMETER_FORMATS)


def _record(wishes: "Wishes", finder: "Finder") -> dict[str, Any]:
    """What the people of a video depend on, as plain JSON values."""
    from kinemesh.inference.detectors import OWN

    content = asdict(wishes)
    del content["device"]
    return content | {
        "assets": None if wishes.assets is None else str(wishes.assets),
        "detector": OWN if finder.is_default else wishes.detector,
    }


def _make_fitter(finder: "Finder", wanted: bool, assets: Path | None) -> "PeopleFitter | None":
    if not wanted:
        return None
    from kinemesh.inference.fitting import PeopleFitter

    if not finder.has_mesh or not finder.topologies:
        raise InputError(
            "--parameters fits a body model to a mesh, but the model recovers joints without one. "
            "Choose another model from: kinemesh models"
        )
    return PeopleFitter(finder.topologies, assets)


def _read_lens(focal: str, focal_px: float | None) -> "FocalLength":
    from kinemesh.inference.focal import AUTO, FocalLength, read_focal
    from kinemesh.inference.person import check_focal_px

    lens = read_focal(focal)
    if focal_px is None:
        return lens
    if lens != AUTO:
        raise InputError("--focal and --focal-px say the same thing. Give one of them.")
    check_focal_px(focal_px)
    return FocalLength(focal_px, "px")


def _wanted_joints(explain: bool, names: str | None) -> bool | tuple[str, ...]:
    """What `Predictor.predict` calls ``explain``."""
    if names is None:
        return explain
    if not explain:
        raise InputError("--explain-joints says what --explain shows. Add --explain.")
    return tuple(name.strip() for name in names.split(",") if name.strip())


def _possible_formats(
    formats: tuple[SaveFormat, ...], has_mesh: bool, task: str
) -> tuple[SaveFormat, ...]:
    """Leave out the files that cannot be written, or refuse if they were asked for."""
    possible = possible_formats(formats, mesh=has_mesh, depth=task != "pose2d")
    left_out = ", ".join(name for name in formats if name in MESH_FORMATS and not has_mesh)
    if left_out:
        print(f"The model recovers joints without a mesh: no {left_out}.", file=sys.stderr)
    return possible


VERBS = (Verb("predict", "photos and videos to overlays, meshes and joints", predict, _HELP),)
