"""EfficientNet-Lite0: a small ImageNet backbone (Tan and Le, ICML 2019; the "Lite" variant).

The Lite variant has no squeeze-and-excitation and uses ReLU6, so it quantises and exports well.
Module names equal those of the published PyTorch conversion, and convolutions pad as TensorFlow's
"SAME" does, because its weights were trained that way.

Shape legend: B batch, C channels, H and W image size, K classes.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.errors import InputError

INPUT_MEAN = 127.0
"""Subtracted from grey levels in [0, 255] before the first convolution."""
INPUT_SCALE = 128.0
"""Divides the grey levels after the subtraction."""
FEATURE_STRIDES = (4, 8, 16, 32)
FEATURE_CHANNELS = (24, 40, 112, 320)

CLASSIFIER_PREFIXES = ("_conv_head.", "_bn1.", "_fc.")


class _Stage(NamedTuple):
    """A row of the paper's table 1: ``repeats`` blocks, the first with ``stride``."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    repeats: int


_STAGES = (
    _Stage(3, 1, 1, 16, 1),
    _Stage(3, 2, 6, 24, 2),
    _Stage(5, 2, 6, 40, 2),
    _Stage(3, 2, 6, 80, 3),
    _Stage(5, 1, 6, 112, 3),
    _Stage(5, 2, 6, 192, 4),
    _Stage(3, 1, 6, 320, 1),
)
_FEATURE_BLOCKS = (2, 4, 10, 15)  # the last block at each of FEATURE_STRIDES


def normalise(image_B3HW: Tensor) -> Tensor:
    """Map RGB in [0, 1] to the input range of the network, ``(255 x - 127) / 128``."""
    return (image_B3HW * 255.0 - INPUT_MEAN) / INPUT_SCALE


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels that TensorFlow's "SAME" rule adds before and after one axis of ``size`` pixels.

    The output has ``ceil(size / stride)`` pixels; an odd pixel of padding goes to the end.
    """
    outputs = (size + stride - 1) // stride
    total = max((outputs - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class SamePadConv2d(nn.Conv2d):
    """Convolution without bias that pads by `same_padding` for the size it is given."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        # An odd kernel with stride 1 pads evenly for every size, so no separate pad is needed.
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(
            in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False
        )

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B,C,H,W) to (B,C',ceil(H/stride),ceil(W/stride))."""
        stride = self.stride[0]
        if stride > 1:
            kernel = self.kernel_size[0]
            top, bottom = same_padding(input.shape[-2], kernel, stride)
            left, right = same_padding(input.shape[-1], kernel, stride)
            input = F.pad(input, (left, right, top, bottom))
        return super().forward(input)


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel, project by 1x1; skip where the shape allows."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        middle = in_channels * expansion
        self.expands = expansion > 1
        self.skips = stride == 1 and in_channels == out_channels
        if self.expands:
            self._expand_conv = SamePadConv2d(in_channels, middle, 1)
            self._bn0 = _batch_norm(middle)
        self._depthwise_conv = SamePadConv2d(middle, middle, kernel, stride, groups=middle)
        self._bn1 = _batch_norm(middle)
        self._project_conv = SamePadConv2d(middle, out_channels, 1)
        self._bn2 = _batch_norm(out_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C',H/stride,W/stride); the projection has no activation."""
        y: Tensor = x_BCHW
        if self.expands:
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x_BCHW + y if self.skips else y


class EfficientNetLite0(nn.Module):
    """The network up to the last feature map, and its ImageNet classifier if asked for.

    Args:
        classifier: Also build ``_conv_head``, ``_bn1`` and ``_fc`` (1000 classes), which
            `forward` needs and `features` does not.
    """

    def __init__(self, *, classifier: bool = False) -> None:
        super().__init__()
        self._conv_stem = SamePadConv2d(3, 32, 3, stride=2)
        self._bn0 = _batch_norm(32)
        blocks = []
        channels = 32
        for stage in _STAGES:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                blocks.append(
                    InvertedResidual(
                        channels, stage.channels, stage.kernel, stride, stage.expansion
                    )
                )
                channels = stage.channels
        self._blocks = nn.ModuleList(blocks)
        self.has_classifier = classifier
        if classifier:
            self._conv_head = SamePadConv2d(channels, 1280, 1)
            self._bn1 = _batch_norm(1280)
            self._dropout = nn.Dropout(0.2)
            self._fc = nn.Linear(1280, 1000)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def features(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Feature maps of an image normalised by `normalise`.

        Returns:
            Four maps (B,C,ceil(H/s),ceil(W/s)) for s in ``FEATURE_STRIDES`` with C in
            ``FEATURE_CHANNELS``.
        """
        x = F.relu6(self._bn0(self._conv_stem(image_B3HW)))
        maps = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in _FEATURE_BLOCKS:
                maps.append(x)
        return maps[0], maps[1], maps[2], maps[3]

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """ImageNet logits (B,1000) of an image normalised by `normalise`.

        Raises:
            InputError: The network was built without its classifier.
        """
        if not self.has_classifier:
            raise InputError(
                "EfficientNetLite0 was built without its ImageNet classifier; call features(image) "
                "for the maps or build it with classifier=True for the logits."
            )
        x = F.relu6(self._bn1(self._conv_head(self.features(image_B3HW)[-1])))
        logits: Tensor = self._fc(self._dropout(x.mean(dim=(2, 3))))
        return logits
