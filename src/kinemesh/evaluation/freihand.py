"""The FreiHAND benchmark: its submission file, and its scores of such a file.

A submission is a zip with one member ``pred.json``: ``[[N x 21 x 3 joints], [N x 778 x 3
vertices]]``, metres, in the order of the evaluation split (Zimmermann et al. 2019).
"""

import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from kinemesh.errors import InputError
from kinemesh.evaluation.json_rows import json_rows
from kinemesh.evaluation.table import SampleTable
from kinemesh.files import atomic_path
from kinemesh.metrics import MetricReport
from kinemesh.protocols import FREIHAND, Known, Points, Protocol, overall, without_root

EVALUATION_COUNT = 3960
JOINTS, VERTICES = 21, 778
MEMBER = "pred.json"
Floats = NDArray[np.float32]


class SubmissionWriter:
    """Writes a submission batch by batch; use as a context manager.

    The file appears when the block ends well, complete and re-read, and not at all otherwise. Only
    text on the disk grows with the number of samples.

    Args:
        path: Where to write, ``.zip``.
        count: How many samples make a whole submission.

    Raises:
        InputError: ``path`` is no .zip, or at the end the number of samples is not ``count``.
    """

    def __init__(self, path: str | Path, count: int = EVALUATION_COUNT) -> None:
        self.path, self.count = Path(path), count
        if self.path.suffix.lower() != ".zip":
            raise InputError(f"submission: expected a path that ends in .zip, found '{path}'.")
        self.written = 0
        self._stack = ExitStack()
        self._joints: IO[bytes] | None = None
        self._vertices: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # vertices come after the last joint in the file, so both wait in files of their own
        self._joints = self._stack.enter_context(tempfile.TemporaryFile())
        self._vertices = self._stack.enter_context(tempfile.TemporaryFile())
        return self

    def add(self, joints: torch.Tensor, vertices: torch.Tensor) -> None:
        """Append the next samples: joints (B, 21, 3) and vertices (B, 778, 3), metres.

        Raises:
            InputError: A shape is another, or a number is not finite.
        """
        assert self._joints is not None, "use SubmissionWriter as a context manager"
        assert self._vertices is not None
        own = _checked("joints", joints, JOINTS, self.written)
        mesh = _checked("vertices", vertices, VERTICES, self.written)
        if len(own) != len(mesh):
            raise InputError(f"submission: {len(own)} samples of joints, {len(mesh)} of vertices.")
        for file, points in ((self._joints, own), (self._vertices, mesh)):
            _write_rows(file, points, first=self.written == 0)
        self.written += len(own)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if kind is None:
                self._finish()

    def _finish(self) -> None:
        if self.written != self.count:
            raise InputError(
                f"submission '{self.path}': expected {self.count} samples, the whole evaluation "
                f"split in its order, found {self.written}. Predict all of them, without --count."
            )
        with atomic_path(self.path) as temporary:
            with (
                zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
                archive.open(MEMBER, "w", force_zip64=True) as member,
            ):
                member.write(b"[[")
                _copy(self._joints, member)
                member.write(b"], [")
                _copy(self._vertices, member)
                member.write(b"]]")
            check_submission(temporary, self.count)


def _checked(name: str, points: torch.Tensor, count: int, first: int) -> Floats:
    if points.ndim != 3 or points.shape[1:] != (count, 3):
        raise InputError(
            f"{name}: expected shape (B, {count}, 3), found {tuple(points.shape)}. A FreiHAND "
            "submission needs a network on MANO's mesh."
        )
    array: Floats = points.detach().float().cpu().numpy()
    bad = ~np.isfinite(array).all(axis=(1, 2))
    if bad.any():
        raise InputError(f"{name}: sample {first + int(bad.argmax())} holds NaN or inf.")
    return array


def _write_rows(file: IO[bytes], points: Floats, first: bool) -> None:
    """Comma-separated JSON lists; nine digits bring every float32 back exactly."""
    row = "[" + ", ".join(["[%.9g, %.9g, %.9g]"] * points.shape[1]) + "]"
    for number, sample in enumerate(points):
        file.write(b"" if first and number == 0 else b", ")
        file.write((row % tuple(sample.ravel().tolist())).encode())


def _copy(source: IO[bytes] | None, target: IO[bytes]) -> None:
    assert source is not None
    source.seek(0)
    while block := source.read(1 << 20):
        target.write(block)


def check_submission(path: str | Path, count: int = EVALUATION_COUNT) -> None:
    """Read a submission through and refuse it if it is not whole.

    Raises:
        InputError: It is no zip with ``pred.json`` of ``count`` samples.
    """
    counts = [0, 0]
    for part, _ in _submission_rows(Path(path)):
        counts[part] += 1
    if counts != [count, count]:
        raise InputError(
            f"'{path}': expected joints and vertices of {count} samples, found {counts[0]} and "
            f"{counts[1]}. FreiHAND's server takes the whole evaluation split only."
        )


def read_submission(path: str | Path) -> tuple[Floats, Floats]:
    """Joints (N, 21, 3) and vertices (N, 778, 3) of a submission, metres.

    Raises:
        InputError: It is no submission.
    """
    parts: tuple[list[Floats], list[Floats]] = ([], [])
    for part, row in _submission_rows(Path(path)):
        parts[part].append(row)
    if not parts[0] or len(parts[0]) != len(parts[1]):
        raise InputError(
            f"'{path}': expected as many samples of joints as of vertices, found {len(parts[0])} "
            f"and {len(parts[1])}."
        )
    return np.stack(parts[0]), np.stack(parts[1])


def _submission_rows(path: Path) -> Iterator[tuple[int, Floats]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if names != [MEMBER]:
                raise InputError(
                    f"'{path}': expected one file {MEMBER} in the zip, found {', '.join(names)}."
                )
            with archive.open(MEMBER) as file:
                for (part,), value in json_rows(file, depth=2, where=f"'{path}', {MEMBER}"):
                    shape = ((JOINTS, 3), (VERTICES, 3))[min(part, 1)]
                    if part > 1:
                        raise InputError(f"'{path}': expected two lists, found more.")
                    yield part, _row(value, shape, f"'{path}', {MEMBER}")
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"'{path}': expected a zip file, found none ({error}).") from error


def _row(value: Any, shape: tuple[int, int], where: str) -> Floats:
    try:
        row = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        row = np.zeros(0, np.float32)
    if row.shape != shape or not np.isfinite(row).all():
        found = json.dumps(value)[:40] if row.shape != shape else "NaN or inf"
        raise InputError(f"{where}: expected {shape[0]} points of 3 finite numbers, found {found}.")
    return row


def read_points(path: str | Path, count: int) -> Floats:
    """Points (N, ``count``, 3) of ``evaluation_xyz.json`` or ``evaluation_verts.json``, metres.

    Raises:
        InputError: The file is missing or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"There is no file '{path}'. FreiHAND publishes the labels of its evaluation split as "
            "evaluation_xyz.json and evaluation_verts.json."
        )
    with path.open("rb") as file:
        rows = [
            _row(value, (count, 3), f"'{path}'") for _, value in json_rows(file, 1, f"'{path}'")
        ]
    if not rows:
        raise InputError(f"'{path}': expected at least one sample, found none.")
    return np.stack(rows)


def score_submission(
    submission: str | Path,
    labels: str | Path,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> tuple[Protocol, tuple[MetricReport, ...]]:
    """The benchmark's scores of a submission.

    Args:
        submission: The zip.
        labels: Folder with ``evaluation_xyz.json`` and ``evaluation_verts.json``.
        device: Where to compute.
        batch_size: Samples at a time.

    Returns:
        The protocol, in which nothing is moved to the origin, and its reports.

    Raises:
        InputError: A file is missing, damaged, or of another length than the others.
    """
    joints, vertices = read_submission(submission)
    folder = Path(labels)
    true_joints = read_points(folder / "evaluation_xyz.json", JOINTS)
    true_vertices = read_points(folder / "evaluation_verts.json", VERTICES)
    lengths = {len(part) for part in (joints, vertices, true_joints, true_vertices)}
    if len(lengths) > 1:
        raise InputError(
            f"'{submission}' holds {len(joints)} samples, '{folder}' labels {len(true_joints)} "
            f"(joints) and {len(true_vertices)} (vertices). They must be the same."
        )
    return score_points(joints, vertices, true_joints, true_vertices, device, batch_size)


def score_points(
    joints: NDArray,
    vertices: NDArray,
    true_joints: NDArray,
    true_vertices: NDArray,
    device: torch.device | str = "cpu",
    batch_size: int = 64,
) -> tuple[Protocol, tuple[MetricReport, ...]]:
    """Scores of N predictions (N, 21, 3) and (N, 778, 3) against as many labels; metres."""
    protocol = without_root(FREIHAND)
    table = SampleTable()
    arrays = (joints, vertices, true_joints, true_vertices)
    for start in range(0, len(joints), batch_size):
        chunk = slice(start, start + batch_size)
        own_j, own_v, true_j, true_v = (
            torch.as_tensor(np.asarray(array[chunk], dtype=np.float32), device=device)
            for array in arrays
        )
        columns = protocol.measure(Points(own_j, own_v), Points(true_j, true_v))
        table.add(torch.arange(start, start + len(own_j)), columns)
    rows, columns = table.collect()
    known = Known(torch.ones(len(rows)), torch.ones(len(rows)))
    reports = []
    for score in protocol.scores:
        mean, count = overall(score, columns[score.metric], known)
        reports.append(protocol.report(score, mean, count, "mano", "FreiHAND"))
    return protocol, tuple(reports)
