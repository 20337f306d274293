from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from kinemesh.bodies import load_rig, load_topology
from kinemesh.bodies.bake_poses import random_body_poses, random_hand_poses
from kinemesh.bodies.fit_selection import select_vertices
from kinemesh.bodies.fit_system import FitSystem, State
from kinemesh.bodies.fitting import BodyFitter, fit_bodies
from kinemesh.bodies.parameters import BodyParameters, place
from kinemesh.bodies.posable import PosableBody, posable_body
from kinemesh.errors import InputError
from kinemesh.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from kinemesh.inference.fitting import PeopleFitter, fit_people
from kinemesh.inference.person import Person, PhotoCamera
from tests.fake_predictor import fake_predictor, fake_topology

MILLIMETRES = 1000.0
POSES = {"anny-body": random_body_poses, "anny-hand": random_hand_poses}


@pytest.fixture(scope="module")
def hand() -> BodyFitter:
    return BodyFitter(posable_body("anny-hand"), load_topology("anny-hand"))


@pytest.fixture(scope="module")
def body() -> BodyFitter:
    return BodyFitter(posable_body("anny-body"))


def truth(name: str, count: int, seed: int = 0, sides=None) -> list[BodyParameters]:
    """People of the synthetic sets: random poses and shapes, turned anyhow, 3 m away."""
    rig, rng = load_rig(name), np.random.default_rng(seed)
    rotations = POSES[name](rig, count, rng)
    turns = axis_angle_to_matrix(torch.from_numpy(rng.normal(size=(count, 3))).float())
    rotations[:, 0] = turns @ rotations[:, 0]
    return [
        BodyParameters(
            name,
            rotations[row].numpy(),
            rig.sample_shape(rng).numpy(),
            np.array([*rng.normal(0, 0.5, 2), 3.0], np.float32),
            0.0,
            None if sides is None else sides[row],
        )
        for row in range(count)
    ]


def world_angles_deg(body: PosableBody, found, expected) -> Tensor:
    """(B, N) angles between bones' rotations from the rest pose."""
    turned = [
        body.kinematics(
            torch.from_numpy(np.stack([one.rotations for one in people])),
            torch.zeros(len(people), len(body.bones), 3),
        )[0]
        for people in (found, expected)
    ]
    return torch.rad2deg(matrix_to_axis_angle(turned[0].mT @ turned[1]).norm(dim=-1))


def double(body: PosableBody) -> PosableBody:
    tensors = {k: v for k, v in vars(body).items() if isinstance(v, Tensor)}
    return replace(body, **{k: v.double() for k, v in tensors.items() if v.is_floating_point()})


@pytest.mark.parametrize("name", ["anny-body", "anny-hand", "smpl", "mano"])
def test_derivatives_are_those_of_posing(name, made_up_assets):
    whole = posable_body(name, made_up_assets)
    some = torch.randperm(len(whole.template), generator=torch.Generator().manual_seed(0))[:60]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        system = FitSystem(double(whole.select(some)))
        torch.manual_seed(1)
        bones, shapes = len(whole.bones), len(whole.shape_basis)
        state = State(
            axis_angle_to_matrix(0.4 * torch.randn(1, bones, 3)),
            torch.randn(1, shapes),
            torch.randn(1, 3),
        )
        rows = system.rows(system.pose(state), system.whole).flatten(2)
        first = 3 if system.carriers else 0  # such a root follows its children
        for index in [*range(first, 12), *range(12, rows.shape[1], 17)]:
            change = torch.zeros(1, rows.shape[1])
            change[0, index] = 1e-5
            ahead, behind = (
                system.vertices(system.moved(state, sign * change)) for sign in (1, -1)
            )
            slope = (ahead - behind).mT.flatten(1) / 2e-5
            torch.testing.assert_close(rows[:, index], slope, rtol=1e-6, atol=1e-6)
    finally:
        torch.set_default_dtype(before)


def test_groups_hold_all_derivatives_that_are_not_zero(body):
    system = body.system
    people = truth("anny-body", 1)
    state = State(
        torch.from_numpy(people[0].rotations)[None],
        torch.from_numpy(people[0].shape)[None],
        torch.zeros(1, 3),
    )
    pose = system.pose(state)
    whole = system.rows(pose, system.whole)
    assembled = torch.zeros_like(whole)
    for group in system.groups:
        block = assembled[..., group.vertices]
        block[:, group.parameters] = system.rows(pose, group)
        assembled[..., group.vertices] = block
    torch.testing.assert_close(assembled, whole, rtol=1e-5, atol=1e-6)
    assert len(system.groups) > 4


def test_bodies_are_found_again(body):
    people = truth("anny-body", 2)
    meshes = place(body.body, people)
    found = body.fit(meshes.vertices).parameters
    posed = place(body.body, found)
    apart = MILLIMETRES * (posed.vertices - meshes.vertices).norm(dim=-1)
    assert apart.mean() < 0.1
    assert apart.max() < 2
    for one, mean in zip(found, apart.mean(1), strict=True):
        assert one.residual_mm == pytest.approx(float(mean), abs=0.01)
        assert one.side is None
        assert one.body == "anny-body"
    assert (MILLIMETRES * (posed.bones - meshes.bones)).norm(dim=-1).max() < 2
    assert world_angles_deg(body.body, found, people).max() < 5
    shapes = np.stack([one.shape for one in found]), np.stack([one.shape for one in people])
    assert np.abs(shapes[0] - shapes[1]).mean() < 0.1


def test_hands_of_both_sides_are_found_again(hand):
    people = truth("anny-hand", 4, sides=["right", "left", "left", "right"])
    meshes = place(hand.body, people)
    found = hand.fit(meshes.vertices, sides=[one.side for one in people]).parameters
    assert max(one.residual_mm for one in found) < 0.1
    assert [one.side for one in found] == ["right", "left", "left", "right"]
    posed = place(hand.body, found)
    assert (MILLIMETRES * (posed.vertices - meshes.vertices)).norm(dim=-1).mean() < 0.1
    fingers = [index for index, name in enumerate(hand.body.bones) if name.startswith("finger")]
    assert (MILLIMETRES * (posed.bones - meshes.bones)[:, fingers]).norm(dim=-1).max() < 1
    # the forearm is a stub of which hardly a vertex is seen
    assert world_angles_deg(hand.body, found, people)[:, fingers].max() < 3


@pytest.mark.parametrize("name", ["smpl", "mano"])
def test_bodies_of_the_users_files_are_found_again(name, made_up_assets):
    posable = posable_body(name, made_up_assets)
    torch.manual_seed(2)
    rotations = axis_angle_to_matrix(0.3 * torch.randn(2, len(posable.bones), 3))
    rotations[:, 0] = axis_angle_to_matrix(torch.randn(2, 3))
    shape = torch.randn(2, 10)
    meshes = posable.pose(rotations, shape).vertices + torch.tensor([0.2, 0.1, 2.0])
    found = fit_bodies(posable, meshes)
    assert max(one.residual_mm for one in found) < 0.1
    np.testing.assert_allclose([one.shape for one in found], shape, atol=0.02)
    for one, expected in zip(found, rotations, strict=True):
        apart = matrix_to_axis_angle(torch.from_numpy(one.rotations).mT @ expected)
        assert torch.rad2deg(apart.norm(dim=-1)).max() < 1


def test_a_batch_gives_what_each_gives_alone(hand):
    people = truth("anny-hand", 3, seed=1)
    meshes = place(hand.body, people).vertices
    together = hand.fit(meshes).parameters
    for row, one in enumerate(together):
        alone = hand.fit(meshes[row : row + 1]).parameters[0]
        moved = place(hand.body, [one, alone]).vertices
        assert (MILLIMETRES * (moved[0] - moved[1])).norm(dim=-1).max() < 0.2


def test_the_frame_before_saves_steps(body):
    people = truth("anny-body", 3, seed=3)
    torch.manual_seed(0)
    later = [
        replace(
            one,
            rotations=(
                torch.from_numpy(one.rotations)
                @ axis_angle_to_matrix(0.02 * torch.randn(len(one.rotations), 3))
            ).numpy(),
            translation_m=one.translation_m + np.float32(0.01),
        )
        for one in people
    ]
    # a network errs by millimetres, and much alike from frame to frame
    error = 8e-3 * torch.sin(12 * body.body.template @ torch.randn(3, 3))
    first = body.fit(place(body.body, people).vertices + error)
    mesh = place(body.body, later).vertices + error
    cold, warm = body.fit(mesh), body.fit(mesh, start=first.parameters)
    assert sum(warm.steps) < sum(cold.steps)
    for one, other in zip(warm.parameters, cold.parameters, strict=True):
        assert one.residual_mm < 1.05 * other.residual_mm


def test_a_start_that_is_worse_than_none_is_left(hand):
    people = truth("anny-hand", 2, seed=4)
    meshes = place(hand.body, people).vertices
    away = replace(people[1], translation_m=people[1].translation_m + np.float32(5))
    cold, led_astray = hand.fit(meshes[:1]), hand.fit(meshes[:1], start=[away])
    assert led_astray.parameters[0].residual_mm < cold.parameters[0].residual_mm + 0.05


def test_a_given_shape_is_kept(hand):
    people = truth("anny-hand", 2, seed=5)
    people[1] = replace(people[1], shape=people[0].shape)
    meshes = place(hand.body, people).vertices
    shape = torch.from_numpy(people[0].shape)
    found = hand.fit(meshes, shape=shape).parameters
    for one in found:
        np.testing.assert_array_equal(one.shape, people[0].shape)
        assert one.residual_mm < 0.1
    other = hand.fit(meshes, shape=torch.zeros(32)).parameters
    assert min(one.residual_mm for one in other) > 0.5


def test_rough_meshes_give_plausible_bodies(body):
    people = truth("anny-body", 1, seed=6)
    mesh = place(body.body, people).vertices
    torch.manual_seed(0)
    rough = mesh + 0.02 * torch.randn_like(mesh)
    found = body.fit(rough).parameters[0]
    error = (place(body.body, [found]).vertices - mesh).norm(dim=-1).mean()
    assert MILLIMETRES * error < 8  # the noise alone is 32
    assert np.abs(found.shape).max() < 4


def test_joints_draw_the_mesh_toward_them(hand):
    people = truth("anny-hand", 1, seed=7)
    topology = hand.topology
    mesh = place(hand.body, people).vertices
    shifted = topology.joints(mesh)
    tip = topology.skeleton.joints.index("index_4")
    shifted[0, tip] += torch.tensor([0.0, 0.0, 0.01])
    without, drawn = (
        place(hand.body, hand.fit(mesh, joints).parameters).vertices for joints in (None, shifted)
    )
    away = [(topology.joints(one)[0, tip] - shifted[0, tip]).norm() for one in (without, drawn)]
    assert away[1] < 0.9 * away[0]


def test_joints_that_agree_with_the_mesh_change_nothing(hand):
    people = truth("anny-hand", 1, seed=8)
    mesh = place(hand.body, people).vertices
    found = hand.fit(mesh, hand.topology.joints(mesh)).parameters[0]
    assert found.residual_mm < 0.1


def test_weights_choose_what_is_met(hand):
    people = truth("anny-hand", 1, seed=9)
    mesh = place(hand.body, people).vertices
    torn = mesh.clone()
    spoiled = hand.body.skin_weights[:, hand.body.bone_index("finger5-3.R")] > 0.5
    torn[:, spoiled] += 0.05
    found = hand.fit(torn, weights=(~spoiled).float()).parameters
    rest = (place(hand.body, found).vertices - mesh)[:, ~spoiled]
    assert MILLIMETRES * rest.norm(dim=-1).mean() < 0.2


def test_every_bone_has_vertices_in_the_fit():
    topology = load_topology("anny-body")
    posable = posable_body("anny-body")
    selection = select_vertices(posable, topology)
    assert len(selection.vertices) < 2500
    owners = posable.skin_weights[selection.vertices].argmax(1).unique()
    assert torch.equal(owners, posable.skin_weights.argmax(1).unique())
    torch.testing.assert_close(selection.regressor.sum(1), torch.ones(17))
    thin = selection.regressor @ topology.template[selection.vertices]
    assert (MILLIMETRES * (thin - topology.template_joints)).norm(dim=-1).max() < 0.1


def test_what_does_not_fit_is_refused(hand):
    mesh = torch.zeros(1, 1609, 3)
    other = truth("anny-body", 1)[0]
    with pytest.raises(InputError, match=r"vertices_BV3: expected shape \(1, 1609, 3\)"):
        hand.fit(mesh[:, :-1])
    with pytest.raises(InputError, match="expected finite numbers"):
        hand.fit(mesh + float("nan"))
    with pytest.raises(InputError, match=r"joints_BJ3: expected shape \(1, 21, 3\)"):
        hand.fit(mesh, torch.zeros(1, 20, 3))
    with pytest.raises(InputError, match="need the topology"):
        BodyFitter(hand.body).fit(mesh, torch.zeros(1, 21, 3))
    with pytest.raises(InputError, match="start: expected parameters of body 'anny-hand'"):
        hand.fit(mesh, start=[other])
    with pytest.raises(InputError, match="expected one for each of 1 meshes, found 2 and 1"):
        hand.fit(mesh, start=[None, None])
    with pytest.raises(InputError, match="numbers not below 0"):
        hand.fit(mesh, weights=-torch.ones(1609))
    with pytest.raises(InputError, match=r"shape: expected shape \(1, 32\)"):
        hand.fit(mesh, shape=torch.zeros(10))
    assert hand.fit(mesh[:0]).parameters == []


def person(posable: PosableBody, parameters: BodyParameters, joints=None) -> Person:
    vertices = place(posable, [parameters]).vertices[0].numpy()
    count = 21 if parameters.side else 17
    return Person(
        vertices=vertices,
        faces=posable.faces.numpy(),
        joints=np.zeros((0, 3), np.float32) if joints is None else joints,
        joints_px=np.zeros((count, 2), np.float32),
        joint_confidence=np.ones(count, np.float32),
        skeleton="hand21" if parameters.side else "coco17",
        box_px=(0.0, 0.0, 10.0, 10.0),
        side=parameters.side,
        score=1.0,
        camera=PhotoCamera(500.0, (5.0, 5.0), (10, 10)),
    )


def test_bodies_and_hands_of_a_photo_are_fitted_together(hand, body):
    hands, (someone,) = truth("anny-hand", 2, sides=["left", "right"]), truth("anny-body", 1)
    people = [person(hand.body, hands[0]), person(body.body, someone), person(hand.body, hands[1])]
    nobody = replace(people[0], vertices=np.zeros((0, 3), np.float32))
    fitter = PeopleFitter([load_topology("anny-body"), load_topology("anny-hand")])
    fitted = fitter.fit([*people, nobody], shapes=[None, None, hands[1].shape, None])
    assert [one.parameters and one.parameters.body for one in fitted] == [
        *("anny-hand", "anny-body", "anny-hand", None)
    ]
    assert [one.parameters.side for one in fitted[:3]] == ["left", None, "right"]
    assert all(one.parameters.residual_mm < 0.2 for one in fitted[:3])
    np.testing.assert_array_equal(fitted[2].parameters.shape, hands[1].shape)
    assert [one.name for one in fitter.bodies] == ["anny-body", "anny-hand"]
    again = fitter.fit(people[:1], previous=[fitted[0].parameters])
    assert again[0].parameters.residual_mm < 0.2


def test_people_of_another_mesh_are_refused(hand):
    someone = person(hand.body, truth("anny-hand", 1, sides=["right"])[0])
    fitter = PeopleFitter([load_topology("anny-hand")])
    with pytest.raises(InputError, match=r"expected a mesh of \[1609\] vertices, found 5"):
        fitter.fit([replace(someone, vertices=someone.vertices[:5])])
    with pytest.raises(InputError, match="previous: expected one for each of 1 people, found 2"):
        fitter.fit([someone], previous=[None, None])
    with pytest.raises(InputError, match="name: expected one of anny-body"):
        fit_people([], fake_predictor())
    with pytest.raises(InputError, match="needs a folder with your own SMPL"):
        PeopleFitter([replace(fake_topology("body"), name="smpl")])
