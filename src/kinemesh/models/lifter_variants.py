"""The registered networks that lift 2D joints of a hand to 3D ones."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from kinemesh.models.joint_lifter import JointLifter, JointLifterConfig


@dataclass(frozen=True)
class LifterVariant:
    """A lifter by name.

    Attributes:
        name: For example "joint-lifter".
        config: Sizes.
        parameters: Values in the parameters.
    """

    name: str
    config: JointLifterConfig
    parameters: int

    def build(self) -> nn.Module:
        """The network, with fresh weights."""
        return JointLifter(self.config)

    def card(self) -> dict[str, Any]:
        """What a user should know before choosing it, for ``kinemesh models``."""
        return {
            "name": self.name,
            "task": "hand",
            "architecture": "joint-lifter",
            "paper": "a plain encoder: Vaswani et al., Attention Is All You Need, NIPS 2017",
            "size": f"{self.config.joints} joints in the picture, some of which may be missing",
            "parameters": self.parameters,
            "license": "Apache-2.0",
            "weights": "none shipped; train it: kinemesh train hand-lifting",
        }


_ALL = (LifterVariant("joint-lifter", JointLifterConfig(), 533_763),)
LIFTER_VARIANTS: dict[str, LifterVariant] = {variant.name: variant for variant in _ALL}
"""Every registered lifter by name."""
