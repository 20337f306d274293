"""Pose and shape parameters for predicted people: the body model that fits each mesh best."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from kinemesh.bodies.fitting import BodyFitter
from kinemesh.bodies.parameters import BodyParameters
from kinemesh.bodies.posable import PosableBody, posable_body
from kinemesh.bodies.topology import Topology
from kinemesh.errors import InputError
from kinemesh.inference.person import Person
from kinemesh.inference.predictor import Predictor

T = TypeVar("T")


class PeopleFitter:
    """Fits body models to people of one or several topologies, such as bodies and their hands.

    Making one reads the body models, so that what is missing is said before the first photo.

    Args:
        topologies: What the networks predict: of the shipped bodies, SMPL or MANO.
        assets: Folder with the user's own SMPL or MANO files, which only these two need.

    Raises:
        InputError: A topology has no body model, or its file is missing.
    """

    def __init__(self, topologies: Iterable[Topology], assets: str | Path | None = None) -> None:
        # networks of one kind share a mesh, and meshes of different kinds differ in size
        self._fitters = {
            len(topology.template): BodyFitter(posable_body(topology.name, assets), topology)
            for topology in topologies
        }

    @property
    def bodies(self) -> tuple[PosableBody, ...]:
        """The bodies that are fitted."""
        return tuple(fitter.body for fitter in self._fitters.values())

    def fit(
        self,
        people: Sequence[Person],
        previous: Sequence[BodyParameters | None] | None = None,
        shapes: Sequence[np.ndarray | None] | None = None,
    ) -> list[Person]:
        """The same people with ``parameters``; all of one kind are fitted at once.

        Args:
            people: People of one photo or frame, or of several. Those without a mesh stay as they
                are.
            previous: For each person the parameters of the frame before, to start from, or None.
            shapes: For each person the (K,) shape to keep, as that of a track, or None to fit it.

        Raises:
            InputError: A mesh belongs to none of the topologies, holds numbers that are not finite,
                or ``previous`` or ``shapes`` do not fit the people.
        """
        before = _each(previous, len(people), "previous")
        kept = _each(shapes, len(people), "shapes")
        fitted = list(people)
        for rows in self._groups(people, kept):
            found = self._fit_alike(
                [people[row] for row in rows],
                [before[row] for row in rows],
                [kept[row] for row in rows],
            )
            for row, parameters in zip(rows, found, strict=True):
                fitted[row] = replace(people[row], parameters=parameters)
        return fitted

    def _groups(
        self, people: Sequence[Person], shapes: Sequence[np.ndarray | None]
    ) -> list[list[int]]:
        """Rows of people who can share a fit: of one mesh, with and without a shape to keep."""
        groups: dict[tuple[int, bool, bool], list[int]] = {}
        for row, person in enumerate(people):
            if not person.has_mesh:
                continue
            if len(person.vertices) not in self._fitters:
                raise InputError(
                    f"people[{row}]: expected a mesh of {sorted(self._fitters)} vertices, found "
                    f"{len(person.vertices)}; give the topology of its network to PeopleFitter"
                )
            key = (len(person.vertices), shapes[row] is None, person.has_depth)
            groups.setdefault(key, []).append(row)
        return list(groups.values())

    def _fit_alike(
        self,
        people: Sequence[Person],
        before: Sequence[BodyParameters | None],
        shapes: Sequence[np.ndarray | None],
    ) -> list[BodyParameters]:
        fitter = self._fitters[len(people[0].vertices)]
        kept = [torch.from_numpy(shape) for shape in shapes if shape is not None]
        joints = [torch.from_numpy(person.joints) for person in people if person.has_depth]
        return fitter.fit(
            torch.from_numpy(np.stack([person.vertices for person in people])),
            torch.stack(joints) if joints else None,
            start=before,
            shape=torch.stack(kept) if kept else None,
            sides=[person.side for person in people],
        ).parameters


def fit_people(
    people: Sequence[Person],
    predictor: Predictor,
    previous: Sequence[BodyParameters | None] | None = None,
    assets: str | Path | None = None,
) -> list[Person]:
    """Fit the body model of a predictor's mesh to what it found.

    For many photos make a `PeopleFitter` once.

    Args:
        people: What ``predictor`` returned.
        predictor: The predictor.
        previous: As in `PeopleFitter.fit`.
        assets: As in `PeopleFitter`.

    Raises:
        InputError: As in `PeopleFitter` and `PeopleFitter.fit`.
    """
    return PeopleFitter([predictor.topology], assets).fit(people, previous)


def _each(values: Sequence[T | None] | None, count: int, name: str) -> Sequence[T | None]:
    if values is None:
        return [None] * count
    if len(values) != count:
        raise InputError(
            f"{name}: expected one for each of {count} people, found {len(values)}; put None where "
            "there is none"
        )
    return values
