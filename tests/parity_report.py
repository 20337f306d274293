"""Compares the library with the official numbers and prints one line a case.

    python tests/parity_report.py --system metro
    python tests/parity_report.py --system graphormer --case graphormer_body_w64_train
    python tests/parity_report.py --system metro --manifest FILE --golden FOLDER --markdown

The manifest and the folder of goldens say everything: names and shapes of the tensors, widths,
depths, heads, backbones, graph flags, batch sizes, salts and the rules by which weights follow from
names. The exit status is 1 if a case fails and 2 if there is nothing to compare.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.parity import (
    Comparison,
    data,
    losses,
    metrics,
    pointhmr_data,
    pointhmr_losses,
    pointhmr_mesh,
    pointhmr_metrics,
    pointhmr_networks,
    potter_hands,
    potter_mesh,
    potter_networks,
    potter_weights,
    prtr_data,
    prtr_evaluation,
    prtr_losses,
    prtr_networks,
    topology,
)
from tests.parity.mesh_transformers import MeshTransformers
from tests.parity.networks import Case, read_manifest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "parity"
SHOWN_FAILURES = 10


class Networks(Protocol):
    """Compares the network cases of a system; keeps what they share."""

    def order(self, cases: list[Case]) -> list[Case]:
        """The order in which most is shared."""

    def compare(self, case: Case) -> Comparison:
        """Everything in the golden file of one case."""


@dataclass(frozen=True)
class System:
    """How the goldens of a system are compared.

    Attributes:
        networks: Makes what compares the cases of the manifest.
        others: Functions that compare further files of the golden folder, each as many as it finds.
        read: Reads the network cases from a manifest and the folder of goldens.
        by_manifest: As ``others``, for functions that also take the manifest.
    """

    networks: Callable[[], Networks]
    others: tuple[Callable[[Path], list[Comparison]], ...] = ()
    read: Callable[[Path, Path], list[Case]] = read_manifest
    by_manifest: tuple[Callable[[Path, Path], list[Comparison]], ...] = ()


SYSTEMS: dict[str, System] = {
    "metro": System(
        lambda: MeshTransformers("metro"),
        (topology.compare, data.compare, losses.compare, metrics.compare),
    ),
    "graphormer": System(
        lambda: MeshTransformers("graphormer"), (topology.compare, losses.compare)
    ),
    "pointhmr": System(
        pointhmr_networks.PointHmrNetworks,
        (
            pointhmr_mesh.compare,
            pointhmr_losses.compare,
            pointhmr_metrics.compare,
            pointhmr_data.compare,
        ),
        pointhmr_networks.read_manifest,
    ),
    "prtr": System(
        prtr_networks.PrtrNetworks,
        (prtr_data.compare, prtr_losses.compare, prtr_evaluation.compare),
        prtr_networks.read_manifest,
    ),
    "potter": System(
        potter_networks.PotterNetworks,
        (potter_weights.compare,),
        potter_networks.read_manifest,
        (potter_hands.compare, potter_mesh.compare),
    ),
}


def compare_system(
    name: str, manifest: Path, golden: Path, case: str | None = None, complete: bool = True
) -> Iterator[Comparison]:
    """Compare all cases of a system, or one.

    Args:
        name: Key of `SYSTEMS`.
        manifest: File with the network cases.
        golden: Folder with the golden files.
        case: Name of the only case wanted: of a network, or of another golden file.
        complete: A golden file that nothing is compared with is a failure.
    """
    system, seen = SYSTEMS[name], set()
    networks = system.networks()
    for entry in networks.order(system.read(manifest, golden)):
        seen.add(entry.name)
        if case in {None, entry.name}:
            yield _guarded(entry.name, lambda entry=entry: [networks.compare(entry)])[0]
    if case in seen:
        return
    parts = [(compare.__module__, partial(compare, golden)) for compare in system.others]
    parts += [
        (compare.__module__, partial(compare, golden, manifest)) for compare in system.by_manifest
    ]
    for module, compare in parts:
        for result in _guarded(module, compare):
            seen.add(result.name.split("/")[0])
            if case in {None, result.name, result.name.split("/")[0]}:
                yield result
    if case is None and complete:
        for path in sorted(golden.glob("*.npz")):
            if path.stem not in seen:
                why = f"{path.name}: neither a case of {manifest} nor known to any comparison"
                yield Comparison.broken(path.stem, why)


def _guarded(name: str, compare: Callable[[], list[Comparison]]) -> list[Comparison]:
    """An error in one case is its failure, and the others still run."""
    try:
        return compare()
    except Exception as error:  # whatever it is, the report names it
        return [Comparison.broken(name, f"{type(error).__name__}: {error}")]


def text_line(result: Comparison) -> str:
    """One line for a terminal."""
    return (
        f"{'pass' if result.passed else 'FAIL'}  {result.name:<28} {result.count:4d} arrays  "
        f"abs {result.absolute:8.2e}  rel {result.relative:8.2e}  tol {result.tolerance}  "
        f"used {result.used:4.0%} at {result.worst or '-'}"
    )


def markdown_line(result: Comparison) -> str:
    """One row of the table in docs/parity.md."""
    return (
        f"| {result.name} | {result.count} | {result.absolute:.1e} | {result.relative:.1e} | "
        f"{result.tolerance} | `{result.worst}`, {result.used:.0%} | "
        f"{'pass' if result.passed else '**FAIL**'} |"
    )


MARKDOWN_HEAD = (
    "| case | arrays | largest absolute difference | relative | tolerance | nearest to it | |\n"
    "|---|---|---|---|---|---|---|"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--system", required=True, choices=sorted(SYSTEMS))
    parser.add_argument("--manifest", type=Path, help="default: ../shared/parity/SYSTEM")
    parser.add_argument("--golden", type=Path, help="default: 'golden' beside the manifest")
    parser.add_argument("--case", help="only this network case or golden file")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    options = parser.parse_args(arguments)
    manifest = options.manifest or SHARED / options.system / "manifest.json"
    golden = options.golden or manifest.parent / "golden"
    for path in (manifest, golden):
        if not path.exists():
            parser.error(f"{path}: there is no such file or folder")
    if options.markdown:
        print(MARKDOWN_HEAD)
    results = []
    # Somebody's own manifest may speak of a part of a folder only; the delivered ones are complete.
    complete = options.manifest is None
    for result in compare_system(options.system, manifest, golden, options.case, complete):
        results.append(result)
        print(markdown_line(result) if options.markdown else text_line(result), flush=True)
        for failure in result.failures[:SHOWN_FAILURES]:
            print(f"      {failure}", file=sys.stderr)
        for note in result.skipped:
            print(f"      not compared: {note}", file=sys.stderr)
    if not results:
        print(f"nothing to compare: no case {options.case!r} in {manifest}", file=sys.stderr)
        return 2
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
