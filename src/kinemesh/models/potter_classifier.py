"""POTTER's image classifier, S12 and S24, whose weights the pose networks begin with.

Shape legend: B batch, C channels, H and W size of the image in pixels, K classes.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.pooling_attention import draw_weight, global_norm
from kinemesh.models.potter_trunk import Pyramid, PyramidConfig


@dataclass(frozen=True)
class PotterClassifierConfig(PyramidConfig):
    """Sizes of a `PotterClassifier`; the defaults are S12's, trained without dropout.

    Attributes:
        classes: K.
    """

    dropout: float = 0.0
    classes: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes < 1:
            raise InputError(f"classes: expected 1 or more, found {self.classes}.")

    @classmethod
    def s24(cls) -> "PotterClassifierConfig":
        """The published network with twice as many blocks."""
        return cls(layers=(4, 4, 12, 4))


class PotterClassifier(Pyramid):
    """The backbone with a norm, the mean over the last map and a linear layer."""

    def __init__(self, config: PotterClassifierConfig) -> None:
        super().__init__(config)
        self.config = config
        self.norm = global_norm(config.widths[-1])
        self.head = nn.Linear(config.widths[-1], config.classes)
        draw_weight(self.head)
        nn.init.zeros_(self.head.bias)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Return logits (B,K); the image is RGB, normalised as ImageNet's."""
        map_BChw = self.norm(self.maps(image_B3HW)[-1])
        logits: Tensor = self.head(map_BChw.mean(dim=(2, 3)))
        return logits
