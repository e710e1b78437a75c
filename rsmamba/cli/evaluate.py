"""Compare a class map with the truth."""

import argparse
import json
from pathlib import Path

HELP = "Compare a class map with a truth raster or truth polygons, beside constant answers."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("map", help="class map (GeoTIFF), as `rsmamba map` writes it")
    parser.add_argument("truth", help="raster on the same grid, or polygons in any CRS")
    parser.add_argument("--attribute", help="column of the polygons that holds class names")
    parser.add_argument("--report", type=Path, help="also write all figures to this JSON file")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing report")


def run(args: argparse.Namespace) -> int:
    """Print the table; write the report."""
    from rich.console import Console
    from rich.table import Table

    from rsmamba import samples
    from rsmamba.files import check_output, write_text
    from rsmamba.gis.evaluate import evaluate

    if args.report:
        check_output(args.report, overwrite=args.overwrite)
    result = evaluate(args.map, samples.resolve(args.truth), attribute=args.attribute)
    table = Table(title=f"{args.map}: {result.pixels:,} pixels compared")
    table.add_column("answer")
    table.add_column("overall accuracy", justify="right")
    table.add_column("mean IoU", justify="right")
    for name in result.classes:
        table.add_column(f"IoU / F1\n{name}", justify="right")
    rows = {"this map": result} | {
        f"all {name}" + (" (majority)" if i == result.majority else ""): result.constant(i)
        for i, name in enumerate(result.classes)
    }
    for label, row in rows.items():
        cells = [f"{i:.3f} / {f:.3f}" for i, f in zip(row.iou, row.f1, strict=True)]
        table.add_row(label, f"{row.overall_accuracy:.3f}", f"{row.iou.mean():.3f}", *cells)
    Console().print(table)
    if args.report:
        write_text(args.report, json.dumps(result.to_dict(), indent=2))
    return 0
