"""Files for other tools of a video that was predicted: skeletons, animated meshes, tables."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinemesh.formats import PARAMETER_FORMATS, SaveFormat

if TYPE_CHECKING:
    from kinemesh.inference.fitting import PeopleFitter


def check_video_exports(source: str, out: Path, formats: Sequence[SaveFormat]) -> None:
    """Refuse, before the video is looked at, to replace a JSON file that is not ours.

    Raises:
        InputError: There is one, or the source cannot be read.
    """
    from kinemesh.formats.names import check_targets

    if "coco" in formats:
        check_targets([out / f"{_stem(source)}_coco.json"], [], None)


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
    from kinemesh.formats.frames import ENDING, FramesFile
    from kinemesh.formats.track_fitting import fit_tracks
    from kinemesh.formats.video_exports import VIDEO_FORMATS, export_video

    wanted = [name for name in VIDEO_FORMATS if name in formats]
    if not wanted:
        return
    stem = _stem(source)
    video = FramesFile(out / f"{stem}{ENDING}.jsonl")
    moving = [name for name in wanted if name in PARAMETER_FORMATS]
    if moving and not any(frame.people for frame in video):
        print(f"Nobody is in any frame: no {', '.join(moving)}.", file=sys.stderr)
        wanted = [name for name in wanted if name not in moving]
    if fitter is not None and any(name in PARAMETER_FORMATS for name in wanted):
        print(f"Body models are fitted to {len(video)} frames ...")
        frames = fit_tracks(video, fitter)
        bodies = {body.name: body for body in fitter.bodies}
        written = export_video(frames, out, stem, wanted, bodies)
    else:
        written = export_video(video, out, stem, wanted)
    for path in written:
        print(path)


def _stem(source: str) -> str:
    """Start of the names of a video's results, as its source has it."""
    from kinemesh.inference.video_source import is_camera, open_source

    return f"camera{int(source)}" if is_camera(source) else open_source(source).stem
