"""Turn a class map into polygons."""

import argparse
from pathlib import Path

HELP = "Turn a class map into polygons with class, name and area, without seams."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("map", help="class map (GeoTIFF), as `rsmamba map` writes it")
    parser.add_argument(
        "out",
        type=Path,
        help="file to write: .gpkg (GeoPackage), .fgb (FlatGeobuf) or .parquet (GeoParquet)",
    )
    parser.add_argument(
        "--classes", nargs="+", metavar="CLASS", help="keep these only, by name or pixel value"
    )
    parser.add_argument(
        "--min-area", type=float, default=0.0, metavar="M2", help="leave out what is smaller, in m²"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace) -> int:
    """Write the polygons; print a summary."""
    from rsmamba.gis.vector import vectorize

    report = vectorize(
        args.map, args.out, classes=args.classes, min_area=args.min_area, overwrite=args.overwrite
    )
    for name, count in report.count.items():
        print(f"{name}: {count:,} polygons, {report.area_m2[name] / 1e6:,.4g} km²")
    left_out = f", {report.too_small:,} too small" if report.too_small else ""
    print(f"{args.out}: {report.polygons:,} polygons{left_out}, {report.seconds:.1f} s")
    return 0
