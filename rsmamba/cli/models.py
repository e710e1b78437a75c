"""List the backbones with what they cost."""

import argparse
import re
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from rsmamba.errors import UnknownModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rsmamba.models.cost import Cost

HELP = (
    "List the backbones: parameters with a head for 1000 classes, multiply-adds for one image "
    "(matrix products, convolutions, scans, state fusion; of a pyramid, its features), strides and "
    "widths of the feature levels. Any of these names goes into timm.create_model, and with tu- in "
    "front into segmentation_models_pytorch and TorchGeo."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument(
        "pattern",
        nargs="?",
        default="*",
        help="part of a name (roma_base), or all of it with wildcards ('roma_*_patch16')",
    )
    parser.add_argument(
        "--size", type=int, default=224, help="side of the image in pixels (default: 224)"
    )
    parser.add_argument("--markdown", action="store_true", help="print a table for a document")


def our_models() -> list[str]:
    """timm names of the registered models that are rsmamba's."""
    import timm

    import rsmamba.models  # noqa: F401  (registers them)

    return [
        name
        for name in timm.list_models()
        if timm.model_entrypoint(name).__module__.startswith("rsmamba.models.")
    ]


def select(pattern: str) -> list[str]:
    """Names that a pattern describes.

    Raises:
        UnknownModelError: If there are none; names the nearest.
    """
    names = our_models()
    wildcard = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    if found := [name for name in names if fnmatch(name, wildcard.lower())]:
        return found
    near = get_close_matches(pattern.strip("*").lower(), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "`rsmamba models` lists them"
    raise UnknownModelError(f"no model is called {pattern!r}: {hint}")


def table(costs: "Sequence[Cost]", markdown: bool = False) -> str:
    """Costs as text, one line per model."""
    height, width = costs[0].size
    rows = [("model", "parameters", f"multiply-adds at {height} x {width}", "strides", "widths")]
    rows += [
        (
            cost.name,
            f"{cost.parameters:,}",
            f"{cost.multiply_adds / 1e9:.2f} G",
            " ".join(map(str, cost.strides)),
            # Of the levels if they differ.
            " ".join(map(str, dict.fromkeys(cost.channels))),
        )
        for cost in costs
    ]
    if markdown:
        rows.insert(1, ("---", "---:", "---:", "---", "---"))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in (1, 2) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def run(args: argparse.Namespace) -> int:
    """Print the table, families in turn and the smallest model first."""
    names = select(args.pattern)
    from rsmamba.models.cost import cost

    costs = [cost(name, args.size) for name in names]
    costs.sort(key=lambda c: (re.sub("tiny|small|base|large", "", c.name), c.parameters))
    print(table(costs, args.markdown))
    return 0
