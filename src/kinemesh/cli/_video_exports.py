"""Files for other tools of a video that was predicted: skeletons, animated meshes, tables."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinemesh.cli._shared import counted
from kinemesh.formats import PARAMETER_FORMATS, SaveFormat

if TYPE_CHECKING:
    from kinemesh.formats.video_exports import VideoFormat
    from kinemesh.inference.fitting import PeopleFitter


def check_video_exports(source: str, out: Path, formats: Sequence[SaveFormat]) -> None:
    """Refuse, before the video is looked at, to write over anything but results of the video.

    Raises:
        InputError: Something else is in the way, or the source cannot be read.
    """
    from kinemesh.formats.video_names import check_video_places

    check_video_places(out, _stem(source), Path(source).absolute().name, formats)


def write_video_exports(
    source: str, out: Path, formats: Sequence[SaveFormat], fitter: "PeopleFitter | None"
) -> None:
    """Write the further files of a video whose frames are in ``out``, and name them.

    Args:
        source: What was predicted.
        out: Folder of its results.
        formats: All that are to be written; those that a video's frames give anyway are left out.
        fitter: For BVH and GLB, which show body models.

    Raises:
        InputError: The frames are not there.
    """
    from kinemesh.formats.frames import ENDING
    from kinemesh.formats.video_exports import VIDEO_FORMATS

    stem = _stem(source)
    place = out / f"{stem}{ENDING}"
    wanted = [name for name in VIDEO_FORMATS if name in formats]
    if wanted:
        _write(place, wanted, fitter)
    _tell_strangers(place)


def _write(place: Path, wanted: Sequence["VideoFormat"], fitter: "PeopleFitter | None") -> None:
    """Write the further files of the frames in a folder."""
    from kinemesh.formats.frames import ENDING, FramesFile
    from kinemesh.formats.run_record import record_files
    from kinemesh.formats.track_fitting import fit_tracks
    from kinemesh.formats.video_exports import export_video
    from kinemesh.formats.video_names import EXPORT_ENDINGS
    from kinemesh.formats.video_results import UNFINISHED

    out, stem = place.parent, place.name.removesuffix(ENDING)
    video = FramesFile(out / f"{place.name}.jsonl")
    moving = [name for name in wanted if name in PARAMETER_FORMATS]
    if moving and not any(frame.people for frame in video):
        print(f"Nobody is in any frame: no {', '.join(moving)}.", file=sys.stderr)
        wanted = [name for name in wanted if name not in moving]
    # so that the next run may replace them, though this one be killed before it says they are there
    announced = [out / f"{stem}{EXPORT_ENDINGS[name]}" for name in wanted if name != "bvh"]
    record_files(place, announced, written=False)
    unfinished = place / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    unfinished.mkdir(parents=True)
    try:
        if fitter is not None and any(name in PARAMETER_FORMATS for name in wanted):
            print(f"Body models are fitted to {counted(len(video), 'frame')} ...")
            frames = fit_tracks(video, fitter)
            bodies = {body.name: body for body in fitter.bodies}
            written = export_video(frames, out, stem, wanted, bodies, unfinished)
        else:
            written = export_video(video, out, stem, wanted, unfinished=unfinished)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    record_files(place, written)
    for path in written:
        print(path)


def _tell_strangers(place: Path) -> None:
    """Say which files bear the names of a video's and are not of its present frames."""
    from kinemesh.formats.frames import ENDING
    from kinemesh.formats.run_record import RunRecord
    from kinemesh.formats.video_names import further_files

    record = RunRecord.read(place)
    if record is None or record.files is None:
        return
    found = further_files(place.parent, place.name.removesuffix(ENDING))
    strangers = [path.name for path in found if path.name not in record.files]
    if strangers:
        print(
            f"Not of these frames, and left alone in '{place.parent}': {', '.join(strangers)}.",
            file=sys.stderr,
        )


def _stem(source: str) -> str:
    """Start of the names of a video's results, as its source has it."""
    from kinemesh.inference.video_source import is_camera, open_source

    return f"camera{int(source)}" if is_camera(source) else open_source(source).stem
