import dataclasses
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.skeletons import (
    COCO17,
    CONCEPTS,
    H36M14,
    H36M17,
    HAND21,
    LSP14,
    METRO24,
    SKELETONS,
    SMPL24,
    Skeleton,
    get_skeleton,
    joint_map,
    remap,
    root_position,
)

ALL = list(SKELETONS.values())


def test_sizes():
    sizes = {"coco17": 17, "h36m17": 17, "h36m14": 14, "lsp14": 14, "metro24": 24, "smpl24": 24}
    sizes |= {"mpii16": 16, "hand21": 21}
    assert {name: len(s) for name, s in SKELETONS.items()} == sizes


@pytest.mark.parametrize("skeleton", ALL, ids=lambda s: s.name)
def test_tree_pairs_and_names(skeleton):
    assert skeleton.parents.count(-1) == 1
    assert len(skeleton.bones) == len(skeleton) - 1 + len(skeleton.cross_links)
    flipped = [skeleton.joints[i] for i in skeleton.flip_permutation]
    swapped = [
        n.replace("left", "@").replace("right", "left").replace("@", "right")
        for n in skeleton.joints
    ]
    assert flipped == swapped
    assert [skeleton.index(n) for n in skeleton.joints] == list(range(len(skeleton)))
    assert pickle.loads(pickle.dumps(skeleton)) == skeleton


def test_bones_stay_on_one_side():
    for skeleton in ALL:
        for child, parent in skeleton.bones[: len(skeleton) - 1]:
            sides = {skeleton.joints[i].split("_")[0] for i in (child, parent)}
            assert not {"left", "right"} <= sides


def test_coco_order():
    assert COCO17.joints[:5] == ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
    assert COCO17.joints[5:11:2] == ("left_shoulder", "left_elbow", "left_wrist")
    assert COCO17.joints[11::2] == ("left_hip", "left_knee", "left_ankle")


def test_smpl_tree_is_the_published_one():
    published = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21]
    assert list(SMPL24.parents) == published


def test_hand_order():
    assert HAND21.joints[0] == "wrist"
    assert HAND21.joints[1:5] == ("thumb_1", "thumb_2", "thumb_3", "thumb_4")
    assert HAND21.joints[20] == "pinky_4"
    assert [i for i, p in enumerate(HAND21.parents) if p == 0] == [1, 5, 9, 13, 17]


def test_metro_index_lists_follow_from_the_names():
    assert joint_map(METRO24, H36M14) == (*range(13), 18)
    assert joint_map(H36M17, H36M14) == (3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10)
    flip = [5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13, 14, 15, 16, 17, 18, 19, 21, 20, 23, 22]
    assert list(METRO24.flip_permutation) == flip


@pytest.mark.parametrize("skeleton", ALL, ids=lambda s: s.name)
def test_maps_to_itself(skeleton):
    assert joint_map(skeleton, skeleton) == tuple(range(len(skeleton)))


def test_crown_and_head_differ():
    assert joint_map(LSP14, H36M14)[H36M14.index("head")] is None
    assert joint_map(LSP14, METRO24)[METRO24.index("head_top")] == 13


def test_concepts_name_real_joints_and_split_misleading_ones():
    for name, joint in CONCEPTS:
        assert joint in SKELETONS[name].joints
    assert joint_map(H36M17, METRO24)[METRO24.index("nose")] is None
    assert joint_map(H36M17, METRO24)[METRO24.index("jaw")] == H36M17.index("nose")
    assert joint_map(SMPL24, METRO24)[METRO24.index("left_hip")] is None
    assert joint_map(SMPL24, METRO24)[METRO24.index("left_knee")] == 4


def test_equal_concepts_rest_on_equal_vertices(shared):
    """The official regressors say which of their rows mark the same place."""
    folder = shared / "data" / "official_assets"
    h36m = np.load(folder / "J_regressor_h36m_correct.npy")
    extra = np.load(folder / "J_regressor_extra.npy")
    pelvis, spine, jaw = 9, 11, 12  # rows of the extra regressor behind METRO24's labels
    for row, other in (("pelvis", pelvis), ("torso", spine), ("nose", jaw)):
        mine = set(np.flatnonzero(h36m[H36M17.index(row)]))
        assert mine == set(np.flatnonzero(extra[other]))


def test_remap_round_trip_and_missing():
    points = torch.randn(2, 3, 24, 4)
    there, valid = remap(points, METRO24, COCO17)
    assert valid.all()
    assert torch.equal(there[..., COCO17.index("nose"), :], points[..., 19, :])
    back, valid = remap(there, COCO17, METRO24)
    assert torch.equal(back[..., valid, :], points[..., valid, :])
    assert not back[..., ~valid, :].any()
    assert int(valid.sum()) == 17


def test_root_position():
    points = torch.arange(17 * 3.0).reshape(1, 17, 3)
    assert torch.equal(root_position(points, H36M17), points[:, :1])
    assert torch.equal(root_position(points, COCO17), points[:, 11:13].mean(1, keepdim=True))


def test_refuses_bad_input():
    with pytest.raises(InputError, match="coco17"):
        get_skeleton("coco")
    with pytest.raises(InputError, match="left_toe"):
        COCO17.index("left_toe")
    with pytest.raises(InputError, match=r"\(\.\.\., 17, D\)"):
        remap(torch.zeros(2, 16, 3), COCO17, LSP14)
    with pytest.raises(InputError, match="cycle"):
        Skeleton("loop", ("a", "b"), (1, 0))
    with pytest.raises(InputError, match="cycle"):
        Skeleton("far", ("a", "b"), (-1, 7))
    with pytest.raises(InputError, match="parents"):
        dataclasses.replace(LSP14, parents=(-1,))
    with pytest.raises(InputError, match="unique"):
        Skeleton("twice", ("a", "a"), (-1, 0))
    with pytest.raises(InputError, match="flip_pairs"):
        Skeleton("pairs", ("a", "b"), (-1, 0), ((0, 1), (1, 0)))


def test_documented_table_is_the_code():
    page = (Path(__file__).parents[1] / "docs" / "conventions.md").read_text(encoding="utf-8")
    table = page[page.index("| joint | coco17") :].split("\n\n")[0].splitlines()
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    renamed = {("h36m17", "spine"): "torso", ("h36m17", "jaw"): "nose"}
    documented: dict[str, dict[str, int]] = {name: {} for name in header[1:]}
    for row in rows:
        for set_name, cell in zip(header[1:], row[1:], strict=True):
            indices = [int(i) for i in re.findall(r"\d+", cell)]
            names = row[0].split(", ")
            if "/" in cell:
                names = [f"{side}_{row[0]}" for side in ("left", "right")]
            for name, index in zip(names, indices, strict=False):
                documented[set_name][renamed.get((set_name, name), name)] = index
    for set_name, joints in documented.items():
        assert joints == {name: i for i, name in enumerate(SKELETONS[set_name].joints)}
