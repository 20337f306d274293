"""SMPL-shaped bodies: skinning against a slow twin, another library and official outputs."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import sparse
from torch import Tensor

from kinemesh.bodies import SmplModel, load_body_model
from kinemesh.bodies.model_files import ModelArrays, read_model_file
from kinemesh.bodies.skinning import official_rotations, tree_depths
from kinemesh.errors import InputError
from kinemesh.geometry.rotations import axis_angle_to_matrix
from tests import slow_skinning
from tests.body_fixtures import (
    SMPL_PARENTS,
    mano_arrays,
    smpl_arrays,
    write_model,
    write_smpl_assets,
)
from tests.seeded_weights import normal
from tests.tolerances import TOL

VERTICES = 60
EXACT = TOL[torch.float32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smpl")
    write_smpl_assets(folder, VERTICES)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> SmplModel:
    return load_body_model(folder, "smpl")


def random_bodies(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pose = 0.6 * torch.randn(count, 72, generator=generator)
    return pose, torch.randn(count, 10, generator=generator)


def test_shapes_types_and_buffers(model: SmplModel) -> None:
    posed = model(*random_bodies(3))
    assert posed.vertices.shape == (3, VERTICES, 3)
    assert posed.joints.shape == (3, 24, 3)
    assert posed.vertices.dtype == posed.joints.dtype == torch.float32
    assert model.faces.shape == (2 * VERTICES - 4, 3)
    assert not model.state_dict(), "a checkpoint must not carry a licensed file"
    assert not list(model.parameters())


@pytest.mark.parametrize("form", ["pkl", "npz", "safetensors"])
def test_equals_the_slow_twin(tmp_path: Path, form: str) -> None:
    model = SmplModel.load(write_smpl_assets(tmp_path, VERTICES, form))
    pose, betas = random_bodies(2)
    pose[1, :6] = 0  # joints at rest, the first one included
    posed = model(pose, betas)
    for body in range(2):
        vectors = pose[body].double().numpy().reshape(24, 3)
        rotations = np.stack([slow_skinning.official_rotation(vector) for vector in vectors])
        expected = slow_skinning.skin(smpl_arrays(VERTICES), rotations, betas[body].numpy())
        for ours, theirs in zip(posed, expected, strict=True):
            torch.testing.assert_close(ours[body].double(), torch.from_numpy(theirs), **EXACT)


def test_rotations_are_the_official_ones() -> None:
    vectors = torch.randn(20, 3, dtype=torch.float64) * torch.logspace(-9, 0.5, 20)[:, None]
    vectors[0] = 0
    ours = official_rotations(vectors)
    theirs = np.stack([slow_skinning.official_rotation(vector) for vector in vectors.numpy()])
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-14)
    quirk = (ours - axis_angle_to_matrix(vectors)).abs().max()
    assert 1e-9 < quirk < 1e-7, "the offset of the angle is there and as small as it should be"


def test_a_turned_root_turns_all_about_the_root_joint(model: SmplModel) -> None:
    pose, betas = random_bodies(1)
    pose[:, :3] = 0
    at_rest = model(pose, betas)
    turn = torch.tensor([[0.3, -1.0, 0.5]])
    pose[:, :3] = turn
    root = at_rest.joints[:, :1]
    for before, after in zip(at_rest, model(pose, betas), strict=True):
        expected = (before - root) @ official_rotations(turn).transpose(1, 2) + root
        torch.testing.assert_close(after, expected, **EXACT)


def test_without_pose_and_shape_it_is_the_template(model: SmplModel, folder: Path) -> None:
    rest = model(torch.zeros(1, 72), torch.zeros(1, 10))
    arrays = smpl_arrays(VERTICES)
    np.testing.assert_allclose(rest.vertices[0].numpy(), arrays["v_template"], atol=1e-6)
    joints = arrays["J_regressor"] @ arrays["v_template"]
    np.testing.assert_allclose(rest.joints[0].numpy(), joints, atol=1e-6)


def test_gradients_are_those_of_finite_differences(model: SmplModel) -> None:
    generator = torch.Generator().manual_seed(3)
    pose = (0.4 * torch.randn(1, 72, generator=generator)).double().requires_grad_()
    betas = torch.randn(1, 10, generator=generator).double().requires_grad_()
    exact = SmplModel(ModelArrays(*model_arrays())).double()
    pull = torch.randn(1, VERTICES, 3, generator=generator).double()
    assert torch.autograd.gradcheck(
        lambda pose, betas: (exact(pose, betas).vertices * pull).sum(), (pose, betas)
    )


def model_arrays() -> tuple:
    arrays = smpl_arrays(VERTICES)
    keys = ("v_template", "f", "shapedirs", "posedirs", "weights", "J_regressor")
    held = [arrays[key].astype(np.int64 if key == "f" else np.float64) for key in keys]
    return (*held, SMPL_PARENTS)


def test_gradient_at_the_rest_pose_is_finite(model: SmplModel) -> None:
    pose = torch.zeros(1, 72, requires_grad=True)
    model(pose, torch.zeros(1, 10)).vertices.square().sum().backward()
    assert pose.grad is not None
    assert bool(pose.grad.isfinite().all())
    assert float(pose.grad.abs().max()) > 1e-3


def test_mixed_precision_leaves_it_in_float32(model: SmplModel) -> None:
    bodies = random_bodies(1)
    with torch.autocast("cpu", torch.bfloat16):
        posed = model(*bodies)
    assert torch.equal(posed.vertices, model(*bodies).vertices)


@pytest.mark.slow
def test_compiles_without_graph_breaks(model: SmplModel) -> None:
    bodies = random_bodies(2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*bodies).vertices, model(*bodies).vertices, **EXACT)


def test_tree_depths_hold_every_joint_below_its_parent() -> None:
    depths, place = tree_depths(SMPL_PARENTS)
    order = [0, *(joint for joints, _ in depths for joint in joints)]
    assert [order[at] for at in place] == list(range(24))
    above = [0]
    for joints, parents in depths:
        assert [above[parent] for parent in parents] == [SMPL_PARENTS[joint] for joint in joints]
        above = joints


def test_only_ten_shape_coefficients_are_used(tmp_path: Path, model: SmplModel) -> None:
    arrays = smpl_arrays(VERTICES)
    more = np.concatenate([arrays["shapedirs"], np.ones((VERTICES, 3, 6))], axis=2)
    write_model(tmp_path / "SMPL_NEUTRAL.pkl", arrays | {"shapedirs": more})
    bodies = random_bodies(1)
    wide = SmplModel.load(tmp_path / "SMPL_NEUTRAL.pkl")
    torch.testing.assert_close(wide(*bodies).vertices, model(*bodies).vertices, **EXACT)


def test_gendered_models_on_request(tmp_path: Path) -> None:
    for gender in ("neutral", "male", "female"):
        write_smpl_assets(tmp_path, VERTICES, "pkl", gender)
    bodies = random_bodies(1)
    found = [
        load_body_model(tmp_path, "smpl", gender)(*bodies).vertices
        for gender in ("neutral", "male", "female")
    ]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


class TestRefused:
    def test_wrong_shapes(self, model: SmplModel) -> None:
        with pytest.raises(InputError, match=r"pose_B72: expected shape \(B, 72\), found \(1, 48"):
            model(torch.zeros(1, 48), torch.zeros(1, 10))
        with pytest.raises(InputError, match=r"betas: expected shape \(B, 10\), found \(1, 16\)"):
            model(torch.zeros(1, 72), torch.zeros(1, 16))

    def test_no_file_and_other_files(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="found none"):
            SmplModel.load(tmp_path / "SMPL_NEUTRAL.pkl")
        (tmp_path / "a.obj").write_text("v 0 0 0")
        with pytest.raises(InputError, match=r"found '\.obj'"):
            SmplModel.load(tmp_path / "a.obj")

    @pytest.mark.parametrize("form", ["pkl", "npz", "safetensors"])
    def test_damaged_files(self, tmp_path: Path, form: str) -> None:
        path = write_smpl_assets(tmp_path, VERTICES, form)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(InputError, match=path.name):
            SmplModel.load(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"posedirs": np.zeros((60, 3, 135))}, r"'posedirs' of shape \(60, 3, 207\)"),
            ({"shapedirs": np.zeros((60, 3, 4))}, "expected 10 or more shapes"),
            ({"f": np.full((4, 3), 60, np.uint32)}, "faces of vertices .* found 60 to 60"),
            ({"kintree_table": np.full((2, 24), 23, np.uint32)}, "each joint after its parent"),
            ({"v_template": np.array(1.0)}, r"'v_template' of shape \(vertices, 3\), found \(\)"),
            ({"v_template": np.zeros((0, 3))}, r"'v_template' .* found \(0, 3\)"),
            ({"v_template": np.full((60, 3), np.nan)}, "'v_template', found values that are inf"),
            ({"J_regressor": np.full((24, 60), np.inf)}, "'J_regressor', found values that are"),
            ({"weights": np.zeros((60, 24))}, "'weights' that sum to one .* from 0 to 0"),
            ({"weights": np.full((60, 24), 0.05)}, "'weights' that sum to one .* from 1.2 to 1.2"),
        ],
    )
    def test_arrays_that_do_not_fit(self, tmp_path: Path, change: dict, message: str) -> None:
        path = tmp_path / "SMPL_NEUTRAL.npz"
        write_model(path, smpl_arrays(VERTICES) | change)
        with pytest.raises(InputError, match=message):
            read_model_file(path, 24)

    @pytest.mark.parametrize("shape", [(2**47, 60), (60, -1), (2**20, 2**20), (24.5, "a")])
    def test_sparse_arrays_of_any_shape(self, tmp_path: Path, shape: tuple) -> None:
        regressor = sparse.csc_matrix(smpl_arrays(VERTICES)["J_regressor"])
        regressor._shape = shape
        path = tmp_path / "SMPL_NEUTRAL.pkl"
        path.write_bytes(pickle.dumps(smpl_arrays(VERTICES) | {"J_regressor": regressor}))
        with pytest.raises(InputError, match=r"SMPL_NEUTRAL\.pkl: expected"):
            read_model_file(path, 24)

    def test_ragged_lists(self, tmp_path: Path) -> None:
        path = tmp_path / "SMPL_NEUTRAL.pkl"
        ragged = [[0.0, 0.0, 0.0], [0.0]]
        path.write_bytes(pickle.dumps(smpl_arrays(VERTICES) | {"v_template": ragged}))
        with pytest.raises(InputError, match="numbers as 'v_template', found type object"):
            read_model_file(path, 24)

    def test_types_that_numpy_lacks(self, tmp_path: Path) -> None:
        arrays = smpl_arrays(VERTICES)
        tensors = {key: torch.from_numpy(value).bfloat16() for key, value in arrays.items()}
        save_file(tensors, tmp_path / "SMPL_NEUTRAL.safetensors")
        with pytest.raises(InputError, match="expected a safetensors file of float32 arrays"):
            read_model_file(tmp_path / "SMPL_NEUTRAL.safetensors", 24)

    def test_missing_arrays(self, tmp_path: Path) -> None:
        path = tmp_path / "SMPL_NEUTRAL.npz"
        arrays = smpl_arrays(VERTICES)
        del arrays["weights"], arrays["f"]
        write_model(path, arrays)
        with pytest.raises(InputError, match="found no f, weights"):
            read_model_file(path, 24)

    def test_a_hand_is_no_body(self, tmp_path: Path) -> None:
        path = tmp_path / "SMPL_NEUTRAL.npz"
        write_model(path, mano_arrays())
        with pytest.raises(InputError, match="a model of another kind"):
            SmplModel.load(path)


def test_equals_another_library(tmp_path: Path) -> None:
    """`body-models` (Apache-2.0) reads the same file; it has no offset of the angle."""
    other = pytest.importorskip("body_models.smpl.torch", reason="needs: pip install body-models")
    path = write_smpl_assets(tmp_path, VERTICES)
    pose, betas = random_bodies(4)
    theirs = other.SMPL(model_path=path)
    arguments = {"shape": betas, "pelvis_rotation": pose[:, :3]}
    body_pose = pose[:, 3:].reshape(4, 23, 3)
    ours = SmplModel.load(path)(pose, betas)
    torch.testing.assert_close(
        ours.vertices, theirs.forward_vertices(body_pose, **arguments), **EXACT
    )
    joints = theirs.forward_skeleton(body_pose, **arguments)[..., :3, 3]
    torch.testing.assert_close(ours.joints, joints, **EXACT)


@pytest.fixture(scope="module")
def official(shared: Path) -> tuple[SmplModel, Tensor, dict[str, np.ndarray]]:
    """A made-up body of 6890 vertices, its joint regressor, and what official code makes of it."""
    folder = shared / "parity" / "potter" / "golden"
    sys.path[:0] = [str(folder), str(folder.parents[1])]
    try:
        from synthetic_inputs import body
    finally:
        del sys.path[:2]
    made, regressor = body()
    keys = ("v_template", "shapedirs", "posedirs", "weights", "J_regressor")
    template, *rest = (made[key].astype(np.float64) for key in keys)
    arrays = ModelArrays(template, np.zeros((0, 3), np.int64), *rest, tuple(made["parents"]))
    with np.load(folder / "hybrik_ik.npz") as golden:
        return SmplModel(arrays), torch.from_numpy(regressor), dict(golden)


def assert_official(posed, regressor: Tensor, golden: dict[str, np.ndarray], case: str) -> None:
    joints17 = torch.einsum("jv,bvd->bjd", regressor, posed.vertices)
    ours = {
        "joints": posed.joints - posed.joints[:, :1],
        "joints17": joints17 - joints17[:, :1],
        "verts_every53": (posed.vertices - joints17[:, :1])[:, ::53],
    }
    for name, value in ours.items():
        error = np.abs(value.numpy() - golden[f"{case}/{name}"]).max()
        print(f"{case} {name}: max abs difference {error:.1e}")
        assert error < 2e-6, (case, name)


@pytest.mark.parametrize("case", ["eval", "train"])
def test_skinning_equals_the_official_one(official, case: str) -> None:
    model, regressor, golden = official
    rotations, betas = (torch.from_numpy(golden[key]) for key in (f"{case}/rot_mats", "betas"))
    assert_official(model.skinning(rotations, betas), regressor, golden, case)


def test_axis_angle_bodies_equal_the_official_ones(official) -> None:
    model, regressor, golden = official
    pose = torch.from_numpy(normal("ik.theta", (3, 72)) * np.float32(0.5))
    posed = model(pose, torch.from_numpy(golden["betas"]))
    assert_official(posed, regressor, golden, "lbs_aa")
