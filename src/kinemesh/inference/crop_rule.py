"""How a network wants its crops: how large, what lies beyond the photo, which lens."""

from dataclasses import dataclass

from kinemesh.bodies.topology import Kind
from kinemesh.geometry.crops import Border


@dataclass(frozen=True)
class CropRule:
    """From a box to what a network sees.

    Attributes:
        margin: Side of the crop over the longer side of a box; the whole image is taken without.
        border: What lies beyond the border of the photo: its outermost pixels ("replicate"), or
            black ("constant").
        focal_sides: Focal length, in sides of the largest crop, that is assumed where the photo
            says none and its diagonal is shorter; 0 to assume the diagonal always.
    """

    margin: float = 1.1
    border: Border = "replicate"
    focal_sides: float = 0.0


WEAK_PERSPECTIVE_SIDES = 1000 / 224
"""The lens with which METRO's demo draws its meshes: 1000 pixels for a crop of 224."""

PUBLISHED_RULES: dict[Kind, CropRule] = {
    "body": CropRule(1.2, "constant", WEAK_PERSPECTIVE_SIDES),
    "hand": CropRule(1.7, "constant", WEAK_PERSPECTIVE_SIDES),
}
"""By task, for the data sets on which METRO and Mesh Graphormer were trained.

Body: the boxes of 3DPW, UP-3D and COCO have a margin of 1.2 (those of Human3.6M none). Hand: a
FreiHAND crop is 180 pixels wide, and tight boxes of its hands about 105. Training crops of both are
black beyond the border.
"""
