"""The network behind the shipped weights: shapes, gradients, frames and its slow twins."""

from dataclasses import replace

import pytest
import torch

from kinemesh.bodies import load_topology
from kinemesh.errors import InputError
from kinemesh.geometry.heat_maps import peak_share
from kinemesh.models.guided_graphormer import (
    GuidedGraphormer,
    GuidedGraphormerConfig,
    joint_blend,
)
from tests.tolerances import TOL

TINY = GuidedGraphormerConfig(
    resolution=64,
    neck_dim=16,
    query_dim=32,
    query_layers=1,
    hidden_dims=(16, 16, 8),
    block_layers=1,
)


@pytest.fixture(scope="module", params=["anny-hand", "anny-body"])
def network(request) -> GuidedGraphormer:
    torch.manual_seed(0)
    return GuidedGraphormer(TINY, load_topology(request.param))


def test_shapes_in_evaluation(network):
    topology = load_topology("anny-hand" if len(network.template_J3) == 21 else "anny-body")
    network.eval()
    with torch.inference_mode():
        output = network(torch.rand(2, 3, 64, 64))
    J, N, V = len(topology.skeleton), len(topology.coarse), len(topology.template)
    assert output.joints.shape == (2, J, 3)
    assert output.coarse.shape == (2, N, 3)
    assert output.vertices.shape == (2, V, 3)
    assert output.joints_2d.shape == (2, J, 2)
    assert output.camera.shape == (2, 3)
    assert output.side_logits.shape == (2,)
    assert ((output.confidence >= 0) & (output.confidence <= 1)).all()
    assert torch.allclose(output.vertices, topology.coarse.upsample(output.coarse), atol=1e-6)


def test_outputs_are_in_the_root_frame(network):
    network.eval()
    with torch.inference_mode():
        joints = network(torch.rand(2, 3, 64, 64)).joints
    root = joints[:, list(network.root_joints)].mean(1)
    assert torch.allclose(root, torch.zeros_like(root), atol=1e-6)


def test_gradient_reaches_every_parameter(network):
    network.train()
    output = network(torch.rand(2, 3, 64, 64))
    parts = (output.joints, output.coarse, output.joints_2d, output.camera, output.heat_map_logits)
    loss = sum(part.square().mean() for part in parts)
    loss = loss + output.inside_logits.mean() + output.side_logits.mean()
    network.zero_grad()
    loss.backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert without == []
    assert output.vertices.shape[1] == 0


def test_an_image_does_not_depend_on_its_batch(network):
    network.eval()
    images = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        together, alone = network(images).joints[1:2], network(images[1:2]).joints
    assert torch.allclose(together, alone, **TOL[torch.float32])


def test_joint_blend_prefers_the_nearest_joint():
    joints = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5]])
    blend = joint_blend(torch.tensor([[0.9, 0.0, 0.0]]), joints, neighbours=3)
    assert blend.argmax().item() == 1
    assert blend[0, 3] == 0
    assert blend.sum().item() == pytest.approx(1)


def test_peak_share_equals_a_loop():
    torch.manual_seed(0)
    logits, uv = torch.randn(2, 3, 8, 10), torch.rand(2, 3, 2) * 2 - 1
    share = peak_share(logits, uv)
    mass = logits.flatten(2).softmax(-1).view_as(logits)
    for b in range(2):
        for j in range(3):
            x, y = (uv[b, j, 0] + 1) * 5, (uv[b, j, 1] + 1) * 4
            total = sum(
                float(mass[b, j, r, c])
                for r in range(8)
                for c in range(10)
                if (r + 0.5 - y) ** 2 + (c + 0.5 - x) ** 2 <= 4
            )
            assert share[b, j].item() == pytest.approx(total, abs=1e-5)


def test_frozen_blocks_keep_their_values():
    torch.manual_seed(0)
    network = GuidedGraphormer(replace(TINY, frozen_blocks=3), load_topology("anny-hand")).train()
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network(torch.rand(2, 3, 64, 64)).heat_map_logits.square().mean().backward()
    optimiser.step()
    changed = {
        name
        for name, value in network.backbone.state_dict().items()
        if not value.equal(before[name])
    }
    frozen = ("_conv_stem", "_bn0", "_blocks.0.", "_blocks.1.", "_blocks.2.")
    assert changed
    assert not [name for name in changed if name.startswith(frozen)]


def test_a_share_of_a_training_batch_goes_through_the_mesh_encoder():
    torch.manual_seed(0)
    config = replace(TINY, resolution=32, mesh_share=0.25)
    network = GuidedGraphormer(config, load_topology("anny-hand")).train()
    image, coarse = torch.rand(8, 3, 32, 32), network.template_N3.shape[0]
    output = network(image)
    assert output.coarse.shape == (2, coarse, 3)
    assert output.joints.shape == output.lifted.shape == (8, 21, 3)
    assert torch.equal(output.joints[:6], output.lifted[:6])
    assert not torch.equal(output.joints[6:], output.lifted[6:])
    assert network(image[:2]).coarse.shape == (1, coarse, 3)  # one sample at least
    with torch.inference_mode():
        assert network.eval()(image).coarse.shape == (8, coarse, 3)


def test_the_last_samples_are_those_with_a_mesh():
    torch.manual_seed(0)
    whole = GuidedGraphormer(replace(TINY, resolution=32), load_topology("anny-hand"))
    part = GuidedGraphormer(replace(whole.config, mesh_share=0.5), load_topology("anny-hand"))
    part.load_state_dict(whole.state_dict())
    image = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        all_of_them, last = whole.train()(image), part.train()(image)
    torch.testing.assert_close(last.coarse, all_of_them.coarse[2:], **TOL[torch.float32])
    torch.testing.assert_close(last.joints[2:], all_of_them.joints[2:], **TOL[torch.float32])


def test_learning_the_spread_changes_nothing_else():
    torch.manual_seed(0)
    config = replace(TINY, resolution=32, spread=True)
    network = GuidedGraphormer(config, load_topology("anny-hand")).train()
    spread = network(torch.rand(2, 3, 32, 32)).spread
    assert spread.shape == (2, 21, 2)
    assert (spread > 0).all()
    spread.log().sum().backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    assert reached == {"spread_head.weight", "spread_head.bias"}


@pytest.mark.parametrize(
    "change",
    [
        {"resolution": 100},
        {"heads": 5},
        {"mesh_heads": 3},
        {"frozen_blocks": 17},
        {"mesh_share": 0.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_impossible_sizes_are_refused(change):
    with pytest.raises(InputError, match=r"network\."):
        replace(TINY, **change)


def test_geometry_stays_exact_in_mixed_precision(network):
    network.eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        output = network(image)
    assert output.joints.dtype == output.vertices.dtype == torch.float32
    root = output.joints[:, list(network.root_joints)].mean(1)
    assert root.abs().max() < 1e-6
