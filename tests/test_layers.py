"""Data flows one way: a room imports only from rooms above it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "kinemesh"
ROOMS = [
    "errors",
    "optional",
    "files",
    "skeletons",
    "geometry",
    "bodies",
    "rendering",
    "models",
    "data",
    "losses",
    "mesh_losses",
    "matching",
    "keypoint_losses",
    "point_losses",
    "hand_losses",
    "potter_losses",
    "detector_losses",
    "metrics",
    "motion_metrics",
    "protocols",
    "keypoint_protocols",
    "evaluation",
    "training",
    "reporting",
    "inference",
    "formats",
    "viewer",
    "doctor",
    "cli",
]
"""From top to bottom, as CONTRIBUTING.md lists them."""


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kinemesh."):
            found.add(node.module.split(".")[1])
        if isinstance(node, ast.ImportFrom) and node.module == "kinemesh":
            found |= {alias.name for alias in node.names} & set(ROOMS)
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_imports_point_upward(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if room not in ROOMS:
        return  # the package's own __init__ is the front door
    below = set(ROOMS[ROOMS.index(room) + 1 :])
    assert not imported_rooms(path) & below
