"""The viewer: a small web server on this machine that shows results in a browser."""

import contextlib
import errno
import io
import socket
import threading
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kinemesh.errors import InputError
from kinemesh.optional import require
from kinemesh.viewer.folder import open_folder
from kinemesh.viewer.panel import Panel
from kinemesh.viewer.player import Player
from kinemesh.viewer.scenes import Album, Scene
from kinemesh.viewer.stage import Stage
from kinemesh.viewer.viewpoints import ViewName, Viewpoint, viewpoint

if TYPE_CHECKING:
    import viser

FIRST_PORT = 8080
_PORTS_TRIED = 100
_LONGEST_WAIT_S = 0.5  # so that Ctrl-C is heard on every system
_SAME_PLACE_M = 1e-3


class Viewer:
    """A page with the results of photos and videos.

    The server runs in threads of its own; `run` must be going for the page to answer.

    Args:
        albums: What can be seen, at least one.
        port: Port to listen on; None takes the first free one from 8080.
        host: Address to listen on. The default is reached from this machine alone.

    Attributes:
        url: Address of the page.

    Raises:
        InputError: The address or the port cannot be had.
        MissingExtraError: viser is not installed.
    """

    def __init__(
        self, albums: Sequence[Album], port: int | None = None, host: str = "127.0.0.1"
    ) -> None:
        self._albums = tuple(albums)
        self._server = _start_server(host, port)
        self._wake = threading.Event()
        self._stopped = False
        self._aspects: dict[int, float] = {}
        self._stage = Stage(self._server)
        self._panel = Panel(self._server.gui, self._albums, self._wake.set, self._aim_all)
        self._player = Player()
        self._album = -1
        self._position = -1
        self._scene: Scene | None = None
        self._show_chosen()
        self._server.on_client_connect(self._welcome)
        self._server.on_client_disconnect(lambda client: self._forget(client.client_id))
        shown = "localhost" if host in ("127.0.0.1", "0.0.0.0") else host
        self.url = f"http://{shown}:{self._server.get_port()}"

    def run(self) -> None:
        """Answer the page until `stop` is called from another thread, or Ctrl-C."""
        while not self._stopped:
            self._wake.wait(self._pause_s())
            self._wake.clear()
            self.update()

    def update(self) -> None:
        """Show what the page asks for now."""
        if self._panel.playing and self._panel.album == self._album:
            album = self._albums[self._album]
            self._panel.position = self._player.due(
                self._panel.position, len(album), self._rate_hz(), time.perf_counter()
            )
        else:
            self._player.stop()
        self._show_chosen()

    def stop(self) -> None:
        """End `run` and the server."""
        self._stopped = True
        self._wake.set()
        with contextlib.redirect_stdout(io.StringIO()):  # viser tells that it stopped
            self._server.stop()

    def _rate_hz(self) -> float:
        return (self._albums[self._album].frame_rate_hz or 1.0) * self._panel.speed

    def _pause_s(self) -> float:
        return min(_LONGEST_WAIT_S, 1 / self._rate_hz()) if self._panel.playing else _LONGEST_WAIT_S

    def _show_chosen(self) -> None:
        if self._panel.album != self._album:
            self._album, self._position = self._panel.album, -1
            self._panel.choose(self._albums[self._album])
        album = self._albums[self._album]
        position = min(self._panel.position, len(album) - 1)
        if position != self._position:
            self._position = position
            self._open(album, position)
        self._stage.show(self._scene, self._panel.look)

    def _open(self, album: Album, position: int) -> None:
        before = self._scene
        try:
            self._scene = album.scene(position)
        except InputError as error:
            self._scene = None
            self._panel.complain(str(error))
            return
        self._panel.describe(album, self._scene)
        if before is None or before.camera != self._scene.camera:
            self._aim_those_at_camera()

    def _welcome(self, client: "viser.ClientHandle") -> None:
        self._aim(client, "camera")
        client.camera.on_update(lambda _: self._fit(client))

    def _forget(self, client_id: int) -> None:
        self._aspects.pop(client_id, None)

    def _fit(self, client: "viser.ClientHandle") -> None:
        """Fit the photo to a window that has another shape than before."""
        if client.camera.aspect != self._aspects.get(client.client_id) and _is_at_camera(client):
            self._aim(client, "camera")

    def _aim_those_at_camera(self) -> None:
        for client in self._server.get_clients().values():
            if _is_at_camera(client):
                self._aim(client, "camera")

    def _aim_all(self, name: ViewName) -> None:
        for client in self._server.get_clients().values():
            self._aim(client, name)

    def _aim(self, client: "viser.ClientHandle", name: ViewName) -> None:
        scene, camera = self._scene, client.camera
        if scene is None:
            return
        self._aspects[client.client_id] = camera.aspect
        _move(client, viewpoint(name, scene.camera, scene.figures, camera.aspect))


def view(
    folder: str | Path,
    photos: str | Path | None = None,
    port: int | None = None,
    host: str = "127.0.0.1",
    *,
    browser: bool = True,
) -> None:
    """Show the results in a folder in the browser, until Ctrl-C.

    Args:
        folder: Where ``kinemesh predict`` wrote its results.
        photos: Folder of the photos and videos themselves, if it is not plain where they are.
        port: Port to listen on; None takes the first free one from 8080.
        host: Address to listen on; "0.0.0.0" lets other machines see the page.
        browser: Whether to open a browser.

    Raises:
        InputError: There is nothing to see in the folder, or the port cannot be had.
        MissingExtraError: viser is not installed.
    """
    require("viser", "view")
    viewer = Viewer(open_folder(folder, photos), port, host)
    print(f"The results are at {viewer.url} (Ctrl-C ends it).", flush=True)
    try:
        if browser:
            open_browser(viewer.url)
        viewer.run()
    except KeyboardInterrupt:
        print("\nStopped.")
    finally:
        viewer.stop()


def open_browser(url: str) -> bool:
    """Open a page in a browser with a window; one that would take over the terminal is left.

    Returns:
        Whether there was a browser to open it in.
    """
    try:
        controller = webbrowser.get()
    except webbrowser.Error:
        return False
    # exactly this class stands for text browsers, those with windows are subclasses
    return type(controller) is not webbrowser.GenericBrowser and controller.open(url)


def _start_server(host: str, port: int | None) -> "viser.ViserServer":
    module = require("viser", "view")
    free = _free_port(host, port)
    with contextlib.redirect_stdout(io.StringIO()):  # viser's own lines, of a server named viser
        server: viser.ViserServer = module.ViserServer(host, free, label="kinemesh", verbose=False)
    # The share button would lead to a server outside this machine.
    server.gui.configure_theme(show_logo=False, show_share_button=False)
    server.gui.main_panel.dock_right()  # beside the photo, not over it
    return server


def _free_port(host: str, port: int | None) -> int:
    """A port that can be had; viser itself would take another than was asked for."""
    wanted = range(FIRST_PORT, FIRST_PORT + _PORTS_TRIED) if port is None else [port]
    problem = ""
    try:
        socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(_no_address(host)) from error
    for candidate in wanted:
        try:
            with socket.create_server((host, candidate)) as listener:
                return int(listener.getsockname()[1])
        except (OSError, OverflowError) as error:
            if getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
                raise InputError(_no_address(host)) from error
            problem = getattr(error, "strerror", None) or str(error)
    named = f"port {port}" if port is not None else f"any port from {FIRST_PORT}"
    raise InputError(
        f"Cannot listen on {named} of '{host}': {problem.rstrip('.')}. Choose another with --port, "
        "or leave --port and --host out."
    )


def _no_address(host: str) -> str:
    return (
        f"--host: '{host}' is no address of this machine. Leave --host out, or give 0.0.0.0 to let "
        "other machines see the page."
    )


def _is_at_camera(client: "viser.ClientHandle") -> bool:
    """Whether a page still looks through the photo's camera, which stands at the origin."""
    return float(np.linalg.norm(client.camera.position)) < _SAME_PLACE_M


def _move(client: "viser.ClientHandle", place: Viewpoint) -> None:
    with client.atomic():
        client.camera.up_direction = place.up
        client.camera.position = place.position
        client.camera.look_at = place.look_at
        client.camera.fov = place.fov_rad
