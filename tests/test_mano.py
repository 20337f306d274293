"""MANO-shaped right hands: mean pose, joints and tips, regressor, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kinemesh.bodies import ManoModel, load_body_model
from kinemesh.bodies.mano import HAND21_ORDER
from kinemesh.errors import InputError
from kinemesh.skeletons import HAND21
from tests import slow_skinning
from tests.body_fixtures import (
    MANO_TIPS,
    mano_arrays,
    smpl_arrays,
    write_mano_assets,
    write_model,
)
from tests.tolerances import TOL

EXACT = TOL[torch.float32]
FILE_JOINTS = (  # of the model file, by their HAND21 names
    "wrist",
    *(f"{finger}_{k}" for finger in ("index", "middle", "pinky", "ring") for k in (1, 2, 3)),
    *(f"thumb_{k}" for k in (1, 2, 3)),
)
TIPS = ("thumb_4", "index_4", "middle_4", "ring_4", "pinky_4")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ManoModel:
    folder = tmp_path_factory.mktemp("mano")
    write_mano_assets(folder)
    return load_body_model(folder, "mano")


def random_hands(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pose = 0.5 * torch.randn(count, 48, generator=generator)
    return pose, torch.randn(count, 10, generator=generator)


def slow_hand(pose: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and joints by name, one after the other."""
    arrays = mano_arrays()
    full = np.concatenate([pose[:3], pose[3:] + arrays["hands_mean"]])
    rotations = [slow_skinning.official_rotation(vector) for vector in full.reshape(16, 3)]
    vertices, joints = slow_skinning.skin(arrays, np.stack(rotations), betas)
    places = dict(zip(FILE_JOINTS, joints, strict=True))
    places |= {tip: vertices[vertex] for tip, vertex in zip(TIPS, MANO_TIPS, strict=True)}
    return vertices, np.stack([places[name] for name in HAND21.joints])


@pytest.mark.parametrize("form", ["pkl", "npz", "safetensors"])
def test_equals_the_slow_twin(tmp_path: Path, form: str) -> None:
    model = ManoModel.load(write_mano_assets(tmp_path, form))
    pose, betas = random_hands(2)
    pose[1] = 0
    posed = model(pose, betas)
    for hand in range(2):
        expected = slow_hand(pose[hand].double().numpy(), betas[hand].double().numpy())
        for ours, theirs in zip(posed, expected, strict=True):
            torch.testing.assert_close(ours[hand].double(), torch.from_numpy(theirs), **EXACT)


def test_zero_pose_is_the_mean_pose(model: ManoModel) -> None:
    betas = torch.zeros(1, 10)
    flat = torch.cat([torch.zeros(3), -model.mean_pose_45])[None]
    template = torch.from_numpy(mano_arrays()["v_template"]).float()
    torch.testing.assert_close(model(flat, betas).vertices[0], template, **EXACT)
    mean = model(torch.zeros(1, 48), betas).vertices[0]
    assert float((mean - template).norm(dim=1).max()) > 0.005


def test_shapes_types_and_buffers(model: ManoModel) -> None:
    posed = model(*random_hands(3))
    assert posed.vertices.shape == (3, 778, 3)
    assert posed.joints.shape == (3, 21, 3)
    assert posed.joints.dtype == torch.float32
    assert not model.state_dict(), "a checkpoint must not carry a licensed file"


def test_units_are_metres_and_the_wrist_stays_where_the_file_has_it(model: ManoModel) -> None:
    posed = model(torch.zeros(1, 48), torch.zeros(1, 10))
    wrist, tip = posed.joints[0, HAND21.index("wrist")], posed.joints[0, HAND21.index("middle_4")]
    assert 0.14 < float((tip - wrist).norm()) < 0.22
    rest = mano_arrays()["J_regressor"][0] @ mano_arrays()["v_template"]
    np.testing.assert_allclose(posed.joints[0, 0].numpy(), rest, atol=1e-6)


def test_order_is_that_of_the_skeleton() -> None:
    names = (*FILE_JOINTS, *TIPS)
    assert tuple(names[index] for index in HAND21_ORDER) == HAND21.joints


def test_regressor_takes_another_middle_finger_tip(model: ManoModel) -> None:
    vertices = torch.randn(778, 3, dtype=torch.float64).numpy()
    joints = model.joint_regressor @ vertices
    own = mano_arrays()["J_regressor"] @ vertices
    for name, place in zip(FILE_JOINTS, own, strict=True):
        np.testing.assert_allclose(joints[HAND21.index(name)], place, atol=1e-12)
    for name, vertex in zip(TIPS, (745, 317, 445, 556, 673), strict=True):
        np.testing.assert_array_equal(joints[HAND21.index(name)], vertices[vertex])


def test_gradients_reach_pose_and_shape(model: ManoModel) -> None:
    pose = torch.zeros(1, 48, requires_grad=True)
    betas = torch.zeros(1, 10, requires_grad=True)
    model(pose, betas).joints.square().sum().backward()
    for gradient in (pose.grad, betas.grad):
        assert gradient is not None
        assert bool(gradient.isfinite().all())
        assert float(gradient.abs().max()) > 0


def test_the_left_hand_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "MANO_LEFT.pkl", mano_arrays())
    with pytest.raises(InputError, match="expected the right hand, found the left"):
        ManoModel.load(tmp_path / "MANO_LEFT.pkl")


def test_other_models_are_refused(tmp_path: Path, model: ManoModel) -> None:
    arrays = mano_arrays()
    del arrays["hands_mean"]
    write_model(tmp_path / "a.npz", arrays)
    with pytest.raises(InputError, match="found none; is it MANO"):
        ManoModel.load(tmp_path / "a.npz")
    write_model(tmp_path / "b.npz", smpl_arrays(60))
    with pytest.raises(InputError, match="a model of another kind"):
        ManoModel.load(tmp_path / "b.npz")
    with pytest.raises(InputError, match="not principal components"):
        model(torch.zeros(1, 9), torch.zeros(1, 10))


def test_another_number_of_vertices_is_refused(tmp_path: Path) -> None:
    keys = ("v_template", "shapedirs", "posedirs", "weights")
    arrays = mano_arrays()
    cut = {key: arrays[key][:500] for key in keys}
    cut |= {"J_regressor": arrays["J_regressor"][:, :500], "f": arrays["f"][:0]}
    write_model(tmp_path / "MANO_RIGHT.npz", arrays | cut)
    with pytest.raises(InputError, match="expected 778 vertices, found 500"):
        ManoModel.load(tmp_path / "MANO_RIGHT.npz")


def test_equals_another_library(tmp_path: Path) -> None:
    """`body-models` (Apache-2.0) reads the same file; it has no offset of the angle."""
    other = pytest.importorskip("body_models.mano.torch", reason="needs: pip install body-models")
    path = write_mano_assets(tmp_path)
    pose, betas = random_hands(3)
    theirs = other.MANO(model_path=path)
    arguments = {"shape": betas, "wrist_rotation": pose[:, :3]}
    hand_pose = pose[:, 3:].reshape(3, 15, 3)
    ours = ManoModel.load(path)(pose, betas)
    expected = theirs.forward_vertices(hand_pose, **arguments)
    torch.testing.assert_close(ours.vertices, expected, **EXACT)
    joints = theirs.forward_skeleton(hand_pose, **arguments)[..., :3, 3]
    named = [HAND21.index(name) for name in FILE_JOINTS]
    torch.testing.assert_close(ours.joints[:, named], joints, **EXACT)
