"""An endless, reproducible stream of labelled pictures of hands or bodies."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch.utils.data import Dataset

from kinemesh.bodies.topology import Kind
from kinemesh.data.records import Sample
from kinemesh.data.synthetic.scene import Array, Scene, Subject, compose, load_stage
from kinemesh.errors import InputError

Split = Literal["train", "val", "test"]

CHUNK = 16  # subjects that are rendered together: bounds the memory


class SyntheticDataset(Dataset[Sample]):
    """Rendered people or right hands with exact labels.

    Sample i is drawn from a generator that is seeded with (seed, split, i) alone: it is the same in
    any batch, order and process. Nothing is loaded before the first sample, so the data set pickles
    as a few numbers; each process keeps its own copy of the rig.

    A process that shares its cores with others should call ``torch.set_num_threads(1)`` and
    ``cv2.setNumThreads(0)`` first, for example in the ``worker_init_fn`` of a ``DataLoader``.

    Args:
        kind: "hand" (a right hand with its forearm) or "body".
        seed: Any non-negative integer.
        resolution: Side S of the square crop in pixels.
        length: Number of samples.
        split: "train", "val" (to choose the best weights by) or "test" (to report); they draw from
            disjoint streams.

    Raises:
        InputError: An argument is out of its range.
    """

    def __init__(
        self,
        kind: Kind,
        seed: int,
        resolution: int = 128,
        length: int = 10**7,
        split: Split = "train",
    ) -> None:
        _check(kind, seed, resolution, length, split)
        self.kind: Kind = kind
        self.seed = seed
        self.resolution = resolution
        self.length = length
        self.split: Split = split

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``; see :class:`kinemesh.data.records.Sample` for the fields."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples, rendered together; a ``DataLoader`` calls this with a whole batch."""
        samples: list[Sample] = []
        for first in range(0, len(indices), CHUNK):
            samples += self._make(indices[first : first + CHUNK])
        return samples

    def meshes(self, indices: Sequence[int]) -> torch.Tensor:
        """Vertices (N, V, 3) of several samples in the root frame, metres, without rendering."""
        stage = load_stage(self.kind)
        scenes = (stage.sample(self._generator(index), self.resolution) for index in indices)
        return torch.stack([_tensor(scene.labels - scene.root) for scene in scenes])

    def _make(self, indices: Sequence[int]) -> list[Sample]:
        stage = load_stage(self.kind)
        rngs = [self._generator(index) for index in indices]
        scenes = [stage.sample(rng, self.resolution) for rng in rngs]
        rgba, depth = stage.render(scenes, self.resolution)
        samples = []
        for row, (rng, scene) in enumerate(zip(rngs, scenes, strict=True)):
            image = compose(rng, rgba[row], depth[row], self.kind)
            samples.append(_label(scene, image))
        return samples

    def subjects(self, indices: Sequence[int]) -> Iterator[Subject]:
        """Who is shown in some samples, one after the other, without their pictures.

        Nothing of a sample changes: each is drawn from a generator of its own, and who is shown
        comes first.
        """
        stage = load_stage(self.kind)
        return (stage.draw_subject(self._generator(index)) for index in indices)

    def _generator(self, index: int) -> np.random.Generator:
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} is outside a data set of {self.length} samples")
        split = get_args(Split).index(self.split)
        return np.random.default_rng([self.seed, split, index % self.length])


def _label(scene: Scene, image: Array) -> Sample:
    """Turn a picture and its scene into the record of the library."""
    size = len(image)
    root = scene.root
    pixels = scene.joints[:, :2] / scene.joints[:, 2:] * scene.view.focal_px + size / 2
    inside = ((pixels >= 0) & (pixels <= size)).all(axis=1, keepdims=True)
    return make_sample(
        image,
        np.concatenate([pixels, inside], axis=1),
        scene.joints - root,
        scene.labels - root,
        root,
        scene.view.focal_px,
    )


def make_sample(
    image: Array,
    joints_2d: Array,
    joints: Array,
    vertices: Array,
    root: Array | None = None,
    focal_px: float = 0.0,
) -> Sample:
    """The record of a picture of which all joints and vertices are known.

    Args:
        image: (S, S, 3) sRGB in [0, 1].
        joints_2d: (J, 3) crop pixels and 1 inside the picture, else 0.
        joints: (J, 3) root frame, metres.
        vertices: (V, 3) root frame, metres.
        root: (3,) root joint in the camera frame, metres; None where it is not known.
        focal_px: Focal length in crop pixels; 0 where it is not known.
    """
    size = len(image)
    certain = np.ones((len(joints), 1))
    return Sample(
        image=_tensor(image.transpose(2, 0, 1)),
        joints_2d=_tensor(joints_2d),
        joints_3d=_tensor(np.concatenate([joints, certain], axis=1)),
        vertices=_tensor(vertices),
        pose=torch.zeros(0),
        betas=torch.zeros(0),
        keep_mask=torch.zeros(0, 1),
        focal_px=torch.tensor(focal_px, dtype=torch.float32),
        root_m=torch.zeros(3) if root is None else _tensor(root),
        # the picture is the crop: there is no larger one that it was cut from
        center_px=torch.full((2,), size / 2),
        side_px=torch.tensor(float(size)),
        has_2d=torch.tensor(1.0),
        has_3d=torch.tensor(1.0),
        has_mesh=torch.tensor(1.0),
    )


def _tensor(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def check_stream(split: str, seed: int) -> None:
    """Refuse a split or a seed that no stream of samples has.

    Raises:
        InputError: The split is unknown or the seed is negative.
    """
    if split not in get_args(Split) or seed < 0:
        raise InputError(
            f"split, seed: expected one of {', '.join(get_args(Split))} and a seed of at least "
            f"0, found {split!r} and {seed}."
        )


def _check(kind: str, seed: int, resolution: int, length: int, split: str) -> None:
    for name, value, allowed in (("kind", kind, Kind), ("split", split, Split)):
        if value not in get_args(allowed):
            expected = " or ".join(repr(choice) for choice in get_args(allowed))
            raise InputError(f"{name}: expected {expected}, found {value!r}.")
    for name, number, least in (
        ("seed", seed, 0),
        ("resolution", resolution, 16),
        ("length", length, 1),
    ):
        if number < least:
            raise InputError(f"{name}: expected at least {least}, found {number}.")
