"""PRTR's networks at tiny sizes; their values are held by test_parity_prtr.py."""

import math

import pytest
import torch
from torch import nn

from kinemesh.errors import InputError
from kinemesh.models.frozen_batch_norm import FrozenBatchNorm2d, FrozenNormResNet
from kinemesh.models.metro import HRNetMap
from kinemesh.models.optimised import optimise
from kinemesh.models.prtr import KeypointSetOutput, Prtr, PrtrConfig
from kinemesh.models.prtr_deformable import DeformablePrtr, DeformablePrtrConfig, logit
from kinemesh.models.prtr_sequential import (
    SequentialConfig,
    SequentialPrtr,
    pad_images,
    sample_cells,
    sample_projected,
)
from kinemesh.models.resnet import ResNet
from tests.tolerances import TOL

SINGLE = TOL[torch.float32]
SMALL = {
    "joints": 5,
    "width": 32,
    "heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "feed_forward": 24,
}


def two_stage() -> Prtr:
    torch.manual_seed(0)
    return Prtr(PrtrConfig(**SMALL, queries=6), FrozenNormResNet(50, width=2))


def hrnet() -> Prtr:
    torch.manual_seed(0)
    body = HRNetMap(
        2, stem_width=4, head_planes=(1, 2, 3, 4), pooled_channels=10, modules=(1, 1, 1)
    )
    return Prtr(PrtrConfig(**SMALL, queries=6), body)


def deformable() -> DeformablePrtr:
    torch.manual_seed(0)
    config = DeformablePrtrConfig(**SMALL, queries=6, encoder_points=2, decoder_points=2)
    return DeformablePrtr(config, FrozenNormResNet(50, width=2))


def sequential(**sizes) -> SequentialPrtr:
    torch.manual_seed(0)
    config = SequentialConfig(
        **SMALL | {"person_queries": 4, "keypoint_queries": 6, "keypoint_width": 16} | sizes,
        rows=3,
        columns=2,
    )
    return SequentialPrtr(config, FrozenNormResNet(50, width=2))


NETWORKS = [two_stage, hrnet, deformable, sequential]


# Backbone ------------------------------------------------------------------------------------


def test_frozen_norm_equals_batch_norm_in_evaluation():
    torch.manual_seed(0)
    theirs, x = nn.BatchNorm2d(3), torch.randn(2, 3, 4, 5)
    for tensor in (theirs.weight.data, theirs.bias.data, theirs.running_mean, theirs.running_var):
        tensor.add_(torch.rand(3))
    ours = FrozenBatchNorm2d(3)
    ours.load_state_dict(theirs.state_dict())  # with the counter that ours lacks
    assert set(ours.state_dict()) == {"weight", "bias", "running_mean", "running_var"}
    scale = ours.weight / (ours.running_var + 1e-5).sqrt()
    shift = ours.bias - ours.running_mean * scale
    expected = x * scale[:, None, None] + shift[:, None, None]
    torch.testing.assert_close(ours.train()(x), expected, **SINGLE)
    torch.testing.assert_close(ours(x), theirs.eval()(x))
    assert not list(ours.parameters())
    assert torch.equal(ours.running_mean, theirs.running_mean)


def test_frozen_network_takes_imagenets_tensors():
    torch.manual_seed(0)
    theirs, ours = ResNet(50, width=2), FrozenNormResNet(50, width=2)
    state = theirs.state_dict()
    ours.load_state_dict(state)
    assert any("num_batches_tracked" in name for name in state)  # the caller's stays whole
    image = torch.randn(1, 3, 64, 32)
    torch.testing.assert_close(ours(image), theirs.eval().features(image)[-1], **SINGLE)
    assert ours.level_channels == (8, 16, 32, 64)


def test_stem_and_first_stage_are_not_trained():
    frozen = {
        name for name, p in FrozenNormResNet(50, width=2).named_parameters() if not p.requires_grad
    }
    assert frozen == {
        "conv1.weight",
        "layer1.0.downsample.0.weight",
        *(f"layer1.{block}.conv{conv}.weight" for block in range(3) for conv in (1, 2, 3)),
    }
    assert all(p.requires_grad for p in hrnet().parameters())


# Sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "config", "parameters", "trainable"),
    [
        (50, PrtrConfig(), 41_505_236, 41_282_836),
        (101, PrtrConfig(), 60_445_140, 60_222_740),
        ("hrnet", PrtrConfig(), 57_234_004, 57_234_004),
        (50, DeformablePrtrConfig(), 46_251_734, 46_029_334),
        (101, DeformablePrtrConfig(), 65_191_638, 64_969_238),
        (50, PrtrConfig(joints=16), 41_505_236 - 257, 41_282_836 - 257),
        (50, SequentialConfig(), 88_066_010, 87_843_610),
    ],
)
def test_published_sizes(backbone, config, parameters, trainable):
    kinds = {PrtrConfig: Prtr, DeformablePrtrConfig: DeformablePrtr}
    with torch.device("meta"):
        body = HRNetMap(32) if backbone == "hrnet" else FrozenNormResNet(backbone)
        network = kinds.get(type(config), SequentialPrtr)(config, body)
    ours = list(network.parameters())
    assert sum(p.numel() for p in ours) == parameters
    assert sum(p.numel() for p in ours if p.requires_grad) == trainable


# All networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("build", NETWORKS)
def test_state_is_loaded_by_name(build):
    network = build().eval()
    other = build().eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.load_state_dict(other.state_dict())
    image = torch.randn(1, 3, 64, 96)
    for ours, theirs in zip(network(image), other(image), strict=True):
        if isinstance(ours, torch.Tensor):
            assert torch.equal(ours, theirs)
    assert "backbone.0.body.conv1.weight" in network.state_dict()


COMPILED = [
    pytest.param(build, marks=pytest.mark.slow) if build is hrnet else build for build in NETWORKS
]
"""HRNet differs from the two-stage network in its backbone alone."""


@pytest.mark.parametrize("build", COMPILED)
def test_compiles_into_one_graph(build):
    network, image = build().eval(), torch.randn(2, 3, 64, 96)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = network(image)
        compiled = torch.compile(network, fullgraph=True, backend="eager")(image)
    torch.testing.assert_close(compiled, expected, **SINGLE)


@pytest.mark.parametrize("build", NETWORKS)
def test_runs_in_half_of_the_bits(build):
    """Under autocast, with finite results near those of single precision."""
    network, image = build().eval(), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            output = network(image)
    for name in ("coords", "boxes"):
        if hasattr(output, name):
            ours, theirs = getattr(output, name), getattr(expected, name)
            torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=0.05)


@pytest.mark.parametrize("build", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_optimised_for_inference(build, dtype):
    network, image = build().eval(), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = network(image)
    output = optimise(network, dtype)(image)
    allowed = SINGLE if dtype == torch.float32 else {"rtol": 0, "atol": 0.05}
    name = "boxes" if build is sequential else "coords"
    torch.testing.assert_close(getattr(output, name), getattr(expected, name), **allowed)


@pytest.mark.parametrize("build", NETWORKS)
def test_gradient_reaches_all_that_is_trained(build):
    network = build()
    with torch.no_grad():
        for parameter in network.parameters():  # also where the initial weight is zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    output = network(torch.randn(2, 3, 64, 96))
    total = sum(tensor.square().sum() for tensor in _tensors(output) if tensor.is_floating_point())
    total.backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def _tensors(output):
    for value in output:
        if isinstance(value, torch.Tensor):
            yield value
        else:
            yield from _tensors(value)


# Two-stage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [two_stage, hrnet, deformable])
def test_keypoint_output(build):
    output = build()(torch.randn(2, 3, 96, 64))
    assert isinstance(output, KeypointSetOutput)
    assert output.logits.shape == (2, 6, 6)
    assert output.coords.shape == (2, 6, 2)
    assert len(output.auxiliary) == 1
    assert output.auxiliary[0].logits.shape == (2, 6, 6)
    assert not output.auxiliary[0].auxiliary
    assert not torch.equal(output.auxiliary[0].logits, output.logits)
    assert output.coords.min() > 0
    assert output.coords.max() < 1


def test_learned_positions():
    torch.manual_seed(0)
    config = PrtrConfig(**SMALL, queries=6, positions="learned")
    network = Prtr(config, FrozenNormResNet(50, width=2))
    assert network.state_dict()["backbone.1.row_embed.weight"].shape == (50, 16)
    assert network(torch.randn(1, 3, 64, 96)).coords.shape == (1, 6, 2)


def test_first_deformable_prediction_is_the_reference_point():
    network = deformable().eval()
    output = network(torch.randn(1, 3, 96, 64))
    code = network.query_embed.weight[:, :32]
    reference = network.transformer.reference_points(code).sigmoid()
    torch.testing.assert_close(output.coords[0], reference, **SINGLE)
    torch.testing.assert_close(output.auxiliary[0].coords[0], reference, **SINGLE)
    bias = network.class_embed[0].bias
    torch.testing.assert_close(bias, torch.full((6,), -math.log(99)))


def test_deformable_heads_are_one_module():
    network = deformable()
    names = set(network.state_dict())
    assert {"class_embed.0.weight", "class_embed.1.weight"} <= names
    assert {"kpt_embed.0.layers.2.bias", "kpt_embed.1.layers.2.bias"} <= names
    state = network.state_dict() | {
        f"class_embed.{layer}.bias": torch.full((6,), float(layer)) for layer in range(2)
    }
    network.load_state_dict(state)
    assert torch.equal(network.class_embed[0].bias, torch.ones(6))  # the last name wins


def test_deformable_levels():
    torch.manual_seed(0)
    body = FrozenNormResNet(50, width=2)
    with pytest.raises(InputError, match="levels: expected at least 3, found 2"):
        DeformablePrtr(DeformablePrtrConfig(**SMALL, levels=2), body)
    with pytest.raises(InputError, match="pre_norm: expected False"):
        DeformablePrtr(DeformablePrtrConfig(**SMALL, pre_norm=True), body)
    network = DeformablePrtr(DeformablePrtrConfig(**SMALL, queries=6, levels=5), body)
    tokens = []
    network.transformer.encoder.layers[0].register_forward_hook(
        lambda _module, inputs, _output: tokens.append(inputs[0].shape[1])
    )
    network(torch.randn(1, 3, 128, 160))
    assert tokens == [16 * 20 + 8 * 10 + 4 * 5 + 2 * 3 + 1 * 2]


def test_logit_inverts_the_sigmoid_and_is_finite():
    x = torch.tensor([-3.0, 0.0, 2.0])
    torch.testing.assert_close(logit(x.sigmoid()), x, **SINGLE)
    ends = logit(torch.tensor([-0.5, 0.0, 1.0, 1.5]))
    expected = math.log(1e-5) * torch.tensor([1.0, 1.0, -1.0, -1.0])
    torch.testing.assert_close(ends, expected, rtol=0, atol=2e-5)


# Sequential ----------------------------------------------------------------------------------


def images(*sizes):
    torch.manual_seed(3)
    return pad_images([torch.randn(3, *size) for size in sizes])


def test_padding_of_a_batch():
    batch = images((64, 96), (96, 32))
    assert batch.images.shape == (2, 3, 96, 96)
    assert torch.equal(batch.sizes, torch.tensor([[64, 96], [96, 32]]))
    assert not batch.images[0, :, 64:].any()
    assert not batch.images[1, :, :, 32:].any()
    assert batch.images[1, :, :, :32].any()
    assert torch.equal(batch.padding_mask, (batch.images == 0).all(1))
    with pytest.raises(InputError, match="at least one"):
        pad_images([])


def test_sequential_output():
    output = sequential().eval()(*images((64, 96), (96, 32)))
    assert output.logits.shape == (2, 4, 2)
    assert output.boxes.shape == (2, 4, 4)
    assert output.keypoint_coords.shape == (2, 4, 6, 2)
    assert output.keypoint_logits.shape == (2, 4, 6, 6)
    assert torch.equal(output.persons, torch.arange(4).expand(2, -1))
    assert not output.auxiliary_detections
    assert not output.auxiliary_keypoints


def test_sequential_training_has_auxiliary_outputs():
    output = sequential(dropout=0.0)(*images((64, 96), (96, 32)))
    (detections,) = output.auxiliary_detections
    (keypoints,) = output.auxiliary_keypoints
    assert detections.logits.shape == (2, 4, 2)
    assert detections.boxes.shape == (2, 4, 4)
    assert keypoints.coords.shape == (2, 4, 6, 2)
    assert keypoints.logits.shape == (2, 4, 6, 6)
    last = sequential(dropout=0.0).eval()(*images((64, 96), (96, 32)))
    torch.testing.assert_close(output.keypoint_coords, last.keypoint_coords, **SINGLE)


def test_mask_and_sizes_say_the_same():
    network, (image, mask, sizes) = sequential().eval(), images((64, 96), (96, 32))
    both = network(image, mask, sizes)
    for output in (network(image, mask), network(image, None, sizes)):
        torch.testing.assert_close(output.keypoint_coords, both.keypoint_coords, **SINGLE)
        torch.testing.assert_close(output.boxes, both.boxes, **SINGLE)
    unpadded = network(image)
    assert not torch.allclose(unpadded.boxes, both.boxes)


def test_an_image_is_the_same_alone_and_in_a_padded_batch():
    """Up to the border of the convolutions, which see padding instead of nothing."""
    network = sequential().eval()
    network.backbone[0].body.features = lambda x: [
        nn.functional.avg_pool2d(x, s).repeat(1, c, 1, 1)[:, :c]
        for s, c in zip((4, 8, 16, 32), (8, 16, 32, 64), strict=True)
    ]
    torch.manual_seed(3)
    small, large = torch.randn(3, 96, 64), torch.randn(3, 128, 160)
    alone, both = network(*pad_images([small])), network(*pad_images([small, large]))
    torch.testing.assert_close(both.boxes[:1], alone.boxes, **SINGLE)
    torch.testing.assert_close(both.logits[:1], alone.logits, **SINGLE)


def test_crop_grid_spelled_out():
    network = sequential()
    boxes = torch.tensor([[[0.5, 0.25, 0.2, 0.4]]])
    grid = network.crop_grid(boxes, torch.tensor([[0.5, 1.0]]))
    assert grid.shape == (1, 1, 3, 2, 2)
    # cy and h are halved: the image fills half of the batch's height.
    for row, v in enumerate((-1.25, 0.0, 1.25)):
        for column, u in enumerate((-1.25, 1.25)):
            expected = torch.tensor([2 * 0.5 - 1 + 0.2 * u, 2 * 0.125 - 1 + 0.2 * v])
            torch.testing.assert_close(grid[0, 0, row, column], expected, **SINGLE)


def test_cells_are_read_person_by_person():
    """In the order image-major, as if each map were repeated for each person."""
    torch.manual_seed(0)
    maps, grid = torch.randn(2, 5, 4, 6), 1.5 * torch.rand(2, 3, 3, 2, 2) - 0.75
    expected = nn.functional.grid_sample(
        maps.repeat_interleave(3, 0), grid.flatten(0, 1), padding_mode="border", align_corners=False
    )
    torch.testing.assert_close(sample_cells(maps, grid), expected, **SINGLE)


@pytest.mark.parametrize("persons", [1, 9])
def test_projecting_before_or_after_sampling_is_the_same(persons):
    """The map has 24 cells and a person 6: one person is sampled first, nine are not."""
    torch.manual_seed(0)
    maps = torch.randn(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    grid = (3 * torch.rand(2, persons, 3, 2, 2, dtype=torch.float64) - 1.5).requires_grad_()
    weight = torch.randn(7, 5, 1, 1, dtype=torch.float64)
    fast = sample_projected(maps, weight, grid)
    slow = nn.functional.conv2d(sample_cells(maps, grid), weight)
    torch.testing.assert_close(fast, slow, **TOL[torch.float64])
    seed = torch.randn_like(slow)
    for ours, theirs in zip(
        torch.autograd.grad(fast, (maps, grid), seed),
        torch.autograd.grad(slow, (maps, grid), seed),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **TOL[torch.float64])


def test_position_code_of_a_crop():
    network = sequential()
    code = network.crop_position()
    assert code.shape == (1, 16, 3, 2)
    torch.testing.assert_close(code[:, :8], network.pe)
    torch.testing.assert_close(code[0, 8:12, 2, 1], network.col_embed.weight[:, 2])
    torch.testing.assert_close(code[0, 12:, 2, 1], network.row_embed.weight[:, 1])


def test_keypoints_lie_in_the_enlarged_box():
    network = sequential().eval()
    with torch.no_grad():
        network.transformer_kpt.coord_predictor.layers[-1].bias.copy_(torch.tensor([20.0, -20.0]))
    output = network(torch.randn(1, 3, 64, 96))
    x, y, width, height = output.boxes[0, :, None].unbind(-1)
    expected = torch.stack([x + 0.625 * width, y - 0.625 * height], -1).clamp(0, 1)
    torch.testing.assert_close(output.keypoint_coords[0], expected.expand(-1, 6, -1), **SINGLE)


def test_gradient_flows_from_keypoints_into_boxes():
    network = sequential().eval()
    network(torch.randn(1, 3, 64, 96)).keypoint_logits.square().sum().backward()
    assert network.bbox_embed.layers[-1].weight.grad.any()


def test_chosen_persons():
    network, batch = sequential().eval(), images((64, 96), (96, 32))
    every = network(*batch)
    seen = {}

    def choose(logits, boxes):
        seen.update(logits=logits, boxes=boxes)
        return torch.tensor([[2, 0], [1, 3]])

    some = network(*batch, choose_persons=choose)
    assert torch.equal(seen["logits"], every.logits)
    assert torch.equal(seen["boxes"], every.boxes)
    for image, persons in enumerate(([2, 0], [1, 3])):
        for name in ("keypoint_coords", "keypoint_logits"):
            torch.testing.assert_close(
                getattr(some, name)[image], getattr(every, name)[image, persons], **SINGLE
            )


def test_detector_alone():
    network, batch = sequential(), images((64, 96), (96, 32))
    output = network(*batch, choose_persons=lambda logits, _: logits.new_zeros(2, 0).long())
    assert output.keypoint_coords.shape == (2, 0, 6, 2)
    assert output.keypoint_logits.shape == (2, 0, 6, 6)
    assert output.boxes.shape == (2, 4, 4)
    assert len(output.auxiliary_detections) == 1
    assert not output.auxiliary_keypoints


def test_official_constants_are_in_the_state():
    state = sequential().state_dict()
    shapes = {name: tuple(state[name].shape) for name in ("x_interpolate", "y_interpolate", "mask")}
    assert shapes == {"x_interpolate": (1, 2), "y_interpolate": (1, 3), "mask": (1, 3, 2)}
    assert not state["mask"].any()
    torch.testing.assert_close(state["y_interpolate"][0], torch.tensor([-1.25, 0.0, 1.25]))
