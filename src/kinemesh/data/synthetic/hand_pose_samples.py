"""Synthetic hands as records of 3D hand pose: rendered, or as joints without a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kinemesh.data.hand_pose_records import LEFT, RIGHT, HandPoseSample
from kinemesh.data.synthetic.cameras import Framing, frame_subject, sample_hand_rotation
from kinemesh.data.synthetic.dataset import Split, SyntheticDataset
from kinemesh.data.synthetic.scene import Array, load_stage
from kinemesh.errors import InputError
from kinemesh.models.imagenet import normalise_imagenet

Sides = Literal["right", "both"]
"""Which hands a data set shows, and a network therefore knows."""

_PIXEL_CENTER = 0.5  # records of hand pose put integer coordinates on the centres of pixels
_SIDE_STREAM = 21  # keeps the draw of the side apart from those of the scene
_NOISE_STREAM = 22
_DISTANCE_M = (0.35, 1.5)  # as in rendered views
_NOMINAL_PX = 224


class SyntheticHandPoses(Dataset[HandPoseSample]):
    """Rendered hands: those of `SyntheticDataset`, with the labels of hand pose data.

    Sample i shows the same hand as sample i of that data set. With ``sides`` "both" every second
    one, by a draw from (seed, split, i), is the mirror image and so a left hand.

    Args:
        seed: Any non-negative integer.
        resolution: Side S of the crop in pixels.
        length: Number of samples.
        split: "train", "val" or "test"; they draw from disjoint streams.
        sides: Which hands are shown.

    Raises:
        InputError: An argument is out of its range.
    """

    def __init__(
        self,
        seed: int = 0,
        resolution: int = 128,
        length: int = 10**7,
        split: Split = "train",
        sides: Sides = "right",
    ) -> None:
        _check_sides(sides)
        self.hands = SyntheticDataset("hand", seed, resolution, length, split)
        self.sides: Sides = sides

    def __len__(self) -> int:
        return len(self.hands)

    def __getitem__(self, index: int) -> HandPoseSample:
        """Sample ``index``; see `HandPoseSample` for the fields."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[HandPoseSample]:
        """Several samples, rendered together."""
        samples = []
        for index, hand in zip(indices, self.hands.__getitems__(indices), strict=True):
            places = hand["joints_2d"]
            sample = HandPoseSample(
                image=normalise_imagenet(hand["image"][None])[0],
                joints_m=hand["joints_3d"][:, :3],
                visible=hand["joints_3d"][:, 3] > 0,
                joints_2d_px=places[:, :2] - _PIXEL_CENTER,
                # the joints outside the crop have a place in its plane all the same
                visible_2d=torch.ones(len(places), dtype=torch.bool),
                side=torch.tensor(RIGHT),
                center_px=hand["center_px"],
                side_px=hand["side_px"],
                take=torch.tensor(0),
                frame=torch.tensor(index % len(self)),
            )
            is_left = self.sides == "both" and self._is_left(index % len(self))
            samples.append(mirrored(sample) if is_left else sample)
        return samples

    def joints_m(self, indices: Sequence[int]) -> Tensor:
        """(N, 21, 3) labels of several samples, without rendering."""
        stage, hands = load_stage("hand"), self.hands
        rows = []
        for index in indices:
            scene = stage.sample(hands._generator(index), hands.resolution)
            joints = torch.from_numpy(scene.joints - scene.root)
            is_left = self.sides == "both" and self._is_left(index % len(self))
            rows.append(joints * torch.tensor([-1.0, 1.0, 1.0]) if is_left else joints)
        return torch.stack(rows)

    def _is_left(self, index: int) -> bool:
        hands = self.hands
        split = get_args(Split).index(hands.split)
        rng = np.random.default_rng([hands.seed, split, index, _SIDE_STREAM])
        return bool(rng.random() < 0.5)


def mirrored(sample: HandPoseSample) -> HandPoseSample:
    """The same hand in a mirror that swaps left and right of the picture.

    The joints of a hand keep their order, since they have no left and right ones.
    """
    side_px = sample["image"].shape[-1]
    places = sample["joints_2d_px"]
    return HandPoseSample(
        image=sample["image"].flip(-1),
        joints_m=sample["joints_m"] * torch.tensor([-1.0, 1.0, 1.0]),
        visible=sample["visible"],
        joints_2d_px=torch.stack([side_px - 1 - places[:, 0], places[:, 1]], dim=1),
        visible_2d=sample["visible_2d"],
        side=torch.tensor(RIGHT + LEFT) - sample["side"],
        center_px=sample["center_px"],
        side_px=sample["side_px"],
        take=sample["take"],
        frame=sample["frame"],
    )


@dataclass(frozen=True)
class JointNoise:
    """What is done to 2D joints, as an imperfect detector would.

    Attributes:
        jitter: Standard deviation of each coordinate, over the longer side of the joints' box.
        dropout: Share of joints that are missing.
    """

    jitter: float = 0.01
    dropout: float = 0.05

    def __post_init__(self) -> None:
        if self.jitter < 0 or not 0 <= self.dropout < 1:
            raise InputError(
                "jitter, dropout: expected a jitter of at least 0 and a share in [0, 1), found "
                f"{self.jitter} and {self.dropout}."
            )


class SyntheticHandJoints(Dataset[HandPoseSample]):
    """Right hands as joints alone: nothing is rendered, so a sample takes a fraction of the time.

    Hand i has the pose and the shape of sample i of `SyntheticDataset`. In training it is looked at
    anew each time, from a direction and a distance drawn from (seed, step, i) as those of rendered
    hands are, and its 2D joints are disturbed. In validation its view is that of the rendered
    sample and nothing is disturbed. ``image`` is empty, (3, 0, 0).

    Args:
        seed: Any non-negative integer.
        length: Number of hands; each process keeps the joints of those that it was asked for.
        split: "train" varies the samples; "val" and "test" do not.
        noise: How 2D joints are disturbed in training.

    Raises:
        InputError: An argument is out of its range.
    """

    def __init__(
        self,
        seed: int = 0,
        length: int = 30_000,
        split: Split = "train",
        noise: JointNoise | None = None,
    ) -> None:
        self.hands = SyntheticDataset("hand", seed, _NOMINAL_PX, length, split)
        self.noise = noise or JointNoise()
        self.step = 0
        self._kept: dict[int, Array] = {}

    def __len__(self) -> int:
        return len(self.hands)

    def set_step(self, step: int) -> None:
        """Say which training step or pass the next samples belong to."""
        self.step = step

    def __getitem__(self, index: int) -> HandPoseSample:
        """Sample ``index``; see `HandPoseSample` for the fields."""
        generator = self.hands._generator(index)  # refuses an index outside
        index %= len(self)
        if self.hands.split != "train":
            scene = load_stage("hand").sample(generator, _NOMINAL_PX)
            return self._record(index, scene.joints, scene.view.focal_px)
        rng = np.random.default_rng([self.hands.seed, self.step, index, _NOISE_STREAM])
        rest = self._rest_joints(index)
        framing = Framing(rng.uniform(*_DISTANCE_M), 0.75, np.zeros(2, np.float32))
        view = frame_subject(rest, rest, sample_hand_rotation(rng, rest), framing, _NOMINAL_PX)
        sample = self._record(index, view.place(rest), view.focal_px)
        return self._disturbed(sample, rng)

    def _rest_joints(self, index: int) -> Array:
        """(21, 3) posed joints before the camera is placed."""
        if index not in self._kept:
            subject = load_stage("hand").draw_subject(self.hands._generator(index))
            self._kept[index] = subject.joints
        return self._kept[index]

    def _record(self, index: int, joints: Array, focal_px: float) -> HandPoseSample:
        places = joints[:, :2] / joints[:, 2:] * focal_px + (_NOMINAL_PX - 1) / 2
        every = torch.ones(len(joints), dtype=torch.bool)
        return HandPoseSample(
            image=torch.zeros(3, 0, 0),
            joints_m=torch.from_numpy((joints - joints[:1]).astype(np.float32)),
            visible=every,
            joints_2d_px=torch.from_numpy(places.astype(np.float32)),
            visible_2d=every,
            side=torch.tensor(RIGHT),
            center_px=torch.full((2,), _NOMINAL_PX / 2),
            side_px=torch.tensor(float(_NOMINAL_PX)),
            take=torch.tensor(0),
            frame=torch.tensor(index),
        )

    def _disturbed(self, sample: HandPoseSample, rng: np.random.Generator) -> HandPoseSample:
        places = sample["joints_2d_px"]
        extent = float((places.amax(0) - places.amin(0)).max())
        shift = rng.normal(0, self.noise.jitter * extent, places.shape).astype(np.float32)
        known = torch.from_numpy(rng.random(len(places)) >= self.noise.dropout)
        if int(known.sum()) < 2:  # a box needs two joints
            known[:2] = True
        sample["joints_2d_px"] = torch.where(known[:, None], places + torch.from_numpy(shift), 0.0)
        sample["visible_2d"] = known
        return sample


def _check_sides(sides: str) -> None:
    if sides not in get_args(Sides):
        expected = " or ".join(repr(side) for side in get_args(Sides))
        raise InputError(f"sides: expected {expected}, found {sides!r}.")
