"""A user who has an official checkpoint and the official asset files, all by commands."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import kinemesh
from kinemesh.bodies.mano import ManoModel
from kinemesh.bodies.official_assets import mano_topology, smpl_topology
from kinemesh.cli import main
from kinemesh.data.mesh_labels import MeshRecord
from kinemesh.data.mesh_tsv import write_mesh_tsv
from kinemesh.formats.people_json import read_people_json
from kinemesh.formats.people_npz import read_people_npz
from kinemesh.inference.crop_rule import PUBLISHED_RULES
from kinemesh.models.checkpoints import to_official
from kinemesh.models.registry import load_model
from kinemesh.models.variants import build_variant
from tests.body_fixtures import write_mano_assets, write_smpl_assets
from tests.fake_predictor import spot_photo

SMALL = {
    "backbone": {"name": "hrnet", "width": 4},
    "hidden_dims": (64, 32, 16),
    "feed_forward_dims": (64, 32, 16),
    "out_dims": (32, 16, 3),
    "layers": 1,
}


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    """A folder as a user has it: SMPL and MANO beside each other, of made-up shape."""
    folder = tmp_path_factory.mktemp("assets")
    write_mano_assets(folder)
    write_smpl_assets(folder, vertices=60)
    return folder


def official_checkpoint(folder: Path, family: str, assets: Path) -> Path:
    """A file as the official trainer wrote it: official names, PyTorch's old format."""
    topology = mano_topology(assets) if family.endswith("hand") else smpl_topology(assets)
    torch.manual_seed(1)
    network = build_variant(f"{family}-w40", topology, **SMALL)
    path = folder / f"{family}_state_dict.bin"
    state = to_official(network.state_dict(), family)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, assets: Path) -> Path:
    return official_checkpoint(tmp_path_factory.mktemp("hand"), "metro-hand", assets)


@pytest.fixture(scope="module")
def converted(checkpoint: Path) -> Path:
    path = checkpoint.with_name("metro_hand.safetensors")
    words = ["convert", checkpoint, "--family", "metro-hand", "--out", path]
    assert main([str(word) for word in words]) == 0
    return path


@pytest.fixture(scope="module")
def hands_yaml(tmp_path_factory, assets: Path) -> Path:
    """Four hands in the official TSV format, labelled by MANO's pose as FreiHAND's are."""
    rng = np.random.default_rng(5)
    model = ManoModel.load(assets / "MANO_RIGHT.pkl")
    records = []
    for index in range(4):
        pose, betas = 0.3 * rng.standard_normal(48), rng.standard_normal(10)
        posed = model(torch.tensor(pose[None]).float(), torch.tensor(betas[None]).float())
        joints = posed.joints[0].double().numpy()
        places = 112 + 600 * (joints[:, :2] - joints[0, :2])
        _, jpeg = cv2.imencode(".jpg", spot_photo(224, 224, 100 + index, 90))
        annotation = {
            "center": [112, 112],
            "scale": 0.9,
            "2d_joints": np.column_stack([places, np.ones(21)]),
            "has_2d_joints": 1,
            "3d_joints": np.column_stack([joints - joints[0], np.ones(21)]),
            "has_3d_joints": 1,
            "pose": pose,
            "betas": betas,
            "has_smpl": 1,
        }
        records.append(MeshRecord(f"{index:08d}.jpg", jpeg.tobytes(), annotation))
    return write_mesh_tsv(tmp_path_factory.mktemp("tsv"), "hands", records)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that must succeed, and give what it printed."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def test_doctor_finds_the_assets(assets: Path, tmp_path: Path, capsys) -> None:
    text = run(capsys, "doctor", "--assets", assets)
    for name in ("MANO_RIGHT.pkl", "mano_downsampling.npz", "J_regressor_h36m_correct.npy"):
        assert name in text
    (tmp_path / "empty").mkdir()
    main(["doctor", "--assets", str(tmp_path / "empty")])
    assert "missing" in capsys.readouterr().out


class TestConvert:
    def test_the_way_back_gives_the_same_tensors(
        self, checkpoint: Path, converted: Path, tmp_path: Path, capsys
    ) -> None:
        back = tmp_path / "state_dict.bin"
        run(capsys, "convert", converted, "--family", "metro-hand", "--official", "--out", back)
        before = torch.load(checkpoint, weights_only=True)
        after = torch.load(back, weights_only=True)
        assert set(before) == set(after)
        for name, tensor in before.items():
            assert torch.equal(tensor, after[name]), name

    def test_the_mesh_can_be_stored_with_it(
        self, checkpoint: Path, assets: Path, tmp_path: Path, capsys
    ) -> None:
        whole = tmp_path / "whole.safetensors"
        run(
            capsys,
            *("convert", checkpoint, "--family", "metro-hand"),
            *("--assets", assets, "--out", whole),
        )
        assert kinemesh.load(whole, "cpu").topology.name == "mano"

    def test_a_wrong_family_is_told(self, checkpoint: Path, tmp_path: Path, capsys) -> None:
        out = tmp_path / "x.safetensors"
        words = ["convert", checkpoint, "--family", "graphormer-hand", "--out", out]
        assert main([str(word) for word in words]) == 2
        assert "metro-hand" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


class TestPredict:
    def test_a_left_hand(self, converted: Path, assets: Path, tmp_path: Path, capsys) -> None:
        photo = tmp_path / "hand.png"
        Image.fromarray(spot_photo(224, 224, 100, 90)).save(photo)
        model = ("--model", converted, "--assets", assets, "--detector", "none")
        run(capsys, "predict", photo, *model, "--side", "left", "--out", tmp_path / "out")
        names = ["hand.glb", "hand.json", "hand.npz", "hand.obj", "hand_overlay.png"]
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
        (person,) = read_people_npz(tmp_path / "out" / "hand.npz")
        faces = mano_topology(assets).faces.numpy()
        np.testing.assert_array_equal(person.faces, faces[:, [0, 2, 1]])
        assert (person.side, person.skeleton) == ("left", "hand21")
        assert person.camera.focal_px == pytest.approx(1000)  # as in the official demo
        (again,) = kinemesh.load(converted, "cpu", assets).predict(photo, "whole", side="left")
        np.testing.assert_allclose(again.vertices, person.vertices, atol=1e-6)

    def test_without_assets_it_says_what_is_needed(
        self, converted: Path, tmp_path: Path, capsys
    ) -> None:
        photo = tmp_path / "hand.png"
        Image.fromarray(spot_photo(64, 64, 30, 30)).save(photo)
        assert main(["predict", str(photo), "--model", str(converted)]) == 2
        assert "--assets" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "family",
        [
            "graphormer-body",
            pytest.param("graphormer-hand", marks=pytest.mark.slow),
            pytest.param("metro-body", marks=pytest.mark.slow),
        ],
    )
    def test_the_other_families(self, family: str, assets: Path, tmp_path: Path, capsys) -> None:
        photo, path = tmp_path / "a.png", tmp_path / "a.safetensors"
        Image.fromarray(spot_photo(300, 200, 100, 90)).save(photo)
        checkpoint = official_checkpoint(tmp_path, family, assets)
        run(capsys, "convert", checkpoint, "--family", family, "--out", path)
        words = ("--model", path, "--assets", assets, "--boxes", "50,40,90,100")
        run(capsys, "predict", photo, *words, "--out", tmp_path)
        (person,) = read_people_json(tmp_path / "a.json")
        assert person.skeleton == ("hand21" if family.endswith("hand") else "h36m17")
        assert len(person.vertices) == (778 if family.endswith("hand") else 60)
        content = json.loads((tmp_path / "a.json").read_text())
        assert {joint["confidence"] for joint in content["people"][0]["joints"]} == {1.0}


class TestData:
    def test_check_draws_the_samples(self, hands_yaml: Path, tmp_path: Path, capsys) -> None:
        text = run(capsys, "data", "check", hands_yaml, "--out", tmp_path / "check.png")
        assert "4" in text
        assert cv2.imread(str(tmp_path / "check.png")).std() > 10

    def test_shards_hold_the_same_hands(self, hands_yaml: Path, tmp_path: Path, capsys) -> None:
        run(capsys, "data", "convert", hands_yaml, tmp_path / "shards", "--shard-size", 2)
        run(capsys, "data", "check", tmp_path / "shards", "--out", tmp_path / "shards.png")
        run(capsys, "data", "check", hands_yaml, "--out", tmp_path / "tsv.png")
        assert (tmp_path / "shards.png").read_bytes() == (tmp_path / "tsv.png").read_bytes()

    def test_a_truncated_file_is_named(self, hands_yaml: Path, tmp_path: Path, capsys) -> None:
        folder = tmp_path / "cut"
        shutil.copytree(hands_yaml.parent, folder)
        (rows,) = folder.glob("*.img.tsv")
        rows.write_bytes(rows.read_bytes()[:-2000])
        words = ["data", "check", folder / hands_yaml.name, "--out", tmp_path / "x.png"]
        assert main([str(word) for word in words]) == 2
        assert rows.name in capsys.readouterr().err


class TestEval:
    def test_freihand_scores_and_submission(
        self, converted: Path, hands_yaml: Path, assets: Path, tmp_path: Path, capsys
    ) -> None:
        out = tmp_path / "report.json"
        words = ("--protocol", "freihand", "--assets", assets, "--out", out)
        text = run(capsys, "eval", converted, hands_yaml, *words)
        assert "PA-MPJPE" in text
        assert "4 samples" in text
        assert json.loads(out.read_text())


class TestTrain:
    def test_fine_tuning_the_checkpoint(
        self, checkpoint: Path, hands_yaml: Path, assets: Path, tmp_path: Path, capsys
    ) -> None:
        network = ("--network.width", 4, "--network.layers", 1)
        network += ("--network.hidden-dims", 64, 32, 16, "--network.out-dims", 32, 16, 3)
        network += ("--network.feed-forward-dims", 64, 32, 16)
        run(
            capsys,
            *("train", "metro-freihand", "--data", hands_yaml, "--assets", assets),
            *("--init", checkpoint, "--steps", 2, "--batch-size", 2, "--workers", 0),
            *("--output", tmp_path / "run", *network),
        )
        weights = tmp_path / "run" / "best" / "weights.safetensors"
        predictor = kinemesh.load(weights, "cpu", assets)
        before = build_variant("metro-hand-w40", predictor.topology, **SMALL)
        assert predictor.crop_rule == PUBLISHED_RULES["hand"]
        trained, _, _ = load_model(weights, assets)
        assert before.state_dict().keys() == trained.state_dict().keys()
        run(capsys, "eval", weights, hands_yaml, "--protocol", "freihand", "--assets", assets)
