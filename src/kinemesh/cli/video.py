"""The part of ``kinemesh predict`` that is for videos, folders of frames and cameras."""

import hashlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from kinemesh.cli._shared import console, counted, one_of, shown_as
from kinemesh.errors import InputError, KinemeshError

if TYPE_CHECKING:
    from rich.progress import Progress

    from kinemesh.inference.boxes import Box
    from kinemesh.inference.frame_fitting import Fit
    from kinemesh.inference.images import LoadedImage
    from kinemesh.inference.video_run import Boxes, Detect, Find, VideoReport
    from kinemesh.inference.video_source import VideoSource

Filter = Annotated[
    Literal["gaussian", "savgol", "none"] | None, one_of("gaussian", "savgol", "none"), shown_as()
]
BATCH_FRAMES = 8
"""Frames whose people go through the network together; those of a camera come one by one."""
_SMOOTH = 0.5
_MEGABYTE = 2**20
Count = Annotated[int | None, shown_as("N")]


@dataclass(frozen=True)
class VideoOptions:
    """Options of ``kinemesh predict`` for videos.

    Attributes:
        smooth: For videos: strength of smoothing, from 0 (none) to 1; 0.5 if left out.
        offline_smoothing: For videos: gaussian (if left out), savgol, or none to smooth while
            frames come, as for cameras.
        resume: For videos: go on with a run that was broken off.
        every: For videos: look at every Nth frame; at each if left out.
        max_frames: For videos: look at so many frames at most.
        frames: Take a folder for the frames of a video, in the order of their names.
        frame_rate: Frames a second of such a folder, 25 if left out.
    """

    smooth: Annotated[float | None, shown_as("0..1")] = None
    offline_smoothing: Filter = None
    resume: bool = False
    every: Count = None
    max_frames: Count = None
    frames: bool = False
    frame_rate: Annotated[float | None, shown_as("PER SECOND")] = None


def is_video(sources: Sequence[str], options: VideoOptions) -> bool:
    """Whether `predict_video` is meant: one video file, one number of a camera, or ``--frames``.

    Raises:
        InputError: A video stands among other sources, ``--frames`` is not about one folder, an
            option is for videos and there is none, or a number is out of its range.
    """
    from kinemesh.inference.video_source import is_video_name

    videos = [source for source in sources if is_video_name(source)]
    if videos and len(sources) > 1:
        raise InputError(
            f"'{videos[0]}' is a video, and {len(sources)} sources were named. Predict one video "
            "at a time, and photos apart from it."
        )
    if options.frames and not (len(sources) == 1 and Path(sources[0]).is_dir()):
        hint = " It is a video without that; leave --frames out." if videos else ""
        raise InputError(
            f"--frames takes one folder for a video, found {', '.join(sources) or 'none'}.{hint}"
        )
    found = bool(videos) or options.frames
    default = VideoOptions()
    for name in ("smooth", "offline_smoothing", "resume", "every", "max_frames", "frame_rate"):
        if not found and getattr(options, name) != getattr(default, name):
            raise InputError(
                f"--{name.replace('_', '-')} is for videos. Name one, or take a folder of pictures "
                "for a video with --frames."
            )
    if options.frame_rate is not None and not (options.frames and Path(sources[0]).is_dir()):
        raise InputError(
            f"--frame-rate is for a folder of pictures with --frames; '{sources[0]}' has its own "
            "times. Leave it out."
        )
    _check_numbers(options)
    return found


def _check_numbers(options: VideoOptions) -> None:
    from kinemesh.inference.boxes import check_score
    from kinemesh.inference.video_source import check_frame_rate

    for option, count in (("--every", options.every), ("--max-frames", options.max_frames)):
        if count is not None and count < 1:
            raise InputError(f"{option}: expected a number of frames from 1 on, found {count}.")
    if options.smooth is not None:
        check_score("--smooth", options.smooth)
    if options.frame_rate is not None:
        check_frame_rate("--frame-rate", options.frame_rate)


def predict_video(
    source: str,
    options: VideoOptions,
    *,
    find: "Find",
    fit: "Fit | None" = None,
    out: Path = Path("out"),
    detect: "Callable[[LoadedImage], Sequence[Box]] | None" = None,
    boxes: str | None = None,
    overlay: bool = True,
    skeleton: bool = False,
    record: Mapping[str, Any] | None = None,
) -> int:
    """Find people in a video; write frames files and an overlay video.

    Args:
        source: Video file, folder of frames, or number of a camera.
        options: What was asked for.
        find: People of several frames; boxes None is the whole image, or a network that finds
            people.
        fit: Fits body models to them; None writes no parameters.
        out: Folder for the results.
        detect: Boxes of one frame; None follows people from frame to frame.
        boxes: Value of ``--boxes``: a list to begin with, or a file with boxes by the number of the
            frame (for a folder also by the name of the picture).
        overlay: Whether to make the overlay video.
        skeleton: Whether joints are drawn on it.
        record: Whatever else the found people depend on, such as the model and the focal length;
            plain JSON values. A run that goes on must have the same.

    Returns:
        Exit code: 0, or 1 if the video is damaged at some frame.

    Raises:
        InputError: The source, an option or a box is not usable.
        KinemeshError: Results can no longer be written.
    """
    from kinemesh.formats.frames import FramesHeader
    from kinemesh.formats.video_results import VideoResults
    from kinemesh.inference.boxes import check_inside, is_boxes_file
    from kinemesh.inference.video_run import VideoRun
    from kinemesh.inference.video_source import open_source

    rule = _rule(source, options)
    opened = open_source(source, *([] if options.frame_rate is None else [options.frame_rate]))
    located, start = _located(opened, detect, boxes)
    for box in start or ():
        check_inside(box, opened.image_size)
    found_by = {
        "source": opened.name,
        "contents of the source": _fingerprint(source),
        "every": rule.every,
        "boxes": boxes,
        "contents of the boxes": _fingerprint(boxes) if boxes and is_boxes_file(boxes) else None,
        **(record or {}),
    }
    refined_by = {
        "smooth": rule.smooth,
        "offline_smoothing": "none" if rule.offline is None else rule.offline.kind,
        "max_frames": rule.max_frames,
        "overlay": overlay,
        "skeleton": skeleton,
    }
    header = FramesHeader(
        str(Path(source).absolute()) if Path(source).exists() else source,
        opened.image_size,
        opened.frame_rate,
        rule.every,
        {**found_by, **refined_by},
    )
    sound = Path(source) if Path(source).is_file() else None
    results = VideoResults(
        out,
        opened.stem,
        header,
        found_by,
        refined_by,
        resume=options.resume,
        overlay=overlay,
        sound=sound,
        skeleton=skeleton,
    )
    if results.is_complete:
        results.close(finished=True)
        print("Nothing left to do: the run was finished, with the same options.")
        return 0
    finished = False
    progress = _VideoProgress()
    try:
        with progress:
            run = VideoRun(opened, find, results, rule, located, start, fit, progress)
            report = run.run()
        finished = report.damage is None
    except KeyboardInterrupt:
        print("What was found is kept; go on with --resume.", file=sys.stderr)
        raise
    except OSError as error:
        raise KinemeshError(
            f"Results cannot be written to '{out}': {error.strerror or error}. The frames before "
            "are kept; go on with --resume."
        ) from error
    finally:
        results.close(finished=finished)
    _print_report(report, results.paths)
    return 1 if report.damage else 0


def _rule(source: str, options: VideoOptions) -> Any:
    from kinemesh.inference.smoothing import OfflineSmoothing
    from kinemesh.inference.video_run import RunRule
    from kinemesh.inference.video_source import is_camera

    live = is_camera(source)
    smooth = _SMOOTH if options.smooth is None else options.smooth
    kind = options.offline_smoothing or ("none" if live else "gaussian")
    if live and kind != "none":
        raise InputError(
            f"--offline-smoothing {kind} needs the frames to come, and a camera has not given them "
            "yet. Leave it out; --smooth works with cameras."
        )
    if live and options.resume:
        raise InputError("--resume: what a camera has seen cannot be seen again. Leave it out.")
    offline = None if kind == "none" else OfflineSmoothing(kind, smooth)
    batch = 1 if live else BATCH_FRAMES
    every = 1 if options.every is None else options.every
    return RunRule(every, options.max_frames, smooth, offline, batch)


def _fingerprint(place: str) -> str | None:
    """What tells inputs of one name apart; None for a camera.

    Of a file its size, its first and its last megabyte; of a folder names and sizes.
    """
    path = Path(place)
    if not path.exists():
        return None
    if path.is_dir():
        names = sorted(f"{file.name} {file.stat().st_size}" for file in path.iterdir())
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_MEGABYTE)
        file.seek(max(0, size - _MEGABYTE))
        return hashlib.sha256(b"%d " % size + head + file.read(_MEGABYTE)).hexdigest()[:16]


def _located(
    source: "VideoSource", detect: "Callable[[LoadedImage], Sequence[Box]] | None", text: str | None
) -> "tuple[Detect | None, Boxes]":
    """How the boxes of a frame are found, and those to begin with."""
    from kinemesh.inference.boxes import read_boxes
    from kinemesh.inference.messages import print_unmatched_keys
    from kinemesh.inference.video_source import FolderSource

    if text is None:
        if detect is None:
            return None, None
        return (lambda index, photo: tuple(detect(photo))), None
    table = read_boxes(text)
    if not table.is_by_name:
        return None, table.for_image("")
    paths = source.paths if isinstance(source, FolderSource) else []
    strangers = _of_no_frame(table.names, {path.name for path in paths}, source)
    if strangers and len(strangers) == len(table.names):
        raise InputError(
            "--boxes: expected frames by number, or in a folder by the name of the picture, found "
            f'\'{strangers[0]}\'. Write {{"0": [[x, y, w, h]], ...}}; the first frame is "0".'
        )
    print_unmatched_keys(table, strangers, "frame")

    def look_up(index: int, photo: "LoadedImage") -> "Boxes":
        for name in (str(index), *([paths[index].name] if paths else [])):
            if name in table:
                return table.for_image(name)
        return ()  # a detector that found nobody often leaves the frame out

    return look_up, None


def _of_no_frame(names: Sequence[str], pictures: set[str], source: "VideoSource") -> list[str]:
    """Keys of boxes that name neither a picture nor, as far as their count is known, a frame."""
    end = source.frame_count if source.is_counted else None
    return [
        name
        for name in names
        if name not in pictures
        and not (re.fullmatch("0|[1-9][0-9]{0,17}", name) and (end is None or int(name) < end))
    ]


class _VideoProgress:
    """Frames done, frames a second and the time left, on a terminal."""

    def __init__(self) -> None:
        self._bar = _bar()
        self._tasks: dict[str, Any] = {}

    def __call__(self, half: str, done: int, total: int | None) -> None:
        if self._bar is None:
            return
        if half not in self._tasks:
            self._tasks[half] = self._bar.add_task(half, total=total)
        speed = next(task.speed for task in self._bar.tasks if task.id == self._tasks[half])
        rate = f"{speed:.1f} frames/s" if speed else ""
        self._bar.update(self._tasks[half], completed=done, rate=rate)

    def __enter__(self) -> "_VideoProgress":
        (self._bar or nullcontext()).__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        (self._bar or nullcontext()).__exit__(*details)


def _bar() -> "Progress | None":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    output = console(stderr=True)
    if not output.is_terminal:
        return None
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=output,
    )


def _print_report(report: "VideoReport", paths: Sequence[Path]) -> None:
    for path in paths:
        print(path)
    rate = report.frames / report.seconds if report.seconds else 0.0
    print(
        f"{counted(report.frames, 'frame')} in {report.seconds:.1f} s ({rate:.1f} frames/s), "
        f"{counted(report.tracks, 'track')}"  # of people and of hands
    )
    shares = ", ".join(f"{stage} {share:.0%}" for stage, share in report.clock.shares().items())
    print(f"work: {shares}")
    if not report.tracks:
        print(
            "Nobody was found in any frame. Say where people are with --boxes, or follow who fills "
            "the first frame with --detector none.",
            file=sys.stderr,
        )
    if report.damage:
        print(f"kinemesh: {report.damage}", file=sys.stderr)
