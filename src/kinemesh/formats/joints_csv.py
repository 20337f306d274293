"""Joints as CSV, a line for each joint: for spreadsheets and data frames."""

import csv
import io
import math
from collections.abc import Sequence

from kinemesh.errors import InputError
from kinemesh.inference.person import Person
from kinemesh.skeletons import get_skeleton

COLUMNS = (
    "frame",
    "time_s",
    "person",
    "side",
    "joint",
    "x_m",
    "y_m",
    "z_m",
    "x_px",
    "y_px",
    "confidence",
)


def encode_joints_csv(
    people: Sequence[Person],
    frame: int = 0,
    time_s: float = 0.0,
    ids: Sequence[int] | None = None,
    *,
    header: bool = True,
) -> bytes:
    """Joints of all people of one photo or frame.

    ``x_m, y_m, z_m`` are in the camera frame (x right, y down, z forward, metres), as in the JSON;
    they are empty for networks that find joints in the image alone. ``x_px, y_px`` count from the
    photo's upper left corner. ``side`` is empty for bodies. Numbers are rounded as in the JSON: to
    0.01 mm and 0.01 pixels.

    Args:
        people: People of one photo or frame.
        frame: Number of the frame; the parts of a video are appended to each other.
        time_s: Time of the frame in seconds.
        ids: A number for each person that stays the same through a video; None counts them.
        header: Whether the names of the columns come first.

    Raises:
        InputError: ``time_s`` is not finite, or there is not one id for each person.
    """
    if not math.isfinite(time_s):
        raise InputError(f"time_s: expected a finite number of seconds, found {time_s}.")
    numbers = list(range(len(people))) if ids is None else list(ids)
    if len(numbers) != len(people):
        raise InputError(
            f"ids: expected one for each of {len(people)} people, found {len(numbers)}."
        )
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    for number, person in zip(numbers, people, strict=True):
        start = [frame, f"{time_s:.4f}", number, person.side or ""]
        writer.writerows([*start, *row] for row in _joint_rows(person))
    return stream.getvalue().encode()


def _joint_rows(person: Person) -> list[list[str]]:
    places = (
        [[f"{value:.5f}" for value in place] for place in person.joints.tolist()]
        if person.has_depth
        else [["", "", ""]] * len(person.joints_px)
    )
    return [
        [name, *place, f"{x:.2f}", f"{y:.2f}", f"{confidence:.4f}"]
        for name, place, (x, y), confidence in zip(
            get_skeleton(person.skeleton).joints,
            places,
            person.joints_px.tolist(),
            person.joint_confidence.tolist(),
            strict=True,
        )
    ]
