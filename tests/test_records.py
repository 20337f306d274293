"""One record for all readers."""

import pytest
import torch

from kinemesh.data import collate
from kinemesh.data.freihand import FreiHandDataset
from kinemesh.data.mesh_dataset import MeshOptions
from kinemesh.data.mesh_tsv import MeshTsvDataset, write_mesh_tsv
from kinemesh.data.records import SAMPLE_FIELDS
from kinemesh.data.synthetic import SyntheticDataset
from kinemesh.data.webdataset import MeshShards, write_shards
from kinemesh.errors import InputError
from tests.mesh_records import mesh_records, write_freihand

SIZE = 48


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Two samples of every reader."""
    folder, options = tmp_path_factory.mktemp("sets"), MeshOptions(resolution=SIZE)
    write_freihand(folder / "f", 2, 1)
    freihand = FreiHandDataset(folder / "f", options=options, cache=folder / "c")
    body = MeshTsvDataset(write_mesh_tsv(folder, "b", mesh_records("body", 2)), options)
    write_shards(body, folder / "s", source="b")
    return {
        "synthetic": SyntheticDataset("hand", seed=0, resolution=SIZE).__getitems__([0, 1]),
        "tsv": [body[0], body[1]],
        "freihand": [freihand[0], freihand[1]],
        "shards": list(MeshShards(folder / "s", options)),
    }


@pytest.mark.parametrize("reader", ["synthetic", "tsv", "freihand", "shards"])
def test_every_reader_fills_every_field(samples, reader):
    for sample in samples[reader]:
        assert tuple(sample) == SAMPLE_FIELDS
        joints = len(sample["joints_2d"])
        assert sample["image"].shape == (3, SIZE, SIZE)
        assert sample["joints_3d"].shape == (joints, 4)
        assert sample["vertices"].shape[1:] == (3,)
        assert sample["pose"].numel() % 3 == 0
        assert sample["betas"].numel() in {0, 10}
        assert sample["keep_mask"].shape[1:] == (1,)
        assert sample["side_px"] > 0
        assert {float(sample[flag]) for flag in ("has_2d", "has_3d", "has_mesh")} <= {0.0, 1.0}
        if sample["has_mesh"]:
            assert len(sample["vertices"]) or len(sample["pose"])
        assert bool(sample["root_m"].any()) == bool(sample["focal_px"] > 0)
        assert all(value.dtype == torch.float32 for value in sample.values())


def test_synthetic_picture_is_its_own_crop(samples):
    for sample in samples["synthetic"]:
        assert sample["center_px"].tolist() == [SIZE / 2, SIZE / 2]
        assert sample["side_px"] == SIZE


def test_collate_stacks_what_has_one_shape(samples):
    batch = collate(samples["tsv"] + samples["shards"])
    assert set(batch) == set(SAMPLE_FIELDS)
    assert batch["keep_mask"].shape == (4, 445, 1)
    assert torch.equal(batch["pose"][0], batch["pose"][2])
    with pytest.raises(InputError, match="different shapes"):
        collate(samples["tsv"] + samples["freihand"])
