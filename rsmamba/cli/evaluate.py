"""Compare a class map with the truth."""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from rsmamba.gis.scores import Evaluation

HELP = (
    "Compare a class map with a truth raster or truth polygons: confusion matrix, accuracy, F1, "
    "IoU and kappa, by class and by area of interest, beside constant answers."
)
# Beside more classes than this, only the majority's constant answer is printed.
_CONSTANTS = 4


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("map", help="class map (GeoTIFF), as `rsmamba map` writes it")
    parser.add_argument(
        "truth",
        help="raster of classes on the grid of the map (or see --align), or polygons in any CRS: "
        "a file, or sample:NAME/FILE",
    )
    polygons = parser.add_argument_group("truth polygons")
    polygons.add_argument(
        "--attribute",
        metavar="COLUMN",
        help="column that holds class names or pixel values (default: every polygon is class 1 "
        "and the rest class 0, for maps of two classes)",
    )
    polygons.add_argument(
        "--outside",
        metavar="CLASS",
        help="class outside all polygons (default: with --attribute these pixels are not "
        "compared, without it they are class 0)",
    )
    raster = parser.add_argument_group("truth rasters")
    raster.add_argument(
        "--ignore",
        type=int,
        nargs="+",
        default=[255],
        metavar="VALUE",
        help="values that are not compared, beside nodata (default: 255)",
    )
    raster.add_argument(
        "--align",
        action="store_true",
        help="warp a truth raster of another CRS or grid to that of the map, by nearest neighbour "
        "(default: refuse it)",
    )
    areas = parser.add_argument_group("areas of interest")
    areas.add_argument(
        "--areas",
        metavar="FILE",
        help="also compare within each of these polygons, in any CRS (.gpkg, .geojson, ...)",
    )
    areas.add_argument(
        "--area-name",
        metavar="COLUMN",
        help="column of their names; areas of one name are taken together (default: number them)",
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="also write all figures to this JSON file"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="also draw the confusion matrix, with counts and shares, to this PNG file",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing report or picture"
    )


def run(args: argparse.Namespace) -> int:
    """Print the tables; write report and picture."""
    from rich.console import Console

    from rsmamba import samples
    from rsmamba.errors import ConfigError
    from rsmamba.files import check_output, write_text
    from rsmamba.gis.confusion import confusion_picture
    from rsmamba.gis.evaluate import evaluate

    for path in filter(None, (args.report, args.picture)):
        check_output(path, overwrite=args.overwrite)
    if args.picture and args.picture.suffix.lower() != ".png":
        raise ConfigError(f"cannot draw {args.picture}: the picture is a PNG, end its name in .png")
    result = evaluate(
        args.map,
        samples.resolve(args.truth),
        attribute=args.attribute,
        outside=args.outside,
        ignore=args.ignore,
        align=args.align,
        areas=samples.resolve(args.areas) if args.areas else None,
        area_name=args.area_name,
    )
    console = Console()
    for table in tables(result, args.map):
        console.print(table)
    print(left_out(result))
    if args.report:
        sources = {"map": str(args.map), "truth": str(args.truth)}
        write_text(args.report, json.dumps(sources | result.to_dict(), indent=2) + "\n")
    if args.picture:
        title = f"{Path(args.map).name} against {Path(args.truth).name}"
        confusion_picture(result, args.picture, title=title)
    return 0


def tables(result: "Evaluation", name: str) -> list["Table"]:
    """Figures by class, beside constant answers, and by area."""
    classes = _table(
        f"{name}: {result.pixels:,} pixels compared",
        "class",
        ("truth pixels", "map pixels", "precision", "recall", "F1", "IoU"),
    )
    rows, columns = result.confusion.sum(1), result.confusion.sum(0)
    figures = result.precision, result.recall, result.f1, result.iou
    for i, label in enumerate(result.classes):
        shares = (_figure(values[i]) for values in figures)
        classes.add_row(label, f"{rows[i]:,}", f"{columns[i]:,}", *shares)
    heads = ("overall accuracy", "kappa", "mean F1", "mean IoU")
    answers = _table("beside answers that need no model", "answer", heads)
    answers.add_row("this map", *_overall(result))
    few = len(result.classes) <= _CONSTANTS
    for i, label in enumerate(result.classes):
        if few or i == result.majority:
            majority = " (majority)" if i == result.majority else ""
            answers.add_row(f"all {label}{majority}", *_overall(result.constant(i)))
    made = [classes, answers]
    if result.areas:
        areas = _table("by area", "area", ("pixels", *heads))
        for label, area in result.areas.items():
            areas.add_row(label, f"{area.pixels:,}", *_overall(area))
        made.append(areas)
    return made


def left_out(result: "Evaluation") -> str:
    """What was not compared, in words."""
    pixels = result.left_out
    if not pixels.total:
        return "every pixel was compared"
    parts = [
        f"{count:,} {why}"
        for count, why in (
            (pixels.map_nodata, "have no class in the map"),
            (pixels.truth_unknown, "have no known truth"),
            (pixels.both, "have neither"),
        )
        if count
    ]
    return f"not compared: {pixels.total:,} pixels ({', '.join(parts)})"


def _table(title: str, first: str, others: tuple[str, ...]) -> Any:
    """An empty table: names, then figures."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for other in others:
        table.add_column(other, justify="right")
    return table


def _overall(result: "Evaluation") -> tuple[str, ...]:
    """Figures of a whole comparison."""
    values = result.overall_accuracy, result.kappa, result.mean_f1, result.mean_iou
    return tuple(map(_figure, values))


def _figure(value: float) -> str:
    """Three digits, or "n/a" for what has no meaning."""
    return f"{value:.3f}" if math.isfinite(value) else "n/a"
