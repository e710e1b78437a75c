"""Turn a class map into polygons."""

import argparse
from pathlib import Path

HELP = (
    "Turn a class map into polygons with class, name and area: one per connected region, without "
    "seams at tiles or blocks."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("map", help="class map (GeoTIFF), as `rsmamba map` writes it")
    parser.add_argument(
        "out",
        type=Path,
        help="file to write: .gpkg (GeoPackage), .fgb (FlatGeobuf) or .parquet (GeoParquet)",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="keep these only, by name or pixel value (default: all)",
    )
    parser.add_argument(
        "--min-area",
        type=float,
        default=0.0,
        metavar="M2",
        help="leave out polygons that are smaller, in m² (default: keep all)",
    )
    parser.add_argument(
        "--simplify",
        type=float,
        metavar="PX",
        help="smooth the staircases: drop corners whose triangle is smaller than PX x PX pixels; "
        "neighbours keep their shared border (default: the outlines of the pixels; try 1 or 2)",
    )
    parser.add_argument(
        "--scores",
        type=Path,
        metavar="FILE",
        help="score raster that `rsmamba map --scores` wrote with the map: adds the column "
        "mean_score, the mean of the polygon's class over its pixels",
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="also write what was done to this JSON file"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing file or report"
    )


def run(args: argparse.Namespace) -> int:
    """Write the polygons; print a summary."""
    from rsmamba.files import check_output, write_text
    from rsmamba.gis.vector import vectorize

    if args.report:
        check_output(args.report, overwrite=args.overwrite)
    report = vectorize(
        args.map,
        args.out,
        classes=args.classes,
        min_area=args.min_area,
        simplify=args.simplify,
        scores=args.scores,
        overwrite=args.overwrite,
    )
    if args.report:
        write_text(args.report, report.to_json() + "\n")
    for name, count in report.count.items():
        print(f"{name}: {count:,} polygons, {report.area_m2[name] / 1e6:,.4g} km²")
    left_out = f", {report.too_small:,} too small" if report.too_small else ""
    print(f"{args.out}: {report.polygons:,} polygons{left_out}, {report.seconds:.1f} s")
    return 0
