"""Pictures of the Ego-Exo4D hand pose benchmark: frames of the glasses' video, undistorted.

The released video stands upright. It is turned back to the landscape of the sensor, which the
calibration speaks of, stored as JPEG, and the decoded JPEG is undistorted: the official pictures
have gone through JPEG twice, and these are meant to be the same.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from kinemesh.errors import InputError
from kinemesh.files import write_bytes
from kinemesh.geometry.fisheye import Fisheye624, Undistortion
from kinemesh.optional import require

Picture = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class TakePictures:
    """What is to be made of one video.

    Attributes:
        video: The file.
        frames: Numbers of the frames, counted from 0.
        camera: The camera in landscape pixels.
        undistorted: Folder for ``<frame:06d>.jpg``.
        distorted: Folder for the frames as they are; None: they are not kept.
        portrait: Upright pictures.
    """

    video: Path
    frames: tuple[int, ...]
    camera: Fisheye624
    undistorted: Path
    distorted: Path | None = None
    portrait: bool = False

    def missing(self) -> tuple[int, ...]:
        """Frames that have not been made yet, ascending."""
        folders = [folder for folder in (self.undistorted, self.distorted) if folder is not None]
        there = set.intersection(*(_names(folder) for folder in folders))
        return tuple(frame for frame in sorted(set(self.frames)) if _name(frame) not in there)


def make_pictures(job: TakePictures) -> int:
    """Write the pictures of one take that are not there yet, each whole or not at all.

    Returns:
        How many were written.

    Raises:
        InputError: The video is missing, damaged, too short or of another size.
        MissingExtraError: PyAV is not installed.
    """
    wanted = job.missing()
    if not wanted:
        return 0
    for folder in (job.undistorted, job.distorted):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    undistortion = Undistortion(job.camera)
    for frame, picture in read_frames(job.video, wanted):
        _write_picture(job, undistortion, frame, picture)
    return len(wanted)


def read_frames(video: str | Path, wanted: Collection[int]) -> Iterator[tuple[int, Picture]]:
    """Frames (H, W, 3) uint8 BGR of a video by their number, counted from 0, ascending.

    The video is decoded from its start: only then is the number of a frame beyond doubt.

    Raises:
        InputError: The video is missing or damaged, or has fewer frames.
        MissingExtraError: PyAV is not installed.
    """
    av = require("av", "video")
    left = set(wanted)
    if not Path(video).is_file():
        raise InputError(
            f"There is no video '{video}'. Download the frame-aligned videos (downscaled ones have "
            "another size and do not fit)."
        )
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream)):
                if number in left:
                    left.remove(number)
                    yield number, frame.to_ndarray(format="bgr24")
                if not left:
                    return
    except (av.FFmpegError, IndexError) as error:
        raise InputError(
            f"'{video}': expected a video, found a damaged file or another one ({error}). "
            "Download it again."
        ) from error
    raise InputError(
        f"'{video}': expected a frame {max(left)}, found fewer frames; {len(left)} that have "
        "labels are missing. Download the video again."
    )


def _write_picture(
    job: TakePictures, undistortion: Undistortion, frame: int, picture: Picture
) -> None:
    distorted = picture if job.portrait else np.rot90(picture)
    jpeg = _encoded(distorted)
    if job.distorted is not None:
        write_bytes(job.distorted / _name(frame), jpeg)
    decoded = cast(Picture, cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))
    try:
        view = undistortion.apply(np.rot90(decoded) if job.portrait else decoded)
    except InputError as error:
        raise InputError(f"'{job.video}', frame {frame}: {error}") from error
    upright = np.rot90(view, -1) if job.portrait else view
    # the undistorted picture comes last: its name says that the frame is done
    write_bytes(job.undistorted / _name(frame), _encoded(upright))


def _encoded(picture: Picture) -> bytes:
    return bytes(cv2.imencode(".jpg", np.ascontiguousarray(picture))[1].tobytes())


def _name(frame: int) -> str:
    return f"{frame:06d}.jpg"


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
