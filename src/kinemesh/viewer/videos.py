"""The results of a video, frame by frame, as ``kinemesh predict`` writes them."""

from collections.abc import Sequence
from pathlib import Path

from kinemesh.formats.frames import ENDING, FramesFile
from kinemesh.inference.person import PhotoCamera
from kinemesh.viewer.backdrops import reduced
from kinemesh.viewer.scenes import Figure, Scene, camera_of
from kinemesh.viewer.video_pictures import Pictures, find_pictures

USUAL_RATE_HZ = 25.0
"""For cameras, whose frames come when they come."""
_ONLY_OVERLAY = (
    "The video was not found, so the overlay stands behind the people; it has them drawn on it "
    "already. Name the folder of your video with --photos."
)
_NO_BACKDROP = "The video was not found. Name its folder with --photos."


class VideoAlbum:
    """The frames of one video.

    Args:
        path: The ``*_frames.jsonl`` file.
        video_folders: Where the video may be, the likeliest first.

    Raises:
        InputError: The file is damaged.
    """

    def __init__(self, path: Path, video_folders: Sequence[Path]) -> None:
        self._frames = FramesFile(path)
        header = self._frames.header
        self.title = path.stem.removesuffix(ENDING)
        self.frame_rate_hz: float | None = (header.frame_rate or USUAL_RATE_HZ) / header.every
        self.names: tuple[str, ...] | None = tuple(_name(track) for track in self._frames.tracks)
        self._pictures, self._note = self._find(header.source, header.image_size, video_folders)
        self._camera: PhotoCamera | None = None

    def __len__(self) -> int:
        return len(self._frames)

    def scene(self, index: int) -> Scene:
        """Read the people of one frame and its picture (see `Album.scene`)."""
        frame = self._frames[index]
        people = [found.person for found in frame.people]
        if people or self._camera is None:
            # kept for frames without people, whose camera nothing tells
            self._camera = camera_of(people, frame.image_size)
        picture = None
        if self._pictures is not None:
            picture = self._pictures.at(frame.index, frame.time_s)
        return Scene(
            title=f"{self.title}, {frame.time_s:.2f} s",
            camera=self._camera,
            figures=tuple(
                Figure(_name(found.track), found.track - 1, found.person) for found in frame.people
            ),
            backdrop=None if picture is None else reduced(picture),
            note=self._note,
        )

    def _find(
        self, source: str, size: tuple[int, int], folders: Sequence[Path]
    ) -> tuple[Pictures | None, str]:
        pictures = find_pictures(source, size, list(folders))
        if pictures is not None:
            return pictures, ""
        overlay = self._frames.overlay
        if overlay is not None:
            pictures = find_pictures(str(overlay), size, [])
        return pictures, _NO_BACKDROP if pictures is None else _ONLY_OVERLAY


def _name(track: int) -> str:
    return f"track_{track}"
