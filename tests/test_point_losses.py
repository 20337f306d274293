"""PointHMR's losses: targets by index, the fast heat-map terms against the written-out ones."""

import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.mesh_losses import MeshTargets, MeshTransformerLoss
from kinemesh.models.point_hmr import PointHmrOutput
from kinemesh.models.point_sampling import heat_maps
from kinemesh.point_losses import (
    HeatTargets,
    PointHmrLoss,
    PointLossWeights,
    heat_map_terms,
    heat_targets,
)
from tests import slow_heat_maps
from tests.no_waiting import NoWaiting
from tests.tiny_point_hmr import small_body
from tests.tolerances import TOL

BATCH, VERTICES, SIDE = 3, 4, 8


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return small_body(tmp_path_factory.mktemp("assets"))


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Targets ---------------------------------------------------------------------------------------


def test_targets_are_those_point_by_point():
    points = 1.5 * draw(200, 2)
    found = heat_targets(points[None], 2 * SIDE)
    index, kept = slow_heat_maps.as_tensors(points.tolist(), 2 * SIDE)
    assert 20 < int(kept.sum()) < 200
    assert torch.equal(found.kept_BN[0], kept)
    assert torch.equal(found.index_BN[0], index)


def test_a_point_beyond_the_side_comes_in_again_a_row_below():
    found = heat_targets(torch.tensor([[[1.05, 0.0], [-1.2, 0.0], [0.0, 1.01]]]), 112)
    assert found.kept_BN.tolist() == [[True, True, False]]
    assert found.index_BN[0, :2].tolist() == [56 * 112 + 114, 56 * 112 - 11]


def test_numbers_that_are_none_are_outside():
    points = torch.tensor([[float("nan"), 0.0], [float("inf"), 0.0], [0.0, -1e30], [1e30, 1e30]])
    found = heat_targets(points[None], 112)
    assert not found.kept_BN.any()
    assert (found.index_BN == 0).all()


# Terms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 30.0])  # flat maps, and maps with one place
@pytest.mark.parametrize("times", [1, 2])
def test_terms_and_gradients_are_the_written_out_ones(scale, times):
    logits = (scale * draw(BATCH, VERTICES, SIDE, SIDE)).requires_grad_()
    targets = heat_targets(0.7 * draw(BATCH, VERTICES, 2, seed=1), times * SIDE)
    has = torch.tensor([1.0, 0.0, 1.0])
    found = heat_map_terms(heat_maps(logits), targets, has, enlargement=times)
    slow = slow_heat_maps.heat_map_terms(logits, *targets, has, times)
    for ours, theirs in zip(found, slow, strict=True):
        torch.testing.assert_close(ours, theirs, **TOL[torch.float32])
        (one,) = torch.autograd.grad(ours, logits, retain_graph=True)
        (other,) = torch.autograd.grad(theirs, logits, retain_graph=True)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_a_map_that_is_right_costs_least():
    targets = HeatTargets(torch.tensor([[5 * 2 * SIDE + 7]]), torch.ones(1, 1, dtype=torch.bool))
    right, wrong = torch.zeros(2, 1, 1, SIDE, SIDE).unbind(0)
    right[0, 0, 2, 3] = wrong[0, 0, 3, 3] = 1
    good, bad = heat_map_terms(right, targets), heat_map_terms(wrong, targets)
    assert good.dice < 0.8  # an enlarged map has at most a quarter at one position
    assert good.dice < bad.dice
    assert good.cross_entropy < bad.cross_entropy


def test_nothing_labelled_costs_nothing():
    """The official code has NaN here."""
    logits = draw(2, 3, SIDE, SIDE).requires_grad_()
    inside = heat_targets(torch.zeros(2, 3, 2), 2 * SIDE)
    outside = heat_targets(torch.full((2, 3, 2), 9.0), 2 * SIDE)
    for targets, has in ((inside, torch.zeros(2)), (outside, torch.ones(2))):
        terms = heat_map_terms(heat_maps(logits), targets, has)
        assert [term.item() for term in terms] == [0.0, 0.0]
        (gradient,) = torch.autograd.grad(terms.dice + terms.cross_entropy, logits)
        assert not gradient.any()


def test_less_is_kept_than_an_enlarged_map():
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    heat = heat_maps(draw(2, 5, SIDE, SIDE)).requires_grad_()
    targets = heat_targets(torch.zeros(2, 5, 2), 2 * SIDE)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        heat_map_terms(heat, targets, torch.ones(2))
    own = heat.untyped_storage().data_ptr()
    others = {t.data_ptr(): t.numel() for t in kept if t.untyped_storage().data_ptr() != own}
    assert sum(others.values()) < heat.numel() / 2


def test_maps_of_other_vertices_are_refused():
    targets = heat_targets(torch.zeros(2, 3, 2), 16)
    with pytest.raises(InputError, match="heat: expected maps"):
        heat_map_terms(torch.ones(2, 4, 8, 8), targets)


# The whole loss --------------------------------------------------------------------------------


def output_and_targets(body) -> tuple[PointHmrOutput, MeshTargets]:
    sizes = (len(body.coarse), len(body.levels[0]), len(body.template))
    vertices = tuple(0.3 * draw(2, n, 3, seed=n) for n in sizes)
    camera = torch.tensor([[0.8, 0.0, 0.1], [1.1, 0.0, 0.0]])
    heat = heat_maps(draw(2, sizes[0], SIDE, SIDE))
    output = PointHmrOutput(camera, 0.3 * draw(2, 14, 3, seed=1), vertices, heat)
    known = MeshTargets(
        draw(2, 14, 3, seed=2).abs(),
        draw(2, 14, 4, seed=3).abs(),
        torch.tensor([1.0, 0.0]),
        0.3 * draw(2, sizes[-1], 3, seed=4),
        torch.tensor([0.0, 1.0]),
    )
    return output, known


def test_the_total_adds_heat_maps_to_metros(body):
    output, known = output_and_targets(body)
    terms = PointHmrLoss(body, PointLossWeights(heat=7.0, cross_entropy=11.0))(output, known)
    others = MeshTransformerLoss.body(body)(output, known)
    for name in others.keys() - {"total"}:
        assert torch.equal(terms[name], others[name])
    heat = terms["loss_heat_dice"] + 11 * terms["loss_heat_bce"]
    torch.testing.assert_close(terms["total"], others["total"] + 7 * heat)
    assert terms["loss_heat_bce"] > 0


def test_targets_follow_the_predicted_camera(body):
    output, known = output_and_targets(body)
    loss = PointHmrLoss(body, PointLossWeights())
    coarse = known.vertices_BV3[1, body.coarse.vertex_index]
    scale, shift = output.camera[1, 0], output.camera[1, 1:]
    places = [tuple(float(c) for c in scale * (point[:2] + shift)) for point in coarse]
    index, kept = slow_heat_maps.as_tensors(places, 2 * SIDE)
    found = loss.heat_targets(output, known)
    assert torch.equal(found.index_BN[1], index)
    assert torch.equal(found.kept_BN[1], kept)


def test_unlabelled_meshes_may_hold_anything_and_nothing_waits(body):
    output, known = output_and_targets(body)
    plain = PointHmrLoss(body, PointLossWeights())(output, known)
    known.vertices_BV3[0] = float("nan")
    camera = output.camera.clone().requires_grad_()
    heat = output.heat.clone().requires_grad_()
    loss = PointHmrLoss(body, PointLossWeights())
    with NoWaiting():
        found = loss(output._replace(camera=camera, heat=heat), known)
        found["total"].backward()
    for name, value in plain.items():
        torch.testing.assert_close(found[name].detach(), value)
    assert camera.grad.isfinite().all()
    assert heat.grad.isfinite().all()
    assert not heat.grad[0].any()
