"""Measure mean and deviation of the bands of images."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rsmamba.data.collection import SceneCollection
    from rsmamba.data.images import Scene
    from rsmamba.data.sampling import BandStatistics

HELP = (
    "Measure mean, deviation and range of each band in one pass over images of any number and "
    "size, nodata left out. `--out` writes them as JSON, which data modules take as `spec`."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument(
        "images",
        nargs="+",
        help="folders, patterns, GeoTIFF, JPEG and PNG files, VRTs, STAC items (.json), /vsi "
        "paths, URLs or sample:NAME",
    )
    parser.add_argument(
        "--indexes",
        nargs="+",
        type=int,
        metavar="I",
        help="bands to read, counted from 1 (default: all but alpha)",
    )
    parser.add_argument(
        "--bands",
        nargs="+",
        metavar="NAME",
        help="their names: red nir, sentinel-2:B04 (default: red, green, blue of three)",
    )
    parser.add_argument(
        "--scales",
        nargs="+",
        default=[],
        metavar="TYPE=FACTOR",
        help="what to multiply the values of each stored type with: uint8=1 uint16=0.0255",
    )
    parser.add_argument(
        "--assets", nargs="+", metavar="KEY", help="assets that make up the image of a STAC item"
    )
    parser.add_argument(
        "--convert",
        action="store_true",
        help="read grey JPEG and PNG as three equal bands, and convert CMYK",
    )
    parser.add_argument(
        "--nodata",
        type=float,
        metavar="VALUE",
        help="value of all bands that means no observation in files that declare none",
    )
    parser.add_argument(
        "--sample", type=int, metavar="N", help="read N of the images, evenly chosen (default: all)"
    )
    parser.add_argument(
        "--max-bad-files",
        type=int,
        default=0,
        metavar="N",
        help="unreadable files to leave out (default: 0)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="also write them to this JSON file"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def run(args: argparse.Namespace) -> int:
    """Print the table; write the file."""
    import json

    from rsmamba.data.collection import SceneCollection
    from rsmamba.data.opening import BadFiles, Reading
    from rsmamba.data.sampling import measure
    from rsmamba.data.scene_facts import band_names, common_factor
    from rsmamba.errors import ConfigError, DataNotFoundError
    from rsmamba.files import check_output, write_text

    if args.out:
        check_output(args.out, overwrite=args.overwrite)
    if args.sample is not None and args.sample < 1:
        raise ConfigError(f"--sample {args.sample}: read at least one image")
    bad = BadFiles(args.max_bad_files)
    indexes = None if args.indexes is None else tuple(args.indexes)
    images = SceneCollection.find(
        args.images,
        Reading(indexes, _scales(args.scales), args.convert, args.nodata),
        bad,
        assets=args.assets,
        up_front=False,
    )
    names = band_names(args.bands, images.examples())
    found = measure(_each(images, args.sample, args.quiet), bad.add)
    if not found.valid:
        raise DataNotFoundError(
            f"{args.images[0]}: no valid pixel in {found.images} images; is everything nodata?"
        )
    report = {**describe(names, found), "files_found": len(images)}
    report["scale"] = common_factor(images.examples())
    report["sampled"] = args.sample is not None and args.sample < len(images)
    report["bad_files"] = [str(path) for path in bad.reasons]
    if not args.quiet:
        _print(report)
    if args.out:
        write_text(args.out, json.dumps(report, indent=1) + "\n")
    return 0


def _scales(pairs: list[str]) -> dict[str, float] | None:
    """Factors by stored type.

    Raises:
        ConfigError: If a pair is none.
    """
    from rsmamba.errors import ConfigError

    found = {}
    for pair in pairs:
        dtype, _, factor = pair.partition("=")
        try:
            found[dtype] = float(factor)
        except ValueError as error:
            raise ConfigError(f"--scales {pair}: write TYPE=FACTOR, as in uint16=0.0255") from error
    return found or None


def _each(images: "SceneCollection", sample: int | None, quiet: bool) -> "Iterator[Scene]":
    """The images to read, with a progress bar where there is a terminal."""
    from rich.console import Console
    from rich.progress import track

    count = min(sample or len(images), len(images))
    chosen = [i * len(images) // count for i in range(count)] if sample else range(len(images))
    console = Console(stderr=True)
    found = (scene for _, scene in images.readable(chosen))
    if quiet or not console.is_terminal:
        return found
    return iter(track(found, "reading", count, console=console))


def describe(names: tuple[str, ...], found: "BandStatistics") -> dict[str, Any]:
    """Statistics as JSON values, in the form that ``spec`` reads.

    A band without variation has a deviation of 1, for dividing by it must do no harm.
    """
    from rsmamba.data.normalisation import STATS_KEY

    each = zip(names, found.mean, found.divisor, found.low, found.high, found.std == 0, strict=True)
    total = found.valid + found.invalid
    return {
        STATS_KEY: 1,
        "bands": [
            {"name": name, "mean": float(mean), "std": float(std), "min": float(low)}
            | {"max": float(high), "constant": bool(constant)}
            for name, mean, std, low, high, constant in each
        ],
        "pixels": found.valid,
        "nodata_share": found.invalid / total if total else 0.0,
        "files": found.images,
    }


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("band", "mean", "deviation", "least", "greatest"):
        table.add_column(column, justify="left" if column == "band" else "right")
    for band in report["bands"]:
        deviation = "none (1 is used)" if band["constant"] else f"{band['std']:.6g}"
        values = (f"{band['mean']:.6g}", deviation, f"{band['min']:g}", f"{band['max']:g}")
        table.add_row(band["name"], *values)
    Console().print(table)
    kind = f" of {report['files_found']:,}" if report["sampled"] else ""
    print(
        f"{report['files']:,}{kind} images, {report['pixels']:,} valid pixels, "
        f"{report['nodata_share']:.1%} nodata"
    )
    if report["bad_files"]:
        print(f"left out: {', '.join(report['bad_files'])}")
