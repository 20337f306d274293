"""Reading checkpoint files: every format, every way to be broken, and never any code."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kinemesh.errors import InputError
from kinemesh.models.checkpoint_files import read_tensors

FORMS = ("zip", "legacy")


def save(content, path, form):
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return OrderedDict(
        {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3), "n": torch.tensor(7)}
    )


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


class Payload:
    """Calls a program when an ordinary unpickler reads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)


def test_both_formats_of_torch_save(tensors, form, tmp_path):
    path = save(tensors, tmp_path / "state_dict.bin", form)
    assert path.read_bytes()[:2] == {"zip": b"PK", "legacy": b"\x80\x02"}[form]
    assert_same(read_tensors(path), tensors)


def test_safetensors_whatever_the_suffix(tensors, tmp_path):
    for name in ("x.safetensors", "x.pth"):
        save_file(dict(tensors), tmp_path / name)
        found = read_tensors(tmp_path / name)
        assert_same({key: found[key] for key in tensors}, tensors)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_tensors_are_found_inside_a_training_checkpoint(tensors, key, form, tmp_path):
    content = {"epoch": 3, key: {"state_dict": tensors}, "optimizer": {"state": {}}}
    assert_same(read_tensors(save(content, tmp_path / "c.pt", form)), tensors)


@pytest.mark.parametrize("prefix", ["module.", "module.module."])
def test_prefix_of_parallel_training_is_removed(tensors, prefix, form, tmp_path):
    wrapped = {prefix + name: value for name, value in tensors.items()}
    assert_same(read_tensors(save(wrapped, tmp_path / "c.pt", form)), tensors)


def test_wrapper_around_a_part_is_removed(form, tmp_path):
    content = {"backbone.module.conv1.weight": torch.ones(2), "head.bias": torch.ones(1)}
    found = read_tensors(save(content, tmp_path / "c.pt", form))
    assert list(found) == ["backbone.conv1.weight", "head.bias"]


def test_prefix_that_hides_two_tensors_is_refused(tmp_path):
    content = {"module.a": torch.ones(2), "a": torch.ones(2)}
    with pytest.raises(InputError, match="occur twice"):
        read_tensors(save(content, tmp_path / "c.pt", "zip"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_become_float32_and_integers_stay(dtype, form, tmp_path):
    content = {"w": torch.tensor([1.5, -2.0], dtype=dtype), "n": torch.tensor(3)}
    found = read_tensors(save(content, tmp_path / "c.pt", form))
    assert torch.equal(found["w"], torch.tensor([1.5, -2.0]))
    assert found["w"].dtype == torch.float32
    assert found["n"].dtype == torch.int64


def test_tensors_of_a_gpu_come_to_the_cpu(tensors, form, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:1")
    path = save(tensors, tmp_path / "c.pt", form)
    monkeypatch.undo()
    found = read_tensors(path)
    assert_same(found, tensors)
    assert {value.device.type for value in found.values()} == {"cpu"}


def test_views_and_ties_become_tensors_of_their_own(form, tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    content = {"whole": whole, "row": whole[1], "transposed": whole.t(), "again": whole}
    found = read_tensors(save(content, tmp_path / "c.pt", form))
    assert_same(found, content)
    assert len({value.untyped_storage().data_ptr() for value in found.values()}) == 4
    assert all(value.is_contiguous() for value in found.values())


def test_whole_networks_are_refused_with_the_way_out(form, tmp_path, monkeypatch):
    path = save(Net(), tmp_path / "model.bin", form)
    with pytest.raises(InputError, match="whole pickled network") as caught:
        read_tensors(path)
    message = str(caught.value)
    assert "test_checkpoint_files.Net" in message
    lines = [line.strip() for line in message.splitlines()[-2:]]
    assert "weights_only=False" not in message  # what PyTorch's own message advises

    # the two lines are Python, and what they write is read
    program = "\n".join(lines).replace('map_location="cpu"', 'map_location="cpu", weights_only=0')
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    assert set(read_tensors(tmp_path / "model_state_dict.bin")) == {"linear.weight", "linear.bias"}


def test_library_modules_are_recognised_as_networks_too(form, tmp_path):
    path = save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "model.bin", form)
    with pytest.raises(InputError, match=r"whole pickled network .*Sequential"):
        read_tensors(path)


def test_nothing_of_a_payload_runs(form, tmp_path):
    mark = tmp_path / "was-run"
    path = save({"w": torch.ones(2), "p": Payload(mark)}, tmp_path / "evil.bin", form)
    with pytest.raises(InputError, match=r"nothing of it was run.*system"):
        read_tensors(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the payload is a working one
    assert mark.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_of_a_plain_pickle_runs(protocol, tmp_path):
    mark = tmp_path / "was-run"
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Payload(mark), protocol=protocol))
    with pytest.raises(InputError, match=r"nothing of it was run.*system"):
        read_tensors(path)
    assert not mark.exists()
    path.write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    with pytest.raises(InputError, match="plain pickle"):
        read_tensors(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.75, 0.99])
def test_truncated_files_say_so(tensors, form, share, tmp_path):
    path = save(tensors, tmp_path / "c.pt", form)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"c\.pt.*[Dd]ownload"):
        read_tensors(path)


def test_truncated_safetensors_say_so(tensors, tmp_path):
    path = tmp_path / "c.safetensors"
    save_file(dict(tensors), path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"c\.safetensors.*truncated"):
        read_tensors(path)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>sign in</html>", b"\x00" * 64])
def test_files_that_are_no_checkpoints(content, tmp_path):
    path = tmp_path / "c.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"c\.bin: not a checkpoint"):
        read_tensors(path)


def test_other_zip_archives(tmp_path):
    np.savez(tmp_path / "c.npz", a=np.ones(2))
    with pytest.raises(InputError, match=r"c\.npz: PyTorch cannot read"):
        read_tensors(tmp_path / "c.npz")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_tensors(tmp_path / "c.bin")
    with pytest.raises(InputError, match="folder"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        torch.eye(3).to_sparse(),
        torch.eye(3).to_sparse_csr(),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
        torch.ones(3, dtype=torch.complex64),
        torch.ones(3, device="meta"),
    ],
    ids=["sparse", "compressed", "quantised", "complex", "without storage"],
)
def test_tensors_of_other_kinds_are_named(tensors, value, form, tmp_path):
    path = save({**tensors, "b.weight": value}, tmp_path / "c.pt", form)
    with pytest.raises(InputError, match=r"c\.pt: .*(found 1 others .*b\.weight|cannot read)"):
        read_tensors(path)


def test_entries_that_are_no_tensors_are_named(tensors, form, tmp_path):
    path = save({**tensors, "epoch": 3, "note": "x"}, tmp_path / "c.pt", form)
    with pytest.raises(InputError, match=r"2 other entries: 'epoch' \(int\), 'note' \(str\)"):
        read_tensors(path)
    with pytest.raises(InputError, match="found a list"):
        read_tensors(save([torch.ones(2)], tmp_path / "l.pt", form))
    with pytest.raises(InputError, match="found nothing"):
        read_tensors(save({}, tmp_path / "n.pt", form))
