import numpy as np
import pytest
import torch
from torch import Tensor

from kinemesh.bodies import load_body_model, load_rig, load_topology
from kinemesh.bodies.bake_poses import random_body_poses, random_hand_poses
from kinemesh.bodies.parameters import BodyParameters, official_pose, place
from kinemesh.bodies.posable import PosableBody, bone_names, mirrored_rotations, posable_body
from kinemesh.errors import InputError
from kinemesh.geometry.rotations import axis_angle_to_matrix
from tests.tolerances import TOL

EXACT = TOL[torch.float32]
POSES = {"anny-body": random_body_poses, "anny-hand": random_hand_poses}


@pytest.fixture(scope="module")
def hand() -> PosableBody:
    return posable_body("anny-hand")


def random_rotations(count: int, bones: int, spread: float = 0.4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return axis_angle_to_matrix(spread * torch.randn(count, bones, 3, generator=generator))


def parameters(of: PosableBody, seed: int, **changed) -> BodyParameters:
    rng = np.random.default_rng(seed)
    values = {
        "body": of.name,
        "rotations": random_rotations(1, len(of.bones), seed=seed)[0].numpy(),
        "shape": rng.normal(size=len(of.shape_basis)).astype(np.float32),
        "translation_m": rng.normal(size=3).astype(np.float32),
        "residual_mm": 0.0,
    }
    return BodyParameters(**values | changed)


@pytest.mark.parametrize("name", POSES)
def test_poses_of_a_rig_are_those_of_the_rig(name):
    rig, body = load_rig(name), posable_body(name)
    rng = np.random.default_rng(0)
    rotations = POSES[name](rig, 2, rng)
    shapes = torch.stack([rig.sample_shape(rng) for _ in range(2)])
    expected, found = rig.pose(rotations, shapes), body.pose(rotations, shapes)
    torch.testing.assert_close(found.vertices, rig.topology_vertices(expected), **EXACT)
    torch.testing.assert_close(found.bones, expected.bones, **EXACT)
    torch.testing.assert_close(
        body.rest(shapes).vertices, rig.topology_vertices(rig.rest(shapes)), **EXACT
    )
    assert torch.equal(body.faces, load_topology(name).faces)
    assert body.bones == rig.bones == bone_names(name)


def test_smpl_stands_upright_and_poses_as_its_file_says(made_up_assets):
    model, body = load_body_model(made_up_assets, "smpl"), posable_body("smpl", made_up_assets)
    vectors = 0.4 * torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(1))
    betas = torch.randn(2, 10, generator=torch.Generator().manual_seed(2))
    expected = model(vectors.flatten(1), betas)
    turn = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    found = body.pose(turn @ axis_angle_to_matrix(vectors) @ turn, betas)
    torch.testing.assert_close(found.vertices, expected.vertices @ turn, **EXACT)
    torch.testing.assert_close(found.bones, expected.joints @ turn, **EXACT)
    rest = body.rest(torch.zeros(1, 10)).bones[0]
    assert rest[body.bone_index("head"), 1] < rest[body.bone_index("left_ankle"), 1]  # y is down
    assert bone_names("smpl") == body.bones


def test_mano_poses_as_its_file_says_from_the_flat_hand(made_up_assets):
    model, body = load_body_model(made_up_assets, "mano"), posable_body("mano", made_up_assets)
    vectors = 0.4 * torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(3))
    betas = torch.randn(2, 10, generator=torch.Generator().manual_seed(4))
    full = vectors.clone()
    full[:, 1:] += model.mean_pose_45.view(15, 3)
    expected = model(vectors.flatten(1), betas)
    found = body.pose(axis_angle_to_matrix(full), betas)
    torch.testing.assert_close(found.vertices, expected.vertices, **EXACT)
    torch.testing.assert_close(found.bones[0, 0], expected.joints[0, 0], **EXACT)
    # the file's fingers go index, middle, little, ring, thumb
    assert body.bones[0] == "wrist"
    assert body.bones[7] == "pinky_1"
    assert body.bones[13] == "thumb_1"
    names = [model.joint_regressor.shape, bone_names("mano")]
    assert names == [(21, 778), body.bones]


def test_mirrored_body_poses_as_the_mirror_image(hand):
    rotations, shape = random_rotations(1, len(hand.bones)), torch.zeros(1, 32)
    left = hand.mirrored()
    expected = hand.pose(rotations, shape).vertices * torch.tensor([-1.0, 1.0, 1.0])
    found = left.pose(mirrored_rotations(rotations), shape)
    torch.testing.assert_close(found.vertices, expected, **EXACT)
    assert left.bones[2] == "wrist.L"
    assert left.mirrored().bones == hand.bones
    assert torch.equal(left.faces, hand.faces[:, [0, 2, 1]])


def test_mirrored_correctives_follow_the_mirror(made_up_assets):
    body = posable_body("mano", made_up_assets)
    rotations, shape = random_rotations(1, 16), torch.randn(1, 10)
    expected = body.pose(rotations, shape).vertices * torch.tensor([-1.0, 1.0, 1.0])
    found = body.mirrored().pose(mirrored_rotations(rotations), shape).vertices
    torch.testing.assert_close(found, expected, **EXACT)


def test_place_moves_bodies_and_mirrors_left_hands(hand):
    right = parameters(hand, seed=5, side="right")
    left = parameters(hand, seed=5, side="left")
    placed = place(hand, [right, left])
    shift = torch.from_numpy(right.translation_m)
    flip = torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(
        placed.vertices[1] - shift, (placed.vertices[0] - shift) * flip, **EXACT
    )
    torch.testing.assert_close(placed.bones[1] - shift, (placed.bones[0] - shift) * flip, **EXACT)
    posed = hand.pose(torch.from_numpy(right.rotations)[None], torch.from_numpy(right.shape)[None])
    torch.testing.assert_close(placed.vertices[0], posed.vertices[0] + shift, **EXACT)
    assert place(hand, []).vertices.shape == (0, 1609, 3)


@pytest.mark.parametrize("name", ["smpl", "mano"])
def test_official_pose_is_what_the_model_itself_takes(name, made_up_assets):
    model, body = load_body_model(made_up_assets, name), posable_body(name, made_up_assets)
    person = parameters(body, seed=3)
    pose, betas, translation = official_pose(body, person)
    made = model.posed(pose[None], betas[None]).vertices[0] + translation
    torch.testing.assert_close(made, place(body, [person]).vertices[0], **EXACT)
    with pytest.raises(InputError, match="found a left hand"):
        official_pose(body, parameters(body, seed=3, side="left"))


def test_selected_vertices_are_posed_alike(hand):
    rotations, shape, some = random_rotations(1, 22), torch.randn(1, 32), torch.tensor([3, 700])
    found = hand.select(some).pose(rotations, shape).vertices
    torch.testing.assert_close(found, hand.pose(rotations, shape).vertices[:, some], **EXACT)


def test_gradients_reach_pose_and_shape(hand):
    vectors = torch.zeros(1, 22, 3, requires_grad=True)
    shape = torch.zeros(1, 32, requires_grad=True)
    hand.pose(axis_angle_to_matrix(vectors), shape).vertices.square().sum().backward()
    assert vectors.grad.abs().sum() > 0
    assert shape.grad.abs().sum() > 0


def test_what_does_not_fit_is_refused(hand, tmp_path):
    with pytest.raises(InputError, match="expected one of anny-body"):
        posable_body("skeleton")
    with pytest.raises(InputError, match="needs a folder with your own SMPL"):
        posable_body("smpl")
    with pytest.raises(InputError, match="expected one of"):
        bone_names("skeleton")
    with pytest.raises(InputError, match=r"\(B, 22, 3, 3\) for body 'anny-hand', found \(1, 21"):
        hand.pose(random_rotations(1, 21), torch.zeros(1, 32))
    with pytest.raises(InputError, match="one batch size, found 2 and 1"):
        hand.pose(random_rotations(2, 22), torch.zeros(1, 32))
    with pytest.raises(InputError, match="no bone 'elbow'"):
        hand.bone_index("elbow")
    with pytest.raises(InputError, match="expected that of rig 'anny-hand'"):
        PosableBody.of_rig(load_rig("anny-hand"), load_topology("anny-body"))
    with pytest.raises(InputError, match="expected a SmplModel or a ManoModel"):
        PosableBody.of_skinning(load_rig("anny-hand"), "anny-hand")
    with pytest.raises(InputError, match="body 'anny-hand', found smpl"):
        place(hand, [parameters(hand, 0, body="smpl")])
    with pytest.raises(InputError, match="arrays of one shape"):
        place(hand, [parameters(hand, 0), parameters(hand, 1, shape=np.zeros(3, np.float32))])
    with pytest.raises(InputError, match=r"expected shape \(N, 3, 3\)"):
        parameters(hand, 0, rotations=np.zeros((22, 3), np.float32))
    with pytest.raises(InputError, match=r"expected shapes \(K,\) and \(3,\)"):
        parameters(hand, 0, translation_m=np.zeros((1, 3), np.float32))
