"""From the options of ``kinemesh predict`` to what finds people in a photo, all checked before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import kinemesh
from kinemesh.errors import InputError
from kinemesh.inference.explanation import CANNOT_EXPLAIN

if TYPE_CHECKING:
    from kinemesh.bodies.topology import Topology
    from kinemesh.inference.boxes import Box
    from kinemesh.inference.detectors import Detector
    from kinemesh.inference.focal import FocalLength
    from kinemesh.inference.hand_joints import HandJointPredictor
    from kinemesh.inference.images import LoadedImage
    from kinemesh.inference.keypoints import KeypointPredictor
    from kinemesh.inference.people import PeoplePredictor
    from kinemesh.inference.person import Person
    from kinemesh.inference.predictor import Predictor

    AnyPredictor = Predictor | HandJointPredictor | KeypointPredictor | PeoplePredictor

NO_DETECTOR = "none"
"""Value of ``--detector`` that searches nothing."""
_NO_BOXES = "--min-box-score is about boxes. Add --detector or --boxes."
PeopleTask = Literal["body", "hand", "body,hand", "pose2d"]
Find = Callable[["LoadedImage", "tuple[Box, ...] | None"], "list[Person]"]
"""People of a photo in its boxes; None is the whole photo, or a network that finds people."""
FindMany = Callable[
    ["Sequence[LoadedImage]", "Sequence[tuple[Box, ...] | None]"], "list[list[Person]]"
]
"""The same for several photos, frames of a video, which share the network's batches."""


@dataclass(frozen=True)
class Wishes:
    """The options that say what is looked for, and how; see ``kinemesh predict --help``."""

    task: PeopleTask | None
    model: str | None
    hand_model: str | None
    device: str
    assets: Path | None
    side: Literal["left", "right", "auto"] | None
    focal: "FocalLength"
    has_boxes: bool
    detector: str | None
    min_box_score: float | None
    min_wrist_score: float | None
    flip_test: bool
    min_score: float | None
    include_background: bool
    explain: bool | tuple[str, ...]


@dataclass(frozen=True)
class Finder:
    """What finds people.

    Attributes:
        find: The people of a photo.
        find_many: The people of several.
        task: What they are.
        has_mesh: Whether they have a mesh.
        topologies: Of their meshes.
        detector: What says where they are; None where boxes are given, whole photos are taken, or
            the network finds people.
        is_default: Whether nobody chose the detector. Where it finds nobody, the whole photo is
            taken: it may be a crop.
        lacks_detector: Whether there would be one if this installation had it.
    """

    find: Find
    find_many: FindMany
    task: str
    has_mesh: bool
    topologies: "Sequence[Topology]"
    detector: "Detector | None" = None
    is_default: bool = False
    lacks_detector: bool = False


def make_finder(wishes: Wishes) -> Finder:
    """Load what is needed and refuse options that it would ignore.

    Raises:
        InputError: A model or detector cannot be had, or options contradict it or each other.
        MissingExtraError: The detector needs an extra.
    """
    _check_wishes(wishes)
    predictor = _load(wishes)
    _check_task(predictor.task, wishes)
    find = _find_with(predictor, wishes)
    find_many = _find_many_with(predictor, wishes, find)
    if wishes.min_box_score is not None:
        find = _with_least_score(find, wishes.min_box_score)
        find_many = _many_with_least_score(find_many, wishes.min_box_score)
    found = Finder(find, find_many, predictor.task, predictor.has_mesh, _topologies(predictor))
    detector = _detector_of(predictor, wishes)
    if detector is not None:
        return _with_detector(found, detector, wishes)
    searches = wishes.detector is None and not wishes.has_boxes
    return replace(found, lacks_detector=searches and not _finds_people(predictor))


def _check_wishes(wishes: Wishes) -> None:
    """Refuse what no model could make sense of."""
    from kinemesh.inference.boxes import check_score

    if wishes.task == "pose2d" and wishes.model is None:
        raise InputError(
            "--task pose2d: no model of 2D keypoints is shipped. Name yours with --model FILE; "
            "train one with kinemesh train, or convert an official checkpoint."
        )
    if wishes.detector is not None and wishes.has_boxes:
        raise InputError("--boxes and --detector both say where people are. Give one of them.")
    if wishes.min_box_score is not None:
        check_score("--min-box-score", wishes.min_box_score)
        if wishes.detector == NO_DETECTOR:
            raise InputError(_NO_BOXES)
    together = {"--hand-model": wishes.hand_model, "--min-wrist-score": wishes.min_wrist_score}
    given = [option for option, value in together.items() if value is not None]
    if given and wishes.task != "body,hand":
        raise InputError(f"{given[0]} is for bodies with their hands. Add --task body,hand.")


def _load(wishes: Wishes) -> "AnyPredictor":
    if wishes.task != "body,hand":
        return kinemesh.load(wishes.model or wishes.task or "body", wishes.device, wishes.assets)
    from kinemesh.inference.people import MIN_WRIST_SCORE, PeoplePredictor

    limit = MIN_WRIST_SCORE if wishes.min_wrist_score is None else wishes.min_wrist_score
    body = kinemesh.load(wishes.model or "body", wishes.device, wishes.assets)
    hand = kinemesh.load(wishes.hand_model or "hand", wishes.device, wishes.assets)
    return PeoplePredictor(body, hand, limit)  # type: ignore[arg-type]  # it looks at both


def _topologies(predictor: "AnyPredictor") -> "list[Topology]":
    from kinemesh.inference.people import PeoplePredictor

    if isinstance(predictor, PeoplePredictor):
        return [predictor.body.topology, predictor.hand.topology]
    return [predictor.topology] if isinstance(predictor, kinemesh.Predictor) else []


def _check_task(found: str, wishes: Wishes) -> None:
    """Refuse options that the loaded model would silently ignore."""
    if wishes.task is not None and wishes.task != found:
        raise InputError(
            f"--task is {wishes.task}, but the model given with --model recovers a {found}. "
            "Leave --task out, or choose another model from: kinemesh models"
        )
    if wishes.side is not None and found == "body,hand":
        raise InputError(
            f"--side {wishes.side}: bodies tell their left hand from their right one. Leave it out."
        )
    if wishes.side is not None and found != "hand":
        raise InputError(
            f"--side {wishes.side} is for hands, but the model recovers a {found}. "
            "Add --task hand, or leave --side out."
        )
    if found == "hand" and wishes.detector is not None:
        from kinemesh.inference.detectors import FINDS_NO_HANDS, is_published

        if is_published(wishes.detector):
            raise InputError(FINDS_NO_HANDS)


def _finds_people(predictor: "AnyPredictor") -> bool:
    return bool(getattr(predictor, "finds_people", False))


def _detector_of(predictor: "AnyPredictor", wishes: Wishes) -> "Detector | None":
    """What is asked where people or hands are."""
    if wishes.has_boxes or wishes.detector == NO_DETECTOR:
        return None
    if wishes.detector is None:
        return _default_detector(predictor, wishes)
    from kinemesh.inference.detectors import for_task, load_detector

    detector = load_detector(wishes.detector, wishes.device, wishes.min_box_score)
    return for_task(detector, predictor.task)


def _default_detector(predictor: "AnyPredictor", wishes: Wishes) -> "Detector | None":
    """The one that came with the loaded model, as for `kinemesh.Predictor.predict`."""
    from kinemesh.inference.default_detector import DefaultDetector

    detector, limit = predictor.detector, wishes.min_box_score
    if limit is None:
        return detector
    if not isinstance(detector, DefaultDetector):
        raise InputError(_NO_BOXES)
    return replace(detector, min_score=limit)


def _find_with(predictor: "AnyPredictor", wishes: Wishes) -> Find:
    from kinemesh.inference.keypoints import KeypointPredictor
    from kinemesh.inference.people import PeoplePredictor

    if isinstance(predictor, KeypointPredictor):
        return _keypoint_finder(predictor, wishes)
    _check_mesh_options(wishes)
    if isinstance(predictor, PeoplePredictor):
        return _people_finder(predictor, wishes)
    return _mesh_finder(predictor, wishes)


def _check_mesh_options(wishes: Wishes) -> None:
    options = {
        "--flip-test": wishes.flip_test,
        "--min-score": wishes.min_score is not None,
        "--include-background": wishes.include_background,
    }
    given = [option for option, is_given in options.items() if is_given]
    if given:
        raise InputError(
            f"{given[0]} is for models of 2D keypoints (--task pose2d --model FILE), which this is "
            "not. Leave it out."
        )


def _mesh_finder(predictor: "Predictor | HandJointPredictor", wishes: Wishes) -> Find:
    """What finds people with a model of bodies or hands."""
    side = wishes.side
    if side == "auto" and not predictor.tells_sides:
        raise InputError(
            "--side auto: this model does not say how sure it is, so it cannot tell left hands "
            "from right ones. Give --side left or --side right."
        )
    more: list[Any] = []
    if isinstance(predictor, kinemesh.Predictor):
        predictor.check_explain(wishes.explain)
        more = [wishes.explain]
    else:
        _refuse_to_explain(wishes.explain)

    def find(photo: "LoadedImage", boxes: "tuple[Box, ...] | None") -> "list[Person]":
        focal_px = wishes.focal.in_pixels(photo.size)
        return predictor.predict(photo, _or_whole(boxes), side, focal_px, *more)

    return find


def _find_many_with(predictor: "AnyPredictor", wishes: Wishes, find: Find) -> FindMany:
    """What finds people in several photos: together where the network can, else one by one."""

    def find_each(
        photos: "Sequence[LoadedImage]", boxes: "Sequence[tuple[Box, ...] | None]"
    ) -> "list[list[Person]]":
        return [find(photo, wanted) for photo, wanted in zip(photos, boxes, strict=True)]

    if not isinstance(predictor, kinemesh.Predictor) or wishes.explain is not False:
        return find_each

    def find_many(
        photos: "Sequence[LoadedImage]", boxes: "Sequence[tuple[Box, ...] | None]"
    ) -> "list[list[Person]]":
        focal_px = wishes.focal.in_pixels(photos[0].size)  # frames of a video have one size
        return predictor.predict_many(photos, boxes, wishes.side, focal_px)

    return find_many


def _people_finder(predictor: "PeoplePredictor", wishes: Wishes) -> Find:
    """What finds bodies with their hands."""
    if wishes.explain is not False:
        raise InputError(
            "--explain explains one network. Choose --task body or --task hand, or leave it out."
        )

    def find(photo: "LoadedImage", boxes: "tuple[Box, ...] | None") -> "list[Person]":
        return predictor.predict(photo, _or_whole(boxes), wishes.focal.in_pixels(photo.size))

    return find


def _keypoint_finder(predictor: "KeypointPredictor", wishes: Wishes) -> Find:
    """What finds people with a model of 2D keypoints."""
    from kinemesh.inference.focal import AUTO

    _refuse_to_explain(wishes.explain)
    if wishes.focal != AUTO:
        raise InputError(
            "--focal: a model of 2D keypoints has no use for a focal length. Leave it out."
        )
    has_boxes = wishes.has_boxes or wishes.detector not in (None, NO_DETECTOR)
    options: dict[str, Any] = {
        "flip_test": wishes.flip_test,
        "min_score": wishes.min_score,
        "include_background": wishes.include_background,
    }
    predictor.check_options(has_boxes, **options)

    def find(photo: "LoadedImage", boxes: "tuple[Box, ...] | None") -> "list[Person]":
        places = boxes if predictor.finds_people else _or_whole(boxes)
        return predictor.predict(photo, places, **options)

    return find


def _or_whole(boxes: "tuple[Box, ...] | None") -> "tuple[Box, ...] | str":
    """Boxes for a predictor, which must not search by itself."""
    from kinemesh.inference.places import WHOLE

    return WHOLE if boxes is None else boxes


def _refuse_to_explain(explain: bool | tuple[str, ...]) -> None:
    if explain is not False:
        raise InputError(f"--explain: {CANNOT_EXPLAIN}")


def _with_least_score(find: Find, min_score: float) -> Find:
    from kinemesh.inference.boxes import at_least

    def find_sure(photo: "LoadedImage", boxes: "tuple[Box, ...] | None") -> "list[Person]":
        return find(photo, None if boxes is None else tuple(at_least(boxes, min_score)))

    return find_sure


def _many_with_least_score(find_many: FindMany, min_score: float) -> FindMany:
    from kinemesh.inference.boxes import at_least

    def find_sure(
        photos: "Sequence[LoadedImage]", boxes: "Sequence[tuple[Box, ...] | None]"
    ) -> "list[list[Person]]":
        sure = [None if some is None else tuple(at_least(some, min_score)) for some in boxes]
        return find_many(photos, sure)

    return find_sure


def _with_detector(finder: Finder, detector: "Detector", wishes: Wishes) -> Finder:
    """People that were found twice are left out: nobody asked for the boxes of a detector.

    What ``--side`` says of hands goes before what the detector says.
    """
    from kinemesh.inference.duplicates import suppress_people
    from kinemesh.inference.places import without_sides

    def told(boxes: "tuple[Box, ...] | None") -> "tuple[Box, ...] | None":
        return boxes if boxes is None or wishes.side is None else tuple(without_sides(boxes))

    def find(photo: "LoadedImage", boxes: "tuple[Box, ...] | None") -> "list[Person]":
        return suppress_people(finder.find(photo, told(boxes)))

    def find_many(
        photos: "Sequence[LoadedImage]", boxes: "Sequence[tuple[Box, ...] | None]"
    ) -> "list[list[Person]]":
        found = finder.find_many(photos, [told(some) for some in boxes])
        return [suppress_people(people) for people in found]

    return replace(
        finder,
        find=find,
        find_many=find_many,
        detector=detector,
        is_default=wishes.detector is None,
    )
