"""Photos with 2D labels: cut as in prediction, labelled right, and mixed into rendered batches."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from kinemesh.bodies import load_topology
from kinemesh.cli.data import data_sheet
from kinemesh.data.photo_samples import (
    BORDER,
    MARGIN,
    LabelledPhotos,
    PhotoAugmentation,
    PhotoVariation,
)
from kinemesh.data.photo_sources import open_photos
from kinemesh.data.records import collate
from kinemesh.errors import InputError
from kinemesh.geometry.crops import box_to_square
from kinemesh.inference.crop_rule import CropRule
from kinemesh.models.guided_graphormer import GuidedGraphormerConfig, GuidedOutput
from kinemesh.training.batches import StepBatches, step_loader
from kinemesh.training.config import flatten
from kinemesh.training.mesh_task import MeshRecipe
from kinemesh.training.photo_mixture import PhotoMixture, photos_in_batch
from tests.photo_files import HIDDEN, colour, write_coco, write_freihand, write_whole_body

SIDE = 128
TINY = GuidedGraphormerConfig(
    resolution=32,
    neck_dim=16,
    query_dim=32,
    query_layers=1,
    hidden_dims=(16, 16, 8),
    block_layers=1,
    batch_norm_momentum=0.1,
    mesh_share=0.25,
    spread=True,
)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("photos") / "coco", count=4)


def opened(spec, kind, flip_share=0.0):
    augmentation = PhotoAugmentation(flip_share=flip_share)
    return LabelledPhotos(
        open_photos([spec], kind), load_topology(f"anny-{kind}"), SIDE, augmentation
    )


def assert_dots_lie_at_labels(sample, order=None):
    """Each labelled joint lies on the dot of its colour."""
    for joint, (x, y, known) in enumerate(sample["joints_2d"].tolist()):
        if known:
            found = sample["image"][:, int(y), int(x)].numpy() * 255
            wanted = colour(joint if order is None else order[joint])
            assert np.abs(found - wanted).max() < 25, joint


def test_crops_are_those_of_prediction(coco):
    assert CropRule() == CropRule(MARGIN, BORDER)
    dataset = opened(f"coco:{coco}", "body")
    center, side = box_to_square(torch.tensor(dataset.labels[0].box_px)[None], CropRule().margin)
    sample = dataset[0]
    torch.testing.assert_close(sample["center_px"], center[0].float())
    torch.testing.assert_close(sample["side_px"], side[0].float())
    assert_dots_lie_at_labels(sample)


@pytest.mark.parametrize("flip", [False, True])
def test_labels_follow_the_variation(coco, flip):
    dataset = opened(f"coco:{coco}", "body")
    variation = PhotoVariation(scale=1.15, shift=(0.06, -0.05), turn_deg=21.0, flip=flip)
    order = dataset.skeleton.flip_permutation if flip else range(17)
    for label in dataset.labels:
        sample = dataset.cut(label, variation)
        assert sample["joints_2d"][:, 2].sum() > 10
        assert_dots_lie_at_labels(sample, order)


def test_what_is_not_labelled_or_not_shown_has_no_confidence(coco):
    dataset = opened(f"coco:{coco}", "body")
    known = dataset[1]["joints_2d"][:, 2]
    assert [joint for joint in range(17) if known[joint] == 0] == list(HIDDEN)
    aside = dataset.cut(dataset.labels[0], PhotoVariation(shift=(0.5, 0.0)))["joints_2d"]
    assert torch.equal(aside[:, 2] > 0, (aside[:, 0] >= 0) & (aside[:, 0] <= SIDE))
    assert 3 < int(aside[:, 2].sum()) < 14
    assert [float(dataset[0][name]) for name in ("has_2d", "has_3d", "has_mesh")] == [1, 0, 0]


def test_left_hands_are_mirrored(tmp_path):
    dataset = opened(f"coco-wholebody:{write_whole_body(tmp_path)}", "hand")
    assert [label.mirrored for label in dataset.labels] == [True, False]
    for sample in dataset:
        assert_dots_lie_at_labels(sample)
    left, label = dataset[0]["joints_2d"], dataset.labels[0].joints
    assert np.corrcoef(left[:, 0], label[:, 0])[0, 1] < -0.99
    assert np.corrcoef(left[:, 1], label[:, 1])[0, 1] > 0.99


def test_freihand_on_all_its_backgrounds(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset = opened(f"freihand:{write_freihand(tmp_path)}", "hand")
    assert [label.picture.name for label in dataset.labels] == ["00000000.jpg", "00000001.jpg"]
    assert_dots_lie_at_labels(dataset[1])


def test_several_sets_are_joined(coco):
    assert len(open_photos([f"coco:{coco}", f"coco:{coco}"], "body")) == 8


def test_what_does_not_fit_is_refused(coco, tmp_path):
    for spec, kind, words in (
        (f"coco:{coco}", "hand", "labels a body.*freihand:FOLDER or coco-wholebody:FOLDER"),
        ("mpii:annot", "body", "no set of photos.*coco:FOLDER"),
        (f"freihand:{coco}", "body", "labels a hand.*COCO's 17 joints.*coco:FOLDER"),
        ("coco:nowhere", "body", "there is no 'nowhere'"),
        ("coco:", "body", "names no folder"),
        (f"coco:{tmp_path}", "body", "person_keypoints"),
        (f"coco-wholebody:{tmp_path}", "hand", "coco_wholebody_train"),
    ):
        with pytest.raises(InputError, match=words):
            open_photos([spec], kind)


def test_missing_pictures_and_empty_sets_are_named(tmp_path):
    folder = write_coco(tmp_path / "coco")
    labels = folder / "annotations" / "person_keypoints_train2017.json"
    (folder / "train2017" / f"{1:012d}.png").unlink()
    with pytest.raises(InputError, match=r"1 of 2 labelled pictures.*000000000001\.png"):
        open_photos([f"coco:{folder}"], "body")
    content = json.loads(labels.read_text())
    for row in content["annotations"]:
        row["bbox"] = [30.0, 14.0, 20.0, 20.0]
    labels.write_text(json.dumps(content))
    with pytest.raises(InputError, match="no labelled body of at least 32 px"):
        open_photos([f"coco:{folder}"], "body")


def test_a_picture_of_another_size_is_refused(coco):
    dataset = opened(f"coco:{coco}", "body")
    with pytest.raises(InputError, match=r"640, 480.*Take the pictures"):
        dataset.cut(replace(dataset.labels[0], size=(640, 480)), PhotoVariation())


class Rendered(Dataset):
    """Stands for rendered samples: records with everything labelled."""

    def __init__(self, kind, resolution=SIDE):
        self.topology, self.side, self.step = load_topology(f"anny-{kind}"), resolution, 0
        joints = self.topology.template_joints
        self.root = joints[list(self.topology.skeleton.root_indices())].mean(0)

    def __len__(self):
        return 50

    def set_step(self, step):
        self.step = step

    def __getitem__(self, index):
        rng = torch.Generator().manual_seed(index * 100 + self.step)
        joints = self.topology.template_joints - self.root
        J = len(joints)
        places = torch.rand(J, 2, generator=rng) * self.side
        empty = {"pose": torch.zeros(0), "betas": torch.zeros(0), "keep_mask": torch.zeros(0, 1)}
        flags = {name: torch.tensor(1.0) for name in ("has_2d", "has_3d", "has_mesh")}
        return {
            "image": torch.rand(3, self.side, self.side, generator=rng),
            "joints_2d": torch.cat([places, torch.ones(J, 1)], 1),
            "joints_3d": torch.cat([joints, torch.ones(J, 1)], 1),
            "vertices": self.topology.template - self.root,
            **empty,
            "focal_px": torch.tensor(0.0),
            "root_m": torch.zeros(3),
            "center_px": torch.zeros(2),
            "side_px": torch.tensor(1.0),
            **flags,
        }


def mixture_batches(coco, seed=0):
    photos = opened(f"coco:{coco}", "body", flip_share=0.5)
    mixture = PhotoMixture(Rendered("body"), photos, 0.25, seed)
    return StepBatches(mixture, collate, batch_size=8, seed=seed)


def test_the_share_of_a_batch_is_photos_in_their_place(coco):
    batch = mixture_batches(coco)[3]
    assert batch["has_3d"].tolist() == [1, 0, 0, 1, 1, 1, 1, 1]
    assert torch.equal(batch["has_mesh"], batch["has_3d"])
    assert batch["has_2d"].min() == 1


def test_a_batch_is_a_function_of_the_step(coco):
    once = mixture_batches(coco)
    wanted = {step: once[step]["image"] for step in (5, 6)}
    again = mixture_batches(coco)
    for step in (6, 5):
        assert torch.equal(again[step]["image"], wanted[step])
    assert not torch.equal(wanted[5][1:3], wanted[6][1:3])
    other_seed = mixture_batches(coco, seed=1)[5]["image"]
    assert not torch.equal(other_seed[1:3], wanted[5][1:3])
    loaded = step_loader(mixture_batches(coco), 5, 7, workers=1, pin_memory=False)
    for step, batch in zip((5, 6), loaded, strict=True):
        assert torch.equal(batch["image"], wanted[step])


@pytest.mark.parametrize(("share", "size"), [(0.01, 16), (0.95, 8), (0.5, 2), (0.0, 16)])
def test_impossible_shares_are_refused(share, size):
    with pytest.raises(InputError, match="--photo-share"):
        photos_in_batch(share, size)


def recipe(kind, **changes):
    given = {"imagenet": False, "network": TINY, "batch_size": 8, "samples": 8, "device": "cpu"}
    return MeshRecipe(kind=kind, **given | changes)


def test_a_recipe_checks_its_photos_and_records_them(coco):
    asked = recipe("body", photos=(f"coco:{coco}",))
    assert flatten(asked.completed(1))["photos"] == [f"coco:{coco}"]
    with pytest.raises(InputError, match="there is no 'nowhere'"):
        recipe("body", photos=("coco:nowhere",)).completed(1)
    with pytest.raises(InputError, match="--photo-share"):
        recipe("body", photos=(f"coco:{coco}",), photo_share=0.001).completed(1)
    task = asked.build_task()
    assert isinstance(task.train_dataset(), PhotoMixture)
    assert len(task.photos) == 4
    assert not isinstance(recipe("body").build_task().train_dataset(), PhotoMixture)


def test_a_sheet_shows_the_mixture(coco, tmp_path):
    out = tmp_path / "mixture.png"
    assert data_sheet("synthetic-body", out, 4, photos=(f"coco:{coco}",)) == 0
    sheet = cv2.imread(str(out))
    assert sheet.shape == (256, 4 * 512, 3)
    # the second of four is the photo: grey around dots, the others are rendered
    grey = [(np.abs(sheet[:, 512 * k : 512 * k + 256].astype(int) - 60) < 3) for k in range(4)]
    assert [bool(one.mean() > 0.4) for one in grey] == [False, True, False, False]


def leaf_output(batch, task):
    """A network's output whose every part takes a gradient."""
    torch.manual_seed(0)
    B, J = batch["joints_2d"].shape[:2]
    shapes = {
        "joints": (B, J, 3),
        "coarse": (B, len(task.topology.coarse), 3),
        "vertices": (B, 0, 3),
        "joints_2d": (B, J, 2),
        "confidence": (B, J),
        "camera": (B, 3),
        "inside_logits": (B, J),
        "side_logits": (B,),
        "heat_map_logits": (B, J, 8, 8),
        "lifted": (B, J, 3),
        "spread": (B, J, 2),
    }
    return GuidedOutput(**{k: torch.rand(v).add(0.1).requires_grad_() for k, v in shapes.items()})


@pytest.mark.parametrize("kind", ["body", "hand"])
def test_photos_teach_by_their_labelled_places_alone(coco, tmp_path, kind):
    spec = f"coco:{coco}" if kind == "body" else f"coco-wholebody:{write_whole_body(tmp_path)}"
    task = recipe(kind).build_task()
    photo, rendered = opened(spec, kind)[1], Rendered(kind)
    photo["joints_2d"][:2, 2] = 0
    batch = collate([rendered[0], photo, rendered[1]])
    output = leaf_output(batch, task)
    task.loss(lambda _: output, batch)["total"].backward()
    for name in ("lifted", "coarse", "inside_logits", "side_logits"):
        gradient = getattr(output, name).grad
        assert gradient is None or gradient[1].abs().max() == 0, name
        expected = name != "side_logits" or kind == "hand"
        assert gradient[2].abs().max() > 0 or not expected, name
    assert output.spread.grad[1, :, 0].abs().max() == 0
    known = photo["joints_2d"][:, 2] > 0
    parts = {
        "joints_2d": output.joints_2d.grad[1],
        "heat_map_logits": output.heat_map_logits.grad[1].flatten(1),
        "joints": output.joints.grad[1, :, :2],  # through the reprojection
        "spread": output.spread.grad[1, :, 1:],
    }
    for name, gradient in parts.items():
        assert torch.equal(gradient.abs().sum(-1) > 0, known), name
    assert output.joints.grad[1, :, 2].abs().max() == 0
    assert output.camera.grad[1].abs().max() > 0


def test_a_few_photos_are_learned_by_heart(coco):
    """Their places become right, while the loss of depth is that of the rendered samples."""
    torch.manual_seed(0)
    task = recipe("body", photos=(f"coco:{coco}",)).build_task()
    photos = LabelledPhotos(task.photos, task.topology, 32, PhotoAugmentation())
    rendered = Rendered("body", 32)
    batch = collate([rendered[0], *photos, rendered[1]])
    network = task.build_model().train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)

    def error_px():
        with torch.no_grad():
            found = network(batch["image"]).joints_2d[1:5]
        known = batch["joints_2d"][1:5]
        distance = (found - known[..., :2]).norm(dim=-1)
        return float((distance * known[..., 2]).sum() / known[..., 2].sum())

    before = error_px()
    for _ in range(30):
        losses = task.loss(network, batch)
        optimiser.zero_grad()
        losses["total"].backward()
        optimiser.step()
    assert error_px() < 0.55 * before
    alone = {name: value[[0, 5]] for name, value in batch.items()}
    with torch.no_grad():
        output = network(batch["image"])
        parts = output._replace(
            **{
                name: value[[0, 5]]
                for name, value in output._asdict().items()
                if name != "coarse" and value is not None
            },
            coarse=output.coarse[-1:],
        )
        mixed = task.loss(lambda _: output, batch)
        apart = task.loss(lambda _: parts, alone)
    for name in ("joints", "lifted", "edges"):
        torch.testing.assert_close(mixed[name], apart[name])
