"""What a report keeps of the images of a classifier's evaluation, however many there are."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kinemesh.evaluation.classification import ClassSamples
from kinemesh.evaluation.samples import Picture
from kinemesh.reporting.ranking import Ranking

EXAMPLES = 6
RANKED = 6


@dataclass(frozen=True, eq=False)
class ShownImage:
    """One image and what was said of it.

    Attributes:
        key: What finds it again.
        label: Name of its class.
        found: Name of the class that was found.
        probability: Of its own class.
        picture: (H, W, 3) uint8 RGB.
    """

    key: str
    label: str
    found: str
    probability: float
    picture: Picture


class ClassSummary:
    """Listens to an evaluation; keeps hits of each class, and the first, worst and best images.

    The worst image is the one whose own class gets the smallest probability.

    Attributes:
        ranking: The kept images.
        names: Of the classes, by number.
        hits: (K,) images of each class that were found.
        counts: (K,) images of each class.
    """

    def __init__(self, examples: int = EXAMPLES, ranked: int = RANKED) -> None:
        self.ranking: Ranking[ShownImage] = Ranking(examples, ranked)
        self.names: list[str] = []
        self.hits: NDArray = np.zeros(0)
        self.counts: NDArray = np.zeros(0)

    def __call__(self, samples: ClassSamples) -> None:
        """Take a batch."""
        classes = samples.probability.shape[1]
        if not self.names:
            self.names = list(samples.names or map(str, range(classes)))
            self.hits, self.counts = np.zeros(classes), np.zeros(classes)
        label = samples.label.cpu().numpy()
        found = samples.probability.argmax(dim=1).cpu().numpy()
        own = samples.probability.gather(1, samples.label[:, None])[:, 0].cpu().tolist()
        np.add.at(self.hits, label, found == label)
        np.add.at(self.counts, label, 1)
        for row, probability in enumerate(own):

            def make(row: int = row, probability: float = probability) -> ShownImage:
                names = self.names[label[row]], self.names[found[row]]
                return ShownImage(samples.keys[row], *names, probability, samples.picture(row))

            self.ranking.consider(-probability, make)

    def accuracies(self) -> NDArray:
        """(K,) percent of the images of each class that were found; NaN without images."""
        with np.errstate(invalid="ignore"):
            accuracies: NDArray = 100 * self.hits / self.counts
        return accuracies
