"""Checkpoint folders: tensors in safetensors, the rest in JSON, replaced as a whole."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kinemesh.errors import InputError
from kinemesh.files import write_json

FORMAT = 1
_STATE = "state.json"
_INDEX = "tensors.json"


@contextlib.contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it takes the place of ``final``.

    Killed at any moment, either the old or the new content survives whole, under ``final`` or
    under a name that ``recover_folder`` puts back.
    """
    partial, previous = _neighbours(final)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.rglob("*"):
            _settle_file(file, mode=partial.stat().st_mode & 0o666)
        recover_folder(final)
        if final.exists():
            final.rename(previous)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(previous, ignore_errors=True)


def recover_folder(final: Path) -> None:
    """Put the former content back if a process was killed between the two renames."""
    _, previous = _neighbours(final)
    if not previous.exists():
        return
    if final.exists():
        shutil.rmtree(previous)
    else:
        previous.rename(final)


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    max_shard_mb: float | None = None,
) -> None:
    """Replace ``folder`` by a checkpoint.

    Args:
        folder: Checkpoint folder, for example ``runs/hand/last``.
        tensors: Tensors of any device and memory format.
        state: Everything else; JSON types only.
        max_shard_mb: Largest tensor file in 10^6 bytes; a larger tensor is cut into pieces.
    """
    limit = None if max_shard_mb is None else int(max_shard_mb * 1e6)
    with atomic_folder(folder) as partial:
        _write_tensors(partial, tensors, limit)
        write_json(partial / _STATE, {"format": FORMAT, **state}, indent=None)


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``write_checkpoint`` wrote: contiguous CPU tensors and the state.

    Raises:
        InputError: The folder is missing, damaged or of a newer format.
    """
    state = read_state(folder)
    with _named_in_errors(folder):
        return _read_tensors(folder), state


def read_state(folder: Path) -> dict[str, Any]:
    """Read the state of a checkpoint without its tensors.

    Raises:
        InputError: The folder is missing, damaged or of a newer format.
    """
    with _named_in_errors(folder):
        state: dict[str, Any] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise InputError(
                f"'{folder}' is a checkpoint of format {state['format']}, but this version of "
                f"kinemesh reads format {FORMAT}. Use the version that wrote it."
            )
        return state


@contextlib.contextmanager
def _named_in_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(
            f"'{folder}' is not a checkpoint folder: '{error.filename}' does not exist. "
            "Give the folder that holds state.json, for example runs/NAME/last."
        ) from error
    except (SafetensorError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"The checkpoint '{folder}' is damaged ({error}). Continue from another one, or start "
            "again in another --output."
        ) from error


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor], limit: int | None) -> None:
    """Fill numbered files up to ``limit`` bytes and note where the pieces of cut tensors belong."""
    room = None if limit is None else max(limit - 4096, limit // 2)  # the rest is for headers
    shards: list[dict[str, Tensor]] = [{}]
    shapes: dict[str, list[int]] = {}
    used = 0
    for name, tensor in tensors.items():
        pieces = _cut(tensor, room)
        if len(pieces) > 1:
            shapes[name] = list(tensor.shape)
        for number, piece in enumerate(pieces):
            size = piece.nbytes + 256
            if room is not None and shards[-1] and used + size > room:
                shards.append({})
                used = 0
            shards[-1][f"{name}//{number}" if len(pieces) > 1 else name] = piece
            used += size
    names = [f"tensors-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for file, shard in zip(names, shards, strict=True):
        save_file({key: _owned(value) for key, value in shard.items()}, folder / file)
    write_json(folder / _INDEX, {"files": names, "cut": shapes})


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    tensors: dict[str, Tensor] = {}
    for file in index["files"]:
        tensors |= load_file(folder / file)
    for name, shape in index["cut"].items():
        count = sum(key.startswith(f"{name}//") for key in tensors)
        pieces = [tensors.pop(f"{name}//{number}") for number in range(count)]
        tensors[name] = torch.cat(pieces).reshape(shape)
    return tensors


def _cut(tensor: Tensor, limit: int | None) -> list[Tensor]:
    tensor = tensor.detach()
    if limit is None or tensor.nbytes + 256 <= limit:
        return [tensor]
    length = (limit - 256) // tensor.element_size()
    return list(torch.split(tensor.contiguous().flatten(), length))


def _owned(tensor: Tensor) -> Tensor:
    # A copy, since safetensors refuses tensors that share memory (tied weights, pieces).
    return tensor.cpu().clone(memory_format=torch.contiguous_format)


def _neighbours(final: Path) -> tuple[Path, Path]:
    return final.with_name(f".{final.name}.partial"), final.with_name(f".{final.name}.previous")


def _settle_file(file: Path, mode: int) -> None:
    if file.is_file():
        file.chmod(mode)  # some writers leave files that only their owner may read
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
