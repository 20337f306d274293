"""Topologies from the user's folder: made-up files, real sampling files, official numbers."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from kinemesh.bodies import (
    CoarseLevel,
    ManoModel,
    SmplModel,
    Topology,
    inspect_assets,
    load_body_model,
    mano_topology,
    smpl_topology,
)
from kinemesh.bodies.asset_files import AssetFolder
from kinemesh.bodies.official_assets import (
    mano_topology_of,
    metro24_regressor,
    smpl_topology_of,
)
from kinemesh.bodies.pickles import load_npz
from kinemesh.bodies.sampling import (
    MeshSampling,
    padded_rows,
    read_array,
    read_edges,
    read_sampling,
)
from kinemesh.errors import InputError
from kinemesh.skeletons import H36M14, H36M17, HAND21, METRO24
from tests.body_fixtures import (
    h36m_regressor,
    mano_arrays,
    smpl_arrays,
    write_mano_assets,
    write_model,
    write_smpl_assets,
)
from tests.seeded_weights import normal
from tests.tolerances import TOL

EXACT = TOL[torch.float32]
NO_FACES = torch.zeros(0, 3, dtype=torch.int64)
PARTS = ("indices", "size", "values")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assets")
    write_smpl_assets(folder, 60)
    write_mano_assets(folder)
    return folder


@pytest.fixture(scope="module")
def body(folder: Path) -> Topology:
    return smpl_topology(folder)


@pytest.fixture(scope="module")
def hand(folder: Path) -> Topology:
    return mano_topology(folder)


def object_array(entries: object) -> np.ndarray:
    """The entries as one array of objects; something else than a list as an array of none."""
    if not isinstance(entries, list):
        return np.array(entries)
    held = np.empty(len(entries), dtype=object)
    for index, entry in enumerate(entries):
        held[index] = entry
    return held


def dense_up(level: CoarseLevel) -> np.ndarray:
    dense = np.zeros((len(level.up_index), len(level)))
    for row, (index, weight) in enumerate(zip(level.up_index, level.up_weight, strict=True)):
        np.add.at(dense[row], index.numpy(), weight.double().numpy())
    return dense


class TestSynthetic:
    def test_body(self, body: Topology) -> None:
        assert (body.name, body.kind) == ("smpl", "body")
        assert body.skeleton is H36M17
        assert body.token_skeleton is H36M14
        assert body.template.shape == (60, 3)
        assert [len(level) for level in body.levels] == [15, 4]
        joints, coarse = body.template_tokens
        assert joints.shape == (14, 3)
        assert coarse.shape == (4, 3)

    def test_hand(self, hand: Topology) -> None:
        assert (hand.name, hand.kind) == ("mano", "hand")
        assert hand.skeleton is hand.token_skeleton is HAND21
        assert hand.template.shape == (778, 3)
        assert [len(level) for level in hand.levels] == [195]
        joints, coarse = hand.template_tokens
        assert joints.shape == (21, 3)
        assert coarse.shape == (195, 3)

    def test_template_stands_upright_in_the_rest_frame(self, body: Topology) -> None:
        """y points down, the person's left is at +x, and the pelvis is the origin."""
        joints = dict(zip(H36M14.joints, body.template_tokens[0], strict=True))
        assert joints["head"][1] < -0.4 < 0.7 < joints["left_ankle"][1]
        assert joints["left_wrist"][0] > 0.5 > -0.5 > joints["right_wrist"][0]
        arrays, turn = smpl_arrays(60), 3.1416
        x, y, z = arrays["v_template"].T
        turned = np.stack(
            [x, np.cos(turn) * y - np.sin(turn) * z, np.sin(turn) * y + np.cos(turn) * z], axis=1
        )
        # The body turns about SMPL's own root joint; taking the pelvis off removes that shift.
        pelvis = h36m_regressor(60)[0] @ turned / h36m_regressor(60)[0].sum()
        np.testing.assert_allclose(body.template.numpy(), turned - pelvis, atol=2e-4)

    def test_places_of_body_tokens_are_regressed_before_the_root_is_taken_off(
        self, folder: Path, body: Topology
    ) -> None:
        pose = torch.zeros(1, 72)
        pose[0, 0] = 3.1416
        vertices = load_body_model(folder, "smpl")(pose, torch.zeros(1, 10)).vertices[0].double()
        joints = torch.from_numpy(h36m_regressor(60)) @ vertices
        names = [H36M17.index(name) for name in H36M14.joints]
        expected = joints[names] - joints[:1]
        torch.testing.assert_close(body.template_tokens[0].double(), expected, **EXACT)
        later = body.token_joint_positions(body.template[None])[0]
        assert float((later - expected).abs().max()) > 2e-5, "the rows do not sum to one"

    def test_places_of_hand_tokens_are_the_models_joints(
        self, folder: Path, hand: Topology
    ) -> None:
        posed = load_body_model(folder, "mano")(torch.zeros(1, 48), torch.zeros(1, 10))
        joints = posed.joints[0] - posed.joints[0, :1]
        torch.testing.assert_close(hand.template_tokens[0], joints, **EXACT)
        torch.testing.assert_close(hand.template, posed.vertices[0] - posed.joints[0, :1], **EXACT)
        tip = HAND21.index("middle_4")
        torch.testing.assert_close(hand.template_joints[tip], hand.template[445], **EXACT)
        torch.testing.assert_close(hand.template_tokens[0][tip], hand.template[444], **EXACT)

    def test_levels_are_those_of_the_file(self, folder: Path, body: Topology) -> None:
        held = load_npz(folder / "mesh_downsampling.npz", ("A", "D", "U", "F"))
        down, up = ([matrix.toarray() for matrix in held[name]] for name in ("D", "U"))
        fine, coarse = body.levels
        vertices = body.template.double().numpy()
        np.testing.assert_array_equal(down[0] @ vertices, vertices[fine.vertex_index])
        np.testing.assert_array_equal(down[1] @ down[0] @ vertices, vertices[coarse.vertex_index])
        np.testing.assert_allclose(dense_up(fine), up[0], atol=1e-6)
        np.testing.assert_allclose(dense_up(coarse), up[0] @ up[1], atol=1e-6)
        for level, faces, adjacency in zip(body.levels, held["F"][1:], held["A"][1:], strict=True):
            np.testing.assert_array_equal(level.faces.numpy(), faces)
            neighbours = (adjacency.toarray() > 0) + np.eye(len(level))
            expected = neighbours / neighbours.sum(1, keepdims=True)
            np.testing.assert_allclose(level.adjacency().numpy(), expected, atol=1e-7)

    def test_gradient_passes_up_sampling(self, hand: Topology) -> None:
        coarse = torch.randn(2, 195, 3, requires_grad=True)
        full = hand.coarse.upsample(coarse)
        pull = torch.randn_like(full)
        (gradient,) = torch.autograd.grad((full * pull).sum(), coarse)
        expected = torch.from_numpy(dense_up(hand.coarse)).float().T @ pull
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)

    def test_stored_and_read_again(self, body: Topology, hand: Topology) -> None:
        for topology in (body, hand):
            again = Topology.from_tensors(topology.to_tensors(), topology.metadata())
            assert again.token_joints == topology.token_joints
            for one, other in zip(again.template_tokens, topology.template_tokens, strict=True):
                assert torch.equal(one, other)

    def test_mirrored_hand_is_a_left_hand(self, hand: Topology) -> None:
        left = hand.mirrored()
        sign = torch.tensor([-1.0, 1.0, 1.0])
        for one, other in zip(left.template_tokens, hand.template_tokens, strict=True):
            assert torch.equal(one, other * sign)

    def test_label_regressor(self, folder: Path) -> None:
        vertices = smpl_arrays(60)["v_template"]
        joints = dict(zip(METRO24.joints, metro24_regressor(folder) @ vertices, strict=True))
        own = smpl_arrays(60)["J_regressor"] @ vertices
        np.testing.assert_array_equal(joints["left_wrist"], own[20])
        np.testing.assert_array_equal(joints["right_ankle"], own[8])
        extra = np.load(folder / "J_regressor_extra.npy") @ vertices
        np.testing.assert_array_equal(joints["nose"], extra[0])
        np.testing.assert_array_equal(joints["pelvis"], extra[9])
        assert joints["left_hip"][0] > 0 > joints["right_hip"][0]

    @pytest.mark.parametrize("form", ["npz", "safetensors"])
    def test_forms_give_the_same(self, tmp_path: Path, form: str, body: Topology) -> None:
        write_smpl_assets(tmp_path, 60, form)
        again = smpl_topology(tmp_path)
        torch.testing.assert_close(again.template, body.template, **EXACT)

    @pytest.mark.slow
    def test_official_size(self, tmp_path: Path) -> None:
        write_smpl_assets(tmp_path)
        topology = smpl_topology(tmp_path)
        assert topology.template.shape == (6890, 3)
        assert topology.faces.shape == (13776, 3)
        assert [len(level) for level in topology.levels] == [1723, 431]
        rebuilt = topology.coarse.upsample(topology.template[topology.coarse.vertex_index][None])
        assert float((rebuilt[0] - topology.template).norm(dim=1).mean()) < 0.03


class TestFolder:
    def test_usual_sub_folders_are_searched(self, tmp_path: Path) -> None:
        write_smpl_assets(tmp_path / "SMPL_python_v.1.1.0" / "smpl" / "models", 60)
        write_mano_assets(tmp_path / "mano_v1_2" / "models")
        data = tmp_path / "src" / "modeling" / "data"
        data.mkdir(parents=True)
        for path in list(tmp_path.rglob("*downsampling.npz")):
            path.rename(data / path.name)
        assert len(smpl_topology(tmp_path).coarse) == 4
        assert len(mano_topology(tmp_path).coarse) == 195

    @pytest.mark.parametrize(
        "name",
        [
            "SMPL_NEUTRAL.pkl",
            "basicModel_neutral_lbs_10_207_0_v1.0.0.pkl",
            "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl",
        ],
    )
    def test_official_names(self, tmp_path: Path, name: str) -> None:
        path = write_smpl_assets(tmp_path, 60)
        path.rename(tmp_path / name)
        assert isinstance(load_body_model(tmp_path, "smpl"), SmplModel)
        assert isinstance(
            load_body_model(Path(write_mano_assets(tmp_path)).parent, "mano"), ManoModel
        )

    def test_the_nearest_and_plainest_file_counts(self, tmp_path: Path) -> None:
        write_smpl_assets(tmp_path / "a", 60, "safetensors")
        for form in ("pkl", "npz"):
            write_smpl_assets(tmp_path, 60, form)
        assert AssetFolder(tmp_path).require("smpl") == tmp_path / "SMPL_NEUTRAL.npz"

    def test_missing_files_are_named_with_their_source(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="expected a folder"):
            smpl_topology(tmp_path / "absent")
        with pytest.raises(InputError, match=r"SMPL_NEUTRAL.*smpl\.is\.tue\.mpg\.de.*doctor --ass"):
            smpl_topology(tmp_path)
        with pytest.raises(InputError, match=r"MANO_RIGHT.*mano\.is\.tue\.mpg\.de"):
            mano_topology(tmp_path)
        write_smpl_assets(tmp_path, 60)
        (tmp_path / "mesh_downsampling.npz").unlink()
        with pytest.raises(InputError, match=r"mesh_downsampling\.npz.*microsoft/MeshGraphormer"):
            smpl_topology(tmp_path)

    def test_a_female_body_is_not_taken_for_the_neutral_one(self, tmp_path: Path) -> None:
        write_smpl_assets(tmp_path, 60, "npz", "female")
        assert isinstance(load_body_model(tmp_path, "smpl", "female"), SmplModel)
        with pytest.raises(InputError, match="SMPL_NEUTRAL"):
            load_body_model(tmp_path, "smpl")


class TestFilesThatDoNotFit:
    def test_sampling_of_another_mesh(self, tmp_path: Path) -> None:
        write_smpl_assets(tmp_path, 60)
        write_smpl_assets(tmp_path / "other", 80)
        shutil.copy(tmp_path / "other" / "mesh_downsampling.npz", tmp_path)
        with pytest.raises(
            InputError, match="a mesh of 60 vertices, as the model file has, found 80"
        ):
            smpl_topology(tmp_path)

    def test_adjacency_of_another_mesh(self, tmp_path: Path) -> None:
        write_smpl_assets(tmp_path, 60)
        write_smpl_assets(tmp_path / "other", 80)
        for part in PARTS:
            shutil.copy(tmp_path / "other" / f"smpl_431_adjmat_{part}.pt", tmp_path)
        with pytest.raises(InputError, match=r"expected the edges of mesh_downsampling\.npz"):
            smpl_topology(tmp_path)

    def test_regressor_of_another_mesh(self, tmp_path: Path) -> None:
        write_smpl_assets(tmp_path, 60)
        np.save(tmp_path / "J_regressor_h36m_correct.npy", h36m_regressor(80))
        with pytest.raises(InputError, match=r"shape \(17, 60\), found .*\(17, 80\)"):
            smpl_topology(tmp_path)

    def test_regressors_that_are_pickles(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
        with pytest.raises(InputError, match=r"a\.npy: expected an array"):
            read_array(tmp_path / "a.npy")

    def test_adjacency_without_its_parts(self, tmp_path: Path, folder: Path) -> None:
        paths = [tmp_path / f"mano_195_adjmat_{part}.pt" for part in PARTS]
        for path in paths:
            shutil.copy(folder / path.name, path)
        assert torch.equal(
            read_edges(paths), read_sampling(folder / "mano_downsampling.npz").edges[1]
        )
        paths[1].write_bytes(b"not a tensor")
        with pytest.raises(InputError, match=r"size\.pt: expected a tensor saved by PyTorch"):
            read_edges(paths)
        torch.save(torch.Size([3, 3]), paths[1])
        with pytest.raises(InputError, match="expected indices"):
            read_edges(paths)

    @pytest.mark.parametrize(
        ("part", "held"),
        [
            ("size", {"a": torch.ones(1)}),
            ("size", torch.tensor(195)),
            ("indices", None),
            ("indices", torch.zeros(2, 0, dtype=torch.int64)),
            ("indices", torch.tensor(1.0)),
            ("values", [1, 2]),
            ("values", torch.tensor(3.0)),
            ("values", torch.eye(2).to_sparse()),
        ],
    )
    def test_adjacency_files_that_hold_something_else(
        self, tmp_path: Path, folder: Path, part: str, held: object
    ) -> None:
        paths = [tmp_path / f"mano_195_adjmat_{part}.pt" for part in PARTS]
        for path in paths:
            shutil.copy(folder / path.name, path)
        torch.save(held, paths[PARTS.index(part)])
        with pytest.raises(InputError, match=r"_adjmat_\w+\.pt: expected"):
            read_edges(paths)

    @pytest.mark.parametrize(
        ("key", "change", "message"),
        [
            ("AUD", lambda held: held[:1], r"2 or more coarse levels|one more matrix in A"),
            ("UD", lambda held: held[:0], r"one more matrix in A"),
            ("F", lambda held: None, r"triangles \(F, 3\) of each level in 'F', found object"),
            ("F", lambda held: np.int64(3), r"triangles .* found int64 of shape \(\)"),
            ("F", lambda held: [None, None, None], "triangles .* found object"),
            ("F", lambda held: [[[0, 1], [2]], *held[1:]], "triangles .* found object"),
            ("F", lambda held: [held[0] + 1, *held[1:]], r"from 0 to 59, found 1 to 60"),
            ("U", lambda held: [held[0] * np.nan, *held[1:]], r"numbers in U\[0\], found"),
            ("A", lambda held: [held[0][:, :50], *held[1:]], r"A\[0\] to be square"),
        ],
    )
    def test_damaged_sampling_files(self, tmp_path: Path, key: str, change, message: str) -> None:
        path = write_smpl_assets(tmp_path, 60).parent / "mesh_downsampling.npz"
        with np.load(path, allow_pickle=True, encoding="latin1") as data:
            held = {name: data[name] for name in "AUDF"}
        for name in key:
            held[name] = object_array(change(list(held[name])))
        np.savez(path, **held)
        with pytest.raises(InputError, match=rf"mesh_downsampling\.npz: expected.*({message})"):
            smpl_topology(tmp_path)
        broken = [s.file.title for s in inspect_assets(tmp_path) if s.status == "broken"]
        assert broken == ["mesh_downsampling.npz"]

    def test_a_hands_sampling_file_has_too_few_levels_for_a_body(self, tmp_path: Path) -> None:
        write_mano_assets(tmp_path)
        path = tmp_path / "mano_downsampling.npz"
        with pytest.raises(InputError, match="5 or more coarse levels, found 4"):
            read_sampling(path, levels=5)

    def test_coarse_faces_beyond_the_mesh(self, tmp_path: Path) -> None:
        write_smpl_assets(tmp_path, 60)
        path = tmp_path / "mesh_downsampling.npz"
        with np.load(path, allow_pickle=True, encoding="latin1") as data:
            np.savez(path.with_name("new.npz"), **{name: data[name] for name in "AUD"})
        path.with_name("new.npz").replace(path)
        np.save(tmp_path / "smpl_431_faces.npy", np.array([[0, 1, 4]]))
        with pytest.raises(InputError, match=r"smpl_431_faces\.npy: .* 0 to 3, found 0 to 4"):
            smpl_topology(tmp_path)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_regressors_without_numbers(self, tmp_path: Path, value: float) -> None:
        np.save(tmp_path / "a.npy", np.full((17, 6), value))
        with pytest.raises(InputError, match="infinite or not a number"):
            read_array(tmp_path / "a.npy", 17)

    def test_archives_in_place_of_arrays(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", a=np.ones(2))
        (tmp_path / "a.npz").rename(tmp_path / "a.npy")
        with pytest.raises(InputError, match=r"expected an array in a \.npy file"):
            read_array(tmp_path / "a.npy")

    def test_tensor_files_run_nothing(self, tmp_path: Path) -> None:
        class Malicious:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path / 'ran'}",)

        paths = [tmp_path / f"smpl_431_adjmat_{part}.pt" for part in PARTS]
        for path, old in zip(paths, (True, False, True), strict=True):
            torch.save(Malicious(), path, _use_new_zipfile_serialization=not old)
            with pytest.raises(InputError, match=r"expected a tensor saved by PyTorch"):
                read_edges([path, *paths[1:]])
        assert not (tmp_path / "ran").exists()

    def test_down_sampling_must_select(self, tmp_path: Path) -> None:
        half = sparse.csc_matrix(np.array([[0.5, 0.5, 0, 0], [0, 0, 1, 0]]))
        square = [sparse.csc_matrix(np.ones((size, size))) for size in (4, 2)]
        content = {"A": square, "U": [half.T.tocsc()], "D": [half]}
        arrays = {}
        for key, matrices in content.items():
            arrays[key] = np.empty(len(matrices), dtype=object)
            arrays[key][:] = matrices
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(InputError, match="a selection of vertices, found 3 entries in 2 rows"):
            read_sampling(tmp_path / "a.npz")
        np.savez(tmp_path / "a.npz", **{key: arrays[key] for key in "AU"})
        with pytest.raises(InputError, match=r"expected the arrays A, U and D, found \['A', 'U'\]"):
            read_sampling(tmp_path / "a.npz")

    def test_faces_of_their_own_file_stand_in(self, tmp_path: Path, body: Topology) -> None:
        write_smpl_assets(tmp_path, 60)
        path = tmp_path / "mesh_downsampling.npz"
        without_faces = tmp_path / "without_faces.npz"
        with zipfile.ZipFile(path) as held, zipfile.ZipFile(without_faces, "w") as kept:
            for key in "AUD":
                kept.writestr(f"{key}.npy", held.read(f"{key}.npy"))
        without_faces.replace(path)
        topology = smpl_topology(tmp_path)
        assert torch.equal(topology.coarse.faces, body.coarse.faces)
        assert topology.levels[0].faces.shape == (0, 3)


class TestInspection:
    def test_complete(self, folder: Path) -> None:
        found = {status.file.title: status for status in inspect_assets(folder)}
        assert all(status.status == "ok" for status in found.values() if status.file.required)
        assert {s.file.family for s in found.values() if s.file.required} == {"smpl", "mano"}

    def test_each_file_is_missed_and_each_damage_is_seen(self, tmp_path: Path) -> None:
        write_smpl_assets(tmp_path, 60)
        write_mano_assets(tmp_path)
        files = sorted(tmp_path.iterdir())
        before = {s.file.title: s.status for s in inspect_assets(tmp_path)}
        for path in files:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            after = {s.file.title: s for s in inspect_assets(tmp_path)}
            changed = [title for title, s in after.items() if s.status != before[title]]
            assert len(changed) == 1, path
            assert after[changed[0]].status == "broken"
            assert path.name in after[changed[0]].detail
            path.unlink()
            after = {s.file.title: s for s in inspect_assets(tmp_path)}
            assert [t for t, s in after.items() if s.status != before[t]] == changed
            assert after[changed[0]].status == "missing"
            path.write_bytes(content)

    def test_files_that_do_not_fit_together_are_told(self, tmp_path: Path) -> None:
        write_smpl_assets(tmp_path, 60)
        write_smpl_assets(tmp_path / "other", 80)
        shutil.copy(tmp_path / "other" / "mesh_downsampling.npz", tmp_path)
        broken = [s for s in inspect_assets(tmp_path) if s.status == "broken"]
        assert [s.file.title for s in broken] == ["mesh_downsampling.npz"]


def test_padded_rows_hold_every_entry() -> None:
    dense = np.array([[0, 2.0, 0, 1], [0, 0, 0, 0], [3, 0, 0, 0]])
    index, weight = padded_rows(dense)
    assert index.shape == weight.shape == (3, 2)
    rebuilt = np.zeros_like(dense)
    for row in range(3):
        np.add.at(rebuilt[row], index[row].numpy(), weight[row].numpy())
    np.testing.assert_array_equal(rebuilt, dense)


@pytest.fixture(scope="module")
def official(shared: Path) -> Path:
    return shared / "data" / "official_assets"


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "parity" / "graphormer" / "golden" / "topology.npz") as data:
        return dict(data)


@pytest.fixture(scope="module")
def samplings(official: Path) -> dict[str, MeshSampling]:
    return {
        "body": read_sampling(official / "mesh_downsampling.npz"),
        "hand": read_sampling(official / "mano_downsampling.npz"),
    }


def test_real_indices_are_the_golden_ones(samplings, golden) -> None:
    for name, kept in (
        ("body/down0", samplings["body"].kept[0]),
        ("body/down1", samplings["body"].kept[1]),
        ("hand/down0", samplings["hand"].kept[0]),
    ):
        np.testing.assert_array_equal(kept.numpy(), golden[name], err_msg=name)
    assert len(samplings["hand"].kept) == 4


def test_real_edges_are_the_golden_ones(samplings, golden) -> None:
    for kind, level in (("body", 2), ("hand", 1)):
        expected = golden[f"{kind}/coarse_edges"]
        assert set(map(tuple, samplings[kind].edges[level].tolist())) == set(
            map(tuple, expected.tolist())
        )


@pytest.mark.parametrize(
    ("kind", "name", "level"), [("body", "smpl_431", 1), ("hand", "mano_195", 0)]
)
def test_real_adjacency_is_the_golden_one(
    official: Path, samplings, golden, kind: str, name: str, level: int
) -> None:
    coarse = samplings[kind].levels(level + 1)[-1]
    expected = torch.zeros(len(coarse), len(coarse))
    indices = torch.from_numpy(golden[f"{kind}/adj_indices"]).long()
    expected[tuple(indices)] = torch.from_numpy(golden[f"{kind}/adj_values"])
    assert float((coarse.adjacency() - expected).abs().max()) < 1e-7
    edges = read_edges([official / f"{name}_adjmat_{part}.pt" for part in PARTS])
    assert torch.equal(edges, coarse.edges)


def test_real_faces_run_along_the_edges(official: Path, samplings) -> None:
    """The sampling file's faces are oriented alike; the file of 875 adds triangles that are not."""
    for kind, level in (("body", 1), ("body", 2), ("hand", 1)):
        faces, edges = samplings[kind].faces[level], samplings[kind].edges[level]
        directed = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
        assert len(directed.unique(dim=0)) == len(directed)
        assert torch.equal(directed.sort(dim=1).values.unique(dim=0), edges)
    own = read_array(official / "smpl_431_faces.npy", columns=3)
    known = {tuple(sorted(face)) for face in own.astype(int).tolist()}
    assert {tuple(sorted(face)) for face in samplings["body"].faces[2].tolist()} < known


@pytest.mark.parametrize(
    ("name", "rows"), [("J_regressor_h36m_correct", 17), ("J_regressor_extra", 14)]
)
def test_real_regressors_are_the_golden_ones(official: Path, golden, name: str, rows: int) -> None:
    dense = read_array(official / f"{name}.npy", rows, 6890)
    row, column, value = (golden[f"body/{name}/{part}"] for part in ("row", "col", "val64"))
    expected = np.zeros((rows, 6890))
    expected[row, column] = value.view(np.float64)
    np.testing.assert_array_equal(dense, expected)


def test_real_up_sampling_keeps_the_kept_vertices(samplings) -> None:
    for kind, count in (("body", 2), ("hand", 1)):
        for level in samplings[kind].levels(count):
            coarse = torch.randn(1, len(level), 3)
            kept = level.upsample(coarse)[:, level.vertex_index]
            torch.testing.assert_close(kept, coarse, rtol=0, atol=1e-5)


def test_real_up_sampling_survives_storage(samplings) -> None:
    """Its rows do not sum to one, so they must not be rounded and normalised as ours are."""
    level = samplings["body"].levels(2)[1]
    assert float((level.up_weight.sum(1) - 1).abs().max()) > 0.05
    again = CoarseLevel.from_tensors(level.to_tensors())
    assert torch.equal(again.up_weight, level.up_weight)


CASES = ("w64", "w64_train", "r50")


def reference(shared: Path, kind: str, case: str) -> Tensor:
    path = shared / "parity" / "metro" / "golden" / f"metro_{kind}_{case}.npz"
    with np.load(path) as data:
        return torch.from_numpy(data["template/ref_vertices"][0])


@pytest.mark.parametrize("case", CASES)
def test_body_template_is_the_official_networks(
    shared: Path, official: Path, samplings, case: str
) -> None:
    vertices = torch.from_numpy(normal("smpl_template", (1, 6890, 3))[0] * np.float32(0.3))
    regressor = read_array(official / "J_regressor_h36m_correct.npy", 17, 6890)
    topology = smpl_topology_of(vertices, NO_FACES, samplings["body"], regressor)
    ours, expected = torch.cat(topology.template_tokens), reference(shared, "body", case)
    assert float((ours - expected).abs().max()) <= 1e-6


@pytest.mark.parametrize("case", CASES)
def test_hand_template_is_the_official_networks(shared: Path, samplings, case: str) -> None:
    millimetres = normal("mano_template", (1, 778, 3))[0] * np.float32(0.1) * np.float32(1000)
    regressor = np.abs(normal("mano_joint_regressor", (21, 778)).astype(np.float64)) ** 8
    regressor = (regressor / regressor.sum(1, keepdims=True)).astype(np.float32)
    vertices = torch.from_numpy(millimetres) / 1000
    joints = torch.from_numpy(regressor @ millimetres) / 1000
    topology = mano_topology_of(vertices, joints, NO_FACES, samplings["hand"], regressor)
    ours, expected = torch.cat(topology.template_tokens), reference(shared, "hand", case)
    assert float((ours - expected).abs().max()) <= 1e-6


def test_real_folder_lacks_the_models_alone(official: Path) -> None:
    found = inspect_assets(official)
    wanted = [status.file.title.split()[0] for status in found if status.status != "ok"]
    assert wanted == ["SMPL_NEUTRAL", "SMPL_MALE", "SMPL_FEMALE", "MANO_RIGHT"]


def test_real_sampling_files_serve_made_up_bodies(official: Path, tmp_path: Path) -> None:
    """A model file beside the real files makes a complete folder."""
    for path in official.iterdir():
        (tmp_path / path.name).symlink_to(path)
    write_model(tmp_path / "MANO_RIGHT.npz", mano_arrays())
    topology = mano_topology(tmp_path)
    assert len(topology.coarse) == 195
    assert float(topology.template_tokens[0][0].abs().max()) == 0
