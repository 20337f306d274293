import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kinemesh.errors import InputError
from kinemesh.training import Interrupted, TrainingDiverged, train
from kinemesh.training import checkpoints as checkpoints_module
from kinemesh.training.checkpoints import atomic_folder, read_checkpoint, write_checkpoint
from tests.training_worker import Plane, plane

REPOSITORY = Path(__file__).resolve().parents[1]


def rows(output, event="train"):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [
        {key: row[key] for key in ("step", "losses", "lr", "metrics") if key in row}
        for row in lines
        if row["event"] == event
    ]


def assert_same_run(one, other):
    """Equal to the last bit: losses, metrics, weights, averages, moments, random states."""
    assert rows(one) == rows(other)
    assert rows(one, "validation") == rows(other, "validation")
    first, second = read_checkpoint(one / "last")[0], read_checkpoint(other / "last")[0]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    best = [load_file(folder / "best" / "weights.safetensors") for folder in (one, other)]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


@contextlib.contextmanager
def training_elsewhere(output, changes, after_rows):
    """Train in a process group of its own; yields the process once the log has so many rows.

    At the end the group has to vanish: every member holds the pipe, so its end means that none is
    left. Torch's watchdog looks every five seconds.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.training_worker", str(output), json.dumps(changes), "0.05"],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if len((output / "log.jsonl").read_text().splitlines()) >= after_rows:
                break
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()
    try:
        yield process
        process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def train_and_kill(output, changes, after_rows):
    """Train in another process and kill it with -9 once the log has so many rows."""
    with training_elsewhere(output, changes, after_rows) as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, workers):
    changes = {"workers": workers}
    train_and_kill(tmp_path / "killed", changes, after_rows=13)
    steps_seen = rows(tmp_path / "killed")[-1]["step"]
    saved = read_checkpoint(tmp_path / "killed" / "last")[1]["step"]
    assert saved < steps_seen < 40  # killed between checkpoints and before the end
    train(plane(tmp_path / "killed", **changes))
    train(plane(tmp_path / "whole"))
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_group_with_workers_writes_a_checkpoint(tmp_path, number):
    changes = {"workers": 2, "checkpoint_every": 1000, "steps": 1000}
    with training_elsewhere(tmp_path, changes, after_rows=5) as process:
        os.killpg(process.pid, number)
    assert process.returncode == 130
    assert read_checkpoint(tmp_path / "last")[1]["step"] == rows(tmp_path)[-1]["step"]


@pytest.mark.parametrize("settings", [{}, {"channels_last": True}, {"mixed_precision": "bf16"}])
def test_signal_writes_a_checkpoint_and_resuming_is_exact(tmp_path, monkeypatch, settings):
    settings = settings | {"log_every": 7}
    monkeypatch.setattr(Plane, "signal_at", 24)
    with pytest.raises(Interrupted, match="after step 24") as stopped:
        train(plane(tmp_path / "stopped", **settings))
    assert stopped.value.code == 130
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert read_checkpoint(tmp_path / "stopped" / "last")[1]["step"] == 24
    monkeypatch.undo()
    train(plane(tmp_path / "stopped", **settings))
    train(plane(tmp_path / "whole", **settings))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_finished_run_is_left_alone_and_more_steps_extend_it(tmp_path, capsys):
    first = train(plane(tmp_path))
    log = (tmp_path / "log.jsonl").read_bytes()
    assert train(plane(tmp_path)) == first
    assert (tmp_path / "log.jsonl").read_bytes() == log
    assert "Nothing to do" in capsys.readouterr().err
    assert train(plane(tmp_path, steps=50)).step == 50
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 51))


def test_changed_recipe_is_refused_with_the_fields(tmp_path):
    train(plane(tmp_path, steps=10))
    changed = plane(tmp_path, steps=20, batch_size=4)
    changed.optim.lr = 0.5
    with pytest.raises(InputError) as error:
        train(changed)
    message = str(error.value)
    assert "batch_size: 8 in the checkpoint, 4 now" in message
    assert "optim.lr: 0.01 in the checkpoint, 0.5 now" in message
    assert "steps" not in message.replace("warmup_steps", "")
    assert "--resume" in message


def test_changed_recipe_continues_when_the_checkpoint_is_named(tmp_path):
    train(plane(tmp_path / "a", steps=10))
    changed = plane(tmp_path / "b", steps=20, resume=tmp_path / "a" / "last")
    changed.optim.lr, changed.optim.weight_decay = 0.002, 0.0
    with pytest.warns(UserWarning, match=r"optim\.lr: 0\.01 in the checkpoint, 0\.002 now"):
        result = train(changed)
    assert result.step == 20
    new = rows(tmp_path / "b")
    assert [row["step"] for row in new] == list(range(11, 21))
    assert max(row["lr"] for row in new) < 0.002  # the new peak counts, not the saved one


def test_killed_branch_continues_from_its_own_checkpoint(tmp_path, capsys):
    train(plane(tmp_path / "a", steps=10))
    branch = {"resume": str(tmp_path / "a" / "last")}
    train_and_kill(tmp_path / "b", branch, after_rows=13)
    saved = read_checkpoint(tmp_path / "b" / "last")[1]
    assert 20 <= saved["step"] < 40
    assert saved["resumed_from"] == str((tmp_path / "a" / "last").resolve())
    capsys.readouterr()
    train(plane(tmp_path / "b", resume=tmp_path / "a" / "last"))
    assert f"Resuming from '{tmp_path}/b/last' at step {saved['step']}." in capsys.readouterr().err
    train(plane(tmp_path / "whole", resume=tmp_path / "a" / "last"))
    assert_same_run(tmp_path / "b", tmp_path / "whole")
    assert [row["step"] for row in rows(tmp_path / "b")] == list(range(11, 41))


def test_branch_killed_before_its_first_checkpoint_starts_over(tmp_path, monkeypatch):
    train(plane(tmp_path / "a", steps=10))
    settings = {"resume": tmp_path / "a" / "last", "validate_every": 3}
    monkeypatch.setattr(Plane, "nan_at", 9)  # at step 19, after the validation of step 18
    with pytest.raises(TrainingDiverged):
        train(plane(tmp_path / "b", **settings))
    assert not (tmp_path / "b" / "last").exists()
    monkeypatch.undo()
    train(plane(tmp_path / "b", **settings))
    train(plane(tmp_path / "whole", **settings))
    assert_same_run(tmp_path / "b", tmp_path / "whole")


def test_branch_is_held_to_its_own_recipe_wherever_its_origin_went(tmp_path):
    train(plane(tmp_path / "a", steps=10))
    named = tmp_path / "a" / "last"
    with pytest.warns(UserWarning, match="batch_size"):
        train(plane(tmp_path / "b", steps=20, batch_size=4, resume=named))
    with pytest.raises(InputError, match="batch_size: 4 in the checkpoint, 8 now"):
        train(plane(tmp_path / "b", steps=30, resume=named))
    shutil.rmtree(tmp_path / "a")
    assert train(plane(tmp_path / "b", steps=30, batch_size=4, resume=named)).step == 30
    assert train(plane(tmp_path / "b", steps=32, batch_size=4)).step == 32
    assert train(plane(tmp_path / "b", steps=34, batch_size=4, resume=named)).step == 34


def test_branching_into_a_folder_with_another_run_is_refused(tmp_path):
    train(plane(tmp_path / "a", steps=10))
    train(plane(tmp_path / "b", steps=10, keep_history=1))
    log = (tmp_path / "b" / "log.jsonl").read_bytes()
    for named in (tmp_path / "a" / "last", tmp_path / "b" / "step-0000010"):
        with pytest.raises(InputError, match="began from nothing and not from"):
            train(plane(tmp_path / "b", resume=named))
    assert (tmp_path / "b" / "log.jsonl").read_bytes() == log


def test_going_back_to_a_numbered_copy_keeps_the_rows_before_it(tmp_path):
    train(plane(tmp_path, steps=20, keep_history=2))
    shutil.rmtree(tmp_path / "last")
    assert train(plane(tmp_path, steps=15, resume=tmp_path / "step-0000010")).step == 15
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 16))


def test_another_network_is_refused(tmp_path):
    train(plane(tmp_path, steps=10))
    with (
        pytest.warns(UserWarning, match="linear"),
        pytest.raises(InputError, match="another network"),
    ):
        train(plane(tmp_path, linear=True, resume=tmp_path / "last"))


def test_never_refuses_a_folder_with_a_run(tmp_path):
    train(plane(tmp_path, steps=10))
    with pytest.raises(InputError, match="already holds a run"):
        train(plane(tmp_path, resume="never"))


def test_missing_and_damaged_checkpoints_are_refused(tmp_path):
    with pytest.raises(InputError, match="not a checkpoint folder"):
        train(plane(tmp_path / "run", resume=tmp_path / "absent"))
    train(plane(tmp_path / "run", steps=10))
    file = next((tmp_path / "run" / "last").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match="damaged"):
        train(plane(tmp_path / "run"))
    (tmp_path / "run" / "last" / "state.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="format 99"):
        train(plane(tmp_path / "run"))


def test_dying_while_writing_keeps_the_former_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "last"
    write_checkpoint(folder, {"a": torch.zeros(3)}, {"step": 1})

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints_module, "write_json", die)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(folder, {"a": torch.ones(3)}, {"step": 2})
    tensors, state = read_checkpoint(folder)
    assert state["step"] == 1
    assert torch.equal(tensors["a"], torch.zeros(3))
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_killed_between_the_renames_is_mended(tmp_path):
    train(plane(tmp_path, steps=10))
    (tmp_path / "last").rename(tmp_path / ".last.previous")
    (tmp_path / ".last.partial").mkdir()
    assert train(plane(tmp_path, steps=20)).step == 20
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 21))
    assert not list(tmp_path.glob(".*"))


def test_atomic_folder_leaves_files_readable_by_others(tmp_path):
    with atomic_folder(tmp_path / "best") as folder:
        (folder / "weights").touch(mode=0o600)
    mode = (tmp_path / "best" / "weights").stat().st_mode
    assert mode & 0o444 == (tmp_path / "best").stat().st_mode & 0o444


def test_shards_stay_below_the_limit_and_give_the_same_tensors(tmp_path):
    shared = torch.randn(40, 50)
    tensors = {
        "large": torch.randn(3, 100, 100),  # 120 kB: cut into pieces
        "kernel": torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last),
        "tied": shared,
        "tied_too": shared,
        "half": torch.randn(5000).half(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }
    write_checkpoint(tmp_path / "last", tensors, {}, max_shard_mb=0.03)
    files = sorted((tmp_path / "last").glob("*.safetensors"))
    assert len(files) > 4
    assert max(file.stat().st_size for file in files) <= 30_000
    found, _ = read_checkpoint(tmp_path / "last")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_resuming_from_shards_is_exact(tmp_path):
    train(plane(tmp_path / "parts", steps=10, max_shard_mb=0.01))
    train(plane(tmp_path / "parts", max_shard_mb=0.01))
    train(plane(tmp_path / "ten", steps=10))
    train(plane(tmp_path / "ten"))
    assert_same_run(tmp_path / "parts", tmp_path / "ten")


def test_checkpoints_hold_no_pickles(tmp_path):
    train(plane(tmp_path, steps=10, keep_history=1))
    files = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {".json", ".jsonl", ".png", ".safetensors"}
