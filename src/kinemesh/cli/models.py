"""``kinemesh models``: the cards of the shipped models and of the networks without weights."""

from collections.abc import Callable
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
    "calibration": "expected errors",
    "groups": "by group",
    "real": "real photos",
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
    if key in ("scores", "mean_shape_scores"):
        return "\n".join(_score(item) for item in value)
    if key in _TERSE:
        return "\n".join(_TERSE[key](value))
    if key == "resolution":
        return f"{value} x {value} pixels"
    if key == "sha256":
        return f"{value[:16]}... (kinemesh doctor compares it with the file)"
    if key == "gmac":
        return f"{value} x 10^9 for one crop"
    return f"{value:,}" if key == "parameters" else str(value)


def _score(item: dict[str, Any]) -> str:
    """One score of a card, in a line."""
    from kinemesh.metrics import MetricReport

    if "values" not in item:
        return str(MetricReport(**item))
    # a detector's: what is in the table of `kinemesh.evaluation.detection.DetectionResult`
    numbers = ", ".join(
        f"{name} {'-' if value is None else format(value, '.3f')}"
        for name, value in item["values"].items()
    )
    counts = ", ".join(f"{count} {name}" for name, count in item["counts"].items())
    return f"{numbers} on {item['dataset']} ({counts}; {'; '.join(item['protocol']['rules'])})"


def _expected_errors(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"{row['joints']}: wrong by {row['expected_calibration_error']:.2f} {row['unit']} on the "
        f"mean, rank correlation with the true error {row['rank_correlation']:.2f}"
        for row in rows
    ]


def _groups(rows: list[dict[str, Any]]) -> list[str]:
    """PA-MPJPE of each group, a line a trait."""
    traits = dict.fromkeys(row["trait"] for row in rows)
    return [
        f"PA-MPJPE mm by {trait}: "
        + ", ".join(f"{r['group']} {r['pa_mpjpe_mm']:.1f}" for r in rows if r["trait"] == trait)
        for trait in traits
    ]


def _real_photos(record: dict[str, Any]) -> list[str]:
    """The line of all sets; the card's file has each of them."""
    everything = record["scores"][-1]
    parts = [f"{everything['error_px']:.1f} px of 256", f"PCK {everything['pck_2d']:.2f}"]
    if "pa_mpjpe_mm" in everything:
        parts.insert(0, f"PA-MPJPE {everything['pa_mpjpe_mm']:.1f} mm")
    return [
        f"{', '.join(parts)} on {everything['samples']} labelled boxes ({record['date']}; "
        "docs/real-photos.md)"
    ]


_TERSE: dict[str, Callable[[Any], list[str]]] = {
    "calibration": _expected_errors,
    "groups": _groups,
    "real": _real_photos,
}


VERBS = (Verb("models", "models and networks, their licences and scores", models),)
