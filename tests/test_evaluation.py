"""Scores of networks on data sets: what is compared, what is averaged, what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from kinemesh import evaluation
from kinemesh.bodies import load_topology
from kinemesh.bodies.official_assets import load_body_model, mano_topology, smpl_topology
from kinemesh.cli import main
from kinemesh.data.freihand import FreiHandDataset
from kinemesh.data.mesh_tsv import MeshTsvDataset, write_mesh_tsv
from kinemesh.data.synthetic import SyntheticDataset
from kinemesh.data.webdataset import MeshShards, write_shards
from kinemesh.errors import InputError
from kinemesh.evaluation import (
    TTA_SETTINGS,
    EvaluationOptions,
    LabelSide,
    NetworkSide,
    ProtocolResult,
    SampleTable,
    TtaFusion,
    batches,
    evaluate_dataset,
    merge,
    read_submission,
    score,
)
from kinemesh.evaluation.by_name import evaluate_model
from kinemesh.evaluation.mesh import _fused
from kinemesh.metrics import MetricReport
from kinemesh.models.imagenet import normalise_imagenet
from kinemesh.models.mesh_transformer import MeshOutput
from kinemesh.models.registry import save_model
from kinemesh.models.variants import build_variant, describe_variant
from kinemesh.protocols import FREIHAND, HUMAN36M_P2, THREEDPW, own_protocol
from kinemesh.skeletons import HAND21, METRO24
from tests.mesh_training_data import write_body_data, write_hand_data
from tests.no_waiting import NoWaiting


def report(value: float, count: int) -> MetricReport:
    return MetricReport("MPJPE", value, "mm", "hand21", "wrist", "none", count)


def test_merge_weighs_parts_by_their_samples():
    (merged,) = merge([(report(10.0, 3),), (report(20.0, 1),)])
    assert merged.value == pytest.approx(12.5)
    assert merged.sample_count == 4


def test_merge_leaves_out_empty_parts():
    (merged,) = merge([(report(float("nan"), 0),), (report(7.0, 2),)])
    assert merged.value == pytest.approx(7.0)
    assert merged.sample_count == 2


class Enlarged(nn.Module):
    """Knows the answers, but makes people a tenth too large and puts joints 2 px to the right."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def forward(self, _image):
        return type(
            "Output",
            (),
            {
                "joints": self.batch["joints_3d"][..., :3] * 1.1,
                "vertices": self.batch["vertices"] * 1.1,
                "joints_2d": self.batch["joints_2d"][..., :2] + torch.tensor([2.0, 0.0]),
            },
        )()


def test_score_measures_what_was_put_in():
    batch = next(iter(batches(SyntheticDataset("hand", seed=1), 4)))
    topology = load_topology("anny-hand")
    found = score(Enlarged(batch), [batch], topology, torch.device("cpu"))
    reach = batch["joints_3d"][..., :3].norm(dim=-1).mean().item() * 1000
    assert found["mpjpe_mm"] == pytest.approx(0.1 * reach, rel=1e-3)
    assert found["pa_mpjpe_mm"] == pytest.approx(0, abs=1e-2)
    assert found["pa_mpvpe_mm"] == pytest.approx(0, abs=1e-2)
    assert found["2d_error_px"] == pytest.approx(2, rel=1e-4)


def test_wrong_data_set_is_refused():
    with pytest.raises(InputError, match="No data set named"):
        evaluation.evaluate("hand", "synthetic-foot")
    with pytest.raises(InputError, match="same task"):
        evaluation.evaluate("hand", "synthetic-body")


def test_evaluate_prints_its_protocol():
    text = str(evaluation.evaluate("hand", "synthetic-hand", count=4))
    assert "PA-MPVPE" in text
    assert "constant mean shape" in text
    assert "4 samples" in text
    assert "test split" in text


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Assets, .yaml and topology of eight made-up people."""
    assets, path = write_body_data(tmp_path_factory.mktemp("people"))
    return assets, path, smpl_topology(assets)


@pytest.fixture(scope="module")
def hands(tmp_path_factory):
    """Assets, FreiHAND folder and topology of eight made-up hands."""
    assets, folder = write_hand_data(tmp_path_factory.mktemp("hands"))
    return assets, folder, mano_topology(assets)


class Knows(nn.Module):
    """Answers with given meshes one after the other; keeps what it was shown."""

    def __init__(self, vertices_NV3, repeats=1):
        super().__init__()
        self.answers, self.repeats = vertices_NV3, repeats
        self.images, self.calls, self.done = [], 0, 0

    def forward(self, image_B3SS):
        self.images.append(image_B3SS)
        mesh_BV3 = self.answers[self.done : self.done + len(image_B3SS)]
        self.calls += 1
        if self.calls % self.repeats == 0:
            self.done += len(image_B3SS)
        joints_BJ3 = torch.full((len(image_B3SS), 14, 3), torch.nan)  # tokens are not scored
        return MeshOutput(torch.zeros(len(image_B3SS), 3), joints_BJ3, (mesh_BV3[:, ::4], mesh_BV3))


METRO = {"architecture": "metro", "normalisation": "imagenet"}


def meshes(dataset, model):
    samples = [dataset[index] for index in range(len(dataset))]
    pose, betas = (torch.stack([sample[name] for sample in samples]) for name in ("pose", "betas"))
    return model(pose, betas).vertices


def score_people(people, answers, protocol=THREEDPW, options=None, **more):
    assets, path, topology = people
    dataset = MeshTsvDataset(path)
    labels = LabelSide(topology, METRO24, load_body_model(assets, "smpl"))
    network = NetworkSide(Knows(answers), topology, METRO)
    return evaluate_dataset(network, labels, dataset, protocol, options, **more)


def by_name(result):
    return {report.metric: report for report in result.reports}


def true_people(people):
    assets, path, _ = people
    return meshes(MeshTsvDataset(path), load_body_model(assets, "smpl"))


def test_true_meshes_score_zero(people):
    result = score_people(people, true_people(people))
    found = by_name(result)
    assert found["MPVPE"].value < 1e-2
    # labels of joints are not made by the mesh's regressor
    assert found["MPJPE"].value > 0.1
    assert found["MPVPE"].sample_count == 7  # one has no mesh
    assert found["MPJPE"].sample_count == 7  # another one has no joints
    assert found["PA-MPJPE"].sample_count == 8
    assert "8 samples, while the official set has 35515" in str(result)


def test_errors_of_people_equal_slow_twin(people):
    _, path, topology = people
    truth = true_people(people)
    torch.manual_seed(0)
    answers = truth + 0.05 * torch.randn_like(truth)
    found = by_name(score_people(people, answers, options=EvaluationOptions(batch_size=3)))
    dataset = MeshTsvDataset(path)
    mpvpe, mpjpe = [], []
    for index in range(len(dataset)):
        sample = dataset[index]
        j17 = topology.joints(answers[index][None])[0]
        true17 = topology.joints(truth[index][None])[0]
        if sample["has_mesh"]:
            error = (answers[index] - j17[0] - truth[index] + true17[0]).norm(dim=1)
            mpvpe.append(1000 * error.mean().item())
        if sample["has_3d"]:
            own = j17[[3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10]]
            label = sample["joints_3d"][[*range(13), 18], :3]
            own, label = own - own[2:4].mean(dim=0), label - label[2:4].mean(dim=0)
            mpjpe.append(1000 * (own - label).norm(dim=1).mean().item())
    assert found["MPVPE"].value == pytest.approx(sum(mpvpe) / 7, rel=1e-5)
    assert found["MPJPE"].value == pytest.approx(sum(mpjpe) / 7, rel=1e-5)


def test_result_does_not_depend_on_the_batches(people):
    truth = true_people(people)
    torch.manual_seed(0)
    answers = truth + 0.05 * torch.randn_like(truth)
    results = [
        score_people(people, answers, options=EvaluationOptions(batch_size=size))
        for size in (1, 3, 8)
    ]
    for metric, report in by_name(results[0]).items():
        for other in results[1:]:
            assert by_name(other)[metric].value == pytest.approx(report.value, rel=1e-6)


def test_images_are_normalised_as_the_file_says(people):
    assets, path, topology = people
    dataset = MeshTsvDataset(path)
    image = torch.stack([dataset[index]["image"] for index in range(2)])
    for normalisation, wanted in (("imagenet", normalise_imagenet(image)), (None, image)):
        knows = Knows(torch.zeros(2, 60, 3))
        network = NetworkSide(knows, topology, {**METRO, "normalisation": normalisation})
        labels = LabelSide(topology, METRO24, load_body_model(assets, "smpl"))
        evaluate_dataset(network, labels, dataset, THREEDPW, EvaluationOptions(count=2))
        assert torch.equal(knows.images[0], wanted)


def test_missing_meshes_are_noted(people):
    _, path, topology = people
    truth = true_people(people)
    network = NetworkSide(Knows(truth), topology, METRO)
    result = evaluate_dataset(network, LabelSide(topology, METRO24), MeshTsvDataset(path), THREEDPW)
    assert set(by_name(result)) == {"MPJPE", "PA-MPJPE"}
    assert "vertices are not scored: the labels hold pose and shape only" in str(result)


def test_protocol_2_chooses_rows_by_their_keys(people, tmp_path):
    assets, path, topology = people
    stored = MeshTsvDataset(path)
    keys = [
        *("S9_Walking.60457274_000001.jpg", "S9_Walking.60457274_000002.jpg"),
        *("S1_Walking.60457274_000001.jpg", "S11_Walking.60457274_000011.jpg"),
    ]
    records = [replace(stored.read(index), key=key) for index, key in enumerate(keys)]
    dataset = MeshTsvDataset(write_mesh_tsv(tmp_path, "h36m", records))
    truth = true_people(people)
    network = NetworkSide(Knows(truth[[0, 3]]), topology, METRO)
    labels = LabelSide(topology, METRO24, load_body_model(assets, "smpl"))
    result = evaluate_dataset(network, labels, dataset, HUMAN36M_P2)
    assert by_name(result)["PA-MPJPE"].sample_count == 2
    assert by_name(result)["MPVPE"].value < 1e-2
    assert "2 of 4 rows belong to protocol 2" in str(result)
    unnamed = score_people(people, truth, HUMAN36M_P2)
    assert "no row was left out" in str(unnamed)
    assert by_name(unnamed)["PA-MPJPE"].sample_count == 8


def test_nan_is_named(people):
    answers = true_people(people)
    answers[5, 3] = torch.nan
    result = score_people(people, answers)
    assert "PA-MPJPE: NaN for 1 samples, first row 5" in result.notes
    scores = {row["metric"]: row["value"] for row in result.to_dict()["scores"]}
    assert scores["PA-MPJPE"] is None
    json.dumps(result.to_dict(), allow_nan=False)


def test_progress_and_listener_see_every_sample(people):
    seen, told = [], []
    answers = true_people(people)
    score_people(
        people,
        answers,
        options=EvaluationOptions(batch_size=3, count=7),
        progress=lambda done, total: told.append((done, total)),
        listener=lambda points: seen.append(points.vertices),
    )
    assert told == [(3, 7), (6, 7), (7, 7)]
    assert torch.equal(torch.cat(seen), answers[:7])


def test_official_averaging(people):
    answers = true_people(people)
    torch.manual_seed(0)
    answers = answers + 0.05 * torch.randn_like(answers)
    exact, official = (
        by_name(score_people(people, answers, options=EvaluationOptions(3, averaging=name)))
        for name in ("samples", "official")
    )
    assert official["MPVPE"].value == pytest.approx(exact["MPVPE"].value)
    assert official["PA-MPJPE"].value != pytest.approx(exact["PA-MPJPE"].value, rel=1e-6)
    assert "averaging: official, batches of 3" in str(official["PA-MPJPE"])


def score_hands(hands, repeats, options, noise=0.0, listener=None):
    assets, folder, topology = hands
    dataset = FreiHandDataset(folder, cache=folder / "cache")
    model = load_body_model(assets, "mano")
    torch.manual_seed(0)
    truth = meshes(dataset, model)
    knows = Knows(truth + noise * torch.randn_like(truth), repeats)
    network = NetworkSide(knows, topology, METRO)
    labels = LabelSide(topology, HAND21, model)
    result = evaluate_dataset(network, labels, dataset, FREIHAND, options, listener=listener)
    return result, knows, truth


def test_true_hands_score_zero(hands):
    found = by_name(score_hands(hands, 1, EvaluationOptions())[0])
    for metric in ("MPVPE", "PA-MPVPE"):
        assert found[metric].value < 1e-2
    # labels of joints come from the kinematic tree, predictions from the regressor
    assert found["MPJPE"].value > 1
    for metric in ("F@5", "PA-F@5", "F@15"):
        assert found[metric].value == 1
    assert found["PA-AUC of vertices"].value > 0.99


def test_test_time_augmentation(hands):
    settings = TTA_SETTINGS[::40]
    options = EvaluationOptions(batch_size=3, tta=settings)
    seen = []
    result, knows, truth = score_hands(hands, len(settings) + 1, options, listener=seen.append)
    assert knows.calls == 3 * (len(settings) + 1)
    assert by_name(result)["PA-MPVPE"].value < 1e-2
    assert "test-time augmentation: 3 settings" in result.notes
    fused = torch.cat([points.vertices for points in seen])
    torch.testing.assert_close(fused, truth, rtol=0, atol=1e-5)
    assert not torch.equal(knows.images[0], knows.images[1])


def test_fused_joints_are_not_those_of_the_fused_mesh(hands):
    """The published fusion aligns and averages joints and vertices apart."""
    _, _, topology = hands
    torch.manual_seed(0)
    base = topology.template.expand(2, -1, -1)
    predictions = [
        FREIHAND.points_of_mesh(base + 0.01 * torch.randn_like(base), topology) for _ in range(4)
    ]
    fused = _fused(predictions[0], iter(predictions), topology)
    for name in ("joints", "vertices"):
        fusion = TtaFusion(getattr(predictions[0], name))
        for points in predictions:
            fusion.add(getattr(points, name))
        assert torch.equal(getattr(fused, name), fusion.result())
    assert not torch.equal(fused.joints, topology.joints(fused.vertices))


def test_augmentation_needs_stored_pictures():
    topology = load_topology("anny-hand")
    network = NetworkSide(nn.Identity(), topology, METRO)
    options = EvaluationOptions(count=2, tta=TTA_SETTINGS)
    with pytest.raises(InputError, match="not synthetic data"):
        evaluate_dataset(
            network,
            LabelSide(topology, HAND21),
            SyntheticDataset("hand", 0, split="test"),
            own_protocol(topology),
            options,
        )


class TestSampleTable:
    def test_rows_in_any_order_and_twice(self):
        table = SampleTable()
        table.add(torch.tensor([3, 0]), {"a": torch.tensor([30.0, 0.0])})
        table.add(torch.tensor([1, 3]), {"a": torch.tensor([10.0, 31.0])})
        rows, columns = table.collect()
        assert rows.tolist() == [0, 1, 3]
        assert columns["a"].tolist() == [0.0, 10.0, 30.0]

    def test_merged_equals_one(self):
        values = torch.rand(10)
        one, parts = SampleTable(), [SampleTable(), SampleTable()]
        one.add(torch.arange(10), {"a": values})
        for rank, part in enumerate(parts):
            part.add(torch.arange(rank, 10, 2), {"a": values[rank::2]})
        assert torch.equal(SampleTable.merged(parts).collect()[1]["a"], one.collect()[1]["a"])

    def test_misfits(self):
        table = SampleTable()
        with pytest.raises(InputError, match="no sample"):
            table.collect()
        table.add(torch.arange(2), {"a": torch.zeros(2)})
        with pytest.raises(InputError, match="columns"):
            table.add(torch.arange(2), {"b": torch.zeros(2)})
        with pytest.raises(InputError, match="columns"):
            table.add(torch.arange(2), {"a": torch.zeros(3)})

    def test_adding_waits_for_nothing(self):
        table = SampleTable()
        with NoWaiting():
            table.add(torch.arange(2), {"a": torch.zeros(2)})


@pytest.mark.slow
def test_two_processes_equal_one(people, tmp_path):
    """To the bit, with seven samples dealt to two processes."""
    truth = true_people(people)
    torch.manual_seed(0)
    answers = truth + 0.05 * torch.randn_like(truth)
    options = EvaluationOptions(batch_size=1, count=7)
    alone = score_people(people, answers, options=options)
    torch.multiprocessing.spawn(
        _evaluate_in_process, (people[:2], answers, str(tmp_path)), nprocs=2
    )
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == alone.to_dict()


def _evaluate_in_process(rank, people, answers, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    assets, path = people
    options = EvaluationOptions(batch_size=1, count=7)
    own = answers[:7][rank::2]
    result = score_people((assets, path, smpl_topology(assets)), own, options=options)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result.to_dict()))
    torch.distributed.destroy_process_group()


TINY = {
    "backbone": {"name": "hrnet", "width": 4},
    "hidden_dims": (64, 32, 16),
    "feed_forward_dims": (64, 32, 16),
    "out_dims": (32, 16, 3),
    "layers": 1,
}


def tiny_model(path, name, topology):
    torch.manual_seed(0)
    network = build_variant(name, topology, **TINY)
    record = describe_variant(name, topology, **TINY)
    save_model(path, network, topology, {**record, "resolution": 224}, half=False)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "metro-hand-w40",
        "graphormer-handpose-w40",
        pytest.param("graphormer-hand-w40", marks=pytest.mark.slow),
    ],
)
def test_every_architecture_on_freihand(hands, tmp_path, capsys, name):
    assets, folder, topology = hands
    model = tiny_model(tmp_path / "tiny.safetensors", name, topology)
    out = tmp_path / "reports" / "found.json"
    words = ["eval", str(model), f"freihand:{folder}", "--assets", str(assets), "--count", "3"]
    assert main([*words, "--protocol", "freihand", "--device", "cpu", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["protocol"] == "freihand"
    metrics = {row["metric"]: row["value"] for row in report["scores"]}
    assert 0 < metrics["PA-MPJPE"] < 500
    if "handpose" in name:
        assert "vertices are not scored: the network has no mesh" in text
        assert "PA-MPVPE" not in metrics
        assert "hand21 from the network's joint tokens" in text
    else:
        assert 0 < metrics["PA-MPVPE"] < 500
        assert "hand21 from MANO's" in text
    assert "3 samples, while the official set has 3960" in text


@pytest.mark.parametrize(
    "name", ["graphormer-body-w40", pytest.param("metro-body-w40", marks=pytest.mark.slow)]
)
def test_every_architecture_on_people(people, tmp_path, capsys, name):
    assets, path, topology = people
    model = tiny_model(tmp_path / "tiny.safetensors", name, topology)
    words = ["eval", str(model), str(path), "--assets", str(assets), "--device", "cpu"]
    assert main([*words, "--protocol", "3dpw", "--batch-size", "5"]) == 0
    text = capsys.readouterr().out
    assert all(f"{metric} " in text for metric in ("MPVPE", "MPJPE", "PA-MPJPE"))
    assert "neutral SMPL" in text
    assert main([*words, "--count", "2", "--averaging", "official"]) == 0
    assert "averaging: official, batches of 32" in capsys.readouterr().out


@pytest.mark.slow
def test_all_settings_from_the_command_line(hands, tmp_path, capsys):
    _, folder, topology = hands
    model = tiny_model(tmp_path / "tiny.safetensors", "graphormer-handpose-w40", topology)
    words = ["eval", str(model), f"freihand:{folder}", "--count", "1", "--device", "cpu"]
    assert main([*words, "--tta"]) == 0
    assert "test-time augmentation: 95 settings" in capsys.readouterr().out


def test_own_network_by_a_protocol(capsys):
    assert main(["eval", "hand", "synthetic-hand", "--count", "2", "--protocol", "own"]) == 0
    text = capsys.readouterr().out
    assert "hand21 from the network itself" in text
    assert "averaging: mean over samples, 2 samples" in text


def test_metro_on_synthetic_people(tmp_path, capsys):
    model = tiny_model(tmp_path / "tiny.safetensors", "metro-body-w40", load_topology("anny-body"))
    assert main(["eval", str(model), "synthetic-body", "--count", "2", "--device", "cpu"]) == 0
    assert "protocol own: joints and mesh of anny-body" in capsys.readouterr().out


def test_submission_from_pictures_to_scores(hands, tmp_path, monkeypatch, capsys):
    assets, folder, topology = hands
    model = tiny_model(tmp_path / "tiny.safetensors", "metro-hand-w40", topology)
    data = tmp_path / "data"
    shutil.copytree(folder / "training" / "rgb", data / "evaluation" / "rgb")
    shutil.copy(folder / "training_K.json", data / "evaluation_K.json")
    shutil.copy(folder / "training_xyz.json", data / "evaluation_xyz.json")
    body_model = load_body_model(assets, "mano")
    vertices = meshes(FreiHandDataset(folder, cache=folder / "cache"), body_model)
    (data / "evaluation_verts.json").write_text(json.dumps(vertices.tolist()))
    submission = tmp_path / "pred.zip"
    words = ["eval", str(model), f"freihand-evaluation:{data}", "--device", "cpu"]
    assert main([*words, "--submission", str(submission)]) == 2
    assert "holds the 3960 samples of the evaluation split, found 8" in capsys.readouterr().err
    assert not submission.exists()
    own = evaluate_model(
        model, f"freihand-evaluation:{data}", submission=submission, submission_count=8
    )
    joints, _ = read_submission(submission)
    assert joints.shape == (8, 21, 3)
    assert abs(joints[:, 0]).max() == 0  # about the wrist
    assert main(["eval", str(submission), f"freihand-evaluation:{data}"]) == 0
    text = capsys.readouterr().out
    assert "root: none" in text
    assert isinstance(own, ProtocolResult)
    aligned = by_name(own)["PA-MPJPE"]
    assert f"PA-MPJPE {aligned.value:.2f} mm" in text


def test_interrupt(monkeypatch, tmp_path, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("kinemesh.evaluation.by_name.evaluate_dataset", stop)
    out = tmp_path / "found.json"
    words = ["eval", "hand", "synthetic-hand", "--protocol", "own", "--out", str(out)]
    assert main(words) == 130
    assert "Interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_shards(hands, tmp_path):
    """Read in their order, cut off at the count, scored as the data set they were made of."""
    pytest.importorskip("webdataset")
    assets, folder, topology = hands
    dataset = FreiHandDataset(folder, cache=folder / "cache")
    write_shards(dataset, tmp_path / "shards", source="hands")
    model = load_body_model(assets, "mano")
    torch.manual_seed(0)
    truth = meshes(dataset, model)
    answers = truth + 0.005 * torch.randn_like(truth)
    options = EvaluationOptions(batch_size=3, count=5)
    found = [
        evaluate_dataset(
            NetworkSide(Knows(answers), topology, METRO),
            LabelSide(topology, HAND21, model),
            samples,
            FREIHAND,
            options,
        )
        for samples in (dataset, MeshShards(tmp_path / "shards"))
    ]
    assert found[0] == found[1]
    assert by_name(found[1])["MPVPE"].sample_count == 5


def test_what_does_not_fit_is_refused(people, hands, tmp_path, capsys):
    _, path, topology = people
    model = str(tiny_model(tmp_path / "tiny.safetensors", "metro-body-w40", topology))
    for words, message in (
        (["hand", str(path)], "same task"),
        ([model, f"freihand:{hands[1]}"], "same task"),
        ([model, str(path), "--submission", "a.zip"], "protocol is own"),
        ([model, str(path), "--submission", "a.json"], "ends in .zip"),
        ([model, str(path), "--out", "a.txt"], "ends in .json"),
        ([model, "synthetic-body", "--count", "1"], "'coco17' has no neck, head"),
        ([model, "nowhere.yaml"], "nowhere.yaml"),
        ([str(tmp_path / "no.zip"), "freihand:nowhere"], "expected a zip"),
    ):
        assert main(["eval", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": -1}, {"count": 0}])
def test_impossible_options_are_refused(options) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        EvaluationOptions(**options)


@pytest.mark.parametrize(
    "words", [["--submission", "other.zip"], ["--tta"], ["--protocol", "3dpw"], ["--count", "3"]]
)
def test_a_submission_is_scored_without_other_options(words, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "pred.zip", "freihand-evaluation:x", *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_a_submission_wants_a_mesh_of_mano(tmp_path) -> None:
    """Refused before the first batch, not by the writer after it."""
    out = tmp_path / "pred.zip"
    with pytest.raises(InputError, match="778 vertices"):
        evaluate_model("hand", "synthetic-hand", "freihand", submission=out, submission_count=1024)
    assert not out.exists()
