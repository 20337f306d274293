"""PointHMR against the outputs of the official code under weights drawn from names."""

import json
import shutil
from typing import Any

import numpy as np
import pytest

from tests import parity_report
from tests.parity import (
    pointhmr_data,
    pointhmr_losses,
    pointhmr_mesh,
    pointhmr_metrics,
)
from tests.parity.cases import PARITY
from tests.parity.pointhmr_networks import (
    PointHmrNetworks,
    build_network,
    input_blocks,
    official_shapes,
    parse_rule,
    read_manifest,
)

FOLDER = PARITY / "pointhmr"


def cases() -> list[Any]:
    """The cases in the order in which most draws are shared."""
    if not FOLDER.is_dir():
        reason = "needs the folder '../shared' with the reference data"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    found = read_manifest(FOLDER / "manifest.json", FOLDER / "golden")
    return [pytest.param(case, id=case.name) for case in PointHmrNetworks().order(found)]


@pytest.fixture(scope="module")
def networks() -> PointHmrNetworks:
    return PointHmrNetworks()


@pytest.mark.slow
@pytest.mark.parametrize("case", cases())
def test_network_equals_the_official_one(networks, case):
    networks.compare(case).assert_passed()


@pytest.mark.slow
def test_training_step_equals_the_official_one(shared):
    entries = json.loads((shared / "parity" / "pointhmr" / "manifest.json").read_text())
    folder = shared / "parity" / "pointhmr" / "golden"
    pointhmr_losses.compare_step(entries, folder).assert_passed()


@pytest.mark.parametrize("case", cases())
def test_names_and_shapes_are_the_official_ones_in_their_order(case):
    shapes = official_shapes(build_network(case.config))
    assert list(shapes.items()) == list(case.shapes.items())


@pytest.mark.parametrize(
    ("compare", "count"),
    [
        (pointhmr_mesh.compare, 3),
        (pointhmr_metrics.compare, 1),
        (pointhmr_data.compare, 8 + 4 + 1),
    ],
    ids=["mesh", "metrics", "data"],
)
def test_golden_files_agree(shared, compare, count):
    results = compare(shared / "parity" / "pointhmr" / "golden")
    assert len(results) == count
    for result in results:
        result.assert_passed()


@pytest.mark.parametrize(
    ("name", "compare"),
    [
        ("losses", lambda golden: pointhmr_losses.compare_losses(golden, "")),
        ("heatmap_target", pointhmr_losses.compare_heat_targets),
        ("lr_schedule", pointhmr_losses.compare_schedule),
    ],
)
def test_losses_and_schedule_agree(shared, name, compare):
    with np.load(shared / "parity" / "pointhmr" / "golden" / f"{name}.npz") as file:
        golden = dict(file)
    compare(golden).assert_passed()


# The command on manifests that nobody delivered ----------------------------------------------


def test_another_golden_file_runs_and_a_wrong_number_fails(shared, tmp_path, capsys):
    golden = tmp_path / "golden"
    golden.mkdir()
    for name in ("heatmap_target", "lr_schedule", "attention_masks"):
        shutil.copy(shared / "parity" / "pointhmr" / "golden" / f"{name}.npz", golden)
    with np.load(golden / "attention_masks.npz") as file:
        kept = {key: file[key] for key in file if "hop3" in key}
    np.savez(golden / "attention_masks.npz", **kept)
    np.savez(golden / "lr_schedule.npz", **{"E4_lr1.0_f64": np.array([1, 1, 0.1, 0.1, 0.01])})
    (tmp_path / "manifest.json").write_text("{}")
    arguments = ["--system", "pointhmr", "--manifest", str(tmp_path / "manifest.json")]
    assert parity_report.main(arguments) == 0, capsys.readouterr()

    np.savez(golden / "lr_schedule.npz", **{"E4_lr1.0_f64": np.array([1, 1, 1, 0.1, 0.01])})
    with np.load(golden / "heatmap_target.npz") as file:
        wrong = dict(file)
    wrong["flat_index"] = wrong["flat_index"] + np.eye(12, dtype=np.int32)[5]
    np.savez(golden / "heatmap_target.npz", **wrong)
    assert parity_report.main(arguments) == 1
    said = capsys.readouterr().err
    assert "flat_index: differs by 1" in said
    assert "E4_lr1.0_f64: differs by 0.9" in said


def test_weight_rules_are_read_from_their_text():
    plain = parse_rule("seeded.load, nothing rescaled")
    assert plain == []
    vectors, head = parse_rule(
        r"seeded.load then multiply in place (float32): ^fuse\..*\.weight$ (1-D tensors only) by "
        r"0.25; ^head\.2\.weight$ by 4.0"
    )
    assert vectors.applies("fuse.1.weight", (8,))
    assert not vectors.applies("fuse.1.weight", (8, 8, 1, 1))
    assert head.applies("head.2.weight", (8, 8, 1, 1))
    assert (vectors.factor, head.factor) == (0.25, 4.0)
    with pytest.raises(ValueError, match="cannot understand"):
        parse_rule("seeded.load then divide")
    with pytest.raises(ValueError, match="cannot understand"):
        parse_rule(r"seeded.load then multiply in place: ^a$ by four")


def test_blocks_are_enlarged_cells():
    cells = input_blocks({"images_blocks": (2, 3, 1, 2)}, "salt")
    assert cells.shape == (2, 3, 32, 64)
    assert (cells[..., :32] == cells[..., :1]).all()
    with pytest.raises(ValueError, match="inputs"):
        input_blocks({"pictures": (1, 3, 32, 32)}, "")


def test_unknown_networks_are_refused():
    config = {"num_vertices": 431, "num_joints": 14, "backbone": "vit"}
    with pytest.raises(ValueError, match="there is no 'vit'"):
        build_network(config)
