"""Bodies and their hands in one camera frame (``--task body,hand``).

The body network says where wrists and elbows are, and so where to look for hands that no box holds
and which of them is the left one. The hand network looks there twice, since a crop around a found
hand fits better than one guessed from the forearm. Then each hand is moved to the wrist of its
person. Its size is adapted to the distance that the body stands at, so that it covers as many
pixels as before: a hand alone tells neither its size nor its distance.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from kinemesh.errors import InputError
from kinemesh.inference.boxes import Box, Side, check_inside, check_score
from kinemesh.inference.detectors import for_task
from kinemesh.inference.duplicates import suppress_people
from kinemesh.inference.focal import photo_camera, told_focal_px
from kinemesh.inference.images import LoadedImage, as_photo
from kinemesh.inference.person import Person, PhotoCamera
from kinemesh.inference.places import WHOLE, places_to_look
from kinemesh.inference.predictor import Predictor
from kinemesh.skeletons import HAND21, Skeleton, get_skeleton

MIN_WRIST_SCORE = 0.3
"""Wrists that the body network is less sure of lie too far from the truth to look for a hand."""
MIN_HAND_SCORE = 0.1
"""Hands that the hand network is less sure of were not found where they were looked for."""
SIDES: tuple[Side, Side] = ("left", "right")
PALM_AHEAD = 0.4
"""Middle of the first look, beyond the wrist, over the length of the forearm."""
LOOK_SIDE = 1.3
"""Side of the first look over the length of the forearm; the box of a hand is 0.7 of it."""
SKIN = 1.2
"""Side of the second look over that of the box of the joints that the first one found."""
SECOND_LOOK = (0.6, 1.0)
"""Smallest and largest side of the second look, over the first."""
SIZE_LIMITS = (0.8, 1.25)
"""How far a hand may shrink or grow to suit the distance of its person."""
_WRIST = HAND21.index("wrist")


class PeoplePredictor:
    """Recovers bodies, and at their wrists their hands.

    Args:
        body: A network of bodies whose joint set has wrists and elbows.
        hand: A network of right hands.
        min_wrist_score: Wrists with less confidence get no hand, unless a box says where it is.
        min_hand_score: Hands with less confidence are left out, unless a box asks for them.

    Attributes:
        detector: Finds people and hands in a photo that comes without boxes: that of ``body``, for
            both.

    Raises:
        InputError: A network is of another task, has no mesh, or has no wrists and elbows, or a
            limit is not in 0..1.
    """

    task = "body,hand"
    has_mesh = True
    tells_sides = True

    def __init__(
        self,
        body: Predictor,
        hand: Predictor,
        min_wrist_score: float = MIN_WRIST_SCORE,
        min_hand_score: float = MIN_HAND_SCORE,
    ) -> None:
        _check_network(body, "body")
        _check_network(hand, "hand")
        _arms(body.topology.skeleton)
        check_score("min_wrist_score", min_wrist_score)
        check_score("min_hand_score", min_hand_score)
        self.body, self.hand = body, hand
        self.detector = None if body.detector is None else for_task(body.detector, self.task)
        self.min_wrist_score = min_wrist_score
        self.min_hand_score = min_hand_score

    def predict(
        self,
        image: str | Path | np.ndarray | LoadedImage,
        boxes: str | Iterable[Box | Sequence[float] | Mapping[str, Any]] | None = None,
        focal_px: float | None = None,
        *,
        focal: str | float = "auto",
    ) -> list[Person]:
        """Recover the bodies in boxes and their hands.

        Args:
            image: File, (H, W, 3) uint8 RGB array, or what `load_image` returned.
            boxes: Boxes x, y, width, height in pixels (see `as_boxes`). Those with a side hold a
                hand: it is looked for there, and goes to the body whose wrist is in or near its
                box. ``"whole"`` takes the whole image as one body. None asks ``detector``; where
                there is none, or it finds nothing, the whole image is taken.
            focal_px: Focal length of the photo in pixels, if ``focal`` does not say it.
            focal: See `Predictor.predict`.

        Returns:
            One body a box, in their order, then the hands, all in one camera frame. A hand's
            ``owner`` is the position of its body, and its wrist is where the body's is. Its
            ``joints_px`` stay where they were found in the photo. Hands of boxes that no wrist is
            near have no owner and stand where the hand network puts them. ``score`` is that of the
            box, or the mean confidence of the joints.

        Raises:
            InputError: The image, a box or the focal length is not usable.
        """
        photo = as_photo(image)
        wanted = places_to_look(photo, boxes, self.detector)
        for box in wanted or ():
            check_inside(box, photo.size)
        told_px = told_focal_px(focal, focal_px, photo.size)
        of_bodies = WHOLE if wanted is None else [box for box in wanted if box.side is None]
        bodies = self.body.predict(photo, of_bodies, focal_px=told_px)
        given = [box for box in wanted or () if box.side is not None]
        camera = bodies[0].camera if bodies else photo_camera(photo, told_px)
        people = bodies + self._hands(photo, bodies, given, camera)
        return suppress_people(people) if boxes is None else people

    def _hands(
        self,
        photo: LoadedImage,
        bodies: Sequence[Person],
        given: Sequence[Box],
        camera: PhotoCamera,
    ) -> list[Person]:
        owners = assign_owners(given, bodies)
        placed = [
            self._placed(hand, bodies, owner)
            for hand, owner in zip(self._look(photo, given, camera), owners, strict=True)
        ]
        taken = {(owner, box.side) for box, owner in zip(given, owners, strict=True)}
        looks = [
            (owner, box)
            for owner, body in enumerate(bodies)
            for side in SIDES
            if (owner, side) not in taken
            and (box := look_box(body, side, self.min_wrist_score)) is not None
        ]
        first = self._look(photo, [box for _, box in looks], camera)
        again = [second_look(hand, box) for hand, (_, box) in zip(first, looks, strict=True)]
        for hand, (owner, _) in zip(self._look(photo, again, camera), looks, strict=True):
            if hand.score >= self.min_hand_score:
                placed.append(self._placed(hand, bodies, owner))
        return placed

    def _look(self, photo: LoadedImage, boxes: Sequence[Box], camera: PhotoCamera) -> list[Person]:
        found = self.hand.predict(photo, boxes, focal_px=camera.focal_px) if boxes else []
        return [replace(hand, camera=camera) for hand in found]

    @staticmethod
    def _placed(hand: Person, bodies: Sequence[Person], owner: int | None) -> Person:
        if owner is None or hand.side is None:
            return hand
        wrist = bodies[owner].joints[wrist_and_elbow(bodies[owner], hand.side)[0]]
        return replace(move_to_wrist(hand, wrist), owner=owner)


def wrist_and_elbow(body: Person, side: Side) -> tuple[int, int]:
    """Positions of two joints in the body's joint set."""
    return _arms(get_skeleton(body.skeleton))[side]


def look_box(body: Person, side: Side, min_score: float = MIN_WRIST_SCORE) -> Box | None:
    """Where to look for a hand: a square beyond the wrist, on the line of the forearm.

    Args:
        body: Somebody with 3D joints.
        side: Which hand.
        min_score: Least confidence of the wrist.

    Returns:
        A box of that side in pixels; None where the wrist is unsure or outside of the photo.
    """
    wrist, elbow = wrist_and_elbow(body, side)
    x, y = body.joints_px[wrist].tolist()
    width, height = body.camera.image_size
    if body.joint_confidence[wrist] < min_score or not (0 <= x < width and 0 <= y < height):
        return None
    forearm = body.joints[wrist] - body.joints[elbow]
    palm = body.joints[wrist] + PALM_AHEAD * forearm
    # the forearm points there in 3D; the picture says where it begins
    ahead = body.camera.project(palm) - body.camera.project(body.joints[wrist])
    length_px = body.camera.focal_px * float(np.linalg.norm(forearm)) / float(palm[2])
    return _square_inside(np.array([x, y]) + ahead, LOOK_SIDE * length_px, side, body.camera)


def second_look(hand: Person, box: Box) -> Box:
    """The square around the joints that were found in a square box, near it in place and size."""
    low, high = hand.joints_px.min(0), hand.joints_px.max(0)
    middle, first = np.array([box.x, box.y]) + box.width / 2, box.width
    least, most = SECOND_LOOK
    length = float(np.clip(SKIN * float((high - low).max()), least * first, most * first))
    place = np.clip((low + high) / 2, middle - first / 2, middle + first / 2)
    return _square_inside(place, length, box.side, hand.camera) or box


def move_to_wrist(hand: Person, wrist_m: np.ndarray) -> Person:
    """The hand with its wrist at a place, in the size that keeps its extent in the photo.

    Args:
        hand: As the hand network found it, camera frame.
        wrist_m: (3,) metres, camera frame.
    """
    own = hand.joints[_WRIST]
    size = float(np.clip(wrist_m[2] / own[2], *SIZE_LIMITS))
    vertices, joints = (
        ((points - own) * size + wrist_m).astype(np.float32)
        for points in (hand.vertices, hand.joints)
    )
    spread = None if hand.joint_spread_m is None else hand.joint_spread_m * np.float32(size)
    return replace(hand, vertices=vertices, joints=joints, joint_spread_m=spread)


def assign_owners(boxes: Sequence[Box], bodies: Sequence[Person]) -> list[int | None]:
    """Whose hand each box holds: the body whose wrist of that side is in or near the box.

    Boxes and wrists are matched such that the sum of the distances, over the sides of the boxes, is
    least; a wrist farther than one side from the middle of a box does not belong to it.

    Args:
        boxes: Boxes with a side.
        bodies: Bodies of the photo.

    Returns:
        For each box the position of a body, None if no wrist is near. Each wrist is given once.
    """
    owners: list[int | None] = [None] * len(boxes)
    for side in SIDES:
        mine = [index for index, box in enumerate(boxes) if box.side == side]
        if not mine or not bodies:
            continue
        middles = np.array([[boxes[n].x, boxes[n].y] for n in mine], float)
        sizes = np.array([[boxes[n].width, boxes[n].height] for n in mine], float)
        wrists = np.array([body.joints_px[wrist_and_elbow(body, side)[0]] for body in bodies])
        apart = np.linalg.norm((middles + sizes / 2)[:, None] - wrists, axis=-1)
        cost = np.minimum(apart / sizes.max(1, keepdims=True), 2.0)
        for row, column in zip(*linear_sum_assignment(cost), strict=True):
            if cost[row, column] <= 1.0:
                owners[mine[row]] = int(column)
    return owners


def _square_inside(
    middle: np.ndarray, side_px: float, side: Side | None, camera: PhotoCamera
) -> Box | None:
    """A square box; None if it shares no pixel with the photo."""
    box = Box(
        float(middle[0]) - side_px / 2, float(middle[1]) - side_px / 2, side_px, side_px, side=side
    )
    try:
        check_inside(box, camera.image_size)
    except InputError:
        return None
    return box


def _arms(skeleton: Skeleton) -> dict[Side, tuple[int, int]]:
    names = {side: (f"{side}_wrist", f"{side}_elbow") for side in SIDES}
    missing = [n for pair in names.values() for n in pair if n not in skeleton.joints]
    if missing:
        raise InputError(
            f"body: hands are looked for beyond wrists and elbows, but the joint set "
            f"'{skeleton.name}' of this network has no {missing[0]}. Choose another body network."
        )
    return {side: (skeleton.index(a), skeleton.index(b)) for side, (a, b) in names.items()}


def _check_network(network: object, task: str) -> None:
    if not isinstance(network, Predictor) or network.task != task or not network.has_mesh:
        found = getattr(network, "task", type(network).__name__)
        what = f"{found} without a mesh" if found == task else f"'{found}'"
        raise InputError(
            f"{task}: expected a network that recovers the mesh of a {task}, found one of {what}. "
            "Choose another model from: kinemesh models"
        )
