"""Residual networks at a tiny width; ResNet-50's values are held by METRO's parity tests."""

import pytest
import torch
import torch.nn.functional as F

from kinemesh.errors import InputError
from kinemesh.models.resnet import Bottleneck, ResNet, ResNetBackbone
from tests.tolerances import TOL


def test_shapes_and_gradient():
    torch.manual_seed(0)
    net = ResNetBackbone(50, width=2)
    image = torch.randn(2, 3, 64, 96)
    shapes = [tuple(x.shape) for x in net.features(image)]
    assert shapes == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6), (2, 64, 2, 3)]
    assert net.map_channels == 64
    net(image).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("depth", "parameters"), [(50, 25_557_032), (101, 44_549_160), (152, 60_192_808)]
)
def test_published_sizes(depth, parameters):
    with torch.device("meta"):
        net = ResNet(depth)
    classifier = 2048 * 1000 + 1000
    assert sum(p.numel() for p in net.parameters()) == parameters - classifier
    tops = {name.split(".")[0] for name in net.state_dict()}
    assert tops == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}


def test_bottleneck_spelled_out():
    """Stride 2 is in the 3x3 convolution, and in that of the skip."""
    torch.manual_seed(0)
    block = Bottleneck(6, 3, stride=2).double().eval()
    x = torch.randn(1, 6, 8, 8, dtype=torch.float64)
    scale = (1 + 1e-5) ** -0.5  # a fresh batch norm
    y = (F.conv2d(x, block.conv1.weight) * scale).clamp(min=0)
    y = (F.conv2d(y, block.conv2.weight, stride=2, padding=1) * scale).clamp(min=0)
    y = F.conv2d(y, block.conv3.weight) * scale
    skip = F.conv2d(x, block.downsample[0].weight, stride=2) * scale
    torch.testing.assert_close(block(x), (y + skip).clamp(min=0), **TOL[torch.float64])


def test_unknown_depth_is_refused():
    with pytest.raises(InputError, match="depth: expected one of 50, 101, 152, found 18"):
        ResNet(18)
