"""Expected errors: from the network to the user's files, and whether they come true."""

import importlib.util
import json
import math
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
import torch

from kinemesh.bodies import load_rig, load_topology
from kinemesh.cli import main
from kinemesh.data.synthetic import SyntheticDataset
from kinemesh.data.synthetic.appearance import _SKIN_TONES, to_linear
from kinemesh.errors import InputError
from kinemesh.evaluation import evaluate, synthetic
from kinemesh.evaluation.calibration import calibrate
from kinemesh.evaluation.groups import TRAITS, age_group, group_scores, skin_tone, typology_angle
from kinemesh.evaluation.real_photos import LabelledBox, LabelledSet
from kinemesh.evaluation.real_scores import PlacedJoints
from kinemesh.evaluation.real_spread import real_calibration
from kinemesh.formats.people_json import read_people_json, write_people_json
from kinemesh.formats.people_npz import read_people_npz, write_people_npz
from kinemesh.inference.motion_state import person_of, state_of
from kinemesh.inference.people import move_to_wrist
from kinemesh.models.guided_graphormer import GuidedGraphormer, GuidedGraphormerConfig
from kinemesh.models.registry import save_model
from kinemesh.reporting import SampleSummary, write_report
from kinemesh.skeletons import HAND21, get_skeleton
from tests.fake_predictor import RESOLUTION, FakeNetwork, fake_people, fake_predictor, spot_photo
from tests.test_real_fixtures import coco_file, numbered

TINY = GuidedGraphormerConfig(
    resolution=32,
    neck_dim=8,
    query_dim=16,
    query_layers=1,
    hidden_dims=(8, 8, 8),
    block_layers=1,
    spread=True,
)
SIZE = (300, 200)


# Expected against measured ---------------------------------------------------------------------


def test_each_bin_has_the_means_of_its_joints():
    rng = np.random.default_rng(0)
    predicted = rng.uniform(1, 9, 95)
    measured = predicted * rng.exponential(1.5, 95)
    found = calibrate(predicted, measured, "joints", "mm")
    assert [one.count for one in found.bins] == [10] * 5 + [9] * 5
    rows, total = sorted(zip(predicted, measured, strict=True)), 0.0
    for one in found.bins:
        here, rows = rows[: one.count], rows[one.count :]
        means = [sum(values) / one.count for values in zip(*here, strict=True)]
        assert (one.predicted, one.measured) == pytest.approx(tuple(means))
        total += one.count * abs(means[0] - means[1])
    assert found.error == pytest.approx(total / 95)
    ranks = [np.argsort(np.argsort(values)) for values in (predicted, measured)]
    assert found.rank_correlation == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert f"expected calibration error {found.error:.2f} mm" in str(found)


def test_the_right_means_are_calibrated_and_a_constant_tells_nothing_apart():
    rng = np.random.default_rng(1)
    means = rng.uniform(2, 20, 20_000)
    distances = rng.exponential(means)
    assert calibrate(means, distances, "joints", "mm").error < 0.4
    assert calibrate(2 * means, distances, "joints", "mm").error == pytest.approx(11, abs=0.4)
    alike = calibrate(np.full(20_000, distances.mean()), distances, "joints", "mm", bins=1)
    assert alike.error == pytest.approx(0, abs=1e-9)
    assert math.isnan(alike.rank_correlation)
    assert alike.to_dict()["rank_correlation"] is None


def test_few_joints_and_none():
    assert [one.count for one in calibrate(np.arange(3.0), np.ones(3), "a", "mm").bins] == [1] * 3
    for measured in (np.zeros(0), np.zeros(2)):
        with pytest.raises(InputError, match="at least one joint"):
            calibrate(np.zeros(0), measured, "a", "mm")


# Groups ----------------------------------------------------------------------------------------


def slow_angle(rgb):
    """Written out from the definitions of sRGB, CIE XYZ and L*a*b*."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb]
    height = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    depth = (0.0193 * linear[0] + 0.1192 * linear[1] + 0.9505 * linear[2]) / 1.0888
    y, z = (v ** (1 / 3) if v > (6 / 29) ** 3 else v * 841 / 108 + 4 / 29 for v in (height, depth))
    return math.degrees(math.atan2(116 * y - 16 - 50, 200 * (y - z)))


def test_skin_tones_from_light_to_dark():
    angles = [typology_angle(tone) for tone in _SKIN_TONES]
    assert angles == sorted(angles, reverse=True)
    assert angles == pytest.approx([slow_angle(tone) for tone in _SKIN_TONES], abs=0.5)
    tones = [skin_tone(tone) for tone in _SKIN_TONES]
    assert list(dict.fromkeys(tones))[::5] == ["very light", "dark"]
    assert set(tones) <= set(TRAITS["skin tone"])


def test_ages():
    found = [age_group(age) for age in (0.25, 0.59, 0.6, 0.83, 0.84, 1.0)]
    assert found == ["child", "child", "adult", "adult", "old adult", "old adult"]
    assert TRAITS["age"] == ("child", "adult", "old adult")


def test_each_group_has_the_means_of_its_samples():
    columns = {
        "mpjpe_mm": np.array([10.0, 20.0, 60.0]),
        "pa_mpjpe_mm": np.array([4.0, 8.0, 9.0]),
        "error_px": np.array([1.0, np.nan, 5.0]),
    }
    dark, light = group_scores({"skin tone": ["light", "light", "dark"]}, columns)[::-1]
    assert (light.group, light.samples, light.mpjpe_mm, light.pa_mpjpe_mm) == ("light", 2, 15, 6)
    assert light.pa_mpjpe_error_mm == pytest.approx(2.0)  # deviation 2.83 over the root of 2
    assert light.error_px == 1
    assert (dark.group, dark.samples) == ("dark", 1)
    assert dark.to_dict()["pa_mpjpe_error_mm"] is None


def test_shapes_are_drawn_as_they_ever_were_and_ages_with_them():
    rig = load_rig("anny-hand")
    ages = rig.bank_phenotypes[:, rig.phenotype_names.index("age")]
    for seed in range(6):
        rng = np.random.default_rng(seed)
        first, second = rng.integers(len(rig.shape_bank), size=2).tolist()
        share = float(rng.uniform()) if rng.uniform() < 0.5 else 1.0
        shape = torch.lerp(rig.shape_bank[second], rig.shape_bank[first], share)
        assert torch.equal(rig.sample_shape(np.random.default_rng(seed)), shape)
        mix = rig.sample_mix(np.random.default_rng(seed))
        age = share * float(ages[first]) + (1 - share) * float(ages[second])
        assert rig.phenotype("age", mix) == pytest.approx(age, abs=1e-6)
    with pytest.raises(InputError, match="knows no phenotype 'shoe'"):
        rig.phenotype("shoe", mix)


def test_people_are_those_of_the_pictures():
    dataset = SyntheticDataset("hand", seed=0, resolution=32, split="test")
    rows = range(3)
    meshes = dataset.meshes(rows)
    for index, one in zip(rows, dataset.subjects(rows), strict=True):
        sides = torch.from_numpy(one.labels)
        shown = meshes[index]
        lengths = [(mesh[1:] - mesh[:-1]).norm(dim=1) for mesh in (sides, shown)]
        assert torch.allclose(*lengths, atol=1e-5)  # the same mesh, before and after its camera
        nearest = np.abs(one.look.albedo - to_linear(one.look.skin_rgb)).max(axis=1).min()
        assert nearest < 0.02  # some of it is bare skin
        assert 0.25 <= one.age <= 1


# Evaluation ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Weight files of a hand network with expected errors and of the same one without."""
    torch.manual_seed(0)
    folder, topology = tmp_path_factory.mktemp("tiny"), load_topology("anny-hand")
    paths = {}
    for spread in (True, False):
        config = replace(TINY, spread=spread)
        record = {
            "architecture": "guided-graphormer",
            "config": asdict(config),
            "task": "hand",
            "resolution": 32,
            "training": {"recipe": {"steps": 3, "init": "/own/a.safetensors"}, "step": 3},
        }
        paths[spread] = folder / f"{spread}.safetensors"
        save_model(paths[spread], GuidedGraphormer(config, topology), topology, record)
    return paths


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(synthetic, "MEAN_SHAPE_SAMPLES", 2)


def test_evaluation_of_expected_errors_and_groups(tiny, quick):
    result = evaluate(tiny[True], "synthetic-hand", 3, groups=True)
    space, plane = result.calibration
    assert (space.joints, space.unit, space.count) == ("3D joints", "mm", 60)  # without the wrist
    assert (plane.joints, plane.unit) == ("2D joints", "px")
    assert 20 < plane.count <= 63
    scores = {report.metric: report.value for report in result.scores}
    mean = np.average([one.measured for one in space.bins], weights=[b.count for b in space.bins])
    assert mean * 20 / 21 == pytest.approx(scores["MPJPE"], rel=1e-4)
    for trait in TRAITS:
        rows = [one for one in result.groups if one.trait == trait]
        assert sum(one.samples for one in rows) == 3
        for name, metric in (("pa_mpjpe_mm", "PA-MPJPE"), ("error_px", "2D error")):
            values = [getattr(one, name) for one in rows]
            pooled = np.average(values, weights=[one.samples for one in rows])
            assert pooled == pytest.approx(scores[metric], rel=1e-4)
    text, record = str(result), result.to_dict()
    assert "expected calibration error" in text
    assert "by group:" in text
    assert len(record["calibration"]) == 2
    assert len(record["groups"]) == len(result.groups)
    json.dumps(record, allow_nan=False)


def test_a_network_that_expects_nothing_has_no_calibration(tiny, quick):
    result = evaluate(tiny[False], "synthetic-hand", 1)
    assert result.calibration == result.groups == ()
    assert not {"calibration", "groups"} & set(result.to_dict())


def test_groups_are_refused_where_nobody_is_known(tiny, capsys):
    words = ["eval", str(tiny[True]), "synthetic-hand", "--groups"]
    assert main([*words, "--protocol", "own"]) == 2
    assert "--groups: expected a guided-graphormer" in " ".join(capsys.readouterr().err.split())


def test_the_report_shows_expected_over_measured(tmp_path):
    pytest.importorskip("matplotlib")
    one = calibrate(np.arange(1.0, 30.0), np.arange(29.0) * 2, "3D joints", "mm")
    result = synthetic.Evaluation("m", (), (), (one,))
    write_report(tmp_path / "report", "m", result, SampleSummary())
    assert min(cv2.imread(str(tmp_path / "report" / "calibration.png")).shape[:2]) > 200
    assert "Expected and measured errors" in (tmp_path / "report" / "index.html").read_text()


# The user's results ----------------------------------------------------------------------------


class Unsure(FakeNetwork):
    """Expects the joint of number j to be off by j mm, and by j + 1 pixels of the crop."""

    def forward(self, image_B3SS):
        output = super().forward(image_B3SS)._asdict()
        joint = torch.arange(output["joints"].shape[1], dtype=torch.float32)
        spread = torch.stack([joint / 1000, joint + 1], -1).expand(len(image_B3SS), -1, -1)
        return type("Output", (), {**output, "spread": spread})()


def unsure_people():
    predictor = fake_predictor("hand")
    predictor.network = Unsure(predictor.topology)
    boxes = [
        {"bbox": [30, 50, 100, 100], "side": "right"},
        {"bbox": [60, 40, 140, 120], "side": "left"},
    ]
    return predictor, predictor.predict(spot_photo(*SIZE, 80, 100), boxes)


def test_people_have_what_the_network_expects():
    predictor, people = unsure_people()
    for person, side_px in zip(people, (100, 140), strict=True):
        assert person.joint_spread_m == pytest.approx(np.arange(21) / 1000)
        unit = predictor.crop_rule.margin * side_px / RESOLUTION
        assert person.keypoint_spread_px == pytest.approx((np.arange(21) + 1) * unit, rel=1e-5)
    for person in fake_people():
        assert person.joint_spread_m is person.keypoint_spread_px is None


def test_files_keep_expected_errors(tmp_path):
    sure, unsure = fake_people()[0], unsure_people()[1][1]
    write_people_json(tmp_path / "a.json", [sure, unsure], SIZE)
    write_people_npz(tmp_path / "a.npz", [sure, replace(unsure, faces=sure.faces)], SIZE)
    for read, digits in ((read_people_json, (0.6e-5, 0.6e-2)), (read_people_npz, (0, 0))):
        first, second = read(tmp_path / ("a.npz" if read is read_people_npz else "a.json"))
        assert first.joint_spread_m is first.keypoint_spread_px is None
        for name, limit in zip(("joint_spread_m", "keypoint_spread_px"), digits, strict=True):
            found, wanted = getattr(second, name), getattr(unsure, name)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, wanted, atol=limit, rtol=0)
    entry = json.loads((tmp_path / "a.json").read_text())["people"]
    assert "joint_spread_m" not in entry[0]
    write_people_npz(tmp_path / "b.npz", [sure], SIZE)
    assert "joint_spread_m" not in np.load(tmp_path / "b.npz")


def test_expected_errors_follow_the_size_and_end_with_a_filter():
    hand = unsure_people()[1][0]
    wrist = hand.joints[get_skeleton("hand21").index("wrist")]
    larger = move_to_wrist(hand, wrist * np.float32(1.2))
    assert larger.joint_spread_m == pytest.approx(hand.joint_spread_m * 1.2)
    filtered = person_of(state_of(hand), hand)
    assert filtered.joint_spread_m is filtered.keypoint_spread_px is None


# Real photos, and the card ---------------------------------------------------------------------


def test_expected_errors_on_photos_are_in_pixels_of_256(tmp_path):
    labelled = np.ones(21, dtype=bool)
    labelled[5] = False
    places = np.zeros((21, 2))
    sample = LabelledBox(tmp_path, (0, 0, 64, 128), places, labelled)
    labels = LabelledSet("made-up", "hand", HAND21.joints, (sample,), "made up")
    reversed_joints = HAND21.joints[::-1]
    off = np.arange(21.0)[::-1]
    moved = np.column_stack([3 * off, 4 * off])
    answer = PlacedJoints(reversed_joints, moved, None, np.ones(21), 1.0, off * 5)
    found = real_calibration([(labels, [answer])])
    assert found is not None
    assert [one.count for one in found.bins] == [7, 7, 6]
    assert found.error == pytest.approx(0)
    kept = [10.0 * joint for joint in range(21) if joint != 5]  # 5 px, twice as many of 256
    assert found.bins[0].measured == pytest.approx(sum(kept[:7]) / 7)
    assert real_calibration([(labels, [replace(answer, spread_px=None)])]) is None


@pytest.fixture
def ship_weights(monkeypatch, request, tmp_path):
    place = request.config.rootpath / "tools" / "ship_weights.py"
    spec = importlib.util.spec_from_file_location("ship_weights", place)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "ship_weights", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "WEIGHTS_DIR", tmp_path / "weights")
    monkeypatch.setattr("kinemesh.models.registry.WEIGHTS_DIR", tmp_path / "weights")
    (tmp_path / "weights").mkdir()
    return module


def test_the_card_says_all_of_it(ship_weights, tiny, quick, tmp_path, monkeypatch, capsys):
    box = {"bbox": [0, 0, 8, 8], "keypoints": numbered(21)}
    coco_file(tmp_path / "photos/mmpose_tests/freihand/test_freihand.json", [box])
    options = ship_weights.Options(tiny[True], count=2, real=tmp_path / "photos")
    card = json.loads(ship_weights.ship(options).with_suffix(".json").read_text())
    assert card["evaluated_with"] == "kinemesh eval hand synthetic-hand --count 2 --groups"
    assert [one["joints"] for one in card["calibration"]] == ["3D joints", "2D joints"]
    assert {one["trait"] for one in card["groups"]} == set(TRAITS)
    assert card["recipe"]["init"] == "a.safetensors"
    alone, together = card["real"]["scores"]
    assert (alone["dataset"], together["dataset"]) == ("freihand", "all photos, hand")
    assert alone["error_px"] == together["error_px"] > 0
    assert card["real"]["calibration"]["count"] == 21
    assert card["real"]["command"].startswith("python benchmarks/real_fixtures.py")
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    assert main(["models"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "PA-MPJPE mm by skin tone:" in text
    assert "rank correlation with the true error" in text
    assert f"{together['error_px']:.1f} px of 256" in text


def test_photos_of_others_are_refused_before_the_work(ship_weights, tiny, tmp_path):
    rows = [{"bbox": [0, 0, 8, 8], "keypoints": numbered(17)}]
    coco_file(tmp_path / "photos/mmpose_tests/ochuman/test_ochuman.json", rows)
    with pytest.raises(InputError, match="no labelled photos of a hand"):
        ship_weights.ship(ship_weights.Options(tiny[True], real=tmp_path / "photos"))
