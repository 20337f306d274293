"""HRNet at a tiny width; its values at full size are held by the parity tests."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kinemesh.errors import InputError
from kinemesh.models.hrnet import HighResolutionModule, HRNet
from tests.tolerances import TOL


def tiny(width: int = 2) -> HRNet:
    torch.manual_seed(0)
    return HRNet(
        width, stem_width=4, head_planes=(1, 2, 3, 4), pooled_channels=10, modules=(1, 1, 1)
    )


def test_shapes_and_gradient():
    net = tiny()
    image = torch.randn(2, 3, 64, 96)
    features = net(image)
    assert features.grid.shape == (2, 16, 2, 3)
    assert features.final.shape == (2, 10, 2, 3)
    torch.testing.assert_close(features.pooled, features.final.mean((2, 3)))
    shapes = [tuple(x.shape[1:]) for x in net.branches(image)]
    assert shapes == [(2, 16, 24), (4, 8, 12), (8, 4, 6), (16, 2, 3)]
    features.pooled.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(("width", "parameters"), [(40, 57_557_160), (64, 128_059_944)])
def test_published_sizes(width, parameters):
    with torch.device("meta"):
        net = HRNet(width)
    classifier = 2048 * 1000 + 1000
    assert sum(p.numel() for p in net.parameters()) == parameters - classifier
    assert (net.grid_channels, net.pooled_channels) == (1024, 2048)


def test_width_32_builds():
    with torch.device("meta"):
        net = HRNet(32)
    assert net.stage4[-1].branches[3][0].conv1.weight.shape == (256, 256, 3, 3)


def test_module_exchanges_all_scales():
    """Against the fusion rule spelled out, with identity branches."""
    torch.manual_seed(0)
    module = HighResolutionModule([2, 4, 8]).double().eval()
    module.branches = nn.ModuleList(nn.Identity() for _ in range(3))
    maps = [torch.randn(1, 2 << k, 8 >> k, 8 >> k, dtype=torch.float64) for k in range(3)]

    def conv(x, layer, stride):
        (convolution, norm) = layer[0], layer[1]
        y = F.conv2d(
            x, convolution.weight, stride=stride, padding=convolution.weight.shape[-1] // 2
        )
        return y / (1 + norm.eps) ** 0.5

    expected = []
    for i in range(3):
        total = 0
        for j in range(3):
            layer, y = module.fuse_layers[i][j], maps[j]
            if j > i:
                y = conv(y, layer, 1)
                y = y.repeat_interleave(2 ** (j - i), 2).repeat_interleave(2 ** (j - i), 3)
            for step in range(i - j):
                y = conv(y, layer[step], 2)
                y = y.clamp(min=0) if step < i - j - 1 else y
            total = total + y
        expected.append(total.clamp(min=0))
    for ours, theirs in zip(module(maps), expected, strict=True):
        torch.testing.assert_close(ours, theirs, **TOL[torch.float64])


def test_odd_sizes_are_refused():
    with pytest.raises(InputError, match="multiples of 32"):
        tiny()(torch.zeros(1, 3, 64, 50))
