"""The predictor: boxes to crops, crops through the network, results to the photo's camera."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from kinemesh.bodies.topology import Topology
from kinemesh.errors import InputError
from kinemesh.geometry.cameras import PerspectiveCamera, ray_rotation
from kinemesh.inference.boxes import Box, Side, check_inside, whole_image
from kinemesh.inference.crop_prediction import CropPrediction, split_output
from kinemesh.inference.crop_rule import CropRule
from kinemesh.inference.duplicates import suppress_people
from kinemesh.inference.explanation import (
    CANNOT_EXPLAIN,
    CropEvidence,
    Explain,
    explain_person,
    explained_joints,
)
from kinemesh.inference.focal import photo_camera, told_focal_px
from kinemesh.inference.images import LoadedImage, as_photo
from kinemesh.inference.mesh_networks import adapt_network
from kinemesh.inference.person import Person, PhotoCamera
from kinemesh.inference.photo_crops import PhotoCrops
from kinemesh.inference.placement import place_in_camera
from kinemesh.inference.places import places_to_look

if TYPE_CHECKING:
    from kinemesh.inference.detectors import Detector
    from kinemesh.inference.hand_joints import HandJointPredictor
    from kinemesh.inference.keypoints import KeypointPredictor

BATCH_SIZE = 16
EXPLAINED_AT_ONCE = 4
"""Crops in a batch where attention is kept: for PointHMR it takes 32 MB a crop."""


@dataclass(frozen=True, eq=False)
class _Task:
    """What is asked of one photo: its boxes, whose sides are known, None for a body."""

    photo: LoadedImage
    boxes: Sequence[Box]
    sides: Sequence[str | None]
    crops: PhotoCrops
    camera: PhotoCamera


class Predictor:
    """Recovers people in photos with one network.

    Args:
        network: Module that takes (B, 3, S, S) float32 RGB in 0..1 and returns `NetworkOutput`. A
            hand network is one for right hands; left hands are mirrored before and after it. An
            attribute ``has_mesh = False`` says that its output has no vertices, ``tells_sides
            = False`` that neither confidence nor side logits tell a right hand from a left one, and
            ``explains = True`` that its method ``explain`` returns its output and an
            `kinemesh.models.attention_maps.Evidence`.
        topology: The mesh that the network speaks about.
        metadata: Record of the weight file; ``resolution`` (S) is read, the rest is kept.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or another torch device.
        crop_rule: How crops are cut, and which lens is assumed; None takes our own rule.

    Attributes:
        detector: Says where to look in a photo that comes without boxes; None: the whole photo is
            one crop. `load` sets the shipped detector.

    Raises:
        InputError: The device is not there.
    """

    def __init__(
        self,
        network: nn.Module,
        topology: Topology,
        metadata: Mapping[str, Any],
        device: str = "auto",
        crop_rule: CropRule | None = None,
    ) -> None:
        self.device = resolve_device(device)
        self.network = network.to(self.device).eval()
        self.topology = topology
        self.metadata = dict(metadata)
        self.resolution = int(metadata["resolution"])
        self.crop_rule = crop_rule or CropRule()
        self.detector: Detector | None = None
        self.has_mesh = bool(getattr(network, "has_mesh", True))
        self.tells_sides = bool(getattr(network, "tells_sides", True))
        faces = topology.faces.numpy() if self.has_mesh else np.zeros((0, 3), np.int64)
        mirrored = faces[:, [0, 2, 1]]
        self._faces = {None: faces, "right": faces, "left": mirrored}

    @property
    def task(self) -> Literal["body", "hand"]:
        """What the network recovers."""
        return self.topology.kind

    def predict(
        self,
        image: str | Path | np.ndarray | LoadedImage,
        boxes: str | Iterable[Box | Sequence[float] | Mapping[str, Any]] | None = None,
        side: Literal["left", "right", "auto"] | None = None,
        focal_px: float | None = None,
        explain: Explain = False,
        *,
        focal: str | float = "auto",
    ) -> list[Person]:
        """Recover one person for each box, or everybody whom the detector finds.

        Args:
            image: File, (H, W, 3) uint8 RGB array, or what `load_image` returned.
            boxes: Boxes x, y, width, height in pixels of the upright image (see `as_boxes`); they
                may reach over its border. ``"whole"`` takes the whole image as one crop. None asks
                ``detector``; where there is none, or it finds nobody, the whole image is taken.
            side: Which hand is shown; "auto" runs the network on the crop and on its mirror image
                and keeps the one that looks more like a right hand to it, which not every network
                can say (``tells_sides``). It goes before what ``detector`` says, and after the side
                in a given box; None: a right one where neither says it. Bodies have no side.
            focal_px: Focal length of the photo in pixels, if ``focal`` does not say it.
            explain: Also say what the network looked at (``Person.explanation``): True, or the
                names of the joints whose attention is wanted.
            focal: Focal length of the photo: pixels, or the field of view across its longer side
                (``"60deg"``). "auto" takes it from EXIF, or else the diagonal of the image (a field
                of view of 53 degrees across the diagonal), or for a network with a weak-perspective
                camera ``crop_rule.focal_sides`` sides of the largest crop if that is longer.

        Returns:
            One person a box, in the order of the boxes, all in one camera frame; of those that the
            detector found twice, one.

        Raises:
            InputError: The image, a box, the side, the focal length or a joint is not usable, or
                the network cannot be explained.
        """
        joints = self.check_explain(explain)
        photo = as_photo(image)
        told_px = told_focal_px(focal, focal_px, photo.size)
        wanted = places_to_look(photo, boxes, self.detector, keep_sides=side is None)
        people = self._recover([self._place(photo, wanted, side, told_px)], joints)[0]
        return suppress_people(people) if boxes is None else people

    def predict_many(
        self,
        photos: Sequence[LoadedImage],
        boxes: Sequence[Sequence[Box] | None],
        side: Literal["left", "right", "auto"] | None = None,
        focal_px: float | None = None,
    ) -> list[list[Person]]:
        """As `predict` of each photo with its boxes; their crops share the network's batches.

        Args:
            photos: Photos, or frames of a video.
            boxes: Boxes of each photo, or None for the whole of it; nothing is detected.
            side: See `predict`.
            focal_px: Focal length of all photos in pixels; None finds it for each.

        Returns:
            The people of each photo.

        Raises:
            InputError: As for `predict`.
        """
        placed = [
            self._place(photo, wanted, side, focal_px)
            for photo, wanted in zip(photos, boxes, strict=True)
        ]
        return self._recover(placed)

    def _place(
        self,
        photo: LoadedImage,
        boxes: Sequence[Box] | None,
        side: str | None,
        focal_px: float | None,
    ) -> _Task:
        """Check what is asked of a photo, and where its crops lie."""
        wanted = [whole_image(photo.size)] if boxes is None else boxes
        for box in wanted:
            check_inside(box, photo.size)
        rule = self.crop_rule
        crops = PhotoCrops.around(wanted, 1.0 if boxes is None else rule.margin, self.resolution)
        camera = photo_camera(photo, focal_px, rule.focal_sides, crops.largest_px)
        return _Task(photo, wanted, [self._side_of(box, side) for box in wanted], crops, camera)

    def _recover(self, tasks: Sequence[_Task], joints: Sequence[str] = ()) -> list[list[Person]]:
        """People of each photo, explained where joints are named."""
        cuts = [
            cut
            for task in tasks
            for cut in task.crops.cut(task.photo.pixels, self.crop_rule.border)
        ]
        sides = [side for task in tasks for side in task.sides]
        answers = iter(self._answers(cuts, sides, bool(joints)))
        return [self._people(task, [next(answers) for _ in task.boxes], joints) for task in tasks]

    def _people(
        self,
        task: _Task,
        answers: Sequence[tuple[CropPrediction, Side | None]],
        joints: Sequence[str],
    ) -> list[Person]:
        crops, camera = task.crops, task.camera
        turns = ray_rotation(crops.centers_px, _perspective(camera)).double().numpy()
        people = []
        for index, (found, box) in enumerate(zip(answers, task.boxes, strict=True)):
            joints_px = crops.to_photo(index, found[0].joints_px)
            person = self._person(found, joints_px, turns[index], box, camera)
            person = _with_spread(person, found[0].spread, crops.photo_px(index))
            people.append(self._explained(person, found[0].evidence, joints, crops.square(index)))
        return people

    def check_explain(self, explain: Explain) -> tuple[str, ...]:
        """Names of the joints that ``explain`` asks for; none if nothing is to be explained.

        Raises:
            InputError: The network cannot be explained, or it has no such joint.
        """
        joints = explained_joints(explain, self.topology)
        if joints and not getattr(self.network, "explains", False):
            raise InputError(f"explain: {CANNOT_EXPLAIN}")
        return joints

    def _explained(
        self,
        person: Person,
        evidence: CropEvidence | None,
        joints: Sequence[str],
        square: tuple[float, float, float],
    ) -> Person:
        if evidence is None:
            return person
        explanation = explain_person(person, evidence, joints, self.topology, square)
        return replace(person, explanation=explanation)

    def _side_of(self, box: Box, side: str | None) -> str | None:
        if side not in (None, "left", "right", "auto"):
            raise InputError(f"side must be 'left', 'right' or 'auto', found {side!r}.")
        if self.task != "hand":
            return None
        wanted = box.side or side or "right"
        if wanted == "auto" and not self.tells_sides:
            raise InputError(
                "side 'auto': this network does not say how sure it is, so it cannot tell left "
                "hands from right ones. Say which hand it is: side 'left' or 'right'."
            )
        return wanted

    def _answers(
        self, cuts: Sequence[np.ndarray], sides: Sequence[str | None], explain: bool
    ) -> list[tuple[CropPrediction, Side | None]]:
        """Answers of the network to crops, un-mirrored, each with its side."""
        as_is = [index for index, side in enumerate(sides) if side != "left"]
        flipped = [index for index, side in enumerate(sides) if side in ("left", "auto")]
        batch = [cuts[index] for index in as_is] + [cuts[index][:, ::-1] for index in flipped]
        answers = self.run_network(batch, explain)
        right = dict(zip(as_is, answers[: len(as_is)], strict=True))
        left = {
            index: answer.mirrored(self.resolution)
            for index, answer in zip(flipped, answers[len(as_is) :], strict=True)
        }
        return [
            _choose_side(right.get(index), left.get(index), side)
            for index, side in enumerate(sides)
        ]

    @torch.inference_mode()
    def run_network(
        self, cuts: Sequence[np.ndarray], explain: bool = False
    ) -> list[CropPrediction]:
        """Run the network on (S, S, 3) uint8 crops, a few at a time, and explain it if asked to.

        Raises:
            KinemeshError: The network returned numbers that are not finite.
        """
        answers: list[CropPrediction] = []
        size = EXPLAINED_AT_ONCE if explain else BATCH_SIZE
        for start in range(0, len(cuts), size):
            stacked = np.stack(cuts[start : start + size])
            pixels = torch.from_numpy(stacked).to(self.device)
            image = pixels.permute(0, 3, 1, 2).float() / 255.0
            evidence = None
            if explain:
                output, evidence = self.network.explain(image)  # type: ignore[operator]
            else:
                output = self.network(image)
            answers += split_output(output, evidence)
        return answers

    def _person(
        self,
        found: tuple[CropPrediction, Side | None],
        joints_px: np.ndarray,
        turn: np.ndarray,
        box: Box,
        camera: PhotoCamera,
    ) -> Person:
        """Turn an answer to the ray of its crop and move it to where its joints were found."""
        answer, side = found
        joints, vertices = answer.joints @ turn.T, answer.vertices @ turn.T
        shift = place_in_camera(
            joints, joints_px, camera.focal_px, camera.principal_px, answer.confidence
        )
        return Person(
            vertices=(vertices + shift).astype(np.float32),
            faces=self._faces[side],
            joints=(joints + shift).astype(np.float32),
            joints_px=joints_px.astype(np.float32),
            joint_confidence=answer.confidence.astype(np.float32),
            skeleton=self.topology.skeleton.name,
            box_px=box.xywh,
            side=side,
            score=float(answer.confidence.mean()) if box.score is None else box.score,
            camera=camera,
        )


def load(
    name: str | Path = "body", device: str = "auto", assets: str | Path | None = None
) -> "Predictor | KeypointPredictor | HandJointPredictor":
    """Load a predictor: the shipped "body" or "hand", or a weight file.

    Args:
        name: Name of a shipped model (see ``kinemesh models``) or path of a .safetensors file,
            trained here or made from an official checkpoint by ``kinemesh convert``.
        device: "auto", "cpu" or "cuda".
        assets: Folder with the user's own SMPL or MANO files, for a weight file that does not hold
            its mesh (``kinemesh doctor --assets FOLDER`` says what is there).

    Returns:
        A `Predictor`, a `kinemesh.inference.keypoints.KeypointPredictor` for a network of 2D
        keypoints, or a `kinemesh.inference.hand_joints.HandJointPredictor` for one of a hand's 3D
        joints. Its ``detector`` is the shipped one, which is read when it is first needed.

    Raises:
        InputError: There is no such model, the file is not one of ours, its mesh is in neither the
            file nor ``assets``, or the device is missing.
    """
    # brings the code of the detector along, which a network of one's own never needs
    from kinemesh.inference.default_detector import default_detector  # noqa: PLC0415

    predictor = _load(name, device, assets)
    if not getattr(predictor, "finds_people", False):
        predictor.detector = default_detector(predictor.task, device)
    return predictor


def _load(
    name: str | Path, device: str, assets: str | Path | None
) -> "Predictor | KeypointPredictor | HandJointPredictor":
    # the registry imports every architecture, which a caller with a network of its own never needs
    from kinemesh.models.optimised import optimise  # noqa: PLC0415
    from kinemesh.models.potter_body import PotterBody  # noqa: PLC0415
    from kinemesh.models.registry import (  # noqa: PLC0415
        is_hand_pose_model,
        load_hand_pose_model,
        load_keypoint_model,
        load_model,
        task_of,
    )

    if task_of(name) == "pose2d":
        from kinemesh.inference.keypoints import KeypointPredictor  # noqa: PLC0415

        predictor = KeypointPredictor(*load_keypoint_model(name), device)
        if predictor.device.type == "cpu":  # as below
            predictor.network = optimise(predictor.network)
        return predictor
    if is_hand_pose_model(name):
        from kinemesh.inference.hand_joints import HandJointPredictor  # noqa: PLC0415

        return HandJointPredictor(*load_hand_pose_model(name), device)
    place = resolve_device(device)
    network, topology, metadata = load_model(name, None if assets is None else Path(assets))
    if isinstance(network, PotterBody):
        from kinemesh.inference.potter_bodies import adapt_potter  # noqa: PLC0415

        body, body_rule = adapt_potter(network, topology)
        return Predictor(body, topology, metadata, device, body_rule)
    if place.type == "cpu":  # the same outputs up to rounding, in less time
        network = optimise(network)
    adapted, crop_rule = adapt_network(network, topology, metadata)
    return Predictor(adapted, topology, metadata, device, crop_rule)


def resolve_device(device: str) -> torch.device:
    """The torch device of a name; "auto" is CUDA if there is one, else the CPU.

    Raises:
        InputError: The name is unknown or the device is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"Unknown device {device!r}; give auto, cpu or cuda.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"The device {device!r} was asked for, but this PyTorch ({torch.__version__}) sees no "
            "CUDA device. Use cpu, or look with: kinemesh doctor"
        )
    return found


def _with_spread(person: Person, spread: np.ndarray | None, photo_px: float) -> Person:
    """The person with what a network expects to be wrong, a crop pixel being some photo pixels."""
    if spread is None:
        return person
    return replace(
        person,
        joint_spread_m=spread[:, 0].astype(np.float32),
        keypoint_spread_px=(spread[:, 1] * photo_px).astype(np.float32),
    )


def _perspective(camera: PhotoCamera) -> PerspectiveCamera:
    principal = torch.tensor(camera.principal_px)
    return PerspectiveCamera.with_square_pixels(camera.image_size, camera.focal_px, principal)


def _choose_side(
    right: CropPrediction | None, left: CropPrediction | None, side: str | None
) -> tuple[CropPrediction, Side | None]:
    if left is None and right is not None:
        return right, "right" if side is not None else None
    if left is not None and (right is None or left.rightness > right.rightness):
        return left, "left"
    assert right is not None  # each crop was run at least once
    return right, "right"
