"""What is installed, what is missing, and the command that mends it."""

import importlib.metadata
import json
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt, ne
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import kinemesh
from kinemesh.files import sha256

if TYPE_CHECKING:
    from kinemesh.bodies.asset_files import Family
    from kinemesh.bodies.asset_report import AssetStatus

SET = "set"
Status = Literal["ok", "missing", "broken"]
_WEIGHTS_DIR = Path(__file__).resolve().parent / "weights"
_WHERE = "mend it in the folder with kinemesh's pyproject.toml"


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        group: "system", "core", "extra" or "weights"; of a user's files "set", "smpl" or "mano".
        name: What was looked at.
        status: "missing" is fine for an extra; "broken" is there but not usable.
        detail: Version, device or problem, and where the command is to be run if that matters.
        mend: Command that mends it, ready to paste; empty where nothing is wrong.
        place: Path of a user's file, or the message that names it; too long for a cell of a table.
    """

    group: str
    name: str
    status: Status
    detail: str
    mend: str = ""
    place: str = ""


def examine(weights_dir: Path = _WEIGHTS_DIR) -> list[Check]:
    """Run all checks; none of them changes anything or uses the network."""
    return [*_system(), *_packages(), *_weights(weights_dir)]


def examine_assets(folder: Path) -> list[Check]:
    """What a folder has of the files that SMPL- and MANO-shaped networks need.

    Returns:
        One check for each of the two sets ("body set", "hand set"), which is "ok" where nothing
        that is needed is missing, followed by a check for each of its files.

    Raises:
        InputError: There is no such folder.
    """
    from kinemesh.bodies.asset_report import inspect_assets, is_complete  # noqa: PLC0415

    statuses = inspect_assets(folder)
    sets: dict[Family, str] = {"smpl": "body set (SMPL)", "mano": "hand set (MANO)"}
    checks = []
    for family, name in sets.items():
        complete = is_complete(statuses, family)
        found = "complete" if complete else "incomplete: see the files below"
        checks.append(Check(SET, name, "ok" if complete else "missing", found))
        checks += [_asset(status) for status in statuses if status.file.family == family]
    return checks


def has_complete_set(checks: list[Check]) -> bool:
    """Whether `examine_assets` found all that a body, or all that a hand needs."""
    return any(check.group == SET and check.status == "ok" for check in checks)


def _asset(status: "AssetStatus") -> Check:
    file = status.file
    need = "needed for" if file.required else "optional, for"
    found = {"ok": Path(status.detail).name, "broken": "see below"}.get(
        status.status, status.detail
    )
    detail = f"{found}; {need} {file.purpose}"
    if status.status != "ok":
        detail += f"; from {file.source}"
    place = "" if status.status == "missing" else status.detail
    return Check(file.family, file.title, status.status, detail, place=place)


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
        yield Check("core", "kinemesh", "broken", f"not installed; {_WHERE}", mend)
        return
    for requirement in join_requirements(requirements):
        if requirement.package != "kinemesh":
            yield _package(requirement)


@dataclass(frozen=True)
class Requirement:
    """A package that kinemesh uses.

    Attributes:
        package: Its name.
        specifier: Versions that will do, such as ``>=0.6.2,<0.7``; empty for any.
        extras: Extras of kinemesh that ask for it; none if the core does.
    """

    package: str
    specifier: str
    extras: tuple[str, ...] = ()


def parse_requirement(line: str) -> Requirement:
    """Read a line such as ``roma>=1.5; extra == "train"``."""
    wanted, _, marker = line.partition(";")
    parts = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?(.*)", wanted)
    package, specifier = parts.groups() if parts else (wanted, "")
    extras = re.findall(r"""extra\s*==\s*['"]([^'"]+)['"]""", marker)
    return Requirement(package, re.sub(r"[\s()]", "", specifier), tuple(extras))


def join_requirements(lines: Iterable[str]) -> list[Requirement]:
    """One requirement a package: all its specifiers, and all its extras unless the core asks."""
    joined: dict[str, Requirement] = {}
    for new in map(parse_requirement, lines):
        old = joined.get(new.package, new)
        parts = dict.fromkeys([*old.specifier.split(","), *new.specifier.split(",")])
        extras = tuple(dict.fromkeys([*old.extras, *new.extras]))
        joined[new.package] = Requirement(
            new.package, ",".join(filter(None, parts)), extras if old.extras and new.extras else ()
        )
    return list(joined.values())


def fits(version: str, specifier: str) -> bool:
    """Whether a version satisfies a specifier such as ``>=0.6.2,<0.7``."""
    try:
        from packaging.specifiers import SpecifierSet  # noqa: PLC0415
    except ImportError:
        return fits_by_numbers(version, specifier)
    return SpecifierSet(specifier).contains(version, prereleases=True)


def fits_by_numbers(version: str, specifier: str) -> bool:
    """`fits` without the package ``packaging``, which kinemesh does not require.

    Compares the numbers alone, so ``2.6rc1`` counts as 2.6, and leaves operators out that
    kinemesh does not use.
    """
    compare = {">=": ge, "<=": le, "==": eq, "!=": ne, ">": gt, "<": lt}
    clauses = re.findall(r"(>=|<=|==|!=|>|<)([0-9.]+)", specifier)
    return all(compare[sign](_numbers(version), _numbers(bound)) for sign, bound in clauses)


def _numbers(version: str) -> list[int]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in found.group().split(".")] if found else []
    while numbers and numbers[-1] == 0:  # 1.0 is 1
        numbers.pop()
    return numbers


def _package(requirement: Requirement) -> Check:
    package, extras = requirement.package, requirement.extras
    group, name = ("extra", f"{package} [{', '.join(extras)}]") if extras else ("core", package)
    mend = f"pip install '{package}{requirement.specifier}'"
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Check(group, name, "missing", "not installed", mend)
    if not fits(version, requirement.specifier):
        detail = f"{version}, but kinemesh needs {requirement.specifier}"
        return Check(group, name, "broken", detail, mend)
    return Check(group, name, "ok", version)


def _weights(folder: Path) -> Iterator[Check]:
    files = [*folder.glob("*.json"), *folder.glob("*.safetensors")]
    cards = sorted({path.with_suffix(".json") for path in files})
    if not cards:
        detail = f"no model in {folder}"
        yield Check("weights", "shipped models", "missing", f"{detail}; {_WHERE}", _reinstall())
    for card in cards:
        yield _weight_file(card)


def _weight_file(card: Path) -> Check:
    weights = card.with_suffix(".safetensors")
    if not weights.is_file():
        detail = f"{weights.name} is not there; {_WHERE}"
        return Check("weights", card.stem, "missing", detail, _reinstall())
    if not card.is_file():
        detail = f"{card.name}, the card of {weights.name}, is not there; {_WHERE}"
        return Check("weights", card.stem, "missing", detail, _reinstall())
    try:
        expected = json.loads(card.read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError):
        detail = f"{card.name} has no sha256; {_WHERE}"
        return Check("weights", card.stem, "broken", detail, _reinstall())
    found = sha256(weights)
    if found != expected:
        detail = f"SHA-256 is {found[:12]}..., the card says {str(expected)[:12]}...; {_WHERE}"
        return Check("weights", card.stem, "broken", detail, _reinstall())
    return Check("weights", card.stem, "ok", f"SHA-256 fits, {weights.stat().st_size / 1e6:.1f} MB")


def _reinstall() -> str:
    return "pip install --force-reinstall --no-deps ."
