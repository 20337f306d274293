"""The page's server, asked through viser's own handles; the page itself is in test_viewer_page."""

import socket
import webbrowser
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kinemesh.cli import main
from kinemesh.errors import InputError, MissingExtraError
from kinemesh.formats.people_json import write_people_json
from kinemesh.inference.person import Person
from kinemesh.viewer import viewer as viewer_module
from kinemesh.viewer.folder import open_folder
from kinemesh.viewer.scenes import Scene, figures_of
from kinemesh.viewer.viewer import Viewer, open_browser, view
from tests.fake_predictor import fake_people

viser = pytest.importorskip("viser", reason="needs the extra view")
SIZE = (300, 200)


class Clip:
    """A video of one person who goes to the right, 10 cm a frame."""

    title, frame_rate_hz, names = "clip", 10.0, ("track_1", "track_2")

    def __init__(self) -> None:
        self.person = fake_people("body")[0]

    def __len__(self) -> int:
        return 5

    def scene(self, index: int) -> Scene:
        moved = replace(self.person, vertices=self.person.vertices + np.float32([index / 10, 0, 0]))
        figure = replace(figures_of([moved])[0], name="track_1")
        picture = np.full((20, 30, 3), 10 * index, np.uint8)
        return Scene(f"frame {index}", self.person.camera, (figure,), picture)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of two photos: bodies with hands, and one whose file is cut short."""
    people = [*fake_people("body"), *fake_people()]
    write_people_json(tmp_path / "a.json", people, SIZE, "a.jpg")
    content = (tmp_path / "a.json").read_bytes()
    (tmp_path / "b.json").write_bytes(content[: len(content) // 2])
    return tmp_path


@pytest.fixture
def opened() -> Iterator[list[Viewer]]:
    """Viewers that are stopped after the test."""
    viewers: list[Viewer] = []
    yield viewers
    for each in viewers:
        each.stop()


def node(viewer: Viewer, name: str) -> viser.SceneNodeHandle | None:
    return viewer._server.scene.get_handle_by_name(name)


def test_people_of_a_photo(folder: Path, opened: list[Viewer]) -> None:
    viewer = Viewer(open_folder(folder), 0)
    opened.append(viewer)
    people: list[Person] = [*fake_people("body"), *fake_people()]
    for name, person in zip(
        ("person_0", "person_1", "hand_2_right", "hand_3_left"), people, strict=True
    ):
        mesh = node(viewer, f"/people/{name}/mesh")
        np.testing.assert_allclose(mesh.vertices, person.vertices, atol=1e-5)
        np.testing.assert_array_equal(mesh.faces, person.faces)
        np.testing.assert_allclose(
            node(viewer, f"/people/{name}/joints").points, person.joints, atol=1e-5
        )
    assert node(viewer, "/backdrop") is None
    assert "--photos" in viewer._panel._title.content

    viewer._panel._people["hand_2_right"].value = False
    viewer._panel._skeletons.value = False
    viewer.update()
    assert not node(viewer, "/people/hand_2_right").visible
    assert node(viewer, "/people/person_0").visible
    assert not node(viewer, "/people/person_0/bones").visible


def test_a_damaged_file_is_told_and_the_others_are_shown(
    folder: Path, opened: list[Viewer]
) -> None:
    viewer = Viewer(open_folder(folder), 0)
    opened.append(viewer)
    viewer._panel.position = 1
    viewer.update()
    assert "b.json" in viewer._panel._title.content
    assert node(viewer, "/people/person_0") is None
    viewer._panel.position = 0
    viewer.update()
    assert node(viewer, "/people/person_0") is not None


def test_video_moves_the_same_nodes(opened: list[Viewer]) -> None:
    clip = Clip()
    viewer = Viewer([clip], 0)
    opened.append(viewer)
    mesh, backdrop = node(viewer, "/people/track_1/mesh"), node(viewer, "/backdrop")
    viewer._panel._people["track_2"].value = False
    viewer._panel.position = 3
    viewer.update()
    assert node(viewer, "/people/track_1/mesh") is mesh
    np.testing.assert_allclose(mesh.vertices[:, 0] - clip.person.vertices[:, 0], 0.3, atol=1e-6)
    assert backdrop.image.mean() == 30
    width, height = SIZE
    depth = backdrop.position[2]
    assert backdrop.render_width == pytest.approx(width * depth / clip.person.camera.focal_px)
    assert backdrop.render_height == pytest.approx(height * depth / clip.person.camera.focal_px)
    assert viewer._panel.look.hidden == {"track_2"}


def test_playback_keeps_time(opened: list[Viewer], monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = Viewer([Clip()], 0)
    opened.append(viewer)
    now = [50.0]
    monkeypatch.setattr(viewer_module.time, "perf_counter", lambda: now[0])
    viewer._panel._toggle_play(None)
    positions = []
    for passed in (0.0, 0.1, 0.3, 0.1):
        now[0] += passed
        viewer.update()
        positions.append(viewer._panel.position)
    assert positions == [0, 1, 4, 0]
    viewer._panel._toggle_play(None)
    now[0] += 5
    viewer.update()
    assert viewer._panel.position == 0


def test_photos_and_a_video_in_one_folder(folder: Path, opened: list[Viewer]) -> None:
    viewer = Viewer([*open_folder(folder), Clip()], 0)
    opened.append(viewer)
    assert not viewer._panel._play.visible
    viewer._panel._albums.value = viewer._panel._albums.options[1]
    viewer.update()
    assert node(viewer, "/people/track_1") is not None
    assert node(viewer, "/people/person_0") is None
    assert viewer._panel._play.visible
    assert (viewer._panel._slider.label, viewer._panel._slider.max) == ("Frame", 5)


def test_busy_port_is_refused_and_else_the_next_is_taken(
    folder: Path, opened: list[Viewer], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port}.*--port"):
            Viewer(open_folder(folder), port)
        monkeypatch.setattr(viewer_module, "FIRST_PORT", port)
        viewer = Viewer(open_folder(folder))
        opened.append(viewer)
        assert viewer.url != f"http://localhost:{port}"
    with pytest.raises(InputError, match="--port"):
        Viewer(open_folder(folder), 99999)
    for host in ("no..name", "203.0.113.5"):  # no name at all, and an address of nobody here
        with pytest.raises(InputError, match=f"--host: '{host}' is no address") as told:
            Viewer(open_folder(folder), None, host)
        assert "port" not in str(told.value)


def test_ctrl_c_ends_it_cleanly(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = []

    def interrupted(self: Viewer) -> None:
        pages.append(self)
        with socket.create_connection(("127.0.0.1", self._server.get_port()), timeout=10):
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(Viewer, "run", interrupted)
    monkeypatch.setattr(viewer_module, "open_browser", pages.append)
    assert main(["view", str(folder), "--port", "0"]) == 0
    url, viewer = pages
    assert url == viewer.url
    output = capsys.readouterr().out
    assert output.splitlines() == [f"The results are at {url} (Ctrl-C ends it).", "", "Stopped."]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=10)


def test_run_ends_when_it_is_stopped(folder: Path) -> None:
    viewer = Viewer(open_folder(folder), 0)
    viewer.stop()
    viewer.run()


def test_text_browsers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    opened_urls = []

    class Window(webbrowser.BackgroundBrowser):
        def open(self, url: str, new: int = 0, autoraise: bool = True) -> bool:
            opened_urls.append(url)
            return True

    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("no-such-browser"))
    assert not open_browser("http://localhost:1")
    monkeypatch.setattr(webbrowser, "get", lambda: Window("no-such-browser"))
    assert open_browser("http://localhost:2")
    assert opened_urls == ["http://localhost:2"]


def test_wrong_folder_and_missing_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["view", str(tmp_path / "gone")]) == 2
    assert "kinemesh predict" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "viser", None)
    with pytest.raises(MissingExtraError, match=r"kinemesh\[view\]"):
        view(tmp_path)
