import itertools

import numpy as np
import pytest
import torch

from kinemesh.data.keypoint_crop import crop_affine, crop_affine_inverse, map_points
from kinemesh.errors import InputError
from kinemesh.evaluation.keypoint_readout import (
    KeypointPerson,
    Keypoints,
    assign_queries,
    people_of,
    person_columns,
    predict_keypoints,
    read_out,
    read_out_people,
    read_out_sequential,
    scene_people,
    to_image,
    unflip,
)
from kinemesh.evaluation.table import SampleTable
from kinemesh.models.prtr import KeypointSetOutput
from kinemesh.models.prtr_sequential import SequentialOutput
from kinemesh.skeletons import COCO17, MPII16
from tests.parity import prtr_evaluation
from tests.tolerances import TOL

SIZE = (288, 384)
FLOAT32 = TOL[torch.float32]


def best_by_trying(values_QJ):
    """Every way of giving each joint a query of its own."""
    queries, joints = values_QJ.shape
    ways = itertools.permutations(range(queries), joints)
    return max(ways, key=lambda way: sum(float(values_QJ[q, j]) for j, q in enumerate(way)))


def random_output(batch, skeleton=COCO17, queries=30):
    return KeypointSetOutput(
        3 * torch.randn(batch, queries, len(skeleton) + 1), torch.rand(batch, queries, 2)
    )


def random_places(batch):
    return 300 * torch.rand(batch, 2), 0.5 + torch.rand(batch, 2)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(3)


def test_goldens(shared):
    results = prtr_evaluation.compare(shared / "parity" / "prtr" / "golden")
    names = {"np_readout_coco", "np_readout_mpii", "np_seq_infer", "np_oks", "np_cocoeval"}
    assert {result.name for result in results} == names | {"np_pckh"}
    for result in results:
        result.assert_passed()


def test_assignment_is_the_best_of_all():
    values = torch.randn(20, 5, 3)
    for table, chosen in zip(values, assign_queries(values), strict=True):
        assert tuple(chosen.tolist()) == best_by_trying(table)


def test_assignment_of_nobody():
    assert assign_queries(torch.zeros(0, 5, 3)).shape == (0, 3)


def test_two_joints_never_share_a_query():
    logits = torch.zeros(1, 3, 3)
    logits[0, 0] = torch.tensor([5.0, 4.0, -9.0])  # the best of both joints
    logits[0, 1] = torch.tensor([-3.0, 1.0, 0.0])
    found = read_out(logits, torch.tensor([[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]]))
    assert found.coords[0].tolist() == [pytest.approx([0.1, 0.2]), pytest.approx([0.3, 0.4])]


def test_background_is_left_out_of_the_softmax_unless_asked_for():
    logits = torch.tensor([[[1.0, 0.0, 4.0], [0.0, 2.0, 0.0]]])
    coords = torch.zeros(1, 2, 2)
    without = torch.tensor([1.0, 0.0]).softmax(0)[0], torch.tensor([0.0, 2.0]).softmax(0)[1]
    within = logits.softmax(-1)[0, 0, 0], logits.softmax(-1)[0, 1, 1]
    torch.testing.assert_close(read_out(logits, coords).scores[0], torch.stack(without))
    torch.testing.assert_close(read_out(logits, coords, True).scores[0], torch.stack(within))


@pytest.mark.parametrize("skeleton", [COCO17, MPII16], ids=lambda s: s.name)
def test_unflip_exchanges_sides_and_is_its_own_inverse(skeleton):
    keypoints = Keypoints(torch.rand(2, len(skeleton), 2), torch.rand(2, len(skeleton)))
    once = unflip(keypoints, skeleton)
    left, right = skeleton.index("left_knee"), skeleton.index("right_knee")
    torch.testing.assert_close(once.coords[:, left, 0], 1 - keypoints.coords[:, right, 0])
    torch.testing.assert_close(once.coords[:, left, 1], keypoints.coords[:, right, 1])
    assert torch.equal(once.scores[:, left], keypoints.scores[:, right])
    twice = unflip(once, skeleton)
    torch.testing.assert_close(twice.coords, keypoints.coords, **FLOAT32)
    assert torch.equal(twice.scores, keypoints.scores)


def test_to_image_inverts_the_crop():
    center, scale = random_places(4)
    coords = torch.rand(4, 17, 2)
    pixels = to_image(coords, center, scale, SIZE).numpy()
    for n in range(4):
        place = (center[n].numpy(), scale[n].numpy(), SIZE)
        crop = coords[n].double().numpy() * SIZE
        np.testing.assert_allclose(map_points(crop_affine(*place), pixels[n]), crop, atol=1e-3)
        np.testing.assert_allclose(
            pixels[n], map_points(crop_affine_inverse(*place), crop), atol=1e-4
        )


def test_flip_test_is_the_mean_of_two_read_outs():
    plain, mirrored = random_output(3), random_output(3)
    center, scale = random_places(3)
    found = read_out_people(plain, mirrored, center, scale, SIZE, COCO17)
    one = read_out(plain.logits, plain.coords)
    other = unflip(read_out(mirrored.logits, mirrored.coords), COCO17)
    pixels = [to_image(each.coords, center, scale, SIZE) for each in (one, other)]
    torch.testing.assert_close(found.coords, (pixels[0] + pixels[1]) / 2, **FLOAT32)
    torch.testing.assert_close(found.scores, (one.scores + other.scores) / 2, **FLOAT32)


def test_flip_test_changes_nothing_where_the_network_sees_mirror_images_alike():
    output = random_output(2)
    center, scale = random_places(2)
    images = torch.rand(2, 3, SIZE[1], SIZE[0])
    swap = [*COCO17.flip_permutation, len(COCO17)]
    seen = []

    def network(image):
        seen.append(image)
        if torch.equal(image, images):
            return output
        coords = torch.stack((1 - output.coords[..., 0], output.coords[..., 1]), dim=-1)
        return KeypointSetOutput(output.logits[..., swap], coords)

    alone = predict_keypoints(network, images, center, scale, COCO17, flip_test=False)
    both = predict_keypoints(network, images, center, scale, COCO17)
    torch.testing.assert_close(both.coords, alone.coords, rtol=1e-5, atol=1e-3)  # pixels
    torch.testing.assert_close(both.scores, alone.scores, **FLOAT32)
    assert len(seen) == 3
    assert torch.equal(seen[2], images.flip(-1))


def test_half_precision_outputs_are_read_in_float32():
    output = random_output(2)
    half = KeypointSetOutput(output.logits.bfloat16(), output.coords.bfloat16())
    found = read_out(half.logits, half.coords)
    assert (found.coords.dtype, found.scores.dtype) == (torch.float32, torch.float32)


def test_sequential_read_out_takes_raw_logits_and_background_first():
    logits, coords = torch.randn(2, 3, 6, 4), torch.rand(2, 3, 6, 2)
    found = read_out_sequential(logits, coords)
    assert found.coords.shape == (2, 3, 3, 2)
    for b, k in itertools.product(range(2), range(3)):
        way = best_by_trying(logits[b, k, :, 1:])
        assert torch.equal(found.coords[b, k], coords[b, k, list(way)])
        probability = logits[b, k, :, 1:].softmax(-1)
        expected = torch.stack([probability[q, j] for j, q in enumerate(way)])
        torch.testing.assert_close(found.scores[b, k], expected)


def scene_output():
    """Two images, three person queries, of which two a person are looked at."""
    logits = torch.tensor(
        [[[3.0, 0.0], [-5.0, 5.0], [1.0, 0.0]], [[0.0, 9.0], [2.0, 0.0], [0.0, 0.0]]]
    )
    boxes = torch.rand(2, 3, 4)
    persons = torch.tensor([[2, 0], [1, 2]])
    return SequentialOutput(
        logits, boxes, torch.rand(2, 2, 20, 2), torch.randn(2, 2, 20, 18), persons
    )


def test_people_of_scenes():
    output = scene_output()
    sizes = torch.tensor([[100, 200], [300, 150]])
    people = scene_people(output, [7, 9], sizes)
    assert [person.image_id for person in people] == [7, 7, 9, 9]
    second = people[1]  # query 0 of the first image
    assert second.box_score == pytest.approx(float(output.logits[0, 0].softmax(0)[0]))
    box = output.boxes[0, 0] * torch.tensor([200.0, 100.0, 200.0, 100.0])
    np.testing.assert_allclose(second.center_px, box[:2], rtol=1e-5)
    np.testing.assert_allclose(second.scale, 1.25 * box[2:] / 200, rtol=1e-5)
    found = read_out_sequential(output.keypoint_logits, output.keypoint_coords).coords[0, 1]
    # the network counts from the corner, files from the first pixel's centre
    in_file = found * torch.tensor([200, 100]) - 0.5
    np.testing.assert_allclose(second.keypoints_px, in_file, rtol=1e-5, atol=1e-4)
    assert second.area == pytest.approx(float(1.25**2 * box[2] * box[3]), rel=1e-5)
    likely = scene_people(output, [7, 9], sizes, score_above=0.7)
    assert [person.box_score > 0.7 for person in people] == [True, True, True, False]
    assert len(likely) == 3


def test_columns_bring_people_through_a_table():
    center, scale = random_places(4)
    keypoints = Keypoints(torch.rand(4, 17, 2), torch.rand(4, 17))
    columns = person_columns(torch.arange(4), keypoints, center, scale, torch.rand(4))
    table = SampleTable()
    table.add(torch.tensor([3, 1, 0, 2]), columns)
    people = people_of(table.collect()[1])
    assert [person.image_id for person in people] == [2, 1, 3, 0]
    np.testing.assert_array_equal(people[0].keypoints_px, keypoints.coords[2])
    assert people[0].box_score == pytest.approx(float(columns["box_score"][2]))


def test_numbers_that_are_none_do_not_become_people():
    output = random_output(2)
    output.logits[1] = torch.nan
    center, scale = random_places(2)
    found = read_out_people(output, None, center, scale, SIZE, COCO17)
    assert torch.isfinite(found.scores[0]).all()
    columns = person_columns(torch.tensor([4, 6]), found, center, scale, torch.ones(2))
    with pytest.raises(InputError, match=r"scores of a person in image 6.*found NaN"):
        people_of(columns)


def test_refuses_bad_input():
    with pytest.raises(InputError, match="5 queries and 17 labels"):
        assign_queries(torch.zeros(1, 5, 17))
    center, scale = random_places(1)
    with pytest.raises(InputError, match=r"expected 18 classes.*found 17"):
        read_out_people(random_output(1, MPII16), None, center, scale, SIZE, COCO17)
    good = (np.zeros((17, 2)), np.zeros(17), np.zeros(2), np.ones(2))
    with pytest.raises(InputError, match=r"keypoints_px.*image 5.*shape \(17, 2\)"):
        KeypointPerson(5, np.zeros((16, 2)), *good[1:])
    with pytest.raises(InputError, match="NaN or inf"):
        KeypointPerson(5, np.full((17, 2), np.nan), *good[1:])
    with pytest.raises(InputError, match="positive area"):
        KeypointPerson(5, *good[:3], np.zeros(2))
