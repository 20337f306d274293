"""POTTER's hand network in a size that a test can run."""

from typing import Any

from kinemesh.models.potter_hand import PotterHand, PotterHandConfig

TINY: dict[str, Any] = {
    "layers": (1, 1, 1, 1),
    "widths": (32, 64, 32, 64),
    "mlp_ratios": (1, 1, 2, 1),
    "stream_layers": (1, 1, 1),
    "stream_mlp_ratios": (1, 1, 1),
    "side": 64,
    "head_width": 16,
}


def tiny_hand(**sizes: Any) -> PotterHand:
    """A network of 21 joints on crops of 64 px, with ``sizes`` of its configuration changed."""
    return PotterHand(PotterHandConfig(**TINY | {"lifting_width": 24} | sizes))
