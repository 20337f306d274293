"""POTTER's bodies from weight files: legs of the regressor, meshes of photos, reports."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import kinemesh
from kinemesh.bodies.hybrik_bodies import HYBRIK17, load_smpl_hybrik
from kinemesh.cli import main
from kinemesh.data.hybrik_crop import MEAN, STD
from kinemesh.errors import InputError
from kinemesh.evaluation.by_name import evaluate_model
from kinemesh.evaluation.hybrik import H36M_FOR_3DHP, HybrikColumns, score_hybrik
from kinemesh.evaluation.hybrik_by_name import HybrikEvaluation, evaluate_hybrik
from kinemesh.evaluation.hybrik_samples import joint_samples
from kinemesh.inference.potter_bodies import FOCAL_SIDES
from kinemesh.models.potter_body import potter_mesh_record
from kinemesh.models.potter_mesh import PotterMesh
from kinemesh.models.registry import save_model
from kinemesh.skeletons import H36M17
from tests.body_fixtures import h36m_regressor
from tests.hybrik_files import TINY, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("hybrik"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of a network of each body, that was never trained."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    network = PotterMesh(TINY)
    for body in ("smpl", "anny-body"):
        path = folder / f"{body}.safetensors"
        save_model(path, network, None, potter_mesh_record(TINY, body), half=False)
    return folder


def test_legs_of_the_regressor_come_in_the_order_of_the_labels(data):
    """METRO's file begins with the right leg, HybrIK's labels with the left one."""
    body = load_smpl_hybrik(data / "assets")
    rows = torch.from_numpy(h36m_regressor(6890)).float()
    assert not torch.equal(rows[1:4], rows[4:7])
    assert torch.equal(body.regressor_KV[1:4], rows[4:7])
    assert torch.equal(body.regressor_KV[4:7], rows[1:4])
    for same in (0, *range(7, 17)):
        assert torch.equal(body.regressor_KV[same], rows[same])


# Predicting ----------------------------------------------------------------------------------


def load(body, data, weights):
    assets = data / "assets" if body == "smpl" else None
    return kinemesh.load(weights / f"{body}.safetensors", "cpu", assets)


@pytest.mark.parametrize(("body", "first_pixel"), [("smpl", 0.5), ("anny-body", 0.0)])
def test_places_in_the_crop_are_those_of_the_networks_camera(body, first_pixel, data, weights):
    """A point at X + t is seen at 1000 / 256 sides from the middle for each metre per metre."""
    predictor = load(body, data, weights)
    adapted = predictor.network
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        output = adapted(image)
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        found = adapted.network((image - mean) / std)
    torch.testing.assert_close(output.vertices, found.mesh.vertices, rtol=0, atol=1e-5)
    for person in range(2):
        scale = float(found.raw.camera_scale[person, 0])
        across, down = found.raw.camera_shift[person].tolist()
        for joint, (x, y, z) in enumerate(output.joints[person].tolist()):
            depth = z + 1000 / (256 * scale)
            wanted = [
                64 * (1000 / 256 * (v + t) / depth + 0.5) for v, t in ((x, across), (y, down))
            ]
            places = output.joints_2d[person, joint] - first_pixel
            assert places.tolist() == pytest.approx(wanted, abs=1e-3)
    # Joints have METRO's order here, and HybrIK's in the body. Rows of the regressor do not quite
    # sum to one, so it matters a little whether the root is subtracted before or after it.
    if body == "smpl":
        regressed = found.mesh.regressed[:, list(HYBRIK17)]
        torch.testing.assert_close(output.joints, regressed, rtol=0, atol=1e-3)


@pytest.mark.parametrize("body", ["smpl", "anny-body"])
def test_a_body_is_put_where_it_was_seen(body, data, weights):
    predictor = load(body, data, weights)
    assert predictor.crop_rule.margin == (1.25 if body == "smpl" else 1.1)
    photo = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    focal_px = FOCAL_SIDES * 100 * predictor.crop_rule.margin  # the lens of the network
    person = predictor.predict(photo, [(100, 50, 100, 100)], focal_px=focal_px)[0]
    assert person.skeleton == predictor.topology.skeleton.name
    assert person.vertices.shape == tuple(predictor.topology.template.shape)
    assert person.faces.max() < len(person.vertices)
    seen = person.camera.project(person.joints)
    np.testing.assert_allclose(seen, person.joints_px, atol=0.2)
    assert 2 < person.joints[:, 2].mean() < 10  # the untrained camera is 4.3 m away


def test_the_command_writes_a_mesh(data, weights, tmp_path, capsys):
    photo = next((data / "3dpw" / "imageFiles" / "a_walk").glob("*.jpg"))
    command = ["predict", str(photo), "--device", "cpu", "--detector", "none"]
    command += ["--out", str(tmp_path / "out")]
    assert main([*command, "--model", str(weights / "smpl.safetensors")]) == 2
    assert "Name the folder that holds SMPL" in " ".join(capsys.readouterr().err.split())
    assets = ["--assets", str(data / "assets")]
    save = ["--save", "npz,obj"]
    assert main([*command, *save, "--model", str(weights / "smpl.safetensors"), *assets]) == 0
    assert main([*command, *save, "--model", str(weights / "anny-body.safetensors")]) == 0
    files = sorted(path.suffix for path in (tmp_path / "out").iterdir())
    assert {".npz", ".obj"} <= set(files)


def test_other_evaluations_send_it_to_its_own(weights):
    with pytest.raises(InputError, match="Score it on synthetic-hybrik, h36m-hybrik:FOLDER"):
        evaluate_model(weights / "anny-body.safetensors", "synthetic-body")


# Reports -------------------------------------------------------------------------------------


def columns(joints: int = 17) -> HybrikColumns:
    generator = torch.Generator().manual_seed(0)
    target = 0.4 * torch.randn(5, joints, 3, generator=generator)
    predicted = target + 0.05 * torch.randn(5, joints, 3, generator=generator)
    none = torch.zeros(5, 0, 3)
    unknown = torch.full((5,), -1)
    return HybrikColumns(predicted, target, none, none, unknown * torch.nan, unknown, unknown)


@pytest.mark.parametrize("protocol", ["h36m", "3dpw", "3dhp", "own"])
def test_errors_of_joints_have_the_mean_that_a_protocol_reports(protocol):
    given = columns(24 if protocol == "own" else 17)
    scores = {r.metric: r.value for r in score_hybrik(given, protocol, ("", "")).reports}
    heard = joint_samples(given, protocol, ["key"] * 5, torch.zeros(5, 3, 8, 8))
    for name in ("MPJPE", "PA-MPJPE"):
        assert heard.errors[name][heard.compared].mean() == pytest.approx(scores[name], rel=1e-5)
    count = {"h36m": 14, "3dpw": 14, "3dhp": 17, "own": 24}[protocol]
    assert heard.compared.sum(dim=1).tolist() == [count] * 5


@pytest.mark.parametrize("protocol", ["h36m", "3dhp"])
def test_an_error_is_shown_at_the_joint_that_has_it(protocol):
    """HybrIK's joint 3 is the left ankle; of 3DHP's own 17 that is number 13."""
    given = columns()
    target = given.predicted.clone()
    if protocol == "3dhp":
        target = target[:, list(H36M_FOR_3DHP)]
    target[:, 13 if protocol == "3dhp" else 3] += torch.tensor([0.1, 0.0, 0.0])
    heard = joint_samples(
        replace(given, target=target), protocol, ["key"] * 5, torch.zeros(5, 3, 8, 8)
    )
    ankle = H36M17.index("left_ankle")
    assert heard.errors["MPJPE"][:, ankle].tolist() == pytest.approx([100.0] * 5, abs=0.01)
    assert heard.errors["MPJPE"].sum(dim=1).tolist() == pytest.approx([100.0] * 5, abs=0.1)
    moved = (heard.predicted - heard.target).norm(dim=-1)
    assert moved.argmax(dim=1).tolist() == [ankle] * 5
    assert float(moved.sum()) == pytest.approx(0.5, abs=1e-3)


def test_an_evaluation_tells_of_each_sample(data, weights):
    place = next((data / "3dpw" / "json").glob("*.json"))
    heard = []
    evaluate_hybrik(
        weights / "smpl.safetensors",
        f"3dpw-hybrik:{place}",
        HybrikEvaluation(flip_test=False, count=5, batch_size=2),
        assets=data / "assets",
        listener=heard.append,
    )
    keys = [key for samples in heard for key in samples.keys]
    assert [key.split(":")[0] for key in keys] == [f"row {row}" for row in range(5)]
    assert "a_walk/" in keys[-1]
    assert heard[0].picture(0).shape == (64, 64, 3)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["3dpw", "synthetic"])
def test_an_evaluation_writes_its_report(dataset, data, weights, tmp_path):
    pytest.importorskip("matplotlib")
    report = ["--report", str(tmp_path / "report"), "--device", "cpu"]
    if dataset == "3dpw":
        place = next((data / "3dpw" / "json").glob("*.json"))
        model, source = weights / "smpl.safetensors", f"3dpw-hybrik:{place}"
        report += ["--assets", str(data / "assets"), "--no-flip", "--count", "5"]
    else:
        model, source = weights / "anny-body.safetensors", "synthetic-hybrik"
        report += ["--count", "3"]
    assert main(["eval", str(model), source, *report]) == 0
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "PA-MPJPE" in page
    assert ("row 4: a_walk/" if dataset == "3dpw" else "row 2") in page
    assert list((tmp_path / "report").glob("*.png"))
