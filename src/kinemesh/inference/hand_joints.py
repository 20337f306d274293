"""The predictor of hand joints: photos to 21 joints by a network that has neither mesh nor camera.

POTTER's network gives joints about the wrist and says nothing of where the wrist is. So the place
of a hand in the photo is an estimate: it is moved until its projection fills the box that it was
asked for. Its shape and its turn do not depend on that.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from kinemesh.data.hand_crop import PADDING, crop_hand, hand_affine, place_hand
from kinemesh.errors import InputError, KinemeshError
from kinemesh.geometry.cameras import PerspectiveCamera, ray_rotation
from kinemesh.geometry.crops import box_to_square, crop_matrix, warp_crop
from kinemesh.inference.boxes import Box, check_inside, whole_image
from kinemesh.inference.crop_rule import CropRule
from kinemesh.inference.duplicates import suppress_people
from kinemesh.inference.focal import photo_camera
from kinemesh.inference.images import LoadedImage, as_photo
from kinemesh.inference.person import Person, PhotoCamera
from kinemesh.inference.placement import NEAR_M
from kinemesh.inference.places import places_to_look
from kinemesh.inference.predictor import BATCH_SIZE, resolve_device
from kinemesh.models.hand_pose_networks import HandPoseNetwork
from kinemesh.models.imagenet import normalise_imagenet
from kinemesh.skeletons import HAND21

if TYPE_CHECKING:
    from kinemesh.inference.detectors import Detector

BOX_FILL = 0.9
"""Longer side of the joints' box over that of the hand's box: skin reaches beyond the joints."""
_ROUNDS = 30
_HALF_PIXEL = 0.5


class HandJointPredictor:
    """Finds the joints of hands in photos with one network.

    Args:
        network: A network that sees pictures, with its statistics.
        metadata: Record of its weight file, see
            `kinemesh.models.hand_pose_networks.hand_pose_record`; ``resolution``, ``sides`` and
            ``crops`` are read, the rest is kept.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or another torch device.

    Attributes:
        detector: Says where hands are in a photo that comes without boxes; see `Predictor`.

    Raises:
        InputError: The network sees no pictures, or the device is not there.
    """

    task = "hand"
    has_mesh = False
    tells_sides = False

    def __init__(
        self, network: HandPoseNetwork, metadata: Mapping[str, Any], device: str = "auto"
    ) -> None:
        if network.architecture == "joint-lifter":
            raise InputError(
                "This model lifts 2D joints and sees no pictures. Use it on 2D joints with "
                "kinemesh.models.registry.load_hand_pose_model, or score it with kinemesh eval."
            )
        self.device = resolve_device(device)
        self.detector: Detector | None = None
        self.network = network.to(self.device).eval()
        self.metadata = dict(metadata)
        self.resolution = int(metadata["resolution"])
        self.sides: Literal["right", "both"] = metadata["sides"]
        self.published_crops = metadata["crops"] == "ego-exo4d"
        self.crop_rule = CropRule(PADDING, "constant") if self.published_crops else CropRule()

    def predict(
        self,
        image: str | Path | np.ndarray | LoadedImage,
        boxes: str | Iterable[Box | Sequence[float] | Mapping[str, Any]] | None = None,
        side: Literal["left", "right", "auto"] | None = None,
        focal_px: float | None = None,
    ) -> list[Person]:
        """Recover the joints of one hand for each box, or of all that the detector finds.

        Args:
            image: File, (H, W, 3) uint8 RGB array, or what `load_image` returned.
            boxes: Boxes x, y, width, height in pixels of the upright image (see `as_boxes`), or
                ``"whole"``, or None; see `Predictor.predict`.
            side: Which hand is shown; see `Predictor.predict`. A network that knows right hands
                alone is shown left ones in a mirror; one that knows both is not told.
            focal_px: Focal length of the photo in pixels, as for `Predictor.predict`. It decides
                how far away a hand is put.

        Returns:
            One hand a box, in the order of the boxes, all in one camera frame. ``joints_px`` are
            the projected joints, and every ``joint_confidence`` is 1, since the network gives none.

        Raises:
            InputError: The image, a box, the side or the focal length is not usable.
        """
        photo = as_photo(image)
        places = places_to_look(photo, boxes, self.detector, keep_sides=side is None)
        whole = places is None
        wanted = [whole_image(photo.size)] if places is None else places
        for box in wanted:
            check_inside(box, photo.size)
        sides = [self._side_of(box, side) for box in wanted]
        camera = photo_camera(photo, focal_px)
        mirrored = [self.sides == "right" and side == "left" for side in sides]
        cuts = [self._crop(photo.pixels, box, 1.0 if whole else None) for box in wanted]
        joints = self._joints(cuts, mirrored)
        fill = BOX_FILL / self.crop_rule.margin if whole else BOX_FILL
        people = [
            self._person(points, box, own_side, camera, fill)
            for points, box, own_side in zip(joints, wanted, sides, strict=True)
        ]
        return suppress_people(people) if boxes is None else people

    def _side_of(self, box: Box, side: str | None) -> Literal["left", "right"]:
        if side not in (None, "left", "right", "auto"):
            raise InputError(f"side must be 'left', 'right' or 'auto', found {side!r}.")
        wanted = box.side or side
        if wanted == "auto":
            raise InputError(
                "side 'auto': this network does not say how sure it is, so it cannot tell left "
                "hands from right ones. Say which hand it is: side 'left' or 'right'."
            )
        return "left" if wanted == "left" else "right"

    def _crop(self, pixels: np.ndarray, box: Box, margin: float | None) -> np.ndarray:
        """(S, S, 3) uint8, cut as those that the network was trained on."""
        x, y, width, height = box.xywh
        if self.published_crops and margin is None:
            # OpenCV's coordinates have the first pixel's centre at 0
            corners = np.array([x, y, x + width, y + height]) - _HALF_PIXEL
            affine = hand_affine(place_hand(corners), self.resolution)
            return crop_hand(pixels, affine, self.resolution)
        center, side = box_to_square(torch.tensor([box.xywh]), margin or self.crop_rule.margin)
        matrix = crop_matrix(center, side, self.resolution)[0]
        return warp_crop(pixels, matrix, self.resolution, border=self.crop_rule.border)

    @torch.inference_mode()
    def _joints(self, cuts: Sequence[np.ndarray], mirrored: Sequence[bool]) -> list[np.ndarray]:
        """(21, 3) metres about the wrist for each crop; some are shown in a mirror."""
        found: list[np.ndarray] = []
        for start in range(0, len(cuts), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            turned = [
                cut[:, ::-1] if flip else cut
                for cut, flip in zip(cuts[part], mirrored[part], strict=True)
            ]
            pixels = torch.from_numpy(np.stack(turned)).to(self.device)
            image = normalise_imagenet(pixels.permute(0, 3, 1, 2).float() / 255.0)
            found += list(self.network({"image": image}).double().cpu().numpy())
        if not all(np.isfinite(joints).all() for joints in found):
            raise KinemeshError(
                "The network returned numbers that are not finite. The weight file is damaged or "
                "its training diverged."
            )
        flip = np.array([-1.0, 1.0, 1.0])
        return [
            joints * flip if is_mirrored else joints
            for joints, is_mirrored in zip(found, mirrored, strict=True)
        ]

    def _person(
        self,
        joints: np.ndarray,
        box: Box,
        side: Literal["left", "right"],
        camera: PhotoCamera,
        fill: float,
    ) -> Person:
        if not self.published_crops:
            joints = joints @ _turn_to(box, camera).T
        placed = joints + fill_box(joints, box.xywh, camera, fill)
        return Person(
            vertices=np.zeros((0, 3), np.float32),
            faces=np.zeros((0, 3), np.int64),
            joints=placed.astype(np.float32),
            joints_px=camera.project(placed).astype(np.float32),
            joint_confidence=np.ones(len(joints), np.float32),
            skeleton=HAND21.name,
            box_px=box.xywh,
            side=side,
            score=1.0 if box.score is None else box.score,
            camera=camera,
        )


def _turn_to(box: Box, camera: PhotoCamera) -> np.ndarray:
    """(3, 3) from a camera that looks at the middle of the box to that of the photo.

    Rendered hands are labelled in the former, Ego-Exo4D's in the latter.
    """
    x, y, width, height = box.xywh
    middle = torch.tensor([[x + width / 2, y + height / 2]])
    perspective = PerspectiveCamera.with_square_pixels(
        camera.image_size, camera.focal_px, torch.tensor(camera.principal_px)
    )
    return np.asarray(ray_rotation(middle, perspective)[0].double().numpy())


def fill_box(
    joints: np.ndarray,
    box_px: tuple[float, float, float, float],
    camera: PhotoCamera,
    fill: float = BOX_FILL,
) -> np.ndarray:
    """Where a hand has to be for its projection to fill a box.

    The box of the projected joints gets the middle of the given box, and ``fill`` times its longer
    side. Depth and shift are corrected in turn until both hold.

    Args:
        joints: (J, 3) metres, axes of the photo's camera, any origin.
        box_px: x, y, width and height in pixels.
        camera: The photo's camera.
        fill: Longer side of the joints' box over that of the box.

    Returns:
        (3,) translation in metres; every joint plus it has z >= ``NEAR_M``.
    """
    x, y, width, height = box_px
    middle = np.array([x + width / 2, y + height / 2])
    wanted = fill * max(width, height)
    nearest = NEAR_M - float(joints[:, 2].min())
    extent = float((joints[:, :2].max(0) - joints[:, :2].min(0)).max())
    shift = np.array([0.0, 0.0, max(nearest, camera.focal_px * extent / wanted)])
    for _ in range(_ROUNDS):
        seen = camera.project(joints + shift)
        low, high = seen.min(0), seen.max(0)
        depth = shift[2] * max(float((high - low).max()), 1e-6) / wanted
        off = middle - (low + high) / 2
        shift[:2] += off * shift[2] / camera.focal_px
        shift[:2] *= max(nearest, depth) / shift[2]  # stay on the ray while the depth changes
        shift[2] = max(nearest, depth)
    return shift
