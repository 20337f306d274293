"""What the training of PRTR's networks has in common: backbones, initial weights, optimiser groups.

PRTR: Li et al., CVPR 2021. The networks themselves are in `kinemesh.models`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from kinemesh.models.frozen_batch_norm import FrozenBatchNorm2d, FrozenNormResNet
from kinemesh.models.prtr import Prtr, body_of
from kinemesh.models.prtr_checkpoints import load_initial_keypoints
from kinemesh.models.prtr_deformable import DeformablePrtr
from kinemesh.models.prtr_sequential import SequentialPrtr
from kinemesh.models.prtr_variants import (
    KeypointConfig,
    build_keypoint_network,
    keypoint_architecture_of,
)
from kinemesh.training.config import OptimConfig

PrtrNetwork = Prtr | DeformablePrtr | SequentialPrtr
SLOW_NAMES = ("reference_points", "sampling_offsets")
"""Parts of names of the parameters that learn with a tenth of the rate."""
_SLOW = 0.1
MEASURED_IMAGES = 16
"""Images that `measure_frozen_norms` is given before a run from random weights."""
KEPT_IN_MEMORY = 512
"""Largest number of synthetic samples that are rendered once and kept."""


@dataclass(kw_only=True)
class PrtrBackbone:
    """The residual or high-resolution network before the transformer."""

    name: Literal["resnet", "hrnet"] = "resnet"
    """ResNet with frozen batch norm, or HRNet, whose norms learn."""
    depth: int = 50
    """ResNet: 50, 101 or 152 layers."""
    width: int = 64
    """Channels of ResNet's stem (published: 64), or of HRNet's finest branch (32)."""
    stem_width: int = 64
    """HRNet: channels of the stem."""
    head_planes: tuple[int, int, int, int] = (32, 64, 128, 256)
    """HRNet: planes of the bottlenecks that end its branches."""
    pooled_channels: int = 2048
    """HRNet: channels of the last map."""
    modules: tuple[int, int, int] = (1, 4, 3)
    """HRNet: modules in stages 2, 3 and 4."""

    @classmethod
    def of_spec(cls, spec: Mapping[str, Any]) -> "PrtrBackbone":
        """The backbone of a registered variant, or of a weight file."""
        return cls(**spec)

    def spec(self) -> dict[str, Any]:
        """Name and arguments of the class, as a weight file stores them: what is not usual."""
        usual = vars(PrtrBackbone())
        changed = {key: value for key, value in vars(self).items() if value != usual[key]}
        if self.name == "hrnet":
            return {"name": "hrnet", "width": self.width} | changed
        sizes = {key: value for key, value in changed.items() if key == "width"}
        return {"name": "resnet", "depth": self.depth} | sizes


def build_prtr(config: KeypointConfig, backbone: PrtrBackbone) -> PrtrNetwork:
    """Build a network with fresh weights; the class follows from that of the configuration.

    Raises:
        InputError: The network does not run on this backbone.
    """
    architecture = keypoint_architecture_of(config)
    record = {"architecture": architecture, "config": vars(config), "backbone": backbone.spec()}
    network = build_keypoint_network(record)
    assert isinstance(network, PrtrNetwork)
    return network


def prepare_prtr(
    network: PrtrNetwork, init: Path | None, images: Callable[[], Tensor]
) -> PrtrNetwork:
    """Fill a fresh network from a file; without one, make random weights fit to begin with.

    Args:
        network: What `build_prtr` built; it is changed.
        init: See `kinemesh.models.prtr_checkpoints.load_initial_keypoints`.
        images: Gives a batch of training images (B,3,H,W).

    Raises:
        InputError: The file does not fit.
    """
    if init is not None:
        load_initial_keypoints(network, init)
    elif isinstance(body_of(network.backbone), FrozenNormResNet):
        measure_frozen_norms(network, images())
    return network


def first_images(
    dataset: Dataset[Any], collate: Callable[[list[Any]], Mapping[str, Tensor]], name: str
) -> Tensor:
    """(B,3,H,W) images of the first samples of a data set, for `prepare_prtr`.

    Args:
        dataset: A map-style data set with a length.
        collate: Joins its samples to a batch.
        name: What the batch calls its images.
    """
    count = min(len(dataset), MEASURED_IMAGES)  # type: ignore[arg-type]
    return collate([dataset[index] for index in range(count)])[name]


@torch.no_grad()
def measure_frozen_norms(network: PrtrNetwork, image_B3HW: Tensor) -> None:
    """Give the frozen norms of a backbone with random weights the statistics of some images.

    With ImageNet's weights come ImageNet's statistics. Without either a frozen norm does nothing,
    and activations double from block to block. An HRNet, whose norms measure in training, is left
    as it is.

    Args:
        network: Any of the three, before training.
        image_B3HW: Normalised training images.
    """

    def measure(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(norm, FrozenBatchNorm2d)
        variance_C, mean_C = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        norm.running_mean.copy_(mean_C)
        norm.running_var.copy_(variance_C)

    body = body_of(network.backbone)
    norms = [module for module in body.modules() if isinstance(module, FrozenBatchNorm2d)]
    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    if norms:
        body(image_B3HW)
    for handle in handles:
        handle.remove()


# Optimiser -----------------------------------------------------------------------------------


def prtr_parameter_groups(network: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Groups of the published runs: weight decay for everything, three learning rates.

    Names with "backbone" have the rate of the backbone, those with one of `SLOW_NAMES` a tenth of
    the rate, all others the rate. Frozen parameters are left out.
    """
    groups: dict[str, list[nn.Parameter]] = {"rest": [], "backbone": [], "slow": []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            slow = any(part in name for part in SLOW_NAMES)
            groups["backbone" if "backbone" in name else "slow" if slow else "rest"].append(
                parameter
            )
    scales = {"rest": 1.0, "backbone": optim.backbone_lr_scale, "slow": _SLOW}
    return [
        {"params": members, "lr": optim.lr * scales[kind], "weight_decay": optim.weight_decay}
        for kind, members in groups.items()
        if members
    ]


class KeptSamples(Dataset[Any]):
    """A data set whose samples are made once and kept in memory."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        self.kept: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        """Sample ``index``, from memory if it was asked for before."""
        if index not in self.kept:
            self.kept[index] = self.dataset[index]
        return self.kept[index]


def shared_count(count: Tensor) -> Tensor:
    """What the sums of each process are divided by: the number of all processes, over those.

    The mean of the processes' losses, which data-parallel training follows, is then the loss of the
    whole batch. The number of all processes counts as 1 at least.
    """
    total, processes = count.detach().float(), 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        total = total.clone()
        torch.distributed.all_reduce(total)
        processes = torch.distributed.get_world_size()
    return total.clamp(min=1.0) / processes
