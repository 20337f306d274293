"""``kinemesh models``: the cards of the shipped models and of the networks without weights."""

from typing import Any

from kinemesh.cli._shared import Verb, console, plain


def models() -> int:
    """Show the cards of the shipped models, then the networks that can be trained or converted.

    A card tells licence, training data, size and scores.
    """
    from kinemesh.models.lifter_variants import LIFTER_VARIANTS
    from kinemesh.models.potter_variants import POTTER_VARIANTS
    from kinemesh.models.prtr_variants import KEYPOINT_VARIANTS
    from kinemesh.models.registry import cards
    from kinemesh.models.variants import VARIANTS

    found = cards()
    output = console()
    for card in found:
        output.print(_card_table(card))
    output.print(VARIANTS_HEADING)
    for variant in VARIANTS.values():
        output.print(_card_table(variant.card()))
    for keypoint_variant in KEYPOINT_VARIANTS.values():
        output.print(_card_table(keypoint_variant.card()))
    for potter_variant in POTTER_VARIANTS.values():
        output.print(_card_table(potter_variant.card()))
    for lifter_variant in LIFTER_VARIANTS.values():
        output.print(_card_table(lifter_variant.card()))
    if not found:
        print("No model is shipped in this installation. Look closer with: kinemesh doctor")
        return 1
    return 0


VARIANTS_HEADING = """\
[bold]Without weights[/]: networks to train on any mesh, or to fill from official checkpoints.
Parameters and multiply-adds are those of the published mesh (SMPL or MANO) or joints.
"""

_CARD_ROWS = {
    "task": "task",
    "architecture": "architecture",
    "paper": "paper",
    "backbone": "backbone",
    "mesh": "mesh",
    "skeleton": "skeleton",
    "resolution": "input",
    "size": "input",
    "parameters": "parameters",
    "gmac": "multiply-adds",
    "license": "licence",
    "data": "training data",
    "origin": "origin",
    "limits": "limits",
    "scores": "scores",
    "published": "published scores",
    "weights": "weights",
    "mean_shape_scores": "a constant mean shape",
    "evaluated_with": "scored with",
    "sha256": "SHA-256",
}
"""Keys of a card that are shown, and what each is called."""


def _card_table(card: dict[str, Any]) -> Any:
    """One card as two columns without borders, which any width can wrap."""
    from rich.table import Table

    title = f"[bold]{plain(str(card['name']))}[/]"
    table = Table(box=None, title=title, title_justify="left", show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for key, heading in _CARD_ROWS.items():
        if key in card:
            table.add_row(heading, plain(_card_value(key, card[key])))
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
    if key == "gmac":
        return f"{value} x 10^9 for one crop"
    return f"{value:,}" if key == "parameters" else str(value)


VERBS = (Verb("models", "models and networks, their licences and scores", models),)
