"""The synthetic data set: reproducible, consistent labels, plausible pictures."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from kinemesh.bodies import load_topology
from kinemesh.data import collate
from kinemesh.data.records import SAMPLE_FIELDS
from kinemesh.data.sheet import contact_sheet
from kinemesh.data.synthetic.appearance import sample_skin_rgb
from kinemesh.data.synthetic.backgrounds import fractal_noise, sample_background
from kinemesh.data.synthetic.cameras import (
    NEAREST_M,
    Framing,
    frame_subject,
    sample_body_rotation,
    sample_hand_view,
)
from kinemesh.data.synthetic.dataset import SyntheticDataset
from kinemesh.data.synthetic.degradation import degrade, develop
from kinemesh.data.synthetic.occluders import Occluder, cover, sample_occluders
from kinemesh.errors import InputError
from tests.tolerances import TOL

KINDS = ("hand", "body")
SIZE = 64
EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module", params=KINDS)
def dataset(request):
    return SyntheticDataset(request.param, seed=3, resolution=SIZE)


@pytest.fixture(scope="module")
def samples(dataset):
    return dataset.__getitems__(list(range(6)))


def assert_same(first, second, **tolerance):
    assert set(first) == set(second) == set(SAMPLE_FIELDS)
    for name in SAMPLE_FIELDS:
        torch.testing.assert_close(first[name], second[name], **(tolerance or EXACT), msg=name)


def test_fields_have_documented_shapes(dataset, samples):
    topology = load_topology(f"anny-{dataset.kind}")
    joints, vertices = len(topology.skeleton.joints), len(topology.template)
    shapes = {
        "image": (3, SIZE, SIZE),
        "joints_2d": (joints, 3),
        "joints_3d": (joints, 4),
        "vertices": (vertices, 3),
        "pose": (0,),
        "betas": (0,),
        "keep_mask": (0, 1),
        "root_m": (3,),
        "center_px": (2,),
    }
    for sample in samples:
        for name in SAMPLE_FIELDS:
            assert sample[name].shape == shapes.get(name, ()), name
            assert sample[name].dtype == torch.float32
            assert sample[name].isfinite().all(), name
        assert sample["image"].min() >= 0
        assert sample["image"].max() <= 1


def test_same_seed_gives_the_same_sample(dataset, samples):
    again = SyntheticDataset(dataset.kind, seed=3, resolution=SIZE)
    assert_same(samples[4], again[4])


def test_seed_split_and_index_each_change_the_sample(dataset, samples):
    others = [
        SyntheticDataset(dataset.kind, seed=4, resolution=SIZE)[0],
        SyntheticDataset(dataset.kind, seed=3, resolution=SIZE, split="val")[0],
        samples[1],
    ]
    for other in others:
        assert not torch.allclose(samples[0]["vertices"], other["vertices"], atol=1e-3)
        assert not torch.allclose(samples[0]["image"], other["image"], atol=1e-2)


def test_sample_does_not_depend_on_its_batch(dataset, samples):
    alone = dataset[2]
    mixed = dataset.__getitems__([40, 2, 5])
    assert_same(samples[2], alone)
    assert_same(samples[2], mixed[1])
    assert_same(samples[5], mixed[2])


def test_workers_give_the_same_samples(dataset, samples):
    loader = DataLoader(
        torch.utils.data.Subset(dataset, range(4)), batch_size=2, num_workers=2, collate_fn=collate
    )
    batches = list(loader)
    for name in SAMPLE_FIELDS:
        got = torch.cat([batch[name] for batch in batches])
        wanted = collate(samples[:4])[name]
        # A worker may run other vector code for another number of threads: float rounding only.
        torch.testing.assert_close(got, wanted, **TOL[torch.float32], msg=name)


def test_pickles_small(dataset, samples):
    content = pickle.dumps(dataset)
    assert len(content) < 2000
    assert_same(pickle.loads(content)[1], samples[1])


def test_projection_of_3d_gives_2d(samples):
    for sample in samples:
        points = sample["joints_3d"][:, :3] + sample["root_m"]
        pixels = sample["focal_px"] * points[:, :2] / points[:, 2:] + SIZE / 2
        torch.testing.assert_close(pixels, sample["joints_2d"][:, :2], rtol=1e-4, atol=1e-2)
        inside = ((pixels >= 0) & (pixels <= SIZE)).all(1).float()
        assert torch.equal(inside, sample["joints_2d"][:, 2])


def test_joints_and_root_follow_from_the_vertices(dataset, samples):
    topology = load_topology(f"anny-{dataset.kind}")
    vertices = torch.stack([sample["vertices"] for sample in samples])
    joints = torch.stack([sample["joints_3d"][:, :3] for sample in samples])
    torch.testing.assert_close(topology.joints(vertices), joints, rtol=0, atol=1e-5)
    root = topology.root(joints)
    torch.testing.assert_close(root, torch.zeros_like(root), rtol=0, atol=1e-6)


def test_the_subject_is_where_the_labels_say(dataset):
    """Without background and occluder, the pixels at the visible joints belong to the subject."""
    from kinemesh.data.synthetic.scene import load_stage

    stage = load_stage(dataset.kind)
    scenes = [stage.sample(np.random.default_rng([7, i]), SIZE) for i in range(8)]
    rgba, depth = stage.render(scenes, SIZE)
    hits = total = 0
    for scene, picture, z in zip(scenes, rgba, depth, strict=True):
        pixels = scene.joints[:, :2] / scene.joints[:, 2:] * scene.view.focal_px + SIZE / 2
        column, row = np.floor(pixels).astype(int).T
        seen = ((pixels >= 0) & (pixels < SIZE)).all(1)
        total += seen.sum()
        hits += (picture[row[seen], column[seen], 3] > 0.5).sum()
        covered = picture[..., 3] > 0.5
        near = z[covered & np.isfinite(z)]
        assert len(near) > 0.9 * covered.sum()
        assert np.abs(near).max() < 2.5
    assert total > 40
    assert hits / total > 0.95


def test_bodies_are_upright_and_metric():
    sample = SyntheticDataset("body", seed=0, resolution=SIZE)
    heights = []
    for item in sample.__getitems__(list(range(8))):
        vertices = item["vertices"]
        heights.append(float((vertices.max(0).values - vertices.min(0).values).max()))
    assert 0.8 < np.median(heights) < 2.2


def test_pictures_vary_and_are_not_dark(samples):
    means = torch.stack([sample["image"].mean() for sample in samples])
    assert 0.15 < means.mean() < 0.75
    assert all(sample["image"].std() > 0.02 for sample in samples)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"kind": "foot", "seed": 0}, "kind"),
        ({"kind": "hand", "seed": -1}, "seed"),
        ({"kind": "hand", "seed": 0, "resolution": 4}, "resolution"),
        ({"kind": "hand", "seed": 0, "length": 0}, "length"),
        ({"kind": "hand", "seed": 0, "split": "dev"}, "split"),
    ],
)
def test_bad_arguments_are_refused(arguments, word):
    with pytest.raises(InputError, match=word):
        SyntheticDataset(**arguments)


def test_index_out_of_range():
    dataset = SyntheticDataset("hand", seed=0, length=5, resolution=SIZE)
    assert len(dataset) == 5
    with pytest.raises(IndexError):
        dataset[5]


def test_collate_stacks_and_refuses(samples):
    batch = collate(samples)
    assert batch["image"].shape == (6, 3, SIZE, SIZE)
    assert torch.equal(batch["root_m"][3], samples[3]["root_m"])
    with pytest.raises(InputError, match="at least one"):
        collate([])
    with pytest.raises(InputError, match="lack the field 'image'"):
        collate([{k: v for k, v in samples[0].items() if k != "image"}])
    with pytest.raises(InputError, match="different shapes"):
        collate([samples[0], {**samples[1], "image": torch.zeros(3, 8, 8)}])


def test_contact_sheet(dataset):
    sheet = contact_sheet(dataset, count=3, columns=2, scale=1)
    assert sheet.shape == (2 * SIZE, 4 * SIZE, 3)
    assert sheet.dtype == np.uint8
    plain, drawn = sheet[:SIZE, :SIZE], sheet[:SIZE, SIZE : 2 * SIZE]
    assert (plain != drawn).any()
    assert not sheet[SIZE:, 2 * SIZE :].any()
    with pytest.raises(InputError, match="count=0"):
        contact_sheet(dataset, count=0)


def test_framing_fills_and_centres():
    rng = np.random.default_rng(0)
    points = rng.normal(0, 0.1, (50, 3)).astype(np.float32)
    rotation = sample_body_rotation(rng)
    framing = Framing(distance_m=30.0, fill=0.8, shift=np.array([0.1, -0.05], dtype=np.float32))
    view = frame_subject(points, points, rotation, framing, resolution=100)
    placed = view.place(points)
    pixels = placed[:, :2] / placed[:, 2:] * view.focal_px
    low, high = pixels.min(0), pixels.max(0)
    assert abs((high - low).max() - 80) < 0.5
    np.testing.assert_allclose((low + high) / 2, [10, -5], atol=0.3)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    with pytest.raises(InputError, match="single point"):
        frame_subject(points, points[:1], rotation, framing, resolution=100)


def test_nothing_comes_too_near():
    rng = np.random.default_rng(1)
    points = rng.normal(0, 0.3, (100, 3)).astype(np.float32)
    joints = points[:21] * 0.1
    for _ in range(20):
        view = sample_hand_view(rng, joints, points, 64)
        assert view.place(points)[:, 2].min() > NEAREST_M - 1e-4
        assert abs(np.linalg.det(view.rotation) - 1) < 1e-5


def test_parts_are_reproducible_and_in_range():
    for seed in range(12):
        first, second = (sample_background(np.random.default_rng(seed), 48) for _ in range(2))
        assert first.shape == (48, 48, 3)
        assert first.dtype == np.uint8
        assert np.array_equal(first, second)
        rng = np.random.default_rng(seed)
        image = degrade(rng, develop(rng, first.astype(np.float32) / 255))
        assert image.dtype == np.float32
        assert 0 <= image.min() <= image.max() <= 1
        assert (sample_skin_rgb(rng) <= 1).all()


def test_fractal_noise_has_unit_variance_and_coarse_energy():
    noise = fractal_noise(np.random.default_rng(0), 128, channels=2)
    assert noise.shape == (128, 128, 2)
    assert 0.5 < noise.std() < 1.5
    assert np.abs(np.diff(noise, axis=1)).mean() < noise.std()


def test_occluder_hides_only_what_is_behind_it():
    ones = np.ones((4, 4), dtype=np.float32)
    depth = np.array([[-0.1, 0.1, np.inf, 0.0]] * 4, dtype=np.float32)
    red = np.broadcast_to(np.array([1, 0, 0], dtype=np.float32), (4, 4, 3))
    image = cover(np.zeros((4, 4, 3), dtype=np.float32), depth, Occluder(red, ones, 0 * ones))
    np.testing.assert_array_equal(image[0, :, 0], [0, 1, 1, 0])
    drawn = [sample_occluders(np.random.default_rng(i), 32, "hand") for i in range(40)]
    assert 5 < sum(bool(occluders) for occluders in drawn) < 30


@pytest.mark.parametrize("kind", ["hand", "body"])
def test_meshes_are_those_of_the_samples(kind):
    dataset = SyntheticDataset(kind, seed=4, resolution=32)
    meshes = dataset.meshes([3, 5])
    assert torch.equal(meshes[1], dataset[5]["vertices"])
