"""METRO, Mesh Graphormer and the pose-only network inside the predictor."""

from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kinemesh
from kinemesh.bodies.assets import load_topology
from kinemesh.data.mesh_augmentation import place_joints_2d
from kinemesh.data.mesh_crop import PLAIN_CROP, crop_corners, crop_picture
from kinemesh.data.synthetic import SyntheticDataset
from kinemesh.errors import InputError
from kinemesh.evaluation import DATASETS
from kinemesh.formats.glb import encode_glb
from kinemesh.formats.obj import encode_obj
from kinemesh.formats.people_json import read_people_json
from kinemesh.formats.people_npz import read_people_npz
from kinemesh.formats.picture import draw_overlay
from kinemesh.inference.crop_rule import CropRule
from kinemesh.inference.images import LoadedImage
from kinemesh.inference.mesh_networks import MeshNetwork, adapt_network
from kinemesh.inference.predictor import Predictor, photo_camera
from kinemesh.models.imagenet import normalise_imagenet
from kinemesh.models.registry import save_model
from kinemesh.models.variants import build_variant, describe_variant
from kinemesh.skeletons import HAND21
from tests.fake_predictor import fake_topology, spot_photo

METRO = {
    "architecture": "metro",
    "normalisation": "imagenet",
    "resolution": 64,
    "topology": {"name": "fake"},
}
POSE = METRO | {"architecture": "graphormer-pose"}


class FakeMesh(NamedTuple):
    camera: Tensor
    joints: Tensor
    vertices: tuple[Tensor, ...]


class FakePose(NamedTuple):
    camera: Tensor
    joints: Tensor


class Answers(nn.Module):
    """A network that knows its answer, and keeps what it was shown."""

    def __init__(self, camera_3: Tensor, joints_J3: Tensor, vertices_V3: Tensor | None) -> None:
        super().__init__()
        self.answer = (camera_3, joints_J3, vertices_V3)
        self.images: list[Tensor] = []

    def forward(self, image_B3SS: Tensor) -> FakeMesh | FakePose:
        self.images.append(image_B3SS)
        B = len(image_B3SS)
        camera, joints, vertices = (
            None if part is None else part.expand(B, *part.shape) for part in self.answer
        )
        if vertices is None:
            return FakePose(camera, joints)
        return FakeMesh(camera, joints, (vertices[:, ::4], vertices))


def weak_camera(joints_J3: Tensor, joints_px: Tensor, size: int) -> Tensor:
    """(s, tx, ty) with the least squared 2D error, which is what METRO's 2D loss asks for."""
    seen, places = 2 * joints_px / size - 1, joints_J3[:, :2]
    free, free_seen = places - places.mean(0), seen - seen.mean(0)
    scale = (free * free_seen).sum() / (free * free).sum()
    return torch.cat([scale[None], seen.mean(0) / scale - places.mean(0)])


def pose_predictor(metadata: dict[str, object] = POSE) -> Predictor:
    topology = fake_topology("hand")
    joints = topology.template_joints
    network, rule = adapt_network(
        Answers(torch.tensor([8.0, 0.01, 0.0]), joints, None), topology, metadata
    )
    return Predictor(network, topology, metadata, "cpu", rule)


class TestMeshNetwork:
    def test_joints_come_from_the_mesh_and_2d_from_the_camera(self) -> None:
        topology = fake_topology("body")
        vertices = topology.template + torch.tensor([0.2, -0.1, 0.3])
        camera = torch.tensor([1.5, 0.1, -0.2])
        network = MeshNetwork(Answers(camera, torch.zeros(14, 3), vertices), topology)
        output = network(torch.rand(2, 3, 96, 96))
        joints = vertices[::7][: len(topology.skeleton)]
        torch.testing.assert_close(output.joints, joints.expand(2, -1, -1))
        torch.testing.assert_close(output.vertices, vertices.expand(2, -1, -1))
        for b, j in ((0, 0), (1, 3)):
            x, y = (1.5 * (joints[j, 0] + 0.1) + 1) / 2, (1.5 * (joints[j, 1] - 0.2) + 1) / 2
            expected = torch.stack([x, y]) * 96
            torch.testing.assert_close(output.joints_2d[b, j], expected)
        assert output.confidence.eq(1).all()
        assert output.confidence.shape == output.joints.shape[:2]

    @pytest.mark.parametrize("normalise", [True, False])
    def test_images_are_normalised_as_imagenets(self, normalise: bool) -> None:
        topology = fake_topology("body")
        network = Answers(torch.ones(3), torch.zeros(14, 3), topology.template)
        image = torch.tensor([0.2, 0.4, 0.6])[:, None, None].expand(1, 3, 32, 32)
        MeshNetwork(network, topology, normalise=normalise)(image)
        expected = [(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (0.6 - 0.406) / 0.225]
        expected = expected if normalise else [0.2, 0.4, 0.6]
        torch.testing.assert_close(network.images[0][0, :, 5, 6], torch.tensor(expected))

    def test_the_regressor_is_no_part_of_the_weights(self) -> None:
        topology = fake_topology("body")
        network = MeshNetwork(nn.Linear(2, 2), topology)
        assert set(network.state_dict()) == {"network.weight", "network.bias"}

    def test_networks_of_our_own_pass_through(self) -> None:
        network = nn.Identity()
        metadata = {"architecture": "guided-graphormer"}
        adapted, rule = adapt_network(network, fake_topology("body"), metadata)
        assert adapted is network
        assert rule == CropRule()


class TestCrops:
    @pytest.mark.parametrize(
        ("kind", "name", "stored", "side"),
        [
            ("body", "smpl", True, 120),
            ("hand", "mano", True, 170),
            ("hand", "anny-hand", False, 170),
            ("body", "anny-body", True, 110),
        ],
    )
    def test_margin_and_border(self, kind: str, name: str, stored: bool, side: int) -> None:
        topology = replace(fake_topology(kind), name=name)
        answers = Answers(torch.tensor([9.0, 0.0, 0.0]), torch.zeros(14, 3), topology.template)
        metadata = METRO | {"normalisation": None, "topology": {"name": name} if stored else None}
        network, rule = adapt_network(answers, topology, metadata)
        predictor = Predictor(network, topology, METRO | {"resolution": 100}, "cpu", rule)
        photo = np.full((200, 200, 3), 255, np.uint8)
        (person,) = predictor.predict(photo, [[50, 50, 100, 80]])
        # the signed range -1..1 of the camera spans the crop
        width = np.ptp(person.joints_px[:, 0])
        assert width == pytest.approx(9 * np.ptp(person.joints[:, 0]) / 2 * side, rel=1e-3)
        predictor.predict(photo, [[-50, 50, 100, 100]])
        outside = answers.images[-1][0, :, 50, 2]
        assert outside.eq(1.0 if side == 110 else 0.0).all()

    def test_a_square_picture_is_seen_as_by_the_official_demo(self) -> None:
        """Pixel for pixel at 224, and the mesh comes out as the network gave it."""
        photo = np.random.default_rng(1).integers(0, 256, (224, 224, 3), np.uint8)
        topology = fake_topology("hand")
        answers = Answers(torch.tensor([8.0, 0.02, 0.0]), torch.zeros(21, 3), topology.template)
        network, rule = adapt_network(answers, topology, METRO)
        predictor = Predictor(network, topology, METRO | {"resolution": 224}, "cpu", rule)
        (person,) = predictor.predict(photo)
        seen = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
        torch.testing.assert_close(answers.images[0], normalise_imagenet(seen), rtol=0, atol=0)
        shape = topology.template.numpy()
        moved = person.vertices - person.vertices[:1]
        np.testing.assert_allclose(moved, shape - shape[:1], atol=1e-6)

    def test_lens_of_photos_that_say_none(self) -> None:
        photo = LoadedImage(np.zeros((300, 400, 3), np.uint8))
        assert photo_camera(photo, None, 4.0, 400.0).focal_px == 1600.0
        assert photo_camera(photo, None, 4.0, 100.0).focal_px == 500.0
        assert photo_camera(photo, None, 4.0, 1e9).focal_px == 2000.0
        assert photo_camera(photo, 700.0, 4.0, 400.0).focal_px == 700.0
        known = LoadedImage(photo.pixels, focal_px=777.0)
        assert photo_camera(known, None, 4.0, 400.0).focal_px == 777.0
        (person,) = pose_predictor().predict(photo)
        assert person.camera.focal_px == pytest.approx(400 * 1000 / 224)


@pytest.mark.parametrize("zoom", [0.4, 1.0, 1.25])
def test_where_metros_training_puts_joints(zoom: float) -> None:
    """The offset between a crop's content and its labels that docs/conventions.md states."""
    rng = np.random.default_rng(0)
    scale = 224 / zoom / 200
    offsets, shown = [], []
    for trial in range(400):
        center = 350 + rng.uniform(-0.5, 0.5, 2)
        joint = center + rng.uniform(-0.3, 0.3, 2) * 200 * scale
        label = np.array([[*joint, 1.0]])
        (placed,) = place_joints_2d(label, HAND21, center, scale, PLAIN_CROP)
        first, last = crop_corners(center, scale)
        content = (joint - first) * 224 / (last - first)
        offsets.append(content - placed[:2])
        if trial < 2:
            picture = np.zeros((700, 700, 3), np.uint8)
            cv2.circle(
                picture,
                tuple(round(16 * (v - 0.5)) for v in joint),
                16 * 9,
                (255,) * 3,
                -1,
                cv2.LINE_AA,
                4,
            )
            mass = crop_picture(picture, center, scale)[0]
            middles = np.arange(224) + 0.5
            shown.append([mass.sum(0) @ middles, mass.sum(1) @ middles] / mass.sum() - content)
    np.testing.assert_allclose(shown, 0, atol=0.15)
    np.testing.assert_allclose(np.mean(offsets, 0), 0.5 * zoom - 0.5, atol=0.06)
    assert np.std(offsets) < 0.5


@pytest.mark.parametrize("kind", ["body", "hand"])
class TestGeometry:
    """A network that answers with the truth: the result must land on the person."""

    def sample(self, kind: str, index: int) -> tuple[dict[str, Tensor], Predictor]:
        sample = SyntheticDataset(DATASETS[f"synthetic-{kind}"], seed=0)[index]
        topology = load_topology(f"anny-{kind}")
        size = sample["image"].shape[-1]
        joints = sample["joints_3d"][:, :3]
        camera = weak_camera(joints, sample["joints_2d"][:, :2], size)
        answers = Answers(camera, torch.full((14, 3), torch.nan), sample["vertices"])
        network, rule = adapt_network(answers, topology, METRO)
        return sample, Predictor(network, topology, METRO | {"resolution": size}, "cpu", rule)

    @pytest.mark.parametrize("index", [0, 5])
    def test_lands_on_the_person(self, kind: str, index: int) -> None:
        sample, predictor = self.sample(kind, index)
        photo = (sample["image"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        truth = sample["joints_2d"][:, :2].numpy()
        focal, root = float(sample["focal_px"]), sample["root_m"].numpy()
        (person,) = predictor.predict(photo, focal_px=focal)
        error = np.linalg.norm(person.camera.project(person.joints) - truth, axis=1)
        assert error.mean() < 0.5
        assert error.max() < 1
        true_vertices = sample["vertices"].numpy() + root
        seen = person.camera.project(person.vertices)
        assert np.abs(seen - person.camera.project(true_vertices)).max() < 1.5
        assert np.linalg.norm(person.vertices - true_vertices, axis=1).max() < 0.06 * root[2]
        # without the focal length the weak camera's long lens is assumed, and lands nearly as well
        (person,) = predictor.predict(photo)
        error = np.linalg.norm(person.camera.project(person.joints) - truth, axis=1)
        assert error.mean() < 3


class TestWithoutMesh:
    def test_joints_only(self) -> None:
        predictor = pose_predictor()
        assert (predictor.has_mesh, predictor.tells_sides) == (False, False)
        (person,) = predictor.predict(spot_photo(200, 200, 90, 90), side="left")
        assert person.vertices.shape == (0, 3)
        assert person.faces.shape == (0, 3)
        assert not person.has_mesh
        assert (person.score, person.side, person.skeleton) == (1.0, "left", "hand21")
        # the egg is as deep as wide, so perspective tells
        projected = person.camera.project(person.joints)
        np.testing.assert_allclose(projected, person.joints_px, atol=8)

    def test_files(self, tmp_path) -> None:
        photo = spot_photo(200, 200, 90, 90)
        people = pose_predictor().predict(photo, [[10, 10, 90, 90], [80, 80, 90, 90]])
        files = kinemesh.save(people, photo, tmp_path)
        names = ["people_overlay.png", "people_views.png", "people.json", "people.npz"]
        assert [path.name for path in files] == names
        for read, suffix in ((read_people_json, "json"), (read_people_npz, "npz")):
            back = read(tmp_path / f"people.{suffix}")
            assert [person.vertices.shape for person in back] == [(0, 3)] * 2
            assert [person.faces.shape for person in back] == [(0, 3)] * 2
            np.testing.assert_allclose(back[1].joints, people[1].joints, atol=1e-5)
        assert b'"vertices"' not in (tmp_path / "people.json").read_bytes()
        with pytest.raises(InputError, match="recovers joints without"):
            kinemesh.save(people, photo, tmp_path, formats=("overlay", "glb"))
        for encode in (encode_glb, encode_obj):
            with pytest.raises(InputError, match="hand_0_right comes from"):
                encode(people)

    def test_the_overlay_shows_the_joints(self) -> None:
        photo = np.full((512, 512, 3), 255, np.uint8)
        (person,) = pose_predictor().predict(photo)
        picture = draw_overlay(photo, [person])
        x, y = person.joints_px[12].round().astype(int)
        assert (picture[y, x] != 255).any()
        assert (picture[:3] == 255).all()

    def test_sides_cannot_be_told(self) -> None:
        photo = spot_photo(99, 99, 50, 50)
        with pytest.raises(InputError, match="cannot tell left"):
            pose_predictor().predict(photo, side="auto")
        (person,) = pose_predictor().predict(
            photo, [{"bbox": [0, 0, 50, 50], "side": "left"}], "auto"
        )
        assert person.side == "left"


TINY = {
    "backbone": {"name": "hrnet", "width": 4},
    "hidden_dims": (64, 32, 16),
    "feed_forward_dims": (64, 32, 16),
    "out_dims": (32, 16, 3),
    "layers": 1,
}


@pytest.mark.parametrize(
    "name",
    [
        "metro-hand-w40",
        "graphormer-handpose-w40",
        pytest.param("metro-body-w40", marks=pytest.mark.slow),
        pytest.param("graphormer-body-w40", marks=pytest.mark.slow),
    ],
)
def test_weight_files_of_every_architecture(name: str, tmp_path) -> None:
    """Random weights, saved, loaded by name, and asked about a photo."""
    topology = load_topology("anny-body" if "body" in name else "anny-hand")
    torch.manual_seed(0)
    network = build_variant(name, topology, **TINY)
    path = tmp_path / "tiny.safetensors"
    save_model(path, network, topology, describe_variant(name, topology, **TINY), half=False)
    predictor = kinemesh.load(path, "cpu")
    assert predictor.resolution == 224
    (person,) = predictor.predict(spot_photo(300, 260, 150, 100), [[100, 60, 100, 100]])
    has_mesh = "handpose" not in name
    assert predictor.has_mesh == has_mesh
    assert person.vertices.shape == (len(topology.template) if has_mesh else 0, 3)
    assert person.skeleton == topology.skeleton.name
    files = kinemesh.save([person], spot_photo(300, 260, 150, 100), tmp_path / "out")
    assert len(files) == (5 if has_mesh else 4)
