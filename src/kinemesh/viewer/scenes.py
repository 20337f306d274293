"""What the viewer shows: one photo or video frame at a time, with the people found in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kinemesh.formats.glb import person_name
from kinemesh.geometry.cameras import default_focal_px
from kinemesh.inference.person import Person, PhotoCamera


@dataclass(frozen=True, eq=False)
class Figure:
    """A person under the name by which it is listed.

    Attributes:
        name: Unique in its scene; in a video the same person keeps it from frame to frame.
        number: Chooses the colour.
        person: The person.
    """

    name: str
    number: int
    person: Person


@dataclass(frozen=True, eq=False)
class Scene:
    """A photo or video frame and its people.

    Attributes:
        title: What it is called, such as the file name of the photo.
        camera: Camera of the photo, in whose frame the people stand.
        figures: The people.
        backdrop: (H, W, 3) uint8 RGB that fills the camera's image; None where there is none.
        note: A sentence for the user; empty if there is nothing to say.
    """

    title: str
    camera: PhotoCamera
    figures: tuple[Figure, ...]
    backdrop: np.ndarray | None
    note: str = ""


class Album(Protocol):
    """Scenes in a row: all photos of a folder, or the frames of one video.

    Attributes:
        title: What it is called.
        frame_rate_hz: Frames a second of a video; None for photos, which are not played.
        names: Names of everybody in a video; None for photos, each of which has its own people.
    """

    title: str
    frame_rate_hz: float | None
    names: tuple[str, ...] | None

    def __len__(self) -> int:
        """Number of scenes, at least one."""
        ...

    def scene(self, index: int) -> Scene:
        """Read one scene.

        Raises:
            InputError: Its files cannot be read any more, or are damaged.
        """
        ...


def figures_of(people: Sequence[Person]) -> tuple[Figure, ...]:
    """People of a photo under the names and in the order of the GLB file."""
    return tuple(
        Figure(person_name(index, person), index, person) for index, person in enumerate(people)
    )


def camera_of(people: Sequence[Person], image_size: tuple[int, int]) -> PhotoCamera:
    """The camera that the people of a photo share, or a usual one where nobody is."""
    if people:
        return people[0].camera
    width, height = image_size
    return PhotoCamera(default_focal_px(image_size), (width / 2, height / 2), image_size)
