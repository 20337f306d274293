"""`kinemesh.save` and `export_video` write the files of every format, together or not at all."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pygltflib
import pytest
import torch
import trimesh

import kinemesh
from kinemesh.bodies.assets import load_topology
from kinemesh.bodies.parameters import place
from kinemesh.bodies.posable import PosableBody, posable_body
from kinemesh.errors import InputError
from kinemesh.formats import ALL_FORMATS, DEFAULT_FORMATS, possible_formats, read_formats
from kinemesh.formats.frames import FramesFile, FramesHeader, FramesWriter
from kinemesh.formats.names import check_run, file_names
from kinemesh.formats.people_npz import read_people_npz
from kinemesh.formats.track_fitting import fit_tracks
from kinemesh.formats.video_exports import export_video
from kinemesh.inference.fitting import PeopleFitter
from kinemesh.inference.person import Person
from kinemesh.inference.video_frame import TrackedPerson, VideoFrame
from tests.fake_predictor import fake_people, spot_photo
from tests.moving_people import moving_person

SIZE = (300, 200)


@pytest.fixture(scope="module")
def body() -> PosableBody:
    """Anny's hand, the smaller of the shipped bodies."""
    return posable_body("anny-hand")


@pytest.fixture(scope="module")
def fitted(body: PosableBody) -> list[Person]:
    """A right and a left hand with the mesh of their parameters."""
    people = []
    for seed, person in enumerate(fake_people("hand")):
        (parameters,) = moving_person(body, 1, seed, person.side)
        posed = place(body, [parameters])
        faces = body.faces if person.side == "right" else body.faces[:, [0, 2, 1]]
        mesh = {"vertices": posed.vertices[0].numpy(), "faces": faces.numpy()}
        people.append(replace(person, **mesh, parameters=parameters))
    return people


def photo() -> np.ndarray:
    return spot_photo(*SIZE, 80, 100)


def test_every_format_has_its_files(tmp_path: Path, fitted: list[Person]) -> None:
    formats = [name for name in ALL_FORMATS if name != "views"]
    written = kinemesh.save(fitted, photo(), tmp_path, stem="a", formats=formats)
    hands = ("", "_hand_0_right", "_hand_1_left")
    pictures = ("depth", "depth_near", "normals", "mask")
    expected = {f"a{hand}_{name}.png" for hand in hands for name in pictures}
    expected |= {"a_overlay.png", "a_joints.csv", "a_coco.json", "a_skinned.glb"}
    expected |= {f"a.{name}" for name in ("glb", "obj", "json", "npz", "ply")}
    expected |= {"a_hand_0_right.bvh", "a_hand_1_left.bvh"}
    assert {path.name for path in written} == expected == {p.name for p in tmp_path.iterdir()}
    assert kinemesh.save(fitted, photo(), tmp_path, stem="a", formats=formats) == written


def test_all_files_show_the_same_people(tmp_path: Path, fitted: list[Person]) -> None:
    kinemesh.save(fitted, photo(), tmp_path, stem="a", formats=("glb", "ply", "obj", "depth"))
    bounds = [trimesh.load(tmp_path / f"a.{name}").bounds for name in ("glb", "ply", "obj")]
    expected = np.concatenate([person.vertices for person in fitted]) * [1, -1, -1]
    for found in bounds:
        np.testing.assert_allclose(found, [expected.min(0), expected.max(0)], atol=1e-4)
    for number, name in enumerate(("hand_0_right", "hand_1_left")):
        depth = cv2.imread(str(tmp_path / f"a_{name}_depth.png"), cv2.IMREAD_UNCHANGED)
        assert depth.shape == (SIZE[1], SIZE[0])
        z = fitted[number].vertices[:, 2] * 1000
        assert z.min() - 1 <= depth[depth > 0].min() <= depth.max() <= z.max() + 1
        rows, columns = np.nonzero(depth)
        pixels = fitted[number].camera.project(fitted[number].vertices)
        assert np.abs(columns.min() - pixels[:, 0].min()) < 2
        assert np.abs(rows.max() + 1 - pixels[:, 1].max()) < 2


def test_only_the_default_formats_without_a_choice(tmp_path: Path, fitted: list[Person]) -> None:
    written = kinemesh.save(fitted, photo(), tmp_path, stem="a")
    assert sorted(path.suffix for path in written) == [".glb", ".json", ".npz", ".obj", ".png"]
    assert set(DEFAULT_FORMATS) == {"overlay", "views", "glb", "obj", "json", "npz"}


def test_bodies_and_hands_have_an_npz_each(tmp_path: Path) -> None:
    bodies, hands = fake_people("body"), fake_people("hand")
    people = [bodies[0], hands[0], bodies[1], hands[1]]
    kinemesh.save(people, photo(), tmp_path, stem="a", formats=["npz", "csv", "coco"])
    assert [p.skeleton for p in read_people_npz(tmp_path / "a.npz")] == ["coco17"] * 2
    assert [p.side for p in read_people_npz(tmp_path / "a_hands.npz")] == ["right", "left"]
    with (tmp_path / "a_joints.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 2 * 17 + 2 * 21
    assert len(json.loads((tmp_path / "a_coco.json").read_text())) == 4


def test_nobody_gives_tables_and_no_meshes(tmp_path: Path) -> None:
    written = kinemesh.save([], photo(), tmp_path, stem="a", formats=ALL_FORMATS)
    names = {"a_overlay.png", "a.json", "a.npz", "a_joints.csv", "a_coco.json"}
    assert {path.name for path in written} == names
    kinemesh.save([], photo(), tmp_path, stem="a", formats=["coco"])  # its empty list is ours


def test_a_body_that_is_not_shipped_is_given(
    tmp_path: Path, body: PosableBody, fitted: list[Person]
) -> None:
    own = replace(fitted[0].parameters, body="mano")
    person = replace(fitted[0], parameters=own)
    with pytest.raises(InputError, match="'mano', which is not shipped"):
        kinemesh.save([person], photo(), tmp_path, formats=["bvh"])
    mano = replace(body, name="mano")
    (path,) = kinemesh.save([person], photo(), tmp_path, formats=["bvh"], bodies={"mano": mano})
    assert path.name == "people_hand_0_right.bvh"


class TestRefusals:
    def test_without_parameters(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="hand_0_right has no parameters"):
            kinemesh.save(fake_people(), photo(), tmp_path, formats=["json", "skinned"])
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["ply", "bvh", "skinned", "depth", "normals", "mask"])
    def test_without_a_mesh(self, name: str) -> None:
        with pytest.raises(InputError, match=f"'{name}' holds a mesh"):
            possible_formats([name], mesh=False, depth=True)
        assert possible_formats(["csv", "coco"], mesh=False, depth=False) == ("csv", "coco")

    def test_the_default_ones_by_name_are_no_choice(self) -> None:
        named = read_formats(["overlay,views,glb,obj,json,npz,ply"])
        assert "views" not in possible_formats(named, mesh=True, depth=True)
        with pytest.raises(InputError, match="'ply' holds a mesh"):
            possible_formats(named, mesh=False, depth=True)
        with pytest.raises(InputError, match="this model recovers meshes"):
            possible_formats(["views", "glb"], mesh=True, depth=True)

    def test_an_unknown_format_is_told_the_nearest(self) -> None:
        assert read_formats(["ply,skinned", "csv"]) == ("ply", "csv", "skinned")
        with pytest.raises(InputError, match="did you mean 'normals'"):
            read_formats(["normal"])

    def test_a_foreign_json_stays(self, tmp_path: Path) -> None:
        (tmp_path / "a_coco.json").write_text('[{"image_id": 1}]')
        with pytest.raises(InputError, match="did not write"):
            kinemesh.save(fake_people(), photo(), tmp_path, stem="a", formats=["coco"])

    def test_a_photo_with_the_name_of_a_result_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "a_person_12_depth_near.png"
        path.write_bytes(b"photo")
        stems = ["a", path.stem]
        check_run([path], stems, tmp_path, ["normals"], ".png", None)
        with pytest.raises(InputError, match="overwrite the photo"):
            check_run([path], stems, tmp_path, ["depth"], ".png", None)

    def test_names(self) -> None:
        labels = ["person_0", "person_1"]
        assert file_names("a", "bvh", labels) == ["a_person_0.bvh", "a_person_1.bvh"]
        assert file_names("a", "mask", labels[:1]) == ["a_mask.png", "a_person_0_mask.png"]
        assert file_names("a", "overlay", labels, ".jpg") == ["a_overlay.jpg"]


def video_of(body: PosableBody, person: Person) -> list[VideoFrame]:
    """Two tracks in five frames at 10 a second: one leaves for a frame, one comes late."""
    first = moving_person(body, 5, 1, "right")
    second = moving_person(body, 5, 2, "right")
    frames = []
    for step in range(5):
        people = []
        if step != 2:
            people.append(TrackedPerson(4, replace(person, parameters=first[step])))
        if step > 2:
            people.append(TrackedPerson(9, replace(person, parameters=second[step])))
        frames.append(VideoFrame(2 * step, 7 + 0.1 * step, SIZE, tuple(people)))
    return frames


class TestVideo:
    def test_all_files(self, tmp_path: Path, body: PosableBody, fitted: list[Person]) -> None:
        frames = video_of(body, fitted[0])
        written = export_video(iter(frames), tmp_path / "out", "walk")
        endings = ["joints.csv", "coco.json", "track_4.bvh", "track_9.bvh", "skinned.glb"]
        assert [path.name for path in written] == [f"walk_{ending}" for ending in endings]
        with written[0].open() as stream:
            rows = list(csv.DictReader(stream))
        places = [(row["frame"], row["time_s"], row["person"]) for row in rows[::21]]
        assert places[:2] == [("0", "0.0000", "4"), ("2", "0.1000", "4")]
        assert places[2:4] == [("6", "0.3000", "4"), ("6", "0.3000", "9")]
        numbers = [row["image_id"] for row in json.loads(written[1].read_text())]
        assert numbers == [0, 2, 6, 6, 8, 8]
        assert "Frames: 5\nFrame Time: 0.1\n" in written[2].read_text()
        assert "Frames: 2\nFrame Time: 0.1\n" in written[3].read_text()
        file = pygltflib.GLTF2.load_from_bytes(written[4].read_bytes())
        assert {node.name for node in file.nodes if node.mesh is not None} == {"track_4", "track_9"}
        (animation,) = file.animations
        assert sum(channel.target.path == "scale" for channel in animation.channels) == 2

    def test_a_dropped_frame_holds_the_pose(
        self, tmp_path: Path, body: PosableBody, fitted: list[Person]
    ) -> None:
        frames = video_of(body, fitted[0])
        del frames[1]
        (path, _) = export_video(frames, tmp_path, "walk", ["bvh"])
        lines = path.read_text().splitlines()
        motion = lines[lines.index("MOTION") + 3 :]
        assert len(motion) == 5
        assert motion[0] == motion[1] == motion[2] != motion[3]

    def test_nothing_is_left_when_it_fails(self, tmp_path: Path, fitted: list[Person]) -> None:
        bare = VideoFrame(3, 0.0, SIZE, (TrackedPerson(1, replace(fitted[0], parameters=None)),))
        with pytest.raises(InputError, match="track 1 has no parameters in frame 3"):
            export_video([bare], tmp_path, "walk")
        assert not list(tmp_path.iterdir())
        written = export_video([bare], tmp_path, "walk", ["csv"])
        assert [path.name for path in written] == ["walk_joints.csv"]

    def test_refusals(self, tmp_path: Path) -> None:
        empty = [VideoFrame(0, 0.0, SIZE, ())]
        with pytest.raises(InputError, match="nobody is in any frame"):
            export_video(empty, tmp_path, "walk", ["bvh"])
        with pytest.raises(InputError, match="Unknown format 'glb'"):
            export_video(empty, tmp_path, "walk", ["glb"])
        export_video(empty, tmp_path, "walk", ["coco"])
        assert json.loads((tmp_path / "walk_coco.json").read_text()) == []


def test_a_template_stands_upright_in_the_depth_picture(tmp_path: Path) -> None:
    topology = load_topology("anny-body")
    vertices = topology.template.numpy() + np.array([0.0, 0.0, 4.0], np.float32)
    person = replace(fake_people("body")[0], vertices=vertices, faces=topology.faces.numpy())
    kinemesh.save([person], photo(), tmp_path, stem="a", formats=["mask", "normals"])
    mask = cv2.imread(str(tmp_path / "a_mask.png"), cv2.IMREAD_GRAYSCALE)
    widths = (mask > 0).sum(1)
    rows = np.flatnonzero(widths)
    assert widths[rows[0] + 5] < widths[rows[len(rows) // 2]]  # the head is above the arms
    normals = cv2.imread(str(tmp_path / "a_normals.png"))[:, :, ::-1]
    assert np.median(normals[mask > 0], axis=0)[2] > 200  # mostly facing the viewer
    shown = normals[rows[0] : rows[0] + 3][mask[rows[0] : rows[0] + 3] > 0]
    assert shown[:, 1].mean() > 170  # the crown of the head faces up


def test_a_track_is_fitted_with_one_shape(tmp_path: Path, body: PosableBody) -> None:
    topology = load_topology("anny-hand")
    track = moving_person(body, 3, 1, "right")
    header = FramesHeader("walk.mp4", SIZE, 10.0)
    with FramesWriter(tmp_path, "walk", header) as writer:
        for step, parameters in enumerate(track):
            vertices = place(body, [parameters]).vertices[0].numpy()
            mesh = {"vertices": vertices, "faces": topology.faces.numpy()}
            joints = topology.joints(torch.from_numpy(vertices)[None])[0].numpy()
            person = replace(fake_people("hand")[0], **mesh, joints=joints)
            people = () if step == 1 else (TrackedPerson(5, person),)
            writer.write(VideoFrame(step, step / 10, SIZE, people))
    video = FramesFile.find(tmp_path)
    fitted = list(fit_tracks(video, PeopleFitter([topology])))
    assert [len(frame.people) for frame in fitted] == [1, 0, 1]
    found = [frame.people[0].person.parameters for frame in fitted if frame.people]
    np.testing.assert_array_equal(found[0].shape, found[1].shape)
    assert max(parameters.residual_mm for parameters in found) < 1
    (path,) = export_video(fitted, tmp_path, "walk", ["skinned"])
    assert path.name == "walk_skinned.glb"
