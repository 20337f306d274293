"""What is installed, what is missing, and the command that mends it."""

import importlib.metadata
import json
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import kinemesh
from kinemesh.files import sha256

Status = Literal["ok", "missing", "broken"]
_WEIGHTS_DIR = Path(__file__).resolve().parent / "weights"


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        group: "system", "core", "extra" or "weights".
        name: What was looked at.
        status: "missing" is fine for an extra; "broken" is never fine.
        detail: Version, device or problem.
        mend: Command that mends it, empty where nothing is wrong.
    """

    group: str
    name: str
    status: Status
    detail: str
    mend: str = ""


def examine(weights_dir: Path = _WEIGHTS_DIR) -> list[Check]:
    """Run all checks; none of them changes anything or uses the network."""
    return [*_system(), *_packages(), *_weights(weights_dir)]


def is_healthy(checks: list[Check]) -> bool:
    """Whether prediction can work: the core is there and no weight file is damaged."""
    return all(check.status == "ok" or check.group == "extra" for check in checks)


def _system() -> Iterator[Check]:
    yield Check("system", "kinemesh", "ok", kinemesh.__version__)
    yield Check("system", "Python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield Check("system", "platform", "ok", platform.platform())
    try:
        import torch  # noqa: PLC0415
    except ImportError as error:
        yield Check("system", "devices", "broken", str(error), "pip install 'torch>=2.6'")
        return
    yield Check("system", "CPU", "ok", f"{torch.get_num_threads()} threads for PyTorch")
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Check("system", "CUDA", "ok", ", ".join(cuda) or "none; predictions run on the CPU")


def _packages() -> Iterator[Check]:
    try:
        requirements = importlib.metadata.requires("kinemesh") or []
    except importlib.metadata.PackageNotFoundError:
        mend = "pip install -c constraints.txt -e ."
        yield Check("core", "kinemesh", "broken", "runs from a folder, is not installed", mend)
        return
    for requirement in requirements:
        package, extra = parse_requirement(requirement)
        if package != "kinemesh":
            yield _package(requirement, package, extra)


def parse_requirement(requirement: str) -> tuple[str, str | None]:
    """Package and extra of a line such as ``roma>=1.5; extra == "train"``."""
    package = re.match(r"[A-Za-z0-9._-]+", requirement)
    extra = re.search(r"""extra\s*==\s*['"]([^'"]+)['"]""", requirement)
    return package.group() if package else requirement, extra.group(1) if extra else None


def _package(requirement: str, package: str, extra: str | None) -> Check:
    group, name = ("core", package) if extra is None else ("extra", f"{package} [{extra}]")
    try:
        return Check(group, name, "ok", importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        wanted = requirement.partition(";")[0].strip()
        return Check(group, name, "missing", "not installed", f"pip install '{wanted}'")


def _weights(folder: Path) -> Iterator[Check]:
    cards = sorted(folder.glob("*.json"))
    if not cards:
        detail = f"no model in {folder}"
        yield Check("weights", "shipped models", "missing", detail, _reinstall())
    for card in cards:
        yield _weight_file(card)


def _weight_file(card: Path) -> Check:
    weights = card.with_suffix(".safetensors")
    if not weights.is_file():
        return Check("weights", card.stem, "missing", f"{weights.name} is not there", _reinstall())
    try:
        expected = json.loads(card.read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError):
        return Check("weights", card.stem, "broken", f"{card.name} has no sha256", _reinstall())
    found = sha256(weights)
    if found != expected:
        detail = f"SHA-256 is {found[:12]}..., the card says {str(expected)[:12]}..."
        return Check("weights", card.stem, "broken", detail, _reinstall())
    return Check("weights", card.stem, "ok", f"SHA-256 fits, {weights.stat().st_size / 1e6:.1f} MB")


def _reinstall() -> str:
    return "pip install --force-reinstall --no-deps . (in the folder of kinemesh)"
