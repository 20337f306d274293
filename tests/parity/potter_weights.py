"""Which tensors of a classifier a hand network takes over, as the official code does it."""

import json
from pathlib import Path

import numpy as np
import torch

from kinemesh.models.potter_checkpoints import take_weights
from kinemesh.models.potter_classifier import PotterClassifier, PotterClassifierConfig
from kinemesh.models.potter_hand import PotterHand, PotterHandConfig
from tests import parity
from tests.parity import EXACT, Comparison

NAME = "load_map"


def compare(golden_folder: Path) -> list[Comparison]:
    """The lists of names in ``load_map.json``, if it is there."""
    path = golden_folder / f"{NAME}.json"
    if not path.is_file():
        return []
    content = json.loads(path.read_text("utf-8"))
    golden = {key: np.array(content[key]) for key in content.keys() - {"counts"}}
    golden |= {f"counts/{key}": np.array(value) for key, value in content["counts"].items()}
    return [parity.compare(NAME, taken_over(content["target_prefix"]), golden, EXACT)]


def taken_over(prefix: str) -> dict[str, object]:
    """Our values: S12's classifier put into the part of a hand network with this prefix."""
    with torch.device("meta"):
        classifier = PotterClassifier(PotterClassifierConfig()).state_dict()
        hand = PotterHand(PotterHandConfig())
    part = hand.get_submodule(prefix.removesuffix("."))
    taken = take_weights(
        part.to_empty(device="cpu"), {n: torch.zeros(v.shape) for n, v in classifier.items()}
    )
    return {
        "target_prefix": np.array(prefix),
        "matched": np.array(taken.matched),
        "discarded": np.array(taken.discarded),
        "left_untouched": np.array(taken.fresh),
        "counts/matched": len(taken.matched),
        "counts/discarded": len(taken.discarded),
        "counts/left_untouched": len(taken.fresh),
        "counts/checkpoint": len(classifier),
        "counts/target": len(part.state_dict()),
        "counts/hr_total": len(hand.poolattnformer_pose.state_dict()),
    }
