"""Networks rewritten for inference give the outputs of the networks they are made from."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.bodies import load_topology
from kinemesh.errors import InputError
from kinemesh.models.checkpoints import from_official
from kinemesh.models.folding import fold_batch_norm
from kinemesh.models.fused_blocks import add_enlarged
from kinemesh.models.fused_layers import FusedConv2d, FusedLinear, activate, onednn_available
from kinemesh.models.hrnet import HRNet
from kinemesh.models.optimised import optimise
from kinemesh.models.registry import SHIPPED, load_model
from kinemesh.models.variants import VARIANTS, blank_network, build_variant
from tests.parity.mesh_transformers import DEAD, adjacency, outputs
from tests.parity.networks import WeightDrawer, read_manifest
from tests.seeded_weights import input_image, mesh_transformer_state
from tests.test_variants import tiny
from tests.tiny_prtr import tiny_network
from tests.tolerances import PARITY_ATOL, TOL

SIDE = 64
SMALL = ("metro-body-w64", "metro-hand-r50", "graphormer-body-w64", "graphormer-handpose-w64")
KERNELS = ("onednn", "plain")
needs_onednn = pytest.mark.skipif(not onednn_available(), reason="PyTorch without oneDNN")


@pytest.fixture(params=KERNELS)
def kernels(request):
    if request.param == "onednn" and not onednn_available():
        pytest.skip("PyTorch without oneDNN")
    return request.param


def small_network(name: str) -> nn.Module:
    """A registered network at a small size, with statistics and weights of its own."""
    changes = tiny(name) | {"layers": 2}
    if name == "metro-body-w64":
        changes["cells"] = (SIDE // 32) ** 2
    topology = load_topology(f"anny-{VARIANTS[name].task}")
    network = build_variant(name, topology, positions=600, **changes).eval()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict(mesh_transformer_state(shapes))
    return network


def tensors(output: object) -> list[Tensor]:
    """All tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    assert isinstance(output, (tuple, list))
    return [tensor for part in output for tensor in tensors(part)]


def assert_same(output: object, expected: object, **tolerance: float) -> None:
    found, wanted = tensors(output), tensors(expected)
    assert len(found) == len(wanted)
    for ours, reference in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, reference, **(tolerance or TOL[torch.float32]))


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_the_same(name, kernels):
    network = small_network(name)
    optimised = optimise(network, kernels=kernels)
    for batch in (1, 3):
        image = input_image("images", (batch, 3, SIDE, SIDE))
        with torch.no_grad():
            expected = network(image)
        assert_same(optimised(image), expected)
        assert_same(optimised(image), expected)  # what is overwritten belongs to one call


def test_neither_the_network_nor_the_image_changes():
    network = small_network("graphormer-body-w64")
    state = {key: value.clone() for key, value in network.state_dict().items()}
    image = input_image("images", (2, 3, SIDE, SIDE))
    given = image.clone(memory_format=torch.channels_last)
    with torch.no_grad():
        before = network(given)
        optimise(network)(given)
        after = network(given)
    assert torch.equal(given, image)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert all(map(torch.equal, tensors(before), tensors(after)))


def test_attention_and_masks_pass_through(kernels):
    network = small_network("graphormer-hand-w64")
    image = input_image("images", (2, 3, SIDE, SIDE))
    keep_BQ1 = torch.ones(2, len(network.template), 1)
    keep_BQ1[:, ::3] = 0
    with torch.no_grad():
        expected = network(image, keep_BQ1, return_attention=True)
    output = optimise(network, kernels=kernels)(image, keep_BQ1, return_attention=True)
    assert output.attention
    assert_same(output, expected)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models(name, kernels):
    network, _, metadata = load_model(name)
    side = int(metadata["resolution"])
    image = input_image("images", (2, 3, side, side)).sigmoid()
    with torch.no_grad():
        expected = network(image)
    optimised = optimise(network, kernels=kernels)
    for ours, reference in zip(optimised(image), expected, strict=True):
        scale = max(1.0, reference.abs().max().item())  # pixels and logits reach a hundred
        assert_same(ours, reference, rtol=0, atol=scale * TOL[torch.float32]["atol"])
    assert optimised.config == network.config


def test_each_map_of_hrnet(kernels):
    network = HRNet(8, stem_width=8, head_planes=(4, 4, 8, 8), modules=(2, 2, 2)).eval()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict(mesh_transformer_state(shapes, prefix="backbone."))
    image = input_image("images", (2, 3, 64, 96))
    with torch.no_grad():
        expected = network(image)
    assert_same(optimise(network, kernels=kernels)(image), expected)


@needs_onednn
@pytest.mark.skipif(not onednn_available(torch.bfloat16), reason="CPU without bfloat16")
@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_is_close_and_returns_float32(name):
    network = small_network(name)
    image = input_image("images", (2, 3, SIDE, SIDE))
    optimised = optimise(network, torch.bfloat16)
    with torch.no_grad():
        expected = network(image)
    output = optimised(image)
    assert not torch.equal(output.joints, expected.joints)
    for ours, reference in zip(tensors(output), tensors(expected), strict=True):
        assert ours.dtype == torch.float32
        # Twice the usual share, of the largest value: eight channels average little rounding out.
        tolerance = 2 * TOL[torch.bfloat16]["rtol"] * reference.abs().max().item()
        torch.testing.assert_close(ours, reference, rtol=0, atol=tolerance)


COMPILED = [
    name if name.startswith("graphormer") else pytest.param(name, marks=pytest.mark.slow)
    for name in SMALL
]
"""Graphormer is METRO and more."""


@pytest.mark.parametrize("name", COMPILED)
def test_the_compiler_takes_the_whole_graph(name):
    """Tracing fails where Python would have to interfere; no kernels are generated here.

    Networks as they are trained are compiled in the tests of each.
    """
    network = small_network(name)
    image = input_image("images", (2, 3, SIDE, SIDE))
    rewritten = optimise(network, kernels="plain").network
    with torch.no_grad():
        expected = network(image)
        torch._dynamo.reset()
        traced = torch.compile(rewritten, fullgraph=True, backend="eager")
        assert_same(traced(image), expected)


@pytest.mark.slow
def test_compiled_outputs_are_the_same():
    network = small_network("graphormer-body-w64")
    image = input_image("images", (2, 3, SIDE, SIDE))
    with torch.no_grad():
        expected = network(image)
    assert_same(optimise(network, mode="compiled")(image), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["graphormer-body-w64", "metro-body-w64"])
def test_full_size(name):
    variant = VARIANTS[name]
    network = blank_network(variant.config, variant.backbone).to_empty(device="cpu").eval()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict(mesh_transformer_state(shapes))
    for key, value in network.named_buffers():
        if key.endswith(("template", "adjacency")):
            value.copy_(input_image(key, tuple(value.shape)) / value.shape[1])
    image = input_image("images", (1, 3, 224, 224))
    with torch.no_grad():
        expected = network(image)
    assert_same(optimise(network)(image), expected, rtol=0, atol=PARITY_ATOL)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "gelu"])
@pytest.mark.parametrize("groups", [1, 4])
def test_convolution_with_norm_and_activation(activation, groups, kernels):
    conv = nn.Conv2d(8, 12, 3, 2, 1, groups=groups, bias=groups > 1)
    norm = with_statistics(nn.BatchNorm2d(12))
    x = 4 * torch.randn(2, 8, 9, 7)
    expected = activate(norm(conv(x)), activation).detach()
    fused = FusedConv2d(conv, norm, activation, kernels=kernels)
    assert_same(fused(x.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles_work_as_the_original(copied, kernels):
    """Worker processes and copies get packed weights too, which PyTorch itself cannot pickle."""
    layers = [nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)]
    fused = nn.Sequential(
        *(FusedConv2d(layer, None, "relu", kernels=kernels) for layer in layers),
        FusedLinear(nn.Linear(7, 5), "gelu", kernels=kernels),
    )
    x = torch.randn(2, 8, 6, 7)
    twin = copied(fused)
    assert torch.equal(twin(x), fused(x))
    assert twin[0].weight is not fused[0].weight


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_convolution_added_to_a_sum(activation, kernels):
    conv, norm = nn.Conv2d(8, 12, 1, bias=False), with_statistics(nn.BatchNorm2d(12))
    x, total = torch.randn(2, 8, 5, 5), torch.randn(2, 12, 5, 5)
    expected = activate(total + norm(conv(x)), activation).detach()
    fused = FusedConv2d(conv, norm, activation, kernels=kernels)
    assert_same(fused.add_to(total, x), expected)


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layer(activation, bias, kernels):
    linear = nn.Linear(9, 5, bias)
    x, total = torch.randn(2, 7, 9), torch.randn(2, 7, 5)
    fused = FusedLinear(linear, activation, kernels=kernels)
    assert_same(fused(x), activate(linear(x), activation).detach())
    if activation == "none":
        assert_same(fused.add_to(total, x), (total + linear(x)).detach())


def test_folding_is_exact_in_float64():
    conv = nn.Conv2d(4, 6, 3, bias=True).double()
    norm = with_statistics(nn.BatchNorm2d(6).double())
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    weight, bias = fold_batch_norm(conv, norm)
    torch.testing.assert_close(F.conv2d(x, weight, bias), norm(conv(x)), **TOL[torch.float64])


@pytest.mark.parametrize("factor", [2, 4])
def test_enlarging_and_adding_in_one_pass(factor):
    coarse = torch.randn(2, 5, 3, 4).contiguous(memory_format=torch.channels_last)
    fine = torch.randn(2, 5, 3 * factor, 4 * factor).contiguous(memory_format=torch.channels_last)
    total = add_enlarged(fine, coarse)
    assert torch.equal(total, fine + F.interpolate(coarse, scale_factor=factor, mode="nearest"))
    assert total.is_contiguous(memory_format=torch.channels_last)


def test_refusals():
    network = small_network("graphormer-handpose-w64")
    with pytest.raises(InputError, match="dtype"):
        optimise(network, torch.float16)
    with pytest.raises(InputError, match="meta"):
        optimise(nn.Linear(2, 2, device="meta"))
    with pytest.raises(InputError, match="cannot be trained"):
        optimise(network).train()


def with_statistics(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """A batch norm in evaluation that is not the identity."""
    for tensor in (norm.weight.data, norm.running_var):
        tensor.uniform_(0.5, 2)
    for tensor in (norm.bias.data, norm.running_mean):
        tensor.normal_()
    return norm.eval()


def test_official_outputs(shared):
    """A golden of the official code, with the backbone in the same rewritten network."""
    folder = shared / "parity" / "graphormer"
    cases = {case.name: case for case in read_manifest(folder / "manifest.json", folder / "golden")}
    case = cases["graphormer_hand_w64"]
    golden = case.golden()
    state = WeightDrawer().state(case, lambda name: bool(DEAD.search(name)))
    ours = from_official(state, "graphormer-hand", heads=case.config["num_attention_heads"]).state
    variant = VARIANTS["graphormer-hand-w64"]
    network = blank_network(variant.config, variant.backbone).to_empty(device="cpu").eval()
    network.load_state_dict(ours)
    network.template.copy_(torch.from_numpy(golden["template/ref_vertices"])[0])
    graph = adjacency(folder / "golden" / "topology.npz", "hand", variant.config.coarse_vertices)
    for name, buffer in network.named_buffers():
        if name.endswith("adjacency"):
            buffer.copy_(graph)
    output = optimise(network)(input_image("images", case.inputs["images"], case.salt))
    for name, value in outputs(output).items():
        expected = torch.from_numpy(golden[name])
        torch.testing.assert_close(
            value, expected, rtol=0, atol=PARITY_ATOL, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("kind", ["prtr", "prtr-hrnet", "prtr-deformable", "prtr-sequential"])
def test_keypoint_networks_say_the_same(kind, kernels):
    network = tiny_network(kind)[0]
    image = input_image("images", (2, 3, 96, 64))
    with torch.no_grad():
        expected = network(image)
    found = optimise(network, kernels=kernels)(image)
    sequential = kind == "prtr-sequential"
    names = ("logits", "boxes") if sequential else ("logits", "coords")
    names += ("keypoint_logits", "keypoint_coords") if sequential else ()
    for name in names:
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=1e-4, atol=5e-5, msg=name
        )
