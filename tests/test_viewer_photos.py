"""What the viewer finds in a folder, and where it puts it; no browser, no server."""

import math
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import kinemesh
from kinemesh.errors import InputError
from kinemesh.formats.people_json import write_people_json
from kinemesh.formats.people_npz import write_people_npz
from kinemesh.inference.images import load_image
from kinemesh.inference.person import Person, PhotoCamera
from kinemesh.viewer.backdrops import LONGEST_SIDE_PX, reduced
from kinemesh.viewer.folder import open_folder
from kinemesh.viewer.photos import _overlay, find_photo_results
from kinemesh.viewer.player import Player
from kinemesh.viewer.scenes import Figure, figures_of
from kinemesh.viewer.skeleton_lines import skeleton_lines
from kinemesh.viewer.viewpoints import Viewpoint, backdrop_depth_m, bounds, viewpoint
from tests.fake_predictor import fake_people, spot_photo

SIZE = (300, 200)


@pytest.fixture(scope="module")
def hands() -> list[Person]:
    return fake_people()


@pytest.fixture(scope="module")
def bodies() -> list[Person]:
    return fake_people("body")


def noise(seed: int) -> np.ndarray:
    """A photo of blobs, none like another."""
    blobs = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    return blobs.repeat(50, 0).repeat(50, 1)


def write_photo(path: Path, pixels: np.ndarray) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def flat(person: Person) -> Person:
    """The person as a network of 2D keypoints returns it."""
    nothing = np.zeros((0, 3), np.float32)
    return replace(person, vertices=nothing, faces=nothing.astype(np.int64), joints=nothing)


def seen_at(place: Viewpoint, aspect: float, point: np.ndarray) -> np.ndarray:
    """Where a view shows a point: x and y in -1..1 from border to border, y down."""
    forward = np.subtract(place.look_at, place.position)
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, place.up)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    x, y, z = (axis @ (point - place.position) for axis in (right, down, forward))
    high = math.tan(place.fov_rad / 2)
    return np.array([x / z / high / aspect, y / z / high])


class TestViewpoints:
    @pytest.mark.parametrize("aspect", [0.5, 1.0, 1.5, 3.0])
    def test_camera_sees_the_photo_as_large_as_it_fits(self, aspect: float) -> None:
        camera = PhotoCamera(400.0, (150.0, 100.0), SIZE)
        place = viewpoint("camera", camera, (), aspect)
        corner = np.array([150.0, 100.0, 400.0])  # metres at that depth are pixels
        assert np.abs(seen_at(place, aspect, corner)).max() == pytest.approx(1.0)
        assert np.abs(seen_at(place, aspect, corner)).max() <= 1.0 + 1e-9

    def test_camera_sees_the_photo_about_another_principal_point(self) -> None:
        camera = PhotoCamera(400.0, (120.0, 130.0), SIZE)
        place = viewpoint("camera", camera, (), 1.5)
        corners = np.array([[x - 120, y - 130, 400.0] for x in (0, 300) for y in (0, 200)])
        assert all(np.abs(seen_at(place, 1.5, corner)).max() <= 1 + 1e-9 for corner in corners)

    @pytest.mark.parametrize("name", ["side", "above"])
    @pytest.mark.parametrize("aspect", [0.5, 2.0])
    def test_other_views_see_everybody(self, hands: list[Person], name: str, aspect: float) -> None:
        figures = figures_of(hands)
        place = viewpoint(name, hands[0].camera, figures, aspect)  # type: ignore[arg-type]
        points = np.concatenate([person.vertices for person in hands])
        assert max(np.abs(seen_at(place, aspect, point)).max() for point in points) < 1
        lowest, _ = bounds(figures) or (None, None)
        assert lowest is not None
        axis = 1 if name == "above" else 0
        away = place.position[axis] - np.array(place.look_at)[axis]
        assert away < 0 if name == "above" else away > 0

    def test_the_backdrop_is_behind_everybody_and_seldom_moves(self, hands: list[Person]) -> None:
        def at(shift: float) -> tuple[Figure, ...]:
            far = [replace(p, vertices=p.vertices + np.float32([0, 0, shift])) for p in hands]
            return figures_of(far)

        depths = []
        for shift in np.linspace(0, 0.05, 20):
            limits = bounds(at(shift))
            assert limits is not None
            depths.append(backdrop_depth_m(at(shift)))
            assert limits[1][2] < depths[-1] < 1.4 * limits[1][2]
        assert len(set(depths)) <= 2


class TestSkeletonLines:
    def test_joints_and_bones(self, bodies: list[Person]) -> None:
        lines = skeleton_lines(bodies[0], 3.0)
        assert lines is not None
        np.testing.assert_array_equal(lines.points, bodies[0].joints)
        knee, ankle = 13, 15
        assert any((bone == bodies[0].joints[[ankle, knee]]).all() for bone in lines.lines)
        left_wrist, right_wrist = lines.point_colors[9], lines.point_colors[10]
        assert left_wrist[0] > left_wrist[2]  # orange
        assert right_wrist[2] > right_wrist[0]  # blue

    def test_joints_of_the_image_stand_where_the_camera_sees_them(
        self, bodies: list[Person]
    ) -> None:
        person = replace(flat(bodies[0]), joint_confidence=np.ones(17, np.float32))
        lines = skeleton_lines(person, 2.5)
        assert lines is not None
        assert lines.points[:, 2] == pytest.approx(2.5)
        np.testing.assert_allclose(person.camera.project(lines.points), person.joints_px, atol=1e-3)

    def test_unsure_joints_of_the_image_are_left_out(self, bodies: list[Person]) -> None:
        confidence = np.ones(17, np.float32)
        confidence[[0, 15]] = 0.1
        person = replace(flat(bodies[0]), joint_confidence=confidence)
        full = skeleton_lines(replace(person, joint_confidence=confidence * 0 + 1), 2.5)
        lines = skeleton_lines(person, 2.5)
        assert lines is not None
        assert full is not None
        assert lines.points.shape == full.points.shape
        assert not any((lines.points == full.points[joint]).all(1).any() for joint in (0, 15))
        lengths = np.linalg.norm(lines.lines[:, 0] - lines.lines[:, 1], axis=1)
        before = np.linalg.norm(full.lines[:, 0] - full.lines[:, 1], axis=1)
        assert 0 < (lengths == 0).sum() < len(lengths)
        assert np.all((lengths == 0) | (lengths == before))

    def test_nobody_sure(self, bodies: list[Person]) -> None:
        person = replace(flat(bodies[0]), joint_confidence=np.zeros(17, np.float32))
        assert skeleton_lines(person, 2.5) is None


class TestPlayer:
    def test_keeps_the_time_and_begins_again(self) -> None:
        player = Player()
        assert [player.due(3, 10, 25.0, 100.0)] == [3]
        assert player.due(3, 10, 25.0, 100.08) == 5
        assert player.due(5, 10, 25.0, 100.20) == 8  # two frames took too long
        assert player.due(8, 10, 25.0, 100.28) == 0

    def test_the_user_moves_on(self) -> None:
        player = Player()
        player.due(0, 100, 25.0, 0.0)
        assert player.due(50, 100, 25.0, 1.0) == 50
        assert player.due(50, 100, 25.0, 1.04) == 51
        player.stop()
        assert player.due(51, 100, 25.0, 9.0) == 51


class TestFindingResults:
    def test_bodies_and_hands_of_one_file(
        self, tmp_path: Path, bodies: list[Person], hands: list[Person]
    ) -> None:
        write_people_json(tmp_path / "a.json", [*bodies, *hands], SIZE, "a.jpg")
        (album,) = open_folder(tmp_path)
        scene = album.scene(0)
        names = [figure.name for figure in scene.figures]
        assert names == ["person_0", "person_1", "hand_2_right", "hand_3_left"]
        np.testing.assert_allclose(scene.figures[2].person.vertices, hands[0].vertices, atol=1e-5)
        assert scene.camera == hands[0].camera

    def test_arrays_of_bodies_and_hands(
        self, tmp_path: Path, bodies: list[Person], hands: list[Person]
    ) -> None:
        write_people_npz(tmp_path / "a.npz", bodies, SIZE)
        write_people_npz(tmp_path / "a_hands.npz", hands, SIZE)
        write_people_npz(tmp_path / "b_hands.npz", hands, SIZE)
        (album,) = open_folder(tmp_path)
        assert [album.scene(index).title for index in range(len(album))] == ["a", "b_hands"]
        assert [figure.person.side for figure in album.scene(0).figures] == [
            None,
            None,
            "right",
            "left",
        ]

    def test_tables_go_before_arrays_and_other_files_are_left(
        self, tmp_path: Path, hands: list[Person]
    ) -> None:
        for name in ("b", "a"):
            write_people_json(tmp_path / f"{name}.json", hands, SIZE, f"{name}.jpg")
            write_people_npz(tmp_path / f"{name}.npz", hands, SIZE)
        (tmp_path / "boxes.json").write_text('{"a.jpg": [[1, 2, 3, 4]]}')
        np.savez(tmp_path / "other.npz", x=np.zeros(3))
        (tmp_path / "broken.npz").write_bytes(b"PK")
        found = find_photo_results(tmp_path)
        assert [results.files for results in found] == [
            (tmp_path / "a.json",),
            (tmp_path / "b.json",),
        ]

    def test_nobody_in_the_photo(self, tmp_path: Path) -> None:
        kinemesh.save([], noise(1), tmp_path, stem="empty", formats=["json"])
        (album,) = open_folder(tmp_path)
        scene = album.scene(0)
        assert scene.figures == ()
        assert scene.camera.image_size == SIZE


class TestBackdrops:
    def scene_backdrop(self, folder: Path, photos: Path | None = None) -> tuple[np.ndarray, str]:
        scene = open_folder(folder, photos)[0].scene(0)
        assert scene.backdrop is not None
        return scene.backdrop, scene.note

    @pytest.mark.parametrize("place", ["out/a.png", "a.png", "elsewhere/a.png"])
    @pytest.mark.parametrize("formats", [["json"], ["npz", "overlay"]])
    def test_photo_is_found(
        self, tmp_path: Path, hands: list[Person], place: str, formats: list[str]
    ) -> None:
        photo = write_photo(tmp_path / place, noise(1))
        kinemesh.save(hands, photo, tmp_path / "out", formats=formats)  # type: ignore[arg-type]
        named = photo.parent if "elsewhere" in place else None
        backdrop, note = self.scene_backdrop(tmp_path / "out", named)
        np.testing.assert_array_equal(backdrop, noise(1))
        assert note == ""

    def test_another_photo_of_the_same_name_is_not_taken(
        self, tmp_path: Path, hands: list[Person]
    ) -> None:
        photo = write_photo(tmp_path / "x" / "a.png", noise(1))
        kinemesh.save(hands, photo, tmp_path / "out", formats=["json", "overlay"])
        write_photo(tmp_path / "a.png", noise(2))
        backdrop, note = self.scene_backdrop(tmp_path / "out")
        overlay = load_image(tmp_path / "out" / "a_overlay.png").pixels
        np.testing.assert_array_equal(backdrop, overlay)
        assert "--photos" in note
        backdrop, note = self.scene_backdrop(tmp_path / "out", tmp_path / "x")
        np.testing.assert_array_equal(backdrop, noise(1))

    def test_no_photo_at_all(self, tmp_path: Path, hands: list[Person]) -> None:
        write_people_json(tmp_path / "a.json", hands, SIZE, "a.jpg")
        write_photo(tmp_path / "a.jpg", spot_photo(100, 100, 50, 50))  # of another size
        scene = open_folder(tmp_path)[0].scene(0)
        assert scene.backdrop is None
        assert "--photos" in scene.note

    def test_large_photos_are_reduced(self) -> None:
        assert reduced(np.zeros((4000, 3000, 3), np.uint8)).shape == (LONGEST_SIDE_PX, 1440, 3)


class TestNothingToSee:
    def test_folder_is_missing_or_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"There is no folder .*kinemesh predict"):
            open_folder(tmp_path / "gone")
        for name, hint in (("a.json", "kinemesh view"), ("a.jpg", "kinemesh predict")):
            (tmp_path / name).write_text("{}")
            with pytest.raises(InputError, match=hint):
                open_folder(tmp_path / name)

    def test_says_what_is_there(self, tmp_path: Path, hands: list[Person]) -> None:
        def message() -> str:
            with pytest.raises(InputError) as caught:
                open_folder(tmp_path)
            return str(caught.value)

        assert "an empty folder" in message()
        (tmp_path / "notes.txt").write_text("hello")
        assert "1 other files" in message()
        write_photo(tmp_path / "a.png", noise(1))
        assert f"kinemesh predict '{tmp_path}'" in message()
        write_photo(tmp_path / "a_overlay.png", noise(1))
        assert "--save" in message()
        kinemesh.save(hands, noise(1), tmp_path / "out", formats=["json"])
        assert f"kinemesh view '{tmp_path / 'out'}'" in message()

    def test_folder_of_photos(self, tmp_path: Path, hands: list[Person]) -> None:
        write_people_json(tmp_path / "a.json", hands, SIZE, "a.jpg")
        with pytest.raises(InputError, match="--photos"):
            open_folder(tmp_path, tmp_path / "gone")


def age(path: Path, seconds: float) -> None:
    """Make a file older."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_results_of_an_earlier_run_are_not_shown(
    tmp_path: Path, bodies: list[Person], hands: list[Person]
) -> None:
    photo = load_image(write_photo(tmp_path / "photos" / "p.png", noise(1)))
    out = tmp_path / "out"
    kinemesh.save([*bodies, *hands], photo, out, formats=("json", "npz", "overlay"))
    (results,) = find_photo_results(out)
    assert [path.name for path in results.files] == ["p.json"]
    for path in out.iterdir():
        age(path, 60)
    kinemesh.save(bodies, photo, out, formats=("npz",))
    (results,) = find_photo_results(out)
    assert [path.name for path in results.files] == ["p.npz"]  # neither old hands nor the old table
    scene = open_folder(out)[0].scene(0)
    assert len(scene.figures) == len(bodies)


def test_the_newest_overlay_is_taken(tmp_path: Path, bodies: list[Person]) -> None:
    photo = load_image(write_photo(tmp_path / "photos" / "p.png", noise(1)))
    out = tmp_path / "out"
    kinemesh.save(bodies, photo, out, formats=("json", "overlay"))
    (results,) = find_photo_results(out)
    png = out / "p_overlay.png"
    assert _overlay(results) == png
    age(png, 60)
    assert _overlay(results) is None  # of people who are gone
    jpg = out / "p_overlay.jpg"
    jpg.write_bytes(png.read_bytes())
    assert _overlay(results) == jpg


@pytest.mark.parametrize("name", ["bad.npz", "bad.json"])
def test_damaged_files_are_named(
    tmp_path: Path, bodies: list[Person], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = load_image(write_photo(tmp_path / "photos" / "p.png", noise(1)))
    out = tmp_path / "out"
    kinemesh.save(bodies, photo, out, formats=("npz",))
    whole = (out / "p.npz").read_bytes()
    (out / name).write_bytes(whole[: len(whole) // 2] if name.endswith("npz") else b"{bad")
    assert len(open_folder(out)[0]) == 1
    assert f"{name}' cannot be read" in capsys.readouterr().err
    (out / "p.npz").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        open_folder(out)


def test_a_damaged_member_is_named(
    tmp_path: Path, bodies: list[Person], capsys: pytest.CaptureFixture[str]
) -> None:
    photo = load_image(write_photo(tmp_path / "photos" / "p.png", noise(1)))
    out = tmp_path / "out"
    kinemesh.save(bodies, photo, out, formats=("npz",))
    content = bytearray((out / "p.npz").read_bytes())
    with zipfile.ZipFile(out / "p.npz") as archive:
        member = archive.getinfo("format.npy")
    start = member.header_offset + 30 + len("format.npy")
    content[start : start + member.compress_size] = b"\xff" * member.compress_size
    (out / "bad.npz").write_bytes(content)
    assert len(open_folder(out)[0]) == 1
    assert "bad.npz' cannot be read" in capsys.readouterr().err
