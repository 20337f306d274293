"""The controls of the page."""

import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kinemesh.viewer.scenes import Album, Scene
from kinemesh.viewer.stage import Look
from kinemesh.viewer.viewpoints import ViewName

if TYPE_CHECKING:
    import viser

SPEEDS = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5, "1": 1.0, "2": 2.0}
_VIEWS: dict[str, ViewName] = {"Camera": "camera", "Side": "side", "Above": "above"}


class Panel:
    """Controls that say what is wanted; the viewer asks them and never waits for them.

    Callbacks of the page come in threads of their own. All they do is to note what was pressed and
    to call ``wake``.

    Args:
        gui: Where the controls are made.
        albums: What can be chosen.
        wake: Called after every change by the user, in any thread.
        aim: Called with a viewpoint when its button is pressed, in any thread.
    """

    def __init__(
        self,
        gui: "viser.GuiApi",
        albums: Sequence[Album],
        wake: Callable[[], None],
        aim: Callable[[ViewName], None],
    ) -> None:
        self._gui = gui
        self._wake = wake
        self._people: dict[str, viser.GuiInputHandle[bool]] = {}
        self._people_of: Album | Scene | None = None
        self.playing = False
        titles = [f"{index}. {album.title}" for index, album in enumerate(albums, start=1)]
        self._albums = self._watched(
            gui.add_dropdown("Results", titles, initial_value=titles[0], visible=len(albums) > 1)
        )
        self._title = gui.add_html("")
        self._slider = self._watched(gui.add_slider("Photo", 1, 2, 1, 1))
        self._steps = gui.add_button_group("Step", ["Previous", "Next"])
        self._steps.on_click(self._step)
        self._play = gui.add_button("Play")
        self._play.on_click(self._toggle_play)
        self._speed = self._watched(gui.add_dropdown("Speed", list(SPEEDS), initial_value="1"))
        views = gui.add_button_group("View from", list(_VIEWS))
        views.on_click(lambda event: aim(_VIEWS[event.target.value]))
        with gui.add_folder("Show"):
            usual = Look()
            self._backdrop = self._watched(gui.add_checkbox("Photo", usual.backdrop))
            self._meshes = self._watched(gui.add_checkbox("Meshes", usual.meshes))
            self._skeletons = self._watched(gui.add_checkbox("Skeletons", usual.skeletons))
            self._names = self._watched(gui.add_checkbox("Names", usual.names))
            self._opacity = self._watched(
                gui.add_slider("Opacity", 0.1, 1.0, 0.05, usual.opacity, hint="Of the meshes.")
            )
        self._list = gui.add_folder("People")

    @property
    def album(self) -> int:
        """Index of the chosen album."""
        return int(self._albums.value.split(".", maxsplit=1)[0]) - 1

    @property
    def position(self) -> int:
        """Index of the chosen scene."""
        return int(self._slider.value) - 1

    @position.setter
    def position(self, index: int) -> None:
        self._slider.value = index + 1

    @property
    def speed(self) -> float:
        """How much faster than real time a video is played."""
        return SPEEDS[self._speed.value]

    @property
    def look(self) -> Look:
        """What is to be seen."""
        return Look(
            backdrop=self._backdrop.value,
            meshes=self._meshes.value,
            skeletons=self._skeletons.value,
            names=self._names.value,
            opacity=self._opacity.value,
            hidden=frozenset(name for name, box in self._people.items() if not box.value),
        )

    def choose(self, album: Album) -> None:
        """Fit the controls to another album and go to its first scene."""
        is_video = album.frame_rate_hz is not None
        several = len(album) > 1
        self._stop()
        self._slider.label = "Frame" if is_video else "Photo"
        self._slider.max = max(2, len(album))
        self._slider.value = 1
        self._slider.visible = self._steps.visible = several
        self._play.visible = self._speed.visible = is_video and several

    def describe(self, album: Album, scene: Scene) -> None:
        """Say what is shown, and list its people; the list of a video stays."""
        width, height = scene.camera.image_size
        self._title.content = _paragraphs(
            f"<b>{html.escape(scene.title)}</b>",
            f"{_people(len(scene.figures))}, {width} x {height} px, "
            f"focal length {scene.camera.focal_px:.0f} px",
            html.escape(scene.note),
        )
        if album.names is not None:
            self._list_people(album, album.names)
        else:
            self._list_people(scene, [figure.name for figure in scene.figures])

    def complain(self, message: str) -> None:
        """Say why a scene cannot be shown."""
        self._title.content = _paragraphs(html.escape(message))
        self._list_people(None, ())

    def _list_people(self, owner: Album | Scene | None, names: Sequence[str]) -> None:
        """List people, all of them shown, unless they belong to the same owner as before."""
        if owner is self._people_of and owner is not None:
            return
        self._people_of = owner
        for box in self._people.values():
            box.remove()
        with self._list:
            self._people = {
                name: self._watched(self._gui.add_checkbox(name, True)) for name in names
            }
        self._list.visible = bool(names)

    def _watched(self, handle: Any) -> Any:
        handle.on_update(lambda _: self._wake())
        return handle

    def _step(self, event: Any) -> None:
        count = int(self._slider.max)
        step = 1 if event.target.value == "Next" else -1
        self._stop()
        self._slider.value = (int(self._slider.value) - 1 + step) % count + 1
        self._wake()

    def _toggle_play(self, _: object) -> None:
        if self.playing:
            self._stop()
        else:
            self.playing, self._play.label = True, "Pause"
        self._wake()

    def _stop(self) -> None:
        self.playing, self._play.label = False, "Play"


def _people(count: int) -> str:
    return "nobody" if count == 0 else "1 person" if count == 1 else f"{count} people"


def _paragraphs(*texts: str) -> str:
    style = "margin: 0.3em 0.9em; font-size: 0.85em; overflow-wrap: anywhere"
    return "".join(f'<p style="{style}">{text}</p>' for text in texts if text)
