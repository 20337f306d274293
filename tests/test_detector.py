"""The detector's network, its decoding, its weight file, and the photos it searches."""

import numpy as np
import pytest
import torch

from kinemesh.detector_losses import assign_targets
from kinemesh.errors import InputError, KinemeshError
from kinemesh.geometry.letterbox import PADDING_LEVEL, Letterbox
from kinemesh.inference.detectors import load_detector
from kinemesh.inference.images import image_from_array
from kinemesh.inference.own_detector import OwnDetector
from kinemesh.models.detector import (
    CLASSES,
    LEFT_HAND,
    PERSON,
    RIGHT_HAND,
    Detector,
    DetectorConfig,
    DetectorOutput,
    level_sizes,
    locations,
)
from kinemesh.models.detector_decoding import DecodingOptions, box_iou, decode, suppress
from kinemesh.models.detector_files import is_detector_file, load_detector_network, save_detector
from kinemesh.models.registry import parameter_count, weight_path
from tests import slow_detector

TINY = DetectorConfig(side=128, channels=16, tower_layers=1)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Detector(TINY).eval()


def test_every_location_has_outputs_and_every_weight_a_gradient():
    torch.manual_seed(0)
    network = Detector(TINY)
    output = network(torch.rand(2, 3, 136, 136))
    count = sum(size**2 for size in level_sizes(136))
    assert output.logits.shape == (2, count, len(CLASSES))
    assert output.distances.shape == (2, count, 4)
    assert output.centre_logits.shape == (2, count)
    assert (output.distances > 0).all()
    sum(values.square().mean() for values in output).backward()
    missing = [name for name, value in network.named_parameters() if value.grad is None]
    assert missing == []


def test_frozen_blocks_stay_as_they_are():
    torch.manual_seed(0)
    network = Detector(DetectorConfig(side=128, channels=16, tower_layers=1, frozen_blocks=2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    output = network.train()(torch.rand(2, 3, 128, 128))
    sum(values.square().mean() for values in output).backward()
    kept = ("backbone._conv_stem", "backbone._bn0", "backbone._blocks.0.", "backbone._blocks.1.")
    for name, value in network.named_parameters():
        assert (value.grad is None) == name.startswith(kept), name
    moved = {n for n, v in network.state_dict().items() if not torch.equal(v, before[n])}
    assert moved
    assert not any(name.startswith(kept) for name in moved)


@pytest.mark.parametrize("side", [128, 137, 320])
def test_levels_are_as_large_as_the_maps(side, network):
    with torch.no_grad():
        output = network(torch.zeros(1, 3, side, side))
    places, strides = locations(side)
    assert len(places) == output.logits.shape[1] == len(strides)
    assert places.min() > 0


def test_an_untrained_network_is_sure_of_nothing(network):
    with torch.no_grad():
        logits = network(torch.rand(1, 3, 128, 128)).logits
    assert logits.sigmoid().max() < 0.1


def test_refuses_photos_that_are_not_square(network):
    with pytest.raises(InputError, match=r"Letterbox"):
        network(torch.zeros(1, 3, 128, 160))


@pytest.mark.parametrize(
    "wrong", [{"side": 32}, {"channels": 20}, {"tower_layers": 0}, {"frozen_blocks": 17}]
)
def test_refuses_impossible_sizes(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        DetectorConfig(**wrong)


def test_the_shipped_size_fits(tmp_path):
    network = Detector()
    save_detector(tmp_path / "detector.safetensors", network, {})
    size = (tmp_path / "detector.safetensors").stat().st_size
    assert size < 16e6
    assert size < 2.2 * parameter_count(network) + 1e6


def perfect_output(targets):
    """What a network would say that has learned its targets."""
    logits = torch.full((*targets.labels.shape, len(CLASSES)), -12.0)
    served = targets.labels >= 0
    logits[served] = logits[served].scatter(1, targets.labels[served][:, None], 12.0)
    return DetectorOutput(logits, targets.distances, torch.logit(targets.centreness, eps=1e-6))


def test_decoding_gives_back_what_was_encoded():
    boxes = torch.tensor(
        [[10.0, 20, 42, 60], [100, 90, 300, 310], [180, 12, 196, 30], [200, 10, 214, 30]]
    )
    labels = torch.tensor([LEFT_HAND, PERSON, RIGHT_HAND, LEFT_HAND])
    ignored = torch.zeros(1, 4, dtype=torch.bool)
    targets = assign_targets(boxes[None], labels[None], ignored, 320)
    found = decode(perfect_output(targets), 320)[0]
    assert (found.scores[1:] <= found.scores[:-1]).all()
    assert len(found.labels) == 4
    best = box_iou(boxes, found.boxes).argmax(dim=1)
    torch.testing.assert_close(found.boxes[best], boxes)
    assert torch.equal(found.labels[best], labels)


def test_one_place_has_one_hand_but_may_have_a_person_too():
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 3)
    scores, labels = torch.tensor([0.5, 0.9, 0.4]), torch.tensor([LEFT_HAND, RIGHT_HAND, PERSON])
    assert suppress(boxes, scores, labels != PERSON, 0.6).tolist() == [1, 2]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("overlap", [0.2, 0.5, 0.8])
def test_suppression_equals_its_slow_twin(seed, overlap):
    generator = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(80, 2, generator=generator), torch.rand(80, 2, generator=generator)
    boxes = torch.cat([corner, corner + 0.1 + 0.5 * size], dim=1)
    scores = torch.rand(80, generator=generator).mul(20).round() / 20  # with equal ones
    groups = torch.randint(2, (80,), generator=generator)
    kept = suppress(boxes, scores, groups, overlap).tolist()
    twin = slow_detector.suppressed(boxes.tolist(), scores.tolist(), groups.tolist(), overlap)
    assert kept == twin


def test_suppression_of_nothing():
    nothing = torch.zeros(0)
    assert suppress(torch.zeros(0, 4), nothing, nothing, 0.5).tolist() == []


def test_limits_of_decoding():
    targets = assign_targets(
        torch.tensor([[[0.0, 0, 40, 40], [60, 60, 120, 120]]]),
        torch.tensor([[PERSON, PERSON]]),
        torch.zeros(1, 2, dtype=torch.bool),
        128,
    )
    output = perfect_output(targets)
    assert len(decode(output, 128, DecodingOptions(most_boxes=1))[0].scores) == 1
    assert len(decode(output, 128, DecodingOptions(least_score=1.0))[0].scores) == 0


@pytest.mark.parametrize("size", [(640, 480), (33, 200), (1, 7), (320, 320)])
def test_letterbox_and_back(size):
    letterbox = Letterbox(size, 320)
    boxes = np.array([[0, 0, *size], [0.2 * size[0], 0.5 * size[1], 0.7 * size[0], size[1]]])
    back = letterbox.to_photo(letterbox.to_square(boxes))
    np.testing.assert_allclose(back, boxes, rtol=1e-5, atol=1e-4)
    square = letterbox.fill(np.full((size[1], size[0], 3), 200, dtype=np.uint8))
    width, height = letterbox.inner
    assert max(width, height) == 320
    assert (square[:height, :width] == 200).all()
    assert (square[height:] == PADDING_LEVEL).all()
    assert (square[:, width:] == PADDING_LEVEL).all()


def test_letterbox_refuses_another_photo():
    with pytest.raises(InputError, match="photo"):
        Letterbox((30, 20), 64).fill(np.zeros((30, 20, 3), dtype=np.uint8))


def test_weight_file_round_trip(network, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_detector(path, network, {"step": 3})
    loaded, record = load_detector_network(path)
    assert is_detector_file(path)
    assert record["training"] == {"step": 3}
    assert loaded.config == TINY
    image = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        before, after = network(image), loaded(image)
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=0.02)  # half precision


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_detector_network(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="synthetic-detector"):
        load_detector_network(weight_path("hand"))


class Told(torch.nn.Module):
    """Says that there are given boxes in the square."""

    def __init__(self, boxes, labels, side=128):
        super().__init__()
        self.config = DetectorConfig(side=side, channels=16)
        none = torch.zeros(1, len(labels), dtype=torch.bool)
        targets = assign_targets(torch.tensor([boxes]), torch.tensor([labels]), none, side)
        self.output = perfect_output(targets)

    def forward(self, image_B3SS):
        assert image_B3SS.shape == (1, 3, 128, 128)
        assert 0 <= image_B3SS.min() <= image_B3SS.max() <= 1
        return self.output


def test_boxes_in_pixels_of_the_photo():
    told = Told([[0.0, 0, 64, 60], [72, 8, 104, 56]], [PERSON, LEFT_HAND])
    photo = image_from_array(np.zeros((100, 200, 3), dtype=np.uint8))
    detector = OwnDetector(told, {"classes": CLASSES})
    found = detector.find(photo)
    (person,), (hand,) = found.people, found.hands
    scale = 200 / 128
    np.testing.assert_allclose(person.xywh, (0, 0, 64 * scale, 60 * scale), rtol=1e-5)
    np.testing.assert_allclose(
        hand.xywh, (72 * scale, 8 * scale, 32 * scale, 48 * scale), rtol=1e-5
    )
    assert (person.side, hand.side) == (None, "left")
    assert 0.5 < person.score <= 1  # no location is in the very middle
    assert detector.detect(photo) == [person]
    assert OwnDetector(told, {"classes": CLASSES}, kind="hand").detect(photo) == [hand]


def test_boxes_in_the_padding_are_left_out():
    told = Told([[4.0, 80, 72, 120]], [PERSON])
    photo = image_from_array(np.zeros((100, 200, 3), dtype=np.uint8))
    assert OwnDetector(told, {"classes": CLASSES}).detect(photo) == []


def test_a_real_network_searches_a_photo(network, tmp_path):
    save_detector(tmp_path / "tiny.safetensors", network, {})
    detector = OwnDetector.load(tmp_path / "tiny.safetensors", min_score=0.0)
    rng = np.random.default_rng(0)
    photo = image_from_array(rng.integers(0, 255, (50, 90, 3), dtype=np.uint8))
    found = detector.find(photo)
    boxes = [*found.people, *found.hands]
    assert boxes
    for box in boxes:
        assert 0 <= box.x < box.x + box.width <= 90 + 1e-3
        assert 0 <= box.y < box.y + box.height <= 50 + 1e-3
        assert box.side in (None, "left", "right")
    by_name = load_detector(str(tmp_path / "tiny.safetensors"), "cpu", 0.0)
    assert by_name.detect(photo) == list(found.people)


def test_refuses_other_classes_and_numbers_that_are_not_finite():
    told = Told([[4.0, 4, 36, 36]], [PERSON])
    with pytest.raises(InputError, match="classes"):
        OwnDetector(told, {"classes": ("cat",)})
    with pytest.raises(InputError, match="kind"):
        OwnDetector(told, {"classes": CLASSES}, kind="foot")
    told.output.distances[0, 3] = float("nan")
    photo = image_from_array(np.zeros((64, 64, 3), dtype=np.uint8))
    with pytest.raises(KinemeshError, match="not finite"):
        OwnDetector(told, {"classes": CLASSES}).detect(photo)
