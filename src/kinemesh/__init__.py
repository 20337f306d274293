"""Recovers people from pictures: 2D keypoints, 3D joints, body and hand meshes.

import kinemesh
model = kinemesh.load("body")
people = model.predict("photo.jpg")
kinemesh.save(people, "photo.jpg", "out/")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinemesh.formats.saving import save
    from kinemesh.inference.images import load_image
    from kinemesh.inference.person import Person
    from kinemesh.inference.predictor import Predictor, load

__version__ = "0.1.0"
__all__ = ["Person", "Predictor", "__version__", "load", "load_image", "save"]

_HOMES = {
    "Person": "kinemesh.inference.person",
    "Predictor": "kinemesh.inference.predictor",
    "load": "kinemesh.inference.predictor",
    "load_image": "kinemesh.inference.images",
    "save": "kinemesh.formats.saving",
}
"""Where the public names live; each is imported when it is first asked for."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kinemesh' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
