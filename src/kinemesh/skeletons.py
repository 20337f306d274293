"""Joint sets: names, parents, left-right pairs, and maps between the sets.

Names are lower-case words joined by underscores and describe the person's own side: ``left_hip``
is the hip on the person's left. Two sets share a joint when they use the same name, with the
exceptions that `CONCEPTS` lists: places that two sets call alike but measure differently, or name
differently but measure alike. ``docs/conventions.md`` shows the sets side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from kinemesh.errors import InputError

NO_PARENT = -1


@dataclass(frozen=True)
class Skeleton:
    """An ordered set of joints with a tree over it.

    Attributes:
        name: Short name, for example ``"coco17"``.
        joints: Joint names in the order of the joint axis of an array.
        parents: For each joint the index of its parent, -1 for the top of the tree.
        flip_pairs: (left, right) indices that swap places in a mirrored picture.
        root: Joint at the origin of the root frame; None where the origin is the midpoint of
            ``left_hip`` and ``right_hip``.
        cross_links: Further (joint, joint) links that are drawn but not part of the tree.

    Raises:
        InputError: The parts do not fit together.
    """

    name: str
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    flip_pairs: tuple[tuple[int, int], ...] = ()
    root: int | None = None
    cross_links: tuple[tuple[int, int], ...] = ()
    _positions: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_positions", {name: i for i, name in enumerate(self.joints)})
        if len(self._positions) != len(self.joints) or len(self.parents) != len(self.joints):
            raise InputError(
                f"Skeleton '{self.name}': expected one parent for each joint and unique names, "
                f"found {len(self.parents)} parents for {len(self._positions)} names. "
                "Give both tuples the same length."
            )
        for joint in range(len(self)):
            self._check_ancestors(joint)
        paired = [i for pair in self.flip_pairs for i in pair]
        if len(set(paired)) != len(paired) or any(not 0 <= i < len(self) for i in paired):
            raise InputError(
                f"Skeleton '{self.name}': flip_pairs must name each joint at most once, "
                f"found {self.flip_pairs}. Remove the repeated or unknown index."
            )

    def __len__(self) -> int:
        return len(self.joints)

    def _check_ancestors(self, joint: int) -> None:
        ancestor = joint
        for _ in range(len(self)):
            ancestor = self.parents[ancestor]
            if ancestor == NO_PARENT:
                return
            if not 0 <= ancestor < len(self):
                break
        raise InputError(
            f"Skeleton '{self.name}': the parents of '{self.joints[joint]}' never reach the top of "
            f"the tree. Follow parents={self.parents} and mend the cycle or the index."
        )

    @cached_property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(child, parent) of every bone of the tree, then the cross links."""
        tree = tuple((i, p) for i, p in enumerate(self.parents) if p != NO_PARENT)
        return tree + self.cross_links

    @cached_property
    def flip_permutation(self) -> tuple[int, ...]:
        """Indices that put left where right was: ``mirrored = joints[..., permutation, :]``.

        The coordinate along the mirror axis must be negated as well.
        """
        order = list(range(len(self)))
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        return tuple(order)

    def index(self, name: str) -> int:
        """Position of a joint.

        Raises:
            InputError: The skeleton has no joint of this name.
        """
        if name not in self._positions:
            raise InputError(
                f"Skeleton '{self.name}' has no joint '{name}'. "
                f"Its joints: {', '.join(self.joints)}."
            )
        return self._positions[name]

    def root_indices(self) -> tuple[int, ...]:
        """Joints whose mean is the origin of the root frame: one joint, or the two hips."""
        if self.root is not None:
            return (self.root,)
        return (self.index("left_hip"), self.index("right_hip"))


def root_position(points: Tensor, skeleton: Skeleton) -> Tensor:
    """Origin of the root frame of each set of joints.

    Args:
        points: (..., J, D) joints in the order of ``skeleton``, any unit.
        skeleton: The joint set.

    Returns:
        (..., 1, D), so that ``points - root_position(points, skeleton)`` is the root frame.
    """
    _check_joint_axis(points, skeleton, "points")
    # a list of indices would be copied to the device, and the host would wait
    roots = [points[..., joint, :] for joint in skeleton.root_indices()]
    return torch.stack(roots, dim=-2).mean(dim=-2, keepdim=True)


def mean_of(skeleton: Skeleton, joints: Sequence[str]) -> Tensor:
    """Weights (J,) that average the named joints of a skeleton."""
    weights = torch.zeros(len(skeleton))
    weights[[skeleton.index(name) for name in joints]] = 1 / len(joints)
    return weights


def _skeleton(
    name: str,
    tree: Mapping[str, str | None],
    *,
    root: str | None,
    cross_links: tuple[tuple[str, str], ...] = (),
) -> Skeleton:
    """Build a skeleton from ``{joint: parent}`` in joint order."""
    joints = tuple(tree)
    position = {joint: i for i, joint in enumerate(joints)}
    pairs = tuple(
        (i, position[joint.replace("left_", "right_", 1)])
        for joint, i in position.items()
        if joint.startswith("left_")
    )
    return Skeleton(
        name=name,
        joints=joints,
        parents=tuple(NO_PARENT if up is None else position[up] for up in tree.values()),
        flip_pairs=pairs,
        root=None if root is None else position[root],
        cross_links=tuple((position[a], position[b]) for a, b in cross_links),
    )


_LEGS_FROM_NECK: dict[str, str | None] = {
    "right_ankle": "right_knee",
    "right_knee": "right_hip",
    "right_hip": "neck",
    "left_hip": "neck",
    "left_knee": "left_hip",
    "left_ankle": "left_knee",
}
_ARMS_FROM_NECK: dict[str, str | None] = {
    "right_wrist": "right_elbow",
    "right_elbow": "right_shoulder",
    "right_shoulder": "neck",
    "left_shoulder": "neck",
    "left_elbow": "left_shoulder",
    "left_wrist": "left_elbow",
}
_HIP_LINK = (("left_hip", "right_hip"),)

COCO17 = _skeleton(
    "coco17",
    {
        "nose": None,
        "left_eye": "nose",
        "right_eye": "nose",
        "left_ear": "left_eye",
        "right_ear": "right_eye",
        "left_shoulder": "left_ear",
        "right_shoulder": "right_ear",
        "left_elbow": "left_shoulder",
        "right_elbow": "right_shoulder",
        "left_wrist": "left_elbow",
        "right_wrist": "right_elbow",
        "left_hip": "left_shoulder",
        "right_hip": "right_shoulder",
        "left_knee": "left_hip",
        "right_knee": "right_hip",
        "left_ankle": "left_knee",
        "right_ankle": "right_knee",
    },
    root=None,
    cross_links=(("left_shoulder", "right_shoulder"), *_HIP_LINK),
)
"""COCO person keypoints (Lin et al. 2014)."""

H36M17 = _skeleton(
    "h36m17",
    {
        "pelvis": None,
        "right_hip": "pelvis",
        "right_knee": "right_hip",
        "right_ankle": "right_knee",
        "left_hip": "pelvis",
        "left_knee": "left_hip",
        "left_ankle": "left_knee",
        "torso": "pelvis",
        "neck": "torso",
        "nose": "neck",
        "head": "nose",
        "left_shoulder": "neck",
        "left_elbow": "left_shoulder",
        "left_wrist": "left_elbow",
        "right_shoulder": "neck",
        "right_elbow": "right_shoulder",
        "right_wrist": "right_elbow",
    },
    root="pelvis",
)
"""Human3.6M joints in the row order and with the names of METRO's mesh-to-joint regressor."""

H36M14 = _skeleton(
    "h36m14",
    {**_LEGS_FROM_NECK, **_ARMS_FROM_NECK, "neck": None, "head": "neck"},
    root=None,
    cross_links=_HIP_LINK,
)
"""The 14 joints that METRO predicts and evaluates; the root is the midpoint of the hips."""

LSP14 = _skeleton(
    "lsp14",
    {**_LEGS_FROM_NECK, **_ARMS_FROM_NECK, "neck": None, "head_top": "neck"},
    root=None,
    cross_links=_HIP_LINK,
)
"""Leeds Sports Pose (Johnson and Everingham 2010)."""

MPII16 = _skeleton(
    "mpii16",
    {
        "right_ankle": "right_knee",
        "right_knee": "right_hip",
        "right_hip": "pelvis",
        "left_hip": "pelvis",
        "left_knee": "left_hip",
        "left_ankle": "left_knee",
        "pelvis": None,
        "thorax": "pelvis",
        "upper_neck": "thorax",
        "head_top": "upper_neck",
        "right_wrist": "right_elbow",
        "right_elbow": "right_shoulder",
        "right_shoulder": "thorax",
        "left_shoulder": "thorax",
        "left_elbow": "left_shoulder",
        "left_wrist": "left_elbow",
    },
    root="pelvis",
)
"""MPII Human Pose (Andriluka et al. 2014)."""

METRO24 = _skeleton(
    "metro24",
    {
        **{**_LEGS_FROM_NECK, "right_hip": "pelvis", "left_hip": "pelvis"},
        **_ARMS_FROM_NECK,
        "neck": "thorax",
        "head_top": "head",
        "pelvis": None,
        "thorax": "spine",
        "spine": "pelvis",
        "jaw": "neck",
        "head": "jaw",
        "nose": "jaw",
        "left_eye": "nose",
        "right_eye": "nose",
        "left_ear": "left_eye",
        "right_ear": "right_eye",
    },
    root="pelvis",
)
"""The label set of METRO's training data: LSP limbs with Human3.6M, MPII and COCO points."""

SMPL24 = _skeleton(
    "smpl24",
    {
        "pelvis": None,
        "left_hip": "pelvis",
        "right_hip": "pelvis",
        "spine_1": "pelvis",
        "left_knee": "left_hip",
        "right_knee": "right_hip",
        "spine_2": "spine_1",
        "left_ankle": "left_knee",
        "right_ankle": "right_knee",
        "spine_3": "spine_2",
        "left_foot": "left_ankle",
        "right_foot": "right_ankle",
        "neck": "spine_3",
        "left_collar": "spine_3",
        "right_collar": "spine_3",
        "head": "neck",
        "left_shoulder": "left_collar",
        "right_shoulder": "right_collar",
        "left_elbow": "left_shoulder",
        "right_elbow": "right_shoulder",
        "left_wrist": "left_elbow",
        "right_wrist": "right_elbow",
        "left_hand": "left_wrist",
        "right_hand": "right_wrist",
    },
    root="pelvis",
)
"""Kinematic tree of SMPL (Loper et al. 2015)."""

HAND21 = _skeleton(
    "hand21",
    {"wrist": None}
    | {
        f"{finger}_{k}": "wrist" if k == 1 else f"{finger}_{k - 1}"
        for finger in ("thumb", "index", "middle", "ring", "pinky")
        for k in (1, 2, 3, 4)
    },
    root="wrist",
)
"""Wrist, then each finger from the palm (1) to its tip (4): the order of FreiHAND and METRO."""

SKELETONS: Mapping[str, Skeleton] = {
    skeleton.name: skeleton
    for skeleton in (COCO17, H36M17, H36M14, LSP14, MPII16, METRO24, SMPL24, HAND21)
}

CONCEPTS: Mapping[tuple[str, str], str] = {
    # The regressor rows that METRO names torso and nose rest on the very vertices that make the
    # labels' spine and jaw. No row marks the tip of the nose.
    ("h36m17", "torso"): "spine",
    ("h36m17", "nose"): "jaw",
    # SMPL's rotation centres are not the landmarks of the same name: the labels of METRO24 take
    # their hips, pelvis, neck and head from separate surface regressors, the other limbs from SMPL.
    ("smpl24", "pelvis"): "smpl_pelvis",
    ("smpl24", "left_hip"): "smpl_left_hip",
    ("smpl24", "right_hip"): "smpl_right_hip",
    ("smpl24", "neck"): "smpl_neck",
    ("smpl24", "head"): "smpl_head",
}
"""(skeleton, joint) -> what is really marked, where the joint's own name would mislead."""


def get_skeleton(name: str) -> Skeleton:
    """Skeleton by name.

    Raises:
        InputError: No skeleton has this name.
    """
    if name not in SKELETONS:
        raise InputError(f"Unknown skeleton '{name}'. Known skeletons: {', '.join(SKELETONS)}.")
    return SKELETONS[name]


def _concept(skeleton: Skeleton, joint: str) -> str:
    return CONCEPTS.get((skeleton.name, joint), joint)


def joint_map(source: Skeleton, target: Skeleton) -> tuple[int | None, ...]:
    """Where each joint of ``target`` is found in ``source``.

    Joints correspond when they mark the same place of the body: same name, corrected by `CONCEPTS`.
    Notably ``head_top`` (LSP: the crown) never stands in for ``head`` (Human3.6M), and COCO's nose
    is not Human3.6M's. Hips, shoulders, necks and limbs that only differ by annotation style count
    as equal. A set always maps to itself completely.

    Returns:
        For each joint of ``target`` its index in ``source``, None where ``source`` lacks it.
    """
    found = {_concept(source, joint): i for i, joint in enumerate(source.joints)}
    return tuple(found.get(_concept(target, joint)) for joint in target.joints)


def remap(points: Tensor, source: Skeleton, target: Skeleton) -> tuple[Tensor, Tensor]:
    """Reorder joints from one set to another.

    Args:
        points: (..., J_source, D) in any unit; extra columns such as a confidence travel along.
        source: The set that ``points`` follows.
        target: The set that is wanted.

    Returns:
        (..., J_target, D) with zeros for missing joints, and (J_target,) bool, true where present.

    Raises:
        InputError: ``points`` does not have ``len(source)`` joints.
    """
    _check_joint_axis(points, source, "points")
    mapping = joint_map(source, target)
    valid = torch.tensor([i is not None for i in mapping], device=points.device)
    picked = points[..., [0 if i is None else i for i in mapping], :]
    return torch.where(valid[:, None], picked, torch.zeros_like(picked)), valid


def _check_joint_axis(points: Tensor, skeleton: Skeleton, argument: str) -> None:
    if points.ndim < 2 or points.shape[-2] != len(skeleton):
        raise InputError(
            f"{argument}: expected shape (..., {len(skeleton)}, D) for skeleton '{skeleton.name}', "
            f"found {tuple(points.shape)}. Use remap() to change the joint set."
        )
