"""Videos with the options of photos: detectors, hands at their wrists, batches, body models."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import kinemesh
from kinemesh.bodies.assets import load_topology
from kinemesh.bodies.parameters import place
from kinemesh.bodies.posable import posable_body
from kinemesh.cli import main
from kinemesh.errors import KinemeshError
from kinemesh.formats.frames import FramesFile
from kinemesh.inference import detectors, fitting
from kinemesh.inference.boxes import Box
from kinemesh.inference.fitting import PeopleFitter
from kinemesh.inference.frame_fitting import TrackFitter, fit_again
from kinemesh.inference.people import wrist_and_elbow
from kinemesh.inference.refinement import OnlineRefiner, TrackSizes, refine_offline
from kinemesh.inference.smoothing import OfflineSmoothing
from kinemesh.inference.video_frame import TrackedPerson, VideoFrame
from kinemesh.inference.video_source import FileSource
from tests.fake_predictor import fake_people, fake_predictor
from tests.moving_people import moving_person
from tests.video_files import spot_frames, write_video

FRAMES = 11
RATE = 25.0
SIZE = (300, 200)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("people") / "walk.mp4", spot_frames(FRAMES))


class SpotDetector:
    """Sees where the red spot is, and finds it twice; breaks down at its frame ``end``."""

    end = None

    def __init__(self):
        self.frames = 0

    def detect(self, photo):
        if self.frames == self.end:
            raise KinemeshError("the detector fell over")
        self.frames += 1
        x = np.nonzero(photo.pixels[..., 0] > photo.pixels[..., 1] + 100.0)[1].mean()
        return [Box(x - 20, 28, 40, 40, 0.9), Box(x - 19, 28, 40, 40, 0.7)]


@pytest.fixture
def networks(monkeypatch):
    """Fake models and a fake detector in place of what the command loads."""
    made = {"body": fake_predictor("body"), "hand": fake_predictor("hand")}
    monkeypatch.setattr(kinemesh, "load", lambda name, *_: made[name])
    monkeypatch.setattr(detectors, "load_detector", lambda *_: SpotDetector())
    return made


def run(video, out, *words):
    words = ("--out", str(out), "--save", "json,npz", *words)
    assert main(["predict", str(video), *words]) == 0
    return FramesFile.find(out)


def test_frames_share_batches_and_give_what_each_gives(video, tmp_path, networks):
    words = ("--detector", "rtdetr", "--smooth", "0", "--offline-smoothing", "none")
    found = run(video, tmp_path, *words)
    assert found.tracks == (1,)  # the second box holds the same person
    network = networks["body"].network
    assert [len(batch) for batch in network.batches] == [2, 14, 6]  # frames 0, 1 to 7, 8 to 10
    (focal_px,) = {frame.people[0].person.camera.focal_px for frame in found}
    for frame, shown in zip(found, FileSource(video).frames(), strict=True):
        boxes = SpotDetector().detect(shown.photo)
        alone, _ = fake_predictor("body").predict(shown.photo, boxes, focal_px=focal_px)
        (together,) = frame.people
        np.testing.assert_allclose(together.person.joints_px, alone.joints_px, atol=1e-4)
        assert together.person.score == alone.score


@pytest.mark.parametrize("smoothing", ["gaussian", "none"])
def test_bodies_with_hands(video, tmp_path, networks, smoothing):
    words = ("--task", "body,hand", "--offline-smoothing", smoothing, "--max-frames", "6")
    found = run(video, tmp_path, *words, "--detector", "rtdetr")
    assert len(found) == 6
    for frame in found:
        assert [one.person.side for one in frame.people] == [None, "left", "right"]
        assert_on_wrists(frame)


def assert_on_wrists(frame):
    for found in frame.people:
        hand = found.person
        if hand.owner is not None:
            body = frame.people[hand.owner].person
            wrist = body.joints[wrist_and_elbow(body, hand.side)[0]]
            np.testing.assert_allclose(hand.joints[0], wrist, atol=1e-5)


def trembling_hands():
    """A body and its left hand, which trembles and is not found in the fourth frame."""
    rng = np.random.default_rng(3)
    body, hand = fake_people("body")[0], fake_people("hand")[1]
    for index in range(12):
        step = np.array([0.02 * index, 0, 0], np.float32)
        frame_body = replace(body, joints=body.joints + step, vertices=body.vertices + step)
        jump = rng.normal(0, 0.03, 3).astype(np.float32)
        moved = replace(hand, joints=hand.joints + jump, vertices=hand.vertices + jump, owner=0)
        people = (TrackedPerson(1, frame_body), TrackedPerson(2, moved))
        yield VideoFrame(index, index / RATE, SIZE, people[: 1 if index == 3 else 2])


def test_filters_leave_hands_at_their_wrists():
    frames = list(trembling_hands())
    sizes = TrackSizes()
    for frame in frames:
        sizes.add(frame)
    smoothing = OfflineSmoothing("gaussian", 0.7)
    made = list(refine_offline(frames.__getitem__, 12, RATE, sizes.lasting(), smoothing))
    refiner = OnlineRefiner(0.7)
    online = [refiner.refine(frame) for frame in frames]
    for frame in made:
        assert [found.person.owner for found in frame.people] == [None, 0]
    for frame in made + online:
        assert_on_wrists(frame)
        for found in frame.people[1:]:  # the mesh comes along
            person = found.person
            apart = person.vertices.mean(0) - person.joints[0]
            given = frames[0].people[1].person
            assert apart == pytest.approx(given.vertices.mean(0) - given.joints[0], abs=0.01)


@pytest.fixture(scope="module")
def hands():
    """A right hand of Anny that moves, as a network would find it: with noise and no parameters."""
    body, topology = posable_body("anny-hand"), load_topology("anny-hand")
    rng, like = np.random.default_rng(0), fake_people("hand")[0]
    frames = []
    for index, truth in enumerate(moving_person(body, 5, 1, "right")):
        noise = rng.normal(0, 0.001, (len(topology.template), 3))
        vertices = (place(body, [truth]).vertices[0].numpy() + noise).astype(np.float32)
        joints = topology.joints(torch.from_numpy(vertices)[None])[0].numpy()
        mesh = {"vertices": vertices, "faces": topology.faces.numpy(), "joints": joints}
        person = (TrackedPerson(1, replace(like, **mesh)),)
        frames.append(VideoFrame(index, index / RATE, SIZE, person))
    return frames, PeopleFitter([topology]), body


def test_what_is_written_fits_its_own_mesh(hands):
    """After filters parameters, mesh and joints are one again, with one shape for the track."""
    frames, fitter, body = hands
    along = TrackFitter(fitter.fit)
    found = [along.fit_frame(frame) for frame in frames]
    sizes = TrackSizes()
    for frame in found:
        sizes.add(frame)
    smoothing = OfflineSmoothing("gaussian", 0.5)
    smooth = list(refine_offline(found.__getitem__, 5, RATE, sizes.lasting(), smoothing))
    made = [fit_again(frame, fitter.fit) for frame in smooth]
    shapes = np.stack([frame.people[0].person.parameters.shape for frame in made])
    assert np.ptp(shapes, axis=0).max() == 0

    def residuals(frames):
        people = [frame.people[0].person for frame in frames]
        posed = place(body, [person.parameters for person in people]).vertices.numpy()
        meshes = np.stack([person.vertices for person in people])
        return np.linalg.norm(posed - meshes, axis=-1).mean(1) * 1000

    told = [frame.people[0].person.parameters.residual_mm for frame in made]
    assert residuals(made) == pytest.approx(told, abs=0.05)
    assert residuals(made).max() < 3
    assert residuals(made).mean() < residuals(smooth).mean()


def test_fits_begin_with_the_frame_before(hands):
    frames, fitter, _ = hands
    asked = []

    def fit(people, previous, shapes):
        asked.append((previous, shapes))
        return fitter.fit(people, previous, shapes)

    along = TrackFitter(fit)
    first = along.fit_frame(frames[0])
    along.fit_frame(frames[1])
    going_on = TrackFitter(fit)
    going_on.remember(first)
    going_on.fit_frame(frames[1])
    parameters = first.people[0].person.parameters
    assert asked == [([None], None), ([parameters], None), ([parameters], None)]
    fit_again(first, fit)
    assert asked[-1][0] == [parameters]
    np.testing.assert_array_equal(asked[-1][1][0], parameters.shape)


class CountingFitter:
    """Counts in the residual from what each fit began."""

    bodies = ()

    def __init__(self, topologies, assets):
        self.like = moving_person(posable_body("anny-hand"), 1)[0]

    def fit(self, people, previous, shapes):
        return [
            replace(person, parameters=self.fitted(person, before, shapes))
            for person, before in zip(people, previous, strict=True)
        ]

    def fitted(self, person, before, shapes):
        steps = 0.0 if before is None else before.residual_mm
        steps += 1.0 if shapes is None else 100.0
        middle = person.vertices.mean(0)
        return replace(self.like, translation_m=middle, residual_mm=steps)


def test_a_run_that_goes_on_fits_from_where_it_was(video, tmp_path, networks, monkeypatch):
    monkeypatch.setattr(fitting, "PeopleFitter", CountingFitter)
    monkeypatch.setattr(SpotDetector, "end", 9)
    words = ("--detector", "rtdetr", "--parameters", "--smooth", "0.7")
    assert main(["predict", str(video), "--out", str(tmp_path), "--save", "npz", *words]) != 0
    monkeypatch.setattr(SpotDetector, "end", None)
    networks["body"].network.batches.clear()
    found = run(video, tmp_path, *words, "--resume")
    assert [len(batch) for batch in networks["body"].network.batches] == [6]
    for index, frame in enumerate(found):
        person = frame.people[0].person
        # so many fits along the track, and one more of what is written
        assert person.parameters.residual_mm == 101 + index
        middle = person.vertices.mean(0)
        np.testing.assert_allclose(person.parameters.translation_m, middle, atol=1e-6)
