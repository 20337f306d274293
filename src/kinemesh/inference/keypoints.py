"""The predictor of 2D keypoints: people in photos, from boxes or found by the network itself.

Two-stage networks see one person at a time, in exactly the crop that they are evaluated with
(`kinemesh.data.keypoint_crop`): the box, enlarged to the crop's aspect ratio and then 1.25 times,
in the colour order of the network. The sequential network sees the whole photo and finds the
people.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kinemesh.data.detection_scenes import resize_picture
from kinemesh.data.keypoint_crop import (
    PADDING,
    PIXEL_CENTER,
    PIXELS_OF_SCALE,
    Picture,
    Placement,
    crop_affine,
    normalise_picture,
    place_box,
    warp_picture,
)
from kinemesh.errors import InputError
from kinemesh.evaluation.keypoint_readout import KeypointPerson, predict_keypoints, scene_people
from kinemesh.evaluation.oks import COCO_SIGMAS, select_people
from kinemesh.inference.boxes import Box, check_inside, whole_image
from kinemesh.inference.duplicates import suppress_people
from kinemesh.inference.focal import photo_camera
from kinemesh.inference.images import LoadedImage, as_photo
from kinemesh.inference.person import Person, PhotoCamera
from kinemesh.inference.places import places_to_look
from kinemesh.inference.predictor import resolve_device
from kinemesh.models.prtr_sequential import SequentialPrtr
from kinemesh.skeletons import get_skeleton

if TYPE_CHECKING:
    from kinemesh.inference.detectors import Detector

BATCH_SIZE = 16
MIN_SCORE = 0.5
"""People that the sequential network is less sure of are left out where nothing else is said."""
DUPLICATE_OKS = 0.7
"""Of two people who are more alike than this the better one stays. Evaluation has 0.9, since a
score loses by every person left out; a picture loses by every person drawn twice."""


class KeypointPredictor:
    """Finds the joints of people in photos with one network.

    Args:
        network: A `Prtr`, `DeformablePrtr` or `SequentialPrtr`.
        metadata: Record of its weight file, see `kinemesh.models.prtr_variants.keypoint_record`;
            ``skeleton``, ``resolution`` and ``color_order`` are read, the rest is kept.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or another torch device.

    Attributes:
        finds_people: Whether the network finds people by itself, and so takes no boxes.
        detector: Says to other networks where people are; see `Predictor`.

    Raises:
        InputError: The device is not there.
    """

    task = "pose2d"
    has_mesh = False
    tells_sides = False

    def __init__(
        self, network: nn.Module, metadata: Mapping[str, Any], device: str = "auto"
    ) -> None:
        self.device = resolve_device(device)
        self.detector: Detector | None = None
        self.network = network.to(self.device).eval()
        self.finds_people = isinstance(network, SequentialPrtr)
        self.metadata = dict(metadata)
        self.skeleton = get_skeleton(metadata["skeleton"])
        first, second = metadata["resolution"]
        self.size = (int(first), int(second))
        self.order = metadata["color_order"]

    def predict(
        self,
        image: str | Path | np.ndarray | LoadedImage,
        boxes: str | Iterable[Box | Sequence[float] | Mapping[str, Any]] | None = None,
        *,
        flip_test: bool = False,
        min_score: float | None = None,
        include_background: bool = False,
    ) -> list[Person]:
        """Find the joints of people.

        Args:
            image: File, (H, W, 3) uint8 RGB array, or what `load_image` returned.
            boxes: Boxes x, y, width, height in pixels of the upright image (see `as_boxes`). None:
                the sequential network finds people, others are told by ``detector`` where they are,
                as in `Predictor.predict`. ``"whole"`` takes the whole image as one person.
            flip_test: Average over the crop and its mirror image, as published scores do.
            min_score: People of the sequential network with a lower score are left out; None: 0.5.
            include_background: Let the background take part in the softmax over the joints, which
                published scores do not; a query that sees nothing then has low scores.

        Returns:
            Two-stage: one person a box, in the order of the boxes. Sequential: best first. They
            have ``joints_px``, ``joint_confidence`` and no 3D joints.

        Raises:
            InputError: The image or a box is not usable, or an option does not belong to this kind
                of network.
        """
        self.check_options(boxes is not None, flip_test, min_score, include_background)
        photo = as_photo(image)
        if self.finds_people:
            return self._find(photo, MIN_SCORE if min_score is None else min_score)
        places = places_to_look(photo, boxes, self.detector)
        wanted = [whole_image(photo.size)] if places is None else places
        for box in wanted:
            check_inside(box, photo.size)
        people = self._read(photo, wanted, flip_test, include_background)
        return suppress_people(people) if boxes is None else people

    def check_options(
        self,
        has_boxes: bool,
        flip_test: bool,
        min_score: float | None,
        include_background: bool = False,
    ) -> None:
        """Refuse options that this kind of network has no use for.

        Raises:
            InputError: There is one.
        """
        if self.finds_people and (has_boxes or flip_test):
            raise InputError(
                f"{'boxes' if has_boxes else 'flip test'}: this network sees whole images and "
                "finds the people itself. Leave the option out."
            )
        if self.finds_people and include_background:
            raise InputError(
                "include background: this network is read out by its raw scores, without a "
                "softmax. Leave the option out."
            )
        if min_score is None:
            return
        if not self.finds_people:
            raise InputError(
                "min score: this network looks for one person in each box, so nobody is left out. "
                "Leave the option out."
            )
        if not 0 <= min_score <= 1:
            raise InputError(f"min score: expected a number from 0 to 1, found {min_score}.")

    # One person a box

    @torch.inference_mode()
    def _read(
        self, photo: LoadedImage, boxes: Sequence[Box], flip_test: bool, include_background: bool
    ) -> list[Person]:
        picture = self._ordered(photo.pixels)
        camera = photo_camera(photo)
        people = []
        for start in range(0, len(boxes), BATCH_SIZE):
            part = boxes[start : start + BATCH_SIZE]
            places = [place_box(np.array(b.xywh), self.size[0] / self.size[1]) for b in part]
            crops = np.stack([self._crop(picture, place) for place in places])
            centers, scales = (
                torch.from_numpy(np.stack(values)).to(self.device)
                for values in zip(*places, strict=True)
            )
            found = predict_keypoints(
                self.network,
                torch.from_numpy(crops).to(self.device),
                centers,
                scales,
                self.skeleton,
                flip_test=flip_test,
                include_background=include_background,
            )
            joints_px = found.coords.cpu().numpy() + PIXEL_CENTER
            scores = found.scores.cpu().numpy()
            for box, points, sure in zip(part, joints_px, scores, strict=True):
                score = float(sure.mean()) if box.score is None else box.score
                people.append(self._person(points, sure, box.xywh, score, camera))
        return people

    def _crop(self, picture: Picture, place: Placement) -> NDArray[np.float32]:
        affine = crop_affine(place.center, place.scale, self.size)
        return normalise_picture(warp_picture(picture, affine, self.size))

    # People of a whole image

    @torch.inference_mode()
    def _find(self, photo: LoadedImage, min_score: float) -> list[Person]:
        picture = resize_picture(self._ordered(photo.pixels), *self.size)
        image = torch.from_numpy(normalise_picture(picture))[None].to(self.device)

        def likely(logits_BPC: Tensor, _boxes_BP4: Tensor) -> Tensor:
            score_P = logits_BPC[0].float().softmax(dim=-1)[:, 0]
            return (score_P >= min_score).nonzero()[None, :, 0]

        output = self.network(image, choose_persons=likely)
        width, height = photo.size
        found = scene_people(output, [0], torch.tensor([[height, width]]), score_above=-1.0)
        found.sort(key=lambda person: -person.box_score)
        if len(self.skeleton) == len(COCO_SIGMAS):
            kept, _ = select_people(found, joint_score_above=-1.0, oks_nms_above=DUPLICATE_OKS)
            found = [found[index] for index in sorted(kept)]
        camera = photo_camera(photo)
        return [
            self._person(
                person.keypoints_px + PIXEL_CENTER,
                person.scores,
                detected_box(person),
                person.box_score,
                camera,
            )
            for person in found
        ]

    def _ordered(self, pixels: np.ndarray) -> Picture:
        """RGB pixels in the order of channels that the network sees."""
        return np.ascontiguousarray(pixels[:, :, ::-1] if self.order == "bgr" else pixels)

    def _person(
        self,
        joints_px: np.ndarray,
        scores: np.ndarray,
        box_px: tuple[float, float, float, float],
        score: float,
        camera: PhotoCamera,
    ) -> Person:
        return Person(
            vertices=np.zeros((0, 3), np.float32),
            faces=np.zeros((0, 3), np.int64),
            joints=np.zeros((0, 3), np.float32),
            joints_px=joints_px.astype(np.float32),
            joint_confidence=scores.astype(np.float32),
            skeleton=self.skeleton.name,
            box_px=box_px,
            side=None,
            score=float(score),
            camera=camera,
        )


def detected_box(person: KeypointPerson) -> tuple[float, float, float, float]:
    """x, y, width and height of the box that a person was found in, without the crop's margin."""
    width, height = (float(s) * PIXELS_OF_SCALE / PADDING for s in person.scale)
    x, y = (float(value) for value in person.center_px)
    return x - width / 2, y - height / 2, width, height
