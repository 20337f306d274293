"""The parity command on manifests that nobody delivered: goldens by the slow twin.

Other salts, batch and image sizes, depths, heads, widths, graph flags and backbones than the
delivered cases.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import parity_report
from tests.parity import EXACT, Tolerance, compare, slow_mesh_transformer
from tests.parity.losses import mesh_loss
from tests.parity.mesh_transformers import JOINTS, MeshTransformers, adjacency, mock_template
from tests.parity.networks import Case, WeightDrawer, parse_rules, tap_arrays
from tests.seeded_weights import input_image, normal

RULES = (
    "start from seeded.load(state_dict, salt)",
    r"every name matching ^backbone\..*running_var$ : value * float32(2.5)",
    r"every name matching \.bert\.position_embeddings\.weight$ : "
    "seeded.draw(name, shape, salt) itself (unit normal, not divided by sqrt(fan_in))",
)
COMMON = {
    "input_feat_dim": [2051, 24, 16],
    "output_feat_dim": [24, 16, 3],
    "hidden_feat_dim": [48, 32, 16],
    "max_position_embeddings": 500,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
GRAPHORMER = COMMON | {
    "kind": "hand",
    "arch": "hrnet",
    "intermediate_size": [40, 24, 20],
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "which_gcn": [1, 0, 1],
    "mesh_type": "hand",
    "salt": "other",
    "is_train": True,
    "output_attentions": False,
    "batch": 1,  # whose camera has no batch axis in the official outputs
    "side": 96,
}
METRO = COMMON | {
    "kind": "body",
    "arch": "resnet50",
    "intermediate_size": [32, 32, 16],
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "salt": "another",
    "is_train": False,
    "output_attentions": False,
    "batch": 3,
    "side": 224,
}
QUERIES = {"hand": 216, "body": 445}


def invented(system, config, shared, folder) -> Case:
    """A case with goldens by the slow twin in float64, and its manifest."""
    inputs = {"images": (config["batch"], 3, config["side"], config["side"])}
    if config["is_train"]:
        inputs["meta_mask"] = (config["batch"], QUERIES[config["kind"]], 1)
    golden = folder / "golden"
    golden.mkdir()
    unshaped = Case("invented", config, inputs, {}, RULES, golden)
    case = replace(unshaped, shapes=MeshTransformers(system).official_shapes(unshaped))
    entry = {"config": config, "inputs": inputs, "state_dict": case.shapes, "weight_rule": RULES}
    (folder / "manifest.json").write_text(json.dumps({"invented": entry}))
    topology = shared / "parity" / "graphormer" / "golden"
    np.savez(golden / "invented.npz", **twin_arrays(case, topology))
    return case


def twin_arrays(case, topology):
    kind, salt = case.config["kind"], case.salt
    state = {name: value.double() for name, value in WeightDrawer().state(case).items()}
    template = mock_template(case, mesh_loss(kind, topology, salt))
    keep, graph = None, None
    if case.config["is_train"]:
        drawn = normal("meta_mask", case.inputs["meta_mask"], salt)
        keep = torch.from_numpy(drawn > -0.5).double()
    if "which_gcn" in case.config:
        graph = adjacency(topology / "topology.npz", kind, QUERIES[kind] - JOINTS[kind]).double()
    image = input_image("images", case.inputs["images"], salt).double()
    with torch.no_grad():
        out = slow_mesh_transformer.forward(
            state, case.config, image, template[0].double(), keep, graph
        )
    blocks = {f"trans_encoder.{n}": out.pop(f"block{n}") for n in range(3)}
    if case.config["batch"] == 1:
        out["out/cam"] = out["out/cam"][0]
    arrays = out | tap_arrays(blocks) | {"template/ref_vertices": template}
    return {key: np.asarray(value, dtype=np.float32) for key, value in arrays.items()}


def report(system, folder, capsys, *options) -> tuple[int, str]:
    manifest = str(folder / "manifest.json")
    status = parity_report.main(["--system", system, "--manifest", manifest, *options])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


@pytest.mark.parametrize(("system", "config"), [("graphormer", GRAPHORMER), ("metro", METRO)])
def test_another_manifest_runs_and_a_wrong_number_fails(system, config, shared, tmp_path, capsys):
    case = invented(system, config, shared, tmp_path)
    status, printed = report(system, tmp_path, capsys)
    assert status == 0, printed
    assert printed.startswith("pass  invented")
    golden = case.golden()

    path = tmp_path / "golden" / "invented.npz"
    wrong = golden["out/vertices"].copy()
    wrong[0, 5, 1] += 3e-4
    np.savez(path, **golden | {"out/vertices": wrong})
    status, printed = report(system, tmp_path, capsys, "--case", "invented")
    assert status == 1
    assert "FAIL  invented" in printed
    assert "out/vertices: differs by 0.000" in printed

    wrong[0, 5, 1] = np.nan
    np.savez(path, **golden | {"out/vertices": wrong, "tap/unheard.of/shape": np.zeros(3)})
    status, printed = report(system, tmp_path, capsys, "--markdown")
    assert status == 1
    assert f"| invented | {len(golden)} |" in printed
    assert "out/vertices: differs by inf" in printed
    assert "tap/unheard.of/shape: a golden array without a value of ours" in printed


def test_a_case_that_cannot_run_is_a_failure(tmp_path, capsys):
    entry = {
        "config": METRO | {"hidden_act": "relu"},
        "inputs": {"images": (1, 3, 224, 224)},
        "state_dict": {},
        "weight_rule": RULES,
    }
    (tmp_path / "manifest.json").write_text(json.dumps({"invented": entry}))
    (tmp_path / "golden").mkdir()
    status, printed = report("metro", tmp_path, capsys)
    assert status == 1
    assert "FAIL  invented" in printed


def test_nothing_to_compare_is_no_success(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "golden").mkdir()
    assert report("metro", tmp_path, capsys, "--case", "unheard of")[0] == 2


def test_rules_that_are_not_understood_are_refused():
    with pytest.raises(ValueError, match="cannot understand"):
        parse_rules(["every name matching x : the square of value"])
    assert len(parse_rules(RULES)) == 2


def test_comparison_knows_what_differs():
    golden = {"a": np.array([1.0, 2.0]), "b": np.array([3]), "c": np.zeros(2)}
    ours = {"a": np.array([1.0, 2.0 + 5e-5]), "b": np.array([3]), "c": np.zeros(2)}
    result = compare("x", ours, golden)
    assert result.passed
    assert (result.count, result.worst) == (3, "a")
    assert result.absolute == pytest.approx(5e-5)
    assert result.relative == pytest.approx(2.5e-5)
    assert not compare("x", ours, golden, EXACT).passed
    assert compare("x", ours, golden, EXACT, {"a": Tolerance(0, 1e-4)}).passed
    wrong = {"b": np.array([3, 3]), "a": np.array([1.0, float("nan")])}
    for key, value in wrong.items():
        assert [f.split(":")[0] for f in compare("x", ours | {key: value}, golden).failures] == [
            key
        ]
    broken = golden | {"a": np.array([1.0, float("nan")])}
    assert not compare("x", ours, broken).passed
    assert not compare("x", ours | {"a": broken["a"]}, broken).passed
    missing = compare("x", {"a": ours["a"], "b": ours["b"]}, golden)
    assert missing.failures == ("c: a golden array without a value of ours",)
    allowed = compare("x", {"a": ours["a"], "b": ours["b"]}, golden, skipped={"c*": "no reason"})
    assert allowed.passed
    assert allowed.skipped == ("c: no reason",)
    assert not compare("x", ours | {"d": 1}, golden).passed
    assert not compare("x", {}, {}).passed
