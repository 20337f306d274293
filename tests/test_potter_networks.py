"""POTTER's networks: fast paths against slow twins, sizes, gradients, what is refused."""

import copy

import pytest
import torch
from torch.autograd import gradcheck

from kinemesh.errors import InputError
from kinemesh.models.activation_checkpointing import checkpoint_activations
from kinemesh.models.optimised import optimise
from kinemesh.models.pooling_attention import (
    DropPath,
    PoolAttn,
    PoolFormerBlock,
    embedwise_attention,
    patchwise_attention,
)
from kinemesh.models.potter_classifier import PotterClassifier, PotterClassifierConfig
from kinemesh.models.potter_hand import PotterHand, PotterHandConfig
from kinemesh.models.potter_mesh import PotterMesh, PotterMeshConfig, expected_cells
from kinemesh.models.potter_trunk import HighResolutionStream, PyramidConfig, TrunkConfig
from tests.parity import potter_twins
from tests.parity.potter_networks import written_out
from tests.tiny_potter import TINY, tiny_hand

MESH = PotterMeshConfig(**TINY, joints=5, hidden=8, twists=4, shapes=3)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(11)


def awake(network):
    """Branches with some weight: fresh layer scales of 1e-5 would hide them."""
    for name, value in network.named_parameters():
        if "layer_scale" in name:
            torch.nn.init.normal_(value)
    return network


# Blocks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 32, 8, 8), (1, 64, 7, 10), (2, 128, 3, 1), (1, 320, 2, 5)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_pooling_attention_is_its_written_out_form(shape, channels_last):
    x = torch.randn(shape)
    given = x.to(memory_format=torch.channels_last) if channels_last else x
    torch.testing.assert_close(patchwise_attention(given), potter_twins.patchwise_attention(x))
    torch.testing.assert_close(embedwise_attention(given), potter_twins.embedwise_attention(x))


def test_gradients_of_pooling_attention_are_those_of_finite_differences():
    x = torch.randn(1, 64, 2, 3, dtype=torch.float64, requires_grad=True)

    def both(value):
        return patchwise_attention(value) + embedwise_attention(value)

    assert gradcheck(both, (x,), fast_mode=True)
    block = awake(PoolFormerBlock(32, 2)).double()
    assert gradcheck(block, (torch.randn(1, 32, 3, 2).double().requires_grad_(),), fast_mode=True)


def test_layer_scales_begin_small_and_wide_blocks_are_refused():
    block = PoolFormerBlock(64, 2)
    assert torch.equal(block.layer_scale_1, torch.full((64,), 1e-5))
    x = torch.randn(2, 64, 4, 4)
    torch.testing.assert_close(block(x), x, atol=1e-3, rtol=0)
    with pytest.raises(InputError, match="multiples of 32 channels, found 40"):
        PoolAttn(40)


def test_drop_path_leaves_out_whole_samples_and_keeps_the_mean():
    drop, x = DropPath(0.25), torch.ones(4000, 1, 2, 2)
    out = drop(x)
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(out.amax((1, 2, 3)), out.amin((1, 2, 3)))
    assert out.mean() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(x), x)
    with pytest.raises(InputError, match="drop_path"):
        DropPath(1.0)


def test_rates_of_drop_path_grow_over_all_stages_and_inside_each_block():
    stage = HighResolutionStream(TrunkConfig(drop_path=0.3, stream_layers=(2, 1, 4)))
    rates = [
        [block.drop_path.share for block in b] for b in (stage.Block1, stage.Block2, stage.Block3)
    ]
    assert rates == [[0, 0.3], [0], pytest.approx([0, 0.1, 0.2, 0.3])]
    pyramid = PotterClassifier(PotterClassifierConfig(drop_path=0.11, widths=(32,) * 4))
    found = [m.share for m in pyramid.modules() if isinstance(m, DropPath)]
    assert found == pytest.approx([0.01 * n for n in range(12)])


# Networks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [None, 5])
def test_hand_network_and_its_gradients_are_those_of_the_whole_volume(depth):
    network = awake(tiny_hand(depth=depth, dropout=0.0, drop_path=0.0)).double()
    slow = written_out(copy.deepcopy(network))
    image = torch.randn(2, 3, 64, 64).double()
    fast_out, slow_out = network(image), slow(image)
    torch.testing.assert_close(fast_out, slow_out)
    for out in (fast_out, slow_out):
        out.square().sum().backward()
    for (name, ours), theirs in zip(network.named_parameters(), slow.parameters(), strict=True):
        if ours.grad is None or theirs.grad is None:
            assert name.startswith("poolattnformer_pose.norm3.")
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_mesh_network_and_its_gradients_are_those_of_the_whole_volume():
    network = awake(PotterMesh(MESH)).double()
    slow = written_out(copy.deepcopy(network))
    for module in (network, slow):
        module.eval()
    image = torch.randn(2, 3, 64, 64).double()
    fast_out, slow_out = network(image), slow(image)
    for ours, theirs in zip(fast_out, slow_out, strict=True):
        torch.testing.assert_close(ours, theirs)
    for out in (fast_out, slow_out):
        (out.joints_xyz.square().sum() + out.confidence.sum() + out.twist.square().sum()).backward()
    for (name, ours), theirs in zip(network.named_parameters(), slow.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_every_parameter_learns_but_the_norm_that_nothing_reads():
    network = awake(tiny_hand())
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert set(still) == {f"poolattnformer_pose.norm3.{kind}" for kind in ("weight", "bias")}
    assert all(not network.get_parameter(name).requires_grad for name in still)


def test_soft_argmax_is_the_written_out_one_and_finds_a_sharp_peak():
    logits = torch.randn(2, 3, 4, 5, 6)
    torch.testing.assert_close(expected_cells(logits), potter_twins.expected_cells(logits))
    sharp = torch.zeros(1, 1, 4, 5, 6)
    sharp[0, 0, 3, 1, 2] = 1e4
    torch.testing.assert_close(expected_cells(sharp), torch.tensor([[[2 / 6, 1 / 5, 3 / 4]]]) - 0.5)


def test_mesh_network_is_about_its_first_joint_in_evaluation_only():
    network = PotterMesh(MESH, mean_shape=torch.tensor([1.0, 2.0, 3.0]))
    image = torch.randn(2, 3, 64, 64)
    training, evaluation = network(image), network.eval()(image)
    assert training.joints_xyz[:, 0].abs().min() > 0
    assert torch.equal(evaluation.joints_xyz[:, 0], torch.zeros(2, 3))
    offset = evaluation.shape - evaluation.shape_offset
    torch.testing.assert_close(offset, torch.tensor([[1.0, 2.0, 3.0]] * 2))
    distance = 1000 / (256 * evaluation.camera_scale[:, 0])
    u, v, d = evaluation.joints_uvd[:, 0].unbind(1)
    expected = torch.stack(
        [u * 0.256 * (d * 2.2 + distance), v * 0.256 * (d * 2.2 + distance), d * 2.2 + distance], 1
    )
    torch.testing.assert_close(evaluation.camera_root[:, 0], expected)
    with pytest.raises(InputError, match=r"mean_shape: expected \(3,\)"):
        PotterMesh(MESH, mean_shape=torch.zeros(10))


def test_a_forward_pass_does_not_depend_on_the_batch_or_the_memory_layout():
    network = awake(tiny_hand()).eval()
    image = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        together = network(image)
        alone = torch.cat([network(one[None]) for one in image])
        other = network(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together, other, atol=1e-5, rtol=1e-5)


def test_rewritten_and_recomputing_networks_compute_the_same():
    image = torch.randn(2, 3, 64, 64)
    for network in (awake(tiny_hand(dropout=0.0, drop_path=0.0)), awake(PotterMesh(MESH))):
        thrifty = copy.deepcopy(network)
        checkpoint_activations(thrifty)
        first, second = network.eval()(image), optimise(network)(image)
        for ours, theirs in zip(first, second, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        if isinstance(network, PotterHand):
            for each in (network, thrifty):
                each.train()(image).square().sum().backward()
            name = "poolattnformer_pose.stage1.Block1.0.token_mixer.proj1.weight"
            torch.testing.assert_close(
                network.get_parameter(name).grad, thrifty.get_parameter(name).grad
            )


def test_long_sums_are_not_narrowed_by_autocast():
    image = torch.randn(2, 3, 64, 64)
    hand, mesh = awake(tiny_hand()).eval(), awake(PotterMesh(MESH)).eval()
    with torch.no_grad():
        exact, exact_mesh = hand(image), mesh(image)
        with torch.autocast("cpu", torch.bfloat16):
            narrow, narrow_mesh = hand(image).float(), mesh(image)
    assert (narrow - exact).std() < 0.1 * exact.std()
    assert narrow_mesh.joints_uvd.dtype == torch.float32
    torch.testing.assert_close(narrow_mesh.joints_uvd, exact_mesh.joints_uvd, atol=2e-3, rtol=0)


@pytest.mark.slow
def test_exported_hand_network_computes_the_same():
    network = awake(tiny_hand()).eval()
    image = torch.randn(2, 3, 64, 64)
    program = torch.export.export(network, (image,))
    torch.testing.assert_close(program.module()(image), network(image))


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"expected 64 x 64 px, found \(32, 64\)"):
        tiny_hand()(torch.zeros(1, 3, 32, 64))
    with pytest.raises(InputError, match="expected 64 x 64 px"):
        PotterMesh(MESH)(torch.zeros(1, 3, 96, 96))
    with pytest.raises(InputError, match="multiples of 32 px"):
        tiny_hand().poolattnformer_pose(torch.zeros(1, 3, 48, 64))
    with pytest.raises(InputError, match="side: expected a multiple of 32 px, found 100"):
        PotterHandConfig(side=100)
    with pytest.raises(InputError, match="side: expected a multiple of 32 px"):
        PotterMeshConfig(side=20)
    with pytest.raises(InputError, match="layers: expected four positive numbers"):
        PyramidConfig(layers=(1, 2, 3))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="stream_layers: expected three positive numbers"):
        TrunkConfig(stream_layers=(1, 0, 3))
    with pytest.raises(InputError, match="classes"):
        PotterClassifierConfig(classes=0)
    with pytest.raises(InputError, match="joints, depth"):
        PotterHandConfig(depth=0)
    with pytest.raises(InputError, match="focal_px"):
        PotterMeshConfig(focal_px=0)


def test_side_decides_the_volume():
    assert (PotterHandConfig().cells, PotterHandConfig(side=128).depth_cells) == (56, 32)
    assert PotterMeshConfig().cells == 64
    assert isinstance(tiny_hand(), PotterHand)
