"""What the files of each format hold, for all people of a photo."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from kinemesh.bodies.parameters import BodyParameters
from kinemesh.bodies.posable import BODIES, PosableBody, posable_body
from kinemesh.errors import InputError
from kinemesh.formats import PARAMETER_FORMATS, SURFACE_FORMATS, SaveFormat
from kinemesh.formats.bvh import encode_bvh
from kinemesh.formats.coco_json import encode_coco
from kinemesh.formats.glb import encode_glb, person_name
from kinemesh.formats.joints_csv import encode_joints_csv
from kinemesh.formats.obj import encode_obj
from kinemesh.formats.people_json import encode_people
from kinemesh.formats.people_npz import encode_people_npz
from kinemesh.formats.ply import encode_ply
from kinemesh.formats.skinned_glb import encode_skinned_glb
from kinemesh.formats.surface_pictures import (
    encode_depth,
    encode_mask,
    encode_nearness,
    encode_normals,
    see_surface,
)
from kinemesh.inference.person import Person

STILL_S = 1.0
"""Frame time of the one frame of a photo's BVH; the format must state one."""

Bodies = Mapping[str, PosableBody]
"""Posable bodies by name."""


def encode_people_as(
    kind: SaveFormat,
    people: Sequence[Person],
    image_size: tuple[int, int],
    image_name: str | None,
    bodies: Bodies | None = None,
) -> Iterator[bytes]:
    """Contents of all files of a format, in the order of `kinemesh.formats.names.file_names`.

    Args:
        kind: Any format but the pictures that need the photo itself (overlay, views).
        people: People of one photo.
        image_size: Width and height of the photo in pixels.
        image_name: File name of the photo.
        bodies: Bodies of the parameters that are not shipped.

    Raises:
        InputError: The format cannot hold these people.
    """
    if kind in SURFACE_FORMATS:
        yield from _surfaces(kind, people)
    elif kind in PARAMETER_FORMATS:
        yield from _animated(kind, people, bodies or {})
    elif kind == "npz":
        for part in split_kinds(people):
            yield encode_people_npz(part, image_size)
    elif kind == "json":
        yield encode_people(people, image_size, image_name)
    elif kind == "coco":
        yield encode_coco(people, image_name)
    elif kind == "csv":
        yield encode_joints_csv(people)
    else:
        yield {"glb": encode_glb, "obj": encode_obj, "ply": encode_ply}[kind](people)


def split_kinds(people: Sequence[Person]) -> list[list[Person]]:
    """Bodies and hands apart if there are both, else everybody; NPZ files hold one kind."""
    bodies = [person for person in people if person.side is None]
    hands = [person for person in people if person.side is not None]
    return [bodies, hands] if bodies and hands else [list(people)]


def parameters_of(people: Sequence[Person]) -> list[BodyParameters]:
    """The parameters of all people.

    Raises:
        InputError: Somebody's were not fitted.
    """
    found = []
    for index, person in enumerate(people):
        if person.parameters is None:
            raise InputError(
                f"BVH and skinned GLB files hold the pose of a body model, but "
                f"{person_name(index, person)} has no parameters. Add --parameters, or fit them "
                "with kinemesh.inference.fitting.fit_people."
            )
        found.append(person.parameters)
    return found


def find_body(name: str, bodies: Bodies) -> PosableBody:
    """A posable body by name: of those given, else a shipped one.

    Raises:
        InputError: It is neither.
    """
    if name in bodies:
        return bodies[name]
    if name in BODIES and name not in ("smpl", "mano"):
        return _shipped(name)
    raise InputError(
        f"bodies: the parameters are those of '{name}', which is not shipped. Give its posable "
        f"body: bodies={{'{name}': posable_body('{name}', assets)}}."
    )


@cache
def _shipped(name: str) -> PosableBody:
    return posable_body(name)


def _surfaces(kind: SaveFormat, people: Sequence[Person]) -> Iterator[bytes]:
    encoders = {
        "depth": (encode_depth, encode_nearness),
        "normals": (encode_normals,),
        "mask": (encode_mask,),
    }[kind]
    for shown in (people, *([person] for person in people)):
        surface = see_surface(shown)
        for encode in encoders:
            yield encode(surface)


def _animated(kind: SaveFormat, people: Sequence[Person], bodies: Bodies) -> Iterator[bytes]:
    parameters = parameters_of(people)
    found = [find_body(one.body, bodies) for one in parameters]
    if kind == "bvh":
        for body, one in zip(found, parameters, strict=True):
            yield encode_bvh(body, [one], STILL_S)
    else:
        labels = [person_name(index, person) for index, person in enumerate(people)]
        yield encode_skinned_glb(found, [[one] for one in parameters], [0.0], labels)
