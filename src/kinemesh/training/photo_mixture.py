"""Batches of rendered samples, some of which give their places to labelled photos."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from kinemesh.bodies import load_topology
from kinemesh.bodies.topology import Kind
from kinemesh.data.photo_samples import LabelledPhotos, PhotoAugmentation, PhotoLabel
from kinemesh.data.photo_sources import open_photos
from kinemesh.data.records import Sample
from kinemesh.errors import InputError


def photos_in_batch(share: float, batch_size: int) -> int:
    """How many samples of a batch are photos.

    Raises:
        InputError: It would be none, or leave too few rendered samples.
    """
    count = round(share * batch_size)
    most = batch_size - rendered_before(batch_size) - 1
    if not 1 <= count <= most:
        raise InputError(
            f"--photo-share: {share:g} of a batch of {batch_size} is {count} photos, expected 1 to "
            f"{most}. Change the share or --batch-size."
        )
    return count


def rendered_before(batch_size: int) -> int:
    """How many rendered samples a batch begins with."""
    # the first eighth of a batch of hands is mirrored and counts for the side alone, and the last
    # samples are the ones whose mesh is learned; photos belong to neither
    return max(1, batch_size // 8)


class PhotoMixture(Dataset[Sample]):
    """Rendered samples; of those that are asked for together, some are photos.

    Which photo, and how it is cut, follows from (seed, step, index of the sample that it stands
    for) alone, so that batches are functions of the step. Photos are drawn with replacement.

    Args:
        rendered: Data set with a length, told the step by ``set_step`` if it has such a method.
        photos: The photos.
        share: Of the samples that are asked for together.
        seed: Key of the draws.
    """

    def __init__(
        self, rendered: Dataset[Sample], photos: LabelledPhotos, share: float, seed: int
    ) -> None:
        self.rendered: Any = rendered
        self.photos = photos
        self.share = share
        self.seed = seed
        self.step = 0

    def __len__(self) -> int:
        return len(self.rendered)

    def set_step(self, step: int) -> None:
        """Say which training step the next samples belong to."""
        self.step = step
        if hasattr(self.rendered, "set_step"):
            self.rendered.set_step(step)

    def __getitem__(self, index: int) -> Sample:
        """The rendered sample ``index``."""
        sample: Sample = self.rendered[index]
        return sample

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """A batch."""
        first = rendered_before(len(indices))
        last = first + photos_in_batch(self.share, len(indices))
        photos = [self.photos.draw(self.seed, self.step, index) for index in indices[first:last]]
        rendered = self._render([*indices[:first], *indices[last:]])
        return [*rendered[:first], *photos, *rendered[first:]]

    def _render(self, indices: Sequence[int]) -> list[Sample]:
        if hasattr(self.rendered, "__getitems__"):
            samples: list[Sample] = self.rendered.__getitems__(indices)
            return samples
        return [self.rendered[index] for index in indices]


def photos_of(labels: Sequence[PhotoLabel], kind: Kind, resolution: int) -> LabelledPhotos:
    """Photos as the networks for Anny learn from them."""
    # a hand is a right hand, and stays one
    augmentation = PhotoAugmentation(flip_share=0.5 if kind == "body" else 0.0)
    return LabelledPhotos(labels, load_topology(f"anny-{kind}"), resolution, augmentation)


def mix_photos(
    rendered: Dataset[Sample],
    specs: Sequence[str],
    kind: Kind,
    resolution: int,
    share: float,
    seed: int,
) -> PhotoMixture:
    """Rendered samples with photos of the sets ``specs``, see `open_photos`.

    Raises:
        InputError: A set cannot be opened.
    """
    photos = photos_of(open_photos(specs, kind), kind, resolution)
    return PhotoMixture(rendered, photos, share, seed)
