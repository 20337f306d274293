"""Body parameters for the tracks of a video, one shape for each: what an animation needs."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from kinemesh.bodies.parameters import BodyParameters
from kinemesh.formats.frames import FramesFile
from kinemesh.inference.fitting import PeopleFitter
from kinemesh.inference.video_frame import VideoFrame

SAMPLES = 15
"""Frames of a track from which its shape is taken, spread evenly over it."""


def fit_tracks(video: FramesFile, fitter: PeopleFitter) -> Iterator[VideoFrame]:
    """The frames of a video with parameters fitted to the meshes as they are in the file.

    The shape of a track is the median of the shapes of some of its frames. Then every frame is
    fitted with that shape, beginning with the pose of the frame before. Parameters that the file
    has are not used: where frames were smoothed as they came, their shape is that of the frames
    before them, and not one for the track.

    Args:
        video: The frames, which are read one at a time.
        fitter: For the topologies of its people. People without a mesh stay as they are.

    Raises:
        InputError: A mesh belongs to none of the fitter's topologies.
    """
    shapes = track_shapes(video, fitter)
    before: dict[int, BodyParameters | None] = {}
    for frame in video:
        fitted = fitter.fit(
            [found.person for found in frame.people],
            previous=[before.get(found.track) for found in frame.people],
            shapes=[shapes.get(found.track) for found in frame.people],
        )
        people = tuple(
            replace(found, person=person)
            for found, person in zip(frame.people, fitted, strict=True)
        )
        before |= {found.track: found.person.parameters for found in people}
        yield replace(frame, people=people)


def track_shapes(video: FramesFile, fitter: PeopleFitter) -> dict[int, np.ndarray]:
    """(K,) median shape of each track that has a mesh."""
    chosen: dict[int, set[int]] = {}
    for track in video.tracks:
        positions = video.positions_of(track)
        places = np.linspace(0, len(positions) - 1, min(SAMPLES, len(positions)))
        for place in places.round().astype(int).tolist():
            chosen.setdefault(positions[place], set()).add(track)
    found: dict[int, list[np.ndarray]] = {}
    for position, tracks in sorted(chosen.items()):
        people = [one for one in video[position].people if one.track in tracks]
        fitted = fitter.fit([one.person for one in people])
        for one, person in zip(people, fitted, strict=True):
            if person.parameters is not None:
                found.setdefault(one.track, []).append(person.parameters.shape)
    return {track: np.median(shapes, axis=0) for track, shapes in found.items()}
