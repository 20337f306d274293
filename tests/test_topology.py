from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kinemesh.bodies import CoarseLevel, Topology, asset_path, load_rig, load_topology
from kinemesh.bodies.assets import write_asset
from kinemesh.errors import InputError
from kinemesh.skeletons import H36M14, H36M17
from tests.tolerances import TOL

EXACT = TOL[torch.float32]
NAMES = ("anny-body", "anny-hand")
SIZES = {"anny-body": (13718, 27420, (1723, 431), 17), "anny-hand": (1609, 3196, (195,), 21)}


@pytest.fixture(scope="module", params=NAMES)
def topology(request: pytest.FixtureRequest) -> Topology:
    return load_topology(request.param)


def signed_volume(vertices_V3: Tensor, faces_F3: Tensor) -> float:
    a, b, c = (vertices_V3 - vertices_V3.mean(0))[faces_F3].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def dense_upsampling(level: CoarseLevel) -> Tensor:
    """Slow twin of the gathers in `CoarseLevel.upsample`: a (V, C) matrix, filled one by one."""
    matrix = torch.zeros(len(level.up_index), len(level))
    for row, (index, weight) in enumerate(zip(level.up_index, level.up_weight, strict=True)):
        for column, value in zip(index.tolist(), weight.tolist(), strict=True):
            matrix[row, column] += value
    return matrix


def test_sizes(topology: Topology) -> None:
    vertices, faces, levels, joints = SIZES[topology.name]
    assert topology.template.shape == (vertices, 3)
    assert topology.faces.shape == (faces, 3)
    assert tuple(len(level) for level in topology.levels) == levels
    assert topology.template_joints.shape == (joints, 3)
    assert len(topology.skeleton) == joints
    assert topology.coarse is topology.levels[-1]


def test_types_and_ranges(topology: Topology) -> None:
    count = len(topology.template)
    assert topology.template.dtype == torch.float32
    for index in (topology.faces, topology.regressor_index, topology.levels[0].up_index):
        assert index.dtype == torch.int64
    assert topology.faces.unique().tolist() == list(range(count))
    for level in topology.levels:
        assert level.up_index.shape == level.up_weight.shape == (count, 10)
        assert level.vertex_index.unique().numel() == len(level)
        assert bool((level.edges[:, 0] < level.edges[:, 1]).all())
        for index in (level.edges, level.faces, level.up_index):
            assert 0 <= int(index.min()) <= int(index.max()) < len(level)


def test_root_of_the_template_is_the_origin(topology: Topology) -> None:
    root = topology.root(topology.template_joints[None])
    torch.testing.assert_close(root, torch.zeros(1, 1, 3), **EXACT)


def test_body_stands_upright_and_faces_the_viewer() -> None:
    topology = load_topology("anny-body")
    joints = dict(zip(topology.skeleton.joints, topology.template_joints, strict=True))
    assert joints["nose"][1] < joints["left_hip"][1] < joints["left_ankle"][1]
    assert joints["left_shoulder"][0] > 0.1 > -0.1 > joints["right_shoulder"][0]
    assert joints["nose"][2] < joints["left_ear"][2] - 0.05
    assert 0.4 < float(joints["left_ankle"][1] - joints["left_hip"][1]) < 1.1


def test_hand_joints_go_outward_along_each_finger() -> None:
    joints = load_topology("anny-hand").template_joints.unflatten(0, (21, 1))[:, 0]
    reach = (joints[1:] - joints[0]).norm(dim=1).reshape(5, 4)
    assert bool((reach.diff(dim=1) > 0).all())
    assert 0.14 < float(reach[2, 3]) < 0.22  # metres from wrist to middle tip


def test_faces_look_outward(topology: Topology) -> None:
    assert signed_volume(topology.template, topology.faces) > 0
    for level in topology.levels:
        assert signed_volume(topology.template[level.vertex_index], level.faces) > 0


def test_levels_are_nested() -> None:
    fine, coarse = load_topology("anny-body").levels
    assert torch.equal(fine.vertex_index[: len(coarse)], coarse.vertex_index)


def test_coarse_vertices_avoid_eyes_and_mouth() -> None:
    rig, topology = load_rig("anny-body"), load_topology("anny-body")
    inside = rig.masks["eyes"] + rig.masks["mouth"]
    assert inside[topology.coarse.vertex_index].sum() <= 4  # the rim of the lips is shared


def test_coarse_graph_is_connected(topology: Topology) -> None:
    for level in topology.levels:
        reached = torch.zeros(len(level))
        reached[0] = 1
        adjacency = level.adjacency()
        for _ in range(100):
            reached = (adjacency @ reached > 0).float()
        assert int(reached.sum()) == len(level)


def test_upsampling_equals_the_dense_matrix(topology: Topology) -> None:
    level = topology.coarse
    coarse = torch.randn(2, len(level), 3)
    expected = dense_upsampling(level) @ coarse
    torch.testing.assert_close(level.upsample(coarse), expected, **EXACT)


def test_upsampling_gradient_is_that_of_the_dense_matrix() -> None:
    level = load_topology("anny-hand").coarse
    coarse = torch.randn(1, len(level), 3, requires_grad=True)
    pull = torch.randn(1, len(level.up_index), 3)
    (gradient,) = torch.autograd.grad((level.upsample(coarse) * pull).sum(), coarse)
    torch.testing.assert_close(gradient, dense_upsampling(level).T @ pull, **EXACT)


def test_upsampling_keeps_coarse_vertices_and_follows_translations(topology: Topology) -> None:
    for level in topology.levels:
        coarse = torch.randn(1, len(level), 3)
        full = level.upsample(coarse)
        torch.testing.assert_close(full[:, level.vertex_index], coarse, **EXACT)
        offset = torch.tensor([0.5, -2.0, 3.0])
        torch.testing.assert_close(level.upsample(coarse + offset), full + offset, **EXACT)


def test_upsampling_rebuilds_the_template(topology: Topology) -> None:
    for level in topology.levels:
        rebuilt = level.upsample(topology.template[None, level.vertex_index])[0]
        error_mm = (rebuilt - topology.template).norm(dim=1) * 1000
        assert error_mm.mean() < 1.0


def test_adjacency_equals_the_loop(topology: Topology) -> None:
    level = topology.coarse
    expected = torch.eye(len(level))
    for i, j in level.edges.tolist():
        expected[i, j] = expected[j, i] = 1
    expected = torch.stack([row / row.sum() for row in expected])
    torch.testing.assert_close(level.adjacency(), expected, **EXACT)


def test_every_coarse_face_runs_along_edges(topology: Topology) -> None:
    for level in topology.levels:
        edges = set(map(tuple, level.edges.tolist()))
        for a, b, c in level.faces.sort(dim=1).values.tolist():
            assert {(a, b), (a, c), (b, c)} <= edges


def test_joints_are_weighted_vertices(topology: Topology) -> None:
    dense = np.zeros((len(topology.skeleton), len(topology.template)))
    for joint, index in enumerate(topology.regressor_index.numpy()):
        np.add.at(dense[joint], index, topology.regressor_weight[joint].numpy())
    assert dense.min() >= 0
    np.testing.assert_allclose(dense.sum(1), 1, atol=1e-5)
    expected = dense @ topology.template.numpy()
    np.testing.assert_allclose(topology.template_joints.numpy(), expected, atol=1e-5)


def test_mirroring_changes_sides_and_back(topology: Topology) -> None:
    mirrored = topology.mirrored()
    assert signed_volume(mirrored.template, mirrored.faces) > 0
    order = list(topology.skeleton.flip_permutation)
    expected = topology.template_joints[order] * torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(mirrored.template_joints, expected, **EXACT)
    again = mirrored.mirrored()
    for name, tensor in topology.to_tensors().items():
        assert torch.equal(again.to_tensors()[name], tensor), name


def test_tensors_round_trip(topology: Topology) -> None:
    tensors, metadata = topology.to_tensors(), topology.metadata()
    again = Topology.from_tensors(tensors, metadata)
    assert again.metadata() == metadata
    assert again.skeleton == topology.skeleton
    for name, tensor in again.to_tensors().items():
        # Weights are normalised after reading, which may move a float16 by a few bits.
        torch.testing.assert_close(tensor, tensors[name], rtol=4e-3, atol=0)


J14_IN_H36M17 = (3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10)


def topology_with_tokens() -> Topology:
    """A body of 17 joints, each a vertex; a network carries 14, at places of their own."""
    generator = torch.Generator().manual_seed(5)
    template = torch.randn(30, 3, generator=generator)
    level = CoarseLevel(
        vertex_index=torch.arange(0, 30, 3),
        edges=torch.tensor([[0, 1], [1, 2]]),
        faces=torch.zeros(0, 3, dtype=torch.int64),
        up_index=torch.arange(30)[:, None] // 3,
        up_weight=torch.ones(30, 1),
    )
    return Topology(
        name="test-body",
        kind="body",
        template=template,
        faces=torch.tensor([[0, 1, 2]]),
        levels=(level,),
        regressor_index=torch.arange(17)[:, None],
        regressor_weight=torch.ones(17, 1),
        skeleton=H36M17,
        token_joints=J14_IN_H36M17,
        token_template=torch.randn(14, 3, generator=generator),
    )


def test_tokens_are_all_joints_unless_said_otherwise(topology: Topology) -> None:
    joints, coarse = topology.template_tokens
    assert torch.equal(joints, topology.template_joints)
    assert torch.equal(coarse, topology.template[topology.coarse.vertex_index])
    assert topology.token_skeleton is topology.skeleton


def test_tokens_are_the_chosen_joints_in_their_order() -> None:
    topology = topology_with_tokens()
    assert topology.token_skeleton is H36M14
    meshes = torch.randn(2, 30, 3)
    expected = torch.stack([meshes[:, joint] for joint in J14_IN_H36M17], dim=1)
    assert torch.equal(topology.token_joint_positions(meshes), expected)


def test_a_template_of_the_tokens_replaces_the_regressed_one() -> None:
    topology = topology_with_tokens()
    assert topology.token_template is not None
    assert torch.equal(topology.template_tokens[0], topology.token_template)
    regressed = replace(topology, token_template=None).template_tokens[0]
    assert torch.equal(regressed, topology.template[list(J14_IN_H36M17)])


def test_tokens_are_mirrored_moved_and_stored() -> None:
    topology = topology_with_tokens()
    right_knee, left_knee = 1, 4
    expected = topology.template_tokens[0][right_knee] * torch.tensor([-1.0, 1.0, 1.0])
    assert torch.equal(topology.mirrored().template_tokens[0][left_knee], expected)
    again = topology.mirrored().mirrored()
    assert torch.equal(again.template_tokens[0], topology.template_tokens[0])
    assert topology.to("meta").template_tokens[0].is_meta
    stored = Topology.from_tensors(topology.to_tensors(), topology.metadata())
    assert stored.token_joints == J14_IN_H36M17
    assert torch.equal(stored.template_tokens[0], topology.template_tokens[0])


def test_wrong_tokens_are_refused() -> None:
    topology = topology_with_tokens()
    with pytest.raises(InputError, match="expected indices below 17"):
        replace(topology, token_joints=(17,))
    with pytest.raises(InputError, match=r"expected shape \(14, 3\)"):
        replace(topology, token_template=torch.zeros(17, 3))
    with pytest.raises(InputError, match="no skeleton has exactly"):
        _ = replace(topology, token_joints=(0, 1), token_template=None).token_skeleton


def test_assets_are_small() -> None:
    assert asset_path("anny-body").stat().st_size <= 6.5e6
    assert asset_path("anny-hand").stat().st_size <= 2e6


def test_asset_written_and_read(tmp_path: Path) -> None:
    topology, rig = load_topology("anny-hand"), load_rig("anny-hand")
    path = tmp_path / "hand.safetensors"
    write_asset(path, topology, rig, {"package": "test"})
    again = load_topology(path=path)
    assert torch.equal(again.template, topology.template)
    assert torch.equal(load_rig(path=path).shape_basis, rig.shape_basis)


def test_wrong_shapes_are_refused(topology: Topology) -> None:
    with pytest.raises(InputError, match=f"expected shape \\(B, {len(topology.coarse)}, D\\)"):
        topology.coarse.upsample(torch.zeros(1, 7, 3))
    with pytest.raises(InputError, match="up-sample coarse vertices first"):
        topology.joints(torch.zeros(1, 7, 3))


def test_incomplete_files_are_refused(tmp_path: Path) -> None:
    topology = load_topology("anny-hand")
    tensors, metadata = topology.to_tensors(), topology.metadata()
    with pytest.raises(InputError, match="'faces' is missing"):
        Topology.from_tensors({k: v for k, v in tensors.items() if k != "faces"}, metadata)
    with pytest.raises(InputError, match="kind"):
        Topology.from_tensors(tensors, metadata | {"kind": "face"})
    with pytest.raises(InputError, match=r"anny-body, anny-hand"):
        load_topology("smpl")
    with pytest.raises(InputError, match="found none"):
        load_topology(path=tmp_path / "absent.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not tensors")
    with pytest.raises(InputError, match="expected a safetensors file"):
        load_topology(path=broken)
