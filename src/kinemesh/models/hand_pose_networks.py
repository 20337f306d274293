"""Networks that recover the 3D joints of a hand, and the record of their weight files.

What they have in common: 21 joints about the wrist, of unit size, which `JointStatistics` turns
into millimetres. POTTER's network sees a picture, the lifter 2D joints.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.joint_lifter import JointLifter, JointLifterConfig
from kinemesh.models.joint_statistics import JointStatistics
from kinemesh.models.potter_hand import PotterHand, PotterHandConfig
from kinemesh.skeletons import HAND21

HandPoseConfig = PotterHandConfig | JointLifterConfig
HandPoseArchitecture = Literal["potter-hand", "joint-lifter"]
Sides = Literal["right", "both"]
Crops = Literal["ego-exo4d", "synthetic"]

HAND_POSE_CONFIGS: dict[HandPoseArchitecture, type[HandPoseConfig]] = {
    "potter-hand": PotterHandConfig,
    "joint-lifter": JointLifterConfig,
}
"""Configuration class of each architecture."""
_NETWORKS: dict[HandPoseArchitecture, Any] = {
    "potter-hand": PotterHand,
    "joint-lifter": JointLifter,
}
MM_PER_M = 1000.0


def hand_pose_architecture_of(config: HandPoseConfig) -> HandPoseArchitecture:
    """Key of `HAND_POSE_CONFIGS`."""
    return next(name for name, kind in HAND_POSE_CONFIGS.items() if type(config) is kind)


def hand_pose_record(
    config: HandPoseConfig, statistics: JointStatistics, *, sides: Sides, crops: Crops
) -> dict[str, Any]:
    """Plain JSON that tells how to build a network and what it wants to see.

    Args:
        config: Sizes.
        statistics: What makes millimetres of the network's output.
        sides: Hands that the network was trained on; left ones have to be mirrored for "right".
        crops: How the crops of its data are cut.

    Returns:
        ``architecture``, ``config``, ``task`` ("hand"), ``skeleton``, ``joints`` (names),
        ``statistics``, ``sides``, ``crops``, and of a network on pictures ``resolution`` (the side
        of its crop in pixels) and ``normalisation`` ("imagenet").

    Raises:
        InputError: The network has another number of joints than a hand.
    """
    if not config.joints == len(statistics) == len(HAND21):
        raise InputError(
            f"joints: a hand has {len(HAND21)} joints, found {config.joints} in the network and "
            f"{len(statistics)} in the statistics."
        )
    record: dict[str, Any] = {
        "architecture": hand_pose_architecture_of(config),
        "config": asdict(config),
        "task": "hand",
        "skeleton": HAND21.name,
        "joints": list(HAND21.joints),
        "statistics": statistics.record(),
        "sides": sides,
        "crops": crops,
    }
    if isinstance(config, PotterHandConfig):
        record |= {"resolution": config.side, "normalisation": "imagenet"}
    return record


def build_hand_pose_network(record: Mapping[str, Any], *, blank: bool = False) -> nn.Module:
    """Build a `PotterHand` or a `JointLifter` from the metadata of a weight file.

    Args:
        record: What `hand_pose_record` returned.
        blank: Leave everything without storage (device "meta"), to be filled by
            ``load_state_dict(..., assign=True)``.

    Raises:
        InputError: A value does not fit.
    """
    architecture: HandPoseArchitecture = record["architecture"]
    kind: type[Any] = HAND_POSE_CONFIGS[architecture]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in record["config"].items()}
    with torch.device("meta") if blank else contextlib.nullcontext():
        network: nn.Module = _NETWORKS[architecture](kind(**values))
    return network


def network_inputs(architecture: str, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """What a network of an architecture reads of a batch.

    Args:
        architecture: Key of `HAND_POSE_CONFIGS`.
        batch: Fields of `kinemesh.data.hand_pose_records.HandPoseSample`: ``image`` for POTTER,
            ``joints_2d_px`` and ``visible_2d`` for the lifter.
    """
    if architecture == "joint-lifter":
        return batch["joints_2d_px"], batch["visible_2d"]
    return (batch["image"],)


class HandPoseNetwork(nn.Module):
    """A network with its statistics: from a batch of hand pose data to metres.

    Args:
        network: A `PotterHand` or a `JointLifter`.
        statistics: Of the data that it was trained on.
    """

    def __init__(self, network: nn.Module, statistics: JointStatistics) -> None:
        super().__init__()
        self.network = network
        self.statistics = statistics
        lifts = isinstance(network, JointLifter)
        self.architecture: HandPoseArchitecture = "joint-lifter" if lifts else "potter-hand"

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the joints (B,21,3) in metres, the wrist exactly at the origin.

        Args:
            batch: See `network_inputs`.
        """
        joints_BJ3 = self.network(*network_inputs(self.architecture, batch))
        return self.statistics.denormalise(joints_BJ3.float()) / MM_PER_M
