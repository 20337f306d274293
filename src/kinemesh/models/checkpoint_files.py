"""Tensors from checkpoint files of any age, without running code from them.

A PyTorch checkpoint is a pickle, and a pickle may call any function while it is read. Here only
tensors are accepted: PyTorch's restricted unpickler reads the file, and one that asks for anything
else is refused before anything of it runs. The names that a refused file asks for are read from
its opcodes, which runs nothing either.
"""

import itertools
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kinemesh.errors import InputError

Format = Literal["zip", "legacy", "safetensors", "pickle"]

_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of ``torch.save`` began before PyTorch 1.6: a pickled number."""
_LEGACY_PICKLES = 5  # magic number, protocol, machine, the object, the names of its storages
_HARMLESS = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_\w+|torch\.Size"
    r"|torch(\.cuda|\.storage)?\.\w*Storage|torch\.serialization\._get_layout"
    r"|numpy\._?core\.multiarray\.scalar|numpy\.dtype|_codecs\.encode"
)
"""What tensors are pickled with."""
_NUMBERS: list[Any] = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8")),
]
"""What single numbers of NumPy are pickled with, such as the score beside a training's tensors."""
_NOT_OWN = ("torch.", "collections.", "builtins.", "__builtin__.")
_WRAPPERS = ("best_state_dict", "state_dict", "model_state_dict", "model", "network", "net")
"""Keys under which training scripts keep the tensors beside optimiser and counters, best first."""
_LISTED = 5


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, on the CPU, without running code from the file.

    It reads what ``torch.save`` writes today (a zip archive) and wrote before PyTorch 1.6, and
    .safetensors files; the suffix does not matter. A state dict under ``state_dict`` or ``model``
    is taken from beside the rest of a training checkpoint. ``module``, which (distributed) data
    parallel training puts before names, is taken out of them.

    Args:
        path: Checkpoint.

    Returns:
        Tensors in the order of the file; floating-point ones as float32, whatever they were
        stored in. None shares memory with another.

    Raises:
        InputError: The file is missing, truncated, no checkpoint, or holds something else than
            tensors, such as a whole pickled network.
    """
    path = Path(path)
    kind = _format(path)
    content = _read_safetensors(path) if kind == "safetensors" else _read_pickled(path, kind)
    return _own(_without_module(_named_tensors(path, content), path))


def check_is_file(path: Path) -> None:
    """Raise an `InputError` if there is no such file, or a folder in its place."""
    if not path.is_file():
        what = "this is a folder" if path.is_dir() else "there is no such file"
        raise InputError(f"{path}: {what}. Expected a checkpoint such as state_dict.bin.")


def _format(path: Path) -> Format:
    """What the first bytes say the file is."""
    check_is_file(path)
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(_LEGACY_MAGIC):
        return "legacy"
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return "safetensors"
    if head.startswith(b"\x80"):
        return "pickle"
    size = path.stat().st_size
    found = "an empty file" if size == 0 else f"{size:,} bytes that begin with {head[:8]!r}"
    raise InputError(
        f"{path}: not a checkpoint. Expected a file of torch.save (.bin, .pth, .pt) or a "
        f".safetensors file, found {found}. Download it again; a web page may have been saved in "
        "its place."
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a readable safetensors file ({error}). It is truncated or damaged; "
            "copy or download it again."
        ) from error


def _read_pickled(path: Path, kind: Format) -> Any:
    if kind == "pickle":
        _refuse_objects(path, kind)
        raise InputError(
            f"{path}: expected a file of torch.save, found a plain pickle of "
            f"{path.stat().st_size:,} bytes. Write its tensors with torch.save where it was made, "
            "or, if it was cut off, download it again."
        )
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        _refuse_objects(path, kind)
        raise InputError(
            f"{path}: PyTorch cannot read this checkpoint of {path.stat().st_size:,} bytes "
            f"({type(error).__name__}). It is truncated, damaged, or not one of tensors alone; "
            "compare its size with the original's and download it again."
        ) from error


def _refuse_objects(path: Path, kind: Format) -> None:
    """Raise if the file asks for classes or functions that no tensor needs."""
    try:
        wanted = list(dict.fromkeys(_globals(path, kind)))
    except Exception:  # the opcodes end too early or make no sense: the caller says so
        return
    foreign = [name for name in wanted if not _HARMLESS.fullmatch(name)]
    if not foreign:
        return
    if not any(name.startswith("torch.nn.") for name in foreign):
        raise InputError(
            f"{path}: refused, and nothing of it was run. Expected tensors, found a pickle that "
            f"asks for {_some(foreign)}. Do not open it with other tools unless you trust its "
            "origin; a state_dict of tensors alone is read here."
        )
    networks = [name for name in foreign if name.startswith("torch.nn.")]
    classes = [name for name in foreign if not name.startswith(_NOT_OWN)] or networks
    raise InputError(
        f"{path}: refused, and nothing of it was run. Expected tensors, found a whole pickled "
        f"network (it asks for {_some(classes)}), which only the code that made it can open. "
        "Where that code runs, type these two lines in Python, then use the file they write:\n"
        f'  import torch; network = torch.load("{path.name}", map_location="cpu")\n'
        f'  torch.save(network.state_dict(), "{path.stem}_state_dict.bin")'
    )


def _globals(path: Path, kind: Format) -> Iterator[str]:
    """Dotted names that the pickles in a file ask for, read without building anything."""
    if kind == "zip":
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith(".pkl")]
            for name in pickles:
                with archive.open(name) as stream:
                    yield from _globals_of_pickle(stream)
        return
    with path.open("rb") as stream:
        for _ in range(_LEGACY_PICKLES if kind == "legacy" else 1):
            yield from _globals_of_pickle(stream)


def _globals_of_pickle(stream: IO[bytes]) -> Iterator[str]:
    texts = ["", ""]  # the last two: from protocol 4 on module and name come from the stack
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in {"GLOBAL", "INST"}:
            yield str(argument).replace(" ", ".", 1)
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(texts)
        elif isinstance(argument, str):
            texts = [texts[1], argument]


def _named_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """The mapping of names to tensors inside what a file holds."""
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path}: expected names with tensors (a state dict), found a "
            f"{type(content).__name__}. Save network.state_dict() of the network."
        )
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return _named_tensors(path, content[key])
    others = [
        f"{name!r} ({type(value).__name__})"
        for name, value in content.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if others or not content:
        found = f"{len(others)} other entries: {_some(others)}" if others else "nothing"
        raise InputError(
            f"{path}: expected a state dict, tensors by name, found {found}. Save the state dict "
            "alone, or under the key 'state_dict'."
        )
    special = [name for name, value in content.items() if not _is_plain(value)]
    if special:
        raise InputError(
            f"{path}: expected dense tensors of real numbers, found {len(special)} others (sparse, "
            f"quantised, complex or without storage): {_some(special)}. Save them dense, in "
            "float32."
        )
    return dict(content)


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor is an ordinary one of real numbers."""
    dense = value.layout == torch.strided and not value.is_nested and not value.is_quantized
    return dense and not value.is_complex() and value.device.type == "cpu"


def _without_module(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Take out the ``module`` that parallel wrappers add, at the front or around a part."""
    plain = {
        ".".join(part for part in name.split(".") if part != "module"): tensor
        for name, tensor in tensors.items()
    }
    if len(plain) != len(tensors):
        raise InputError(
            f"{path}: with the prefix 'module.' of parallel training removed, "
            f"{len(tensors) - len(plain)} names occur twice. Save the state dict of one network."
        )
    return plain


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous float32 (or integer) tensors, each with memory of its own."""
    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        alone = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
        if not alone or tensor.data_ptr() in seen:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(tensor.data_ptr())
        owned[name] = tensor
    return owned


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(itertools.islice(names, _LISTED)) + more
