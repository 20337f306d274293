"""``kinemesh train``: run a recipe."""

from collections.abc import Sequence

import tyro

from kinemesh.cli._shared import Verb, did_you_mean
from kinemesh.errors import InputError

_HELP = """Train a model by a recipe; every number of the recipe can be changed.

Examples:
  kinemesh train
      list the recipes
  kinemesh train synthetic-hand --help
      every number of one recipe
  kinemesh train synthetic-hand --steps 2000 --optim.lr 1e-4 --output runs/trial
      a short run; the same command again goes on where it stopped
  kinemesh train metro-freihand --data freihand:FreiHAND/ --assets mano/ --init hrnet.pth
      a published run, on data and body models of your own
"""


def train(arguments: Sequence[str]) -> int:
    """List the recipes, or run the one that the first argument names."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_HELP)
        _print_recipes()
        return 0
    from kinemesh.training.recipes import RECIPES

    name, *overrides = arguments
    if name not in RECIPES:
        raise InputError(
            f"There is no recipe '{name}'{did_you_mean(name, RECIPES)}. "
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


def _print_recipes() -> None:
    from kinemesh.training.recipes import RECIPES

    width = max(map(len, RECIPES)) + 2
    print("Recipes:")
    for name, recipe in RECIPES.items():
        print(f"  {name:<{width}}{(recipe.__doc__ or '').splitlines()[0]}")


VERBS = (Verb("train", "train by a recipe", train, parses_itself=True),)
