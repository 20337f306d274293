"""``kinemesh view``: results in a browser."""

from pathlib import Path
from typing import Annotated

import tyro

from kinemesh.cli._shared import Verb, shown_as

Folder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
Photos = Annotated[Path | None, shown_as("FOLDER")]
Port = Annotated[int | None, shown_as("NUMBER")]

_HELP = """Look at results in a browser: photo or video, meshes and skeletons in 3D. Works offline.

Examples:
  kinemesh view out/
      everything in out/: photos behind a slider, videos with playback
  kinemesh view out/ --photos holiday/
      the photos are in holiday/ (else they are looked for in out/, above it, and here)
  kinemesh view out/ --port 9000 --no-browser
      print the address alone, for a browser that you open yourself

Ctrl-C ends it.
"""


def view(
    folder: Folder,
    photos: Photos = None,
    port: Port = None,
    host: str = "127.0.0.1",
    browser: bool = True,
) -> int:
    """Look at results in a browser.

    Args:
        folder: Where kinemesh predict wrote its results.
        photos: Where the photos and videos are, if they are not found.
        port: Port of the page; the first free one from 8080 if left out.
        host: Address of the page; 0.0.0.0 lets other machines see it.
        browser: Open the page.
    """
    from kinemesh.viewer.viewer import view as show

    show(folder, photos, port, host, browser=browser)
    return 0


VERBS = (Verb("view", "results in a browser, in 3D", view, _HELP),)
