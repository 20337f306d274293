"""Files that are either whole or absent: written under a temporary name, then moved into place."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_path(path: str | Path, folder: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it there on success, delete it on failure.

    The temporary name keeps the suffix of ``path``, since many writers choose a format by it.

    Args:
        path: The file.
        folder: Where the temporary file lies in place of beside ``path``: a folder on the same
            disk, in which the caller finds it again if the process was killed.
    """
    final = Path(path)
    place = final.parent if folder is None else folder
    handle, name = tempfile.mkstemp(dir=place, prefix=".", suffix=f".partial{final.suffix}")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | Path, content: Any, *, indent: int | None = 2) -> None:
    """Write ``content`` as UTF-8 JSON to ``path`` atomically; NaN and infinity are refused."""
    text = json.dumps(content, indent=indent, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
