import pickle

import numpy as np
import pytest
import torch

import kinemesh
from kinemesh.errors import InputError, KinemeshError
from kinemesh.inference.crop_rule import CropRule
from kinemesh.inference.images import LoadedImage
from kinemesh.inference.placement import FAR_M, NEAR_M, place_in_camera
from kinemesh.inference.predictor import (
    CropPrediction,
    Predictor,
    photo_camera,
    resolve_device,
)
from kinemesh.models.registry import load_model
from tests.fake_predictor import (
    RESOLUTION,
    FakeNetwork,
    FakeOutput,
    fake_predictor,
    fake_topology,
    spot_photo,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


class TestPlacement:
    def test_exact_on_exact_data(self, rng: np.random.Generator) -> None:
        for _ in range(20):
            joints = rng.normal(size=(21, 3)) * 0.1
            truth = np.array([*rng.normal(size=2), rng.uniform(0.8, 8)])
            focal, principal = 900.0, (320.0, 240.0)
            world = joints + truth
            pixels = focal * world[:, :2] / world[:, 2:] + principal
            found = place_in_camera(joints, pixels, focal, principal, rng.uniform(0.1, 1, 21))
            np.testing.assert_allclose(found, truth, atol=1e-8)

    def test_weight_zero_ignores_a_joint(self, rng: np.random.Generator) -> None:
        joints = rng.normal(size=(10, 3)) * 0.1
        world = joints + np.array([0.1, 0.2, 2.0])
        pixels = 500 * world[:, :2] / world[:, 2:]
        pixels[0] = 1e4
        weights = np.ones(10)
        weights[0] = 0
        found = place_in_camera(joints, pixels, 500, (0, 0), weights)
        np.testing.assert_allclose(found, [0.1, 0.2, 2.0], atol=1e-8)

    @pytest.mark.parametrize("weights", [None, np.zeros(12)])
    def test_contradiction_stays_before_the_camera(
        self, rng: np.random.Generator, weights: np.ndarray | None
    ) -> None:
        joints = rng.normal(size=(12, 3))
        for pixels in (
            -600 * joints[:, :2],  # a picture upside down: least squares would go behind the camera
            np.full((12, 2), 40.0),  # all joints in one pixel
            joints[:, :2] * 1e7,  # far too large
        ):
            found = place_in_camera(joints, pixels, 600.0, (0.0, 0.0), weights)
            assert np.isfinite(found).all()
            assert (joints[:, 2] + found[2]).min() >= NEAR_M - 1e-9
            assert found[2] <= FAR_M

    def test_fallback_is_weak_perspective(self) -> None:
        flat = np.array([[-1.0, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0]])
        found = place_in_camera(flat, -100 * flat[:, :2] + [30, 0], 500.0, (0.0, 0.0))
        np.testing.assert_allclose(found, [30 / 100, 0, 5.0], atol=1e-9)


def test_mirror_twice_is_the_same(rng: np.random.Generator) -> None:
    answer = CropPrediction(
        rng.normal(size=(21, 3)),
        rng.normal(size=(50, 3)),
        rng.uniform(0, 64, (21, 2)),
        rng.uniform(size=21),
        0.3,
    )
    once = answer.mirrored(64)
    np.testing.assert_array_equal(once.joints[:, 0], -answer.joints[:, 0])
    np.testing.assert_array_equal(once.joints[:, 1:], answer.joints[:, 1:])
    np.testing.assert_allclose(once.joints_px[:, 0], 64 - answer.joints_px[:, 0])
    twice = once.mirrored(64)
    for name in ("joints", "vertices", "joints_px", "confidence"):
        np.testing.assert_allclose(getattr(twice, name), getattr(answer, name), atol=1e-12)


class TestPredictor:
    def test_the_spot_is_found_where_it_is(self) -> None:
        photo = spot_photo(400, 300, 250, 180)
        template = fake_topology().template_joints[:, :2].numpy()
        for box in ([200, 130, 100, 100], [120, 80, 260, 200], [230, 160, 300, 300]):
            (person,) = fake_predictor().predict(photo, [box])
            zoom = max(box[2:]) * CropRule().margin / RESOLUTION
            expected = [250, 180] + template * FakeNetwork.pixels_per_metre * zoom
            np.testing.assert_allclose(person.joints_px, expected, atol=0.5)
            assert person.box_px == tuple(box)

    def test_whole_image_is_one_crop_without_margin(self) -> None:
        predictor = fake_predictor()
        (person,) = predictor.predict(spot_photo(400, 300, 250, 180))
        assert person.box_px == (0, 0, 400, 300)
        template = fake_topology().template_joints[:, :2].numpy()
        zoom = 400 / RESOLUTION
        expected = [250, 180] + template * FakeNetwork.pixels_per_metre * zoom
        np.testing.assert_allclose(person.joints_px, expected, atol=1.0)

    def test_mesh_and_joints_share_the_camera_frame(self) -> None:
        (person,) = fake_predictor().predict(spot_photo(400, 300, 250, 180), [[200, 130, 99, 98]])
        np.testing.assert_allclose(person.joints, person.vertices[::7][:21], atol=1e-6)
        assert person.vertices.dtype == np.float32
        middle = person.camera.project(person.vertices).mean(0)
        np.testing.assert_allclose(middle, person.joints_px.mean(0), atol=12)
        assert person.joints[:, 2].min() > 0

    def test_points_are_turned_to_the_ray_of_the_crop(self) -> None:
        photo = spot_photo(400, 300, 350, 150)
        (person,) = fake_predictor().predict(photo, [[300, 100, 100, 100]], focal_px=200.0)
        template = fake_topology().template_joints.numpy()
        ray = np.array([350 - 200, 0, 200.0]) / 250.0
        turn = np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]])
        np.testing.assert_allclose(turn @ [0, 0, 1], ray, atol=1e-12)
        expected = template @ turn.T
        centred = person.joints - person.joints.mean(0)
        np.testing.assert_allclose(centred, expected - expected.mean(0), atol=1e-5)

    def test_left_hand_is_the_mirror_image_of_a_right_one(self) -> None:
        photo = spot_photo(400, 300, 150, 120)
        (right,) = fake_predictor().predict(photo, [[100, 70, 100, 100]], side="right")
        (left,) = fake_predictor().predict(photo[:, ::-1], [[200, 70, 100, 100]], side="left")
        flip = np.array([-1, 1, 1])
        # OpenCV's warp rounds positions to 1/32 pixel, which has a direction
        np.testing.assert_allclose(left.vertices, right.vertices * flip, atol=1e-3)
        np.testing.assert_allclose(left.joints_px[:, 0], 400 - right.joints_px[:, 0], atol=0.1)
        np.testing.assert_array_equal(left.faces, right.faces[:, [0, 2, 1]])
        assert (left.side, right.side) == ("left", "right")

    def test_auto_takes_the_surer_side(self) -> None:
        predictor = fake_predictor()
        boxes = [[0, 0, 100, 100]]
        # the fake network is sure of what lies in the left half of what it sees
        (right,) = predictor.predict(spot_photo(100, 100, 20, 50), boxes, side="auto")
        (left,) = predictor.predict(spot_photo(100, 100, 80, 50), boxes, side="auto")
        assert (right.side, left.side) == ("right", "left")

    def test_side_and_score_of_a_box_go_first(self) -> None:
        boxes = [
            {"bbox": [0, 0, 90, 90], "side": "left", "score": 0.25},
            {"bbox": [0, 0, 90, 90]},
        ]
        first, second = fake_predictor().predict(spot_photo(99, 99, 50, 50), boxes, side="right")
        assert (first.side, first.score) == ("left", 0.25)
        assert second.side == "right"
        assert second.score == pytest.approx(float(second.joint_confidence.mean()))

    def test_bodies_have_no_side(self) -> None:
        (person,) = fake_predictor("body").predict(spot_photo(99, 99, 50, 50), side="left")
        assert person.side is None
        assert person.skeleton == "coco17"

    def test_many_boxes_keep_their_order(self) -> None:
        predictor = fake_predictor()
        boxes = [[x, 0, 50, 50] for x in range(0, 40)]
        people = predictor.predict(spot_photo(100, 60, 40, 30), boxes)
        assert [person.box_px[0] for person in people] == list(range(40))
        assert [len(batch) for batch in predictor.network.batches] == [16, 16, 8]
        assert predictor.predict(spot_photo(100, 60, 40, 30), []) == []

    def test_one_pixel_and_huge_box(self) -> None:
        (person,) = fake_predictor().predict(np.full((1, 1, 3), 200, np.uint8))
        assert np.isfinite(person.vertices).all()
        (person,) = fake_predictor().predict(spot_photo(99, 99, 50, 50), [[-1e6, -1e6, 2e6, 2e6]])
        assert np.isfinite(person.vertices).all()

    def test_input_is_rgb_in_0_to_1(self) -> None:
        predictor = fake_predictor()
        predictor.predict(np.full((80, 80, 3), (255, 51, 0), np.uint8))
        (batch,) = predictor.network.batches
        assert batch.shape == (1, 3, RESOLUTION, RESOLUTION)
        torch.testing.assert_close(batch[0, :, 30, 30], torch.tensor([1.0, 0.2, 0.0]))

    def test_focal_length(self) -> None:
        photo = LoadedImage(np.zeros((300, 400, 3), np.uint8), focal_px=777.0)
        assert photo_camera(photo).focal_px == 777.0
        assert photo_camera(photo, 600).focal_px == 600.0
        assert photo_camera(LoadedImage(photo.pixels)).focal_px == 500.0
        assert photo_camera(photo).principal_px == (200.0, 150.0)

    def test_refusals(self) -> None:
        predictor, photo = fake_predictor(), spot_photo(99, 99, 50, 50)
        with pytest.raises(InputError, match="outside the image"):
            predictor.predict(photo, [[200, 0, 10, 10]])
        with pytest.raises(InputError, match="side must be"):
            predictor.predict(photo, side="both")
        for focal in (0.0, -5.0, float("nan")):
            with pytest.raises(InputError, match="focal_px"):
                predictor.predict(photo, focal_px=focal)
        for focal in (0.09 * 140.0, 101 * 140.1):
            with pytest.raises(InputError, match="not plausible"):
                predictor.predict(photo, focal_px=focal)
        with pytest.raises(InputError, match="uint8"):
            predictor.predict(photo / 255.0)
        with pytest.raises(InputError, match="Unknown device"):
            resolve_device("abacus")
        if not torch.cuda.is_available():
            with pytest.raises(InputError, match="sees no CUDA device"):
                resolve_device("cuda")

    def test_not_finite_answers_are_refused(self) -> None:
        class Broken(FakeNetwork):
            def forward(self, image: torch.Tensor) -> FakeOutput:
                answer = super().forward(image)
                return answer._replace(vertices=answer.vertices * float("nan"))

        topology = fake_topology()
        predictor = Predictor(Broken(topology), topology, {"resolution": 64}, device="cpu")
        with pytest.raises(KinemeshError, match="not finite"):
            predictor.predict(spot_photo(99, 99, 50, 50))


def test_a_loaded_predictor_can_be_sent_to_another_process() -> None:
    predictor = kinemesh.load("hand", "cpu")
    twin = pickle.loads(pickle.dumps(predictor))
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(twin.predict(image)[0].vertices, predictor.predict(image)[0].vertices)


def test_a_loaded_network_gives_the_outputs_of_its_weights() -> None:
    """`load` rewrites the network for the CPU; `load_model` gives it as it was trained."""
    network, _, _ = load_model("body")
    image = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = network(image), kinemesh.load("body", "cpu").network(image)
    torch.testing.assert_close(found.vertices, expected.vertices, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.joints_2d, expected.joints_2d, atol=1e-3, rtol=0)
