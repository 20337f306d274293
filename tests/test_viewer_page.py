"""The viewer's page in a real browser: Chromium without a window, drawing in software.

It needs Debian's ``chromium`` (or another Chromium or Chrome on the path) and playwright, which
steers it; playwright's own download of a browser does as well.
"""

import io
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kinemesh
from kinemesh.viewer.folder import open_folder
from kinemesh.viewer.viewer import Viewer
from kinemesh.viewer.viewpoints import viewpoint
from tests.fake_predictor import fake_people

pytest.importorskip("viser", reason="needs the extra view")
playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = pytest.mark.slow

PROGRAMS = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
OPTIONS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PATIENCE_S = 120  # with other programs on the same core, a frame takes seconds
PHOTO = (200, 150, 40)  # a colour that no mesh has


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    with playwright_api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("needs a Chromium, for example with: apt-get install chromium")
        chromium = playwright.chromium.launch(executable_path=found, args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    """Two photos of one colour each; two hands in the first, two bodies in the second."""
    folder = tmp_path_factory.mktemp("out")
    for stem, kind, color in (("a", "hand", PHOTO), ("b", "body", PHOTO[::-1])):
        pixels = np.full((200, 300, 3), color, np.uint8)
        path = folder / f"{stem}.png"
        Image.fromarray(pixels).save(path)
        kinemesh.save(fake_people(kind), path, folder, formats=["json"])
    shown = Viewer(open_folder(folder), 0)
    thread = threading.Thread(target=shown.run, daemon=True)
    thread.start()
    yield shown
    shown.stop()
    thread.join(timeout=30)


@pytest.fixture(scope="module")
def page(browser: Any, viewer: Viewer) -> Any:
    opened = browser.new_page(viewport={"width": 900, "height": 500})
    opened.asked = []
    opened.errors = []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.goto(viewer.url, timeout=1000 * PATIENCE_S)
    opened.get_by_text("Skeletons").wait_for(timeout=1000 * PATIENCE_S)
    return opened


def color_at(page: Any, viewer: Viewer, point: np.ndarray) -> np.ndarray:
    """Colour of the page where the photo's camera sees a point in metres."""
    scene = viewer._scene
    assert scene is not None
    box = page.locator("canvas").first.bounding_box()
    place = viewpoint("camera", scene.camera, scene.figures, box["width"] / box["height"])
    focal = box["height"] / 2 / math.tan(place.fov_rad / 2)
    x = box["x"] + box["width"] / 2 + focal * point[0] / point[2]
    y = box["y"] + box["height"] / 2 + focal * point[1] / point[2]
    picture = Image.open(io.BytesIO(page.screenshot(timeout=1000 * PATIENCE_S)))
    return np.array(picture.convert("RGB"))[int(y), int(x)].astype(int)


def wait_until(is_so: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if is_so():
            return True
        time.sleep(0.5)
    return False


def is_near(color: np.ndarray, expected: tuple[int, ...]) -> bool:
    return bool(np.abs(color - expected).max() < 12)


def right_border(viewer: Viewer) -> np.ndarray:
    """A point just within the right border of the photo, where nobody is."""
    camera = viewer._albums[0].scene(0).camera
    return np.array([0.98 * 150, 0.0, camera.focal_px])


def test_photo_and_people_stand_where_the_camera_saw_them(page: Any, viewer: Viewer) -> None:
    hand = viewer._albums[0].scene(0).figures[0].person
    middle = hand.vertices.mean(0)
    assert wait_until(lambda: is_near(color_at(page, viewer, right_border(viewer)), PHOTO))
    # just outside the border is the page, white
    outside = right_border(viewer) * [1.05, 1, 1]
    assert is_near(color_at(page, viewer, outside), (255, 255, 255))
    assert wait_until(lambda: not is_near(color_at(page, viewer, middle), PHOTO))
    red, _, blue = color_at(page, viewer, middle)
    assert blue > red - 40  # the first tint is blue; the photo is all but without blue


def test_parts_and_people_are_hidden(page: Any, viewer: Viewer) -> None:
    middle = viewer._albums[0].scene(0).figures[0].person.vertices.mean(0)
    page.get_by_label("hand_1_left").uncheck(timeout=1000 * PATIENCE_S)  # both are in one place
    page.get_by_label("hand_0_right").uncheck()
    assert wait_until(lambda: is_near(color_at(page, viewer, middle), PHOTO))
    page.get_by_label("hand_0_right").check()
    assert wait_until(lambda: not is_near(color_at(page, viewer, middle), PHOTO))
    page.get_by_label("Photo", exact=True).uncheck()
    border = right_border(viewer)
    assert wait_until(lambda: is_near(color_at(page, viewer, border), (255, 255, 255)))
    page.get_by_label("Photo", exact=True).check()
    assert wait_until(lambda: is_near(color_at(page, viewer, border), PHOTO))


def test_next_photo_and_other_views(page: Any, viewer: Viewer) -> None:
    border = right_border(viewer)
    page.get_by_role("button", name="Next").click()
    assert wait_until(lambda: is_near(color_at(page, viewer, border), PHOTO[::-1]))
    page.get_by_text("b.png").wait_for(timeout=1000 * PATIENCE_S)
    assert page.get_by_label("person_1").is_checked()
    (client,) = viewer._server.get_clients().values()
    page.get_by_role("button", name="Side").click()
    assert wait_until(lambda: client.camera.position[0] > 0.1)
    page.get_by_role("button", name="Camera").click()
    assert wait_until(lambda: np.abs(client.camera.position).max() < 1e-6)
    assert wait_until(lambda: is_near(color_at(page, viewer, border), PHOTO[::-1]))


def test_nothing_outside_this_machine_is_asked_for(page: Any, viewer: Viewer) -> None:
    assert all(url.startswith((viewer.url, "blob:", "data:")) for url in page.asked)
    assert page.errors == []
