"""The verbs of the command line, thin over the Python interface.

Each verb is a function whose signature tyro turns into options; the modules that do the work are
imported inside, so that ``kinemesh --help`` answers at once. A new verb is a file with its
``VERBS`` and a line in ``_FILES`` below; a name of two words makes a group of its first one.
"""

import sys
import warnings
from collections.abc import Sequence

import kinemesh
from kinemesh.cli import convert, data, doctor, evaluate, models, predict, prepare, train, view
from kinemesh.cli._shared import Verb, did_you_mean, print_error
from kinemesh.errors import InputError, KinemeshError

_FILES = (
    predict,
    view,
    models,
    convert,
    train,
    evaluate,
    data,
    prepare,
    doctor,
)
"""In the order of the overview."""

VERBS: dict[str, Verb] = {verb.name: verb for file in _FILES for verb in file.VERBS}
"""Every verb by its name of one or two words."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the ``kinemesh`` command.

    Args:
        arguments: Words after ``kinemesh``; None takes those of the process.

    Returns:
        Exit code: 0 done, 1 something failed, 2 wrong usage or input, 130 Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    shown = warnings.formatwarning
    warnings.formatwarning = _notice
    try:
        return _dispatch(words)
    except InputError as error:
        print_error(error)
        return 2
    except KinemeshError as error:
        print_error(error)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output went away, as `head` does
            sys.stderr.close()
            return 1
        print_error(error)
        return 1
    finally:
        warnings.formatwarning = shown


def _notice(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """What Python prints for a warning; one for the user goes without the place in our code."""
    if category is UserWarning:
        return f"kinemesh: warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _dispatch(words: list[str]) -> int:
    _refuse_empty(words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"kinemesh {kinemesh.__version__}")
        return 0
    is_group = words[0] not in VERBS and any(name.startswith(f"{words[0]} ") for name in VERBS)
    if is_group and words[1:2] in ([], ["-h"], ["--help"]):
        print(_overview(f"{words[0]} "))
        return 0 if len(words) > 1 else 2
    two = " ".join(words[:2])
    name = two if is_group or two in VERBS else words[0]
    if name not in VERBS:
        raise InputError(
            f"There is no command 'kinemesh {name}'{did_you_mean(name, VERBS)}. "
            "List them with: kinemesh --help"
        )
    return VERBS[name](words[len(name.split()) :])


def _overview(prefix: str = "") -> str:
    verbs = {name: verb for name, verb in VERBS.items() if name.startswith(prefix)}
    width = max(len(name) for name in verbs) + 2
    lines = [f"  kinemesh {name:<{width}}{verb.summary}" for name, verb in verbs.items()]
    lines = ["Commands (each explains itself with --help):", *lines]
    if prefix:
        return "\n".join(lines)
    return "\n".join(
        [
            "Recovers people from pictures: joints, body and hand meshes, offline.",
            "",
            *lines,
            "",
            "Begin with:",
            "  kinemesh predict photo.jpg --out out/",
            "  kinemesh predict hand.jpg --task hand --out out/",
            "",
            "kinemesh --version prints the version.",
        ]
    )


def _refuse_empty(words: Sequence[str]) -> None:
    """Refuse an empty word, which would else mean the present folder; often an unset variable."""
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=")
        if word.startswith("--") and equals and not value.strip():
            raise InputError(f"{option} is empty. Give it a value or leave it out.")
        if not word.strip():
            what = before if before.startswith("--") else "An argument"
            raise InputError(f"{what} is empty. Give it a value or leave it out.")
