"""What the verbs share: the form of a verb, types of options, the console, small writers."""

import difflib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec


@dataclass(frozen=True)
class Verb:
    """One or two words of the command line and what is behind them.

    Attributes:
        name: The words after ``kinemesh``.
        summary: Its line in the overview.
        run: Its function, whose signature tyro turns into options; it returns the exit code.
        description: Long help in place of the function's own docstring.
        parses_itself: Whether ``run`` takes the list of words that follow in place of options.
    """

    name: str
    summary: str
    run: Callable[..., int]
    description: str | None = None
    parses_itself: bool = False

    def __call__(self, words: list[str]) -> int:
        """Run it with the words after its name."""
        if self.parses_itself:
            return self.run(words)
        program = f"kinemesh {self.name}"
        return tyro.cli(self.run, prog=program, description=self.description, args=words)


def one_of(*choices: str) -> PrimitiveConstructorSpec[Any]:
    """An option that takes one of some words and may be left out; tyro would offer None too."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="|".join(choices),
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: value is None or value in choices,
        str_from_instance=lambda value: [str(value)],
        choices=choices,
    )


def shown_as(metavar: str | None = None) -> Any:
    """How the help shows an option that may be left out: without tyro's "(default: None)"."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


Assets = Annotated[Path | None, shown_as("FOLDER")]
"""A folder with the body model files of the user."""
DeviceName = Literal["auto", "cpu", "cuda"]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest known word, or an empty text."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def counted(number: int, what: str) -> str:
    """``"1 frame"`` or ``"2 frames"``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def write_picture(path: Path, pixels: Any) -> None:
    """Write (H, W, 3) uint8 RGB as PNG or JPEG, by the suffix; folders are made."""
    import cv2

    from kinemesh.files import write_bytes

    _, encoded = cv2.imencode(path.suffix, pixels[:, :, ::-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, encoded.tobytes())


def console(*, stderr: bool = False) -> Any:
    """A rich console on stdout or stderr."""
    from rich.console import Console

    return Console(stderr=stderr)


def plain(text: str) -> str:
    """Text that rich prints as it is, without reading marks in brackets."""
    from rich.markup import escape

    return escape(text)


def print_error(error: Exception) -> None:
    """Say on stderr what went wrong."""
    print(f"kinemesh: {error}", file=sys.stderr)
