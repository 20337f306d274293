"""``kinemesh doctor``: what is installed, what is missing, and how to mend it."""

from typing import TYPE_CHECKING

from kinemesh.cli._shared import Assets, Verb, console, plain

if TYPE_CHECKING:
    from kinemesh.doctor import Check


def doctor(assets: Assets = None) -> int:
    """Show versions, devices, extras and weights, and the commands that mend what is missing.

    Args:
        assets: Look into this folder instead: which of the files for SMPL and MANO it has, which
            are missing or damaged, what each is needed for and where it comes from. The exit code
            is 0 if all that a body or all that a hand needs is there.
    """
    from kinemesh.doctor import examine, examine_assets, has_complete_set, is_healthy

    if assets is not None:
        checks = examine_assets(assets)
        _show(f"kinemesh doctor --assets {assets}", checks)
        for check in checks:
            if check.place:  # below the table, since a cell would break a path into lines
                print(f"{check.status}: {check.place}")
        return 0 if has_complete_set(checks) else 1
    checks = examine()
    _show("kinemesh doctor", checks)
    for check in checks:
        if check.mend:  # below the table, as the paths
            print(f"To mend {check.name}:\n  {check.mend}")
    return 0 if is_healthy(checks) else 1


def _show(title: str, checks: "list[Check]") -> None:
    from rich.table import Table

    table = Table(title=plain(title))
    for heading in ("", "what", "found"):
        table.add_column(heading, overflow="fold")
    styles = {"ok": "green", "missing": "yellow", "broken": "red"}
    for check in checks:
        status = f"[{styles[check.status]}]{check.status}[/]"
        table.add_row(status, plain(check.name), plain(check.detail))
    console().print(table)


VERBS = (Verb("doctor", "what is installed, what is missing, and how to mend it", doctor),)
