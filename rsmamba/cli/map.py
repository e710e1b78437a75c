"""Apply a checkpoint to a scene."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rsmamba.infer.report import MapReport

HELP = (
    "Apply a segmentation checkpoint to a scene of any size and write a class map: a Cloud "
    "Optimized GeoTIFF on the scene's own grid, which appears when it is complete."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("checkpoint", help="checkpoint (.ckpt) or weights (.safetensors)")
    parser.add_argument("scene", help="raster that GDAL reads: a file, a URL or sample:NAME/FILE")
    parser.add_argument("out", type=Path, help="class map to write (.tif)")
    tiling = parser.add_argument_group("tiling")
    tiling.add_argument(
        "--tile",
        type=int,
        default=512,
        metavar="PX",
        help="pixels that the model sees at once (default: 512)",
    )
    tiling.add_argument(
        "--halo",
        type=int,
        default=64,
        metavar="PX",
        help="pixels of context around what is kept of a tile (default: 64)",
    )
    tiling.add_argument(
        "--blend",
        choices=("linear", "crop"),
        default="linear",
        help="fade from tile to tile, or keep tile centres only, which is faster (default: linear)",
    )
    tiling.add_argument(
        "--batch-size", type=int, default=4, metavar="N", help="tiles per forward pass (default: 4)"
    )
    tiling.add_argument(
        "--block",
        type=int,
        default=4096,
        metavar="PX",
        help="pixels per side of a unit of work; memory grows with its square (default: 4096)",
    )
    what = parser.add_argument_group("what is mapped")
    what.add_argument(
        "--second", metavar="SCENE", help="second date, for a checkpoint that detects change"
    )
    what.add_argument(
        "--align", action="store_true", help="warp the second date to the grid of the first"
    )
    what.add_argument(
        "--aoi", metavar="FILE", help="map the polygons of this file only (.gpkg, .geojson, ...)"
    )
    what.add_argument(
        "--bbox",
        type=float,
        nargs=4,
        metavar=("MINX", "MINY", "MAXX", "MAXY"),
        help="map these bounds only: longitude and latitude, or see --bbox-crs",
    )
    what.add_argument(
        "--bbox-crs",
        default="OGC:CRS84",
        metavar="CRS",
        help="reference system of --bbox (default: longitude and latitude)",
    )
    what.add_argument(
        "--resolution",
        type=float,
        metavar="M",
        help="map at this many metres to the pixel (default: the scene's own, which must be near "
        "the one that the model was trained at)",
    )
    what.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="score from which on the second of two classes wins (default: 0.5); of more classes: "
        "pixels whose best score is lower become nodata",
    )
    what.add_argument(
        "--tta",
        choices=("none", "flips", "d4"),
        default="none",
        help="average over mirrored (flips: 4) or also turned (d4: 8) views: slower, often better",
    )
    work = parser.add_argument_group("long runs")
    work.add_argument(
        "--shard",
        metavar="I/N",
        help="do the I-th of N parts; N processes that share the folder make one map",
    )
    work.add_argument(
        "--restart", action="store_true", help="throw away what an interrupted run has done"
    )
    work.add_argument(
        "--strict",
        action="store_true",
        help="stop at a damaged part of the scene (default: leave it out, name it, exit with 1)",
    )
    parser.add_argument(
        "--uncertainty",
        type=Path,
        metavar="PATH",
        help="also write how undecided the model is, 0 to 1 (.tif)",
    )
    parser.add_argument(
        "--scores", type=Path, metavar="PATH", help="also write the scores of all classes (.tif)"
    )
    parser.add_argument(
        "--no-sidecars",
        action="store_true",
        help="leave out the QGIS style (.qml) and the STAC item (.json) beside the map",
    )
    parser.add_argument(
        "--report", type=Path, metavar="PATH", help="also write what was done to this JSON file"
    )
    parser.add_argument(
        "--spec", type=Path, metavar="FILE", help="ModelSpec (JSON) of a checkpoint without one"
    )
    parser.add_argument(
        "--bands",
        type=int,
        nargs="+",
        metavar="N",
        help="bands of the scene, from 1, in the order of the model's (default: all but alpha)",
    )
    parser.add_argument(
        "--assume-crs", metavar="CRS", help="reference system of a scene that has none: EPSG:32633"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where it is safe")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def run(args: argparse.Namespace) -> int:
    """Make the map; print a summary; write the report."""
    from rsmamba.errors import ConfigError
    from rsmamba.files import check_output, write_text
    from rsmamba.infer import map_scene

    if args.report:
        check_output(args.report, overwrite=args.overwrite)
    if args.aoi and args.bbox:
        raise ConfigError("--aoi and --bbox both name the area: give one of them")
    report = map_scene(
        args.checkpoint,
        args.scene,
        args.out,
        second=args.second,
        align=args.align,
        spec=args.spec,
        tile=args.tile,
        halo=args.halo,
        blend=args.blend,
        batch_size=args.batch_size,
        block=args.block,
        tta=args.tta,
        threshold=args.threshold,
        scores=args.scores,
        uncertainty=args.uncertainty,
        aoi=args.aoi or args.bbox,
        aoi_crs=args.bbox_crs,
        resolution=args.resolution,
        bands=args.bands,
        assume_crs=args.assume_crs,
        device=args.device,
        bf16=args.bf16,
        shard=args.shard,
        strict=args.strict,
        sidecars=not args.no_sidecars,
        restart=args.restart,
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    if args.report:
        write_text(args.report, report.to_json() + "\n")
    if not args.quiet:
        tell(report, args.out)
    for message in report.failed:
        print(f"warning: {message}", file=sys.stderr)
    return 1 if report.failed else 0


def tell(report: "MapReport", out: Path) -> None:
    """Say what was mapped and what it took."""
    if not report.complete:
        print(f"shard done: {report.tiles_predicted} tiles; {out} follows with the last shard")
        return
    print(summary(report.pixels, report.pixels_nodata + report.pixels_not_finite))
    speed = f", {report.km2_per_second:.3g} km²/s" if report.km2_per_second else ""
    resumed = f", {report.blocks_resumed} blocks from before" if report.blocks_resumed else ""
    print(
        f"{out}: {report.width} x {report.height} px, {report.tiles_predicted} tiles predicted, "
        f"{report.tiles_skipped} without data{resumed}, {report.seconds['total']:.1f} s{speed}"
    )
    for count, why in (
        (report.pixels_not_finite, "the model gave no finite score for"),
        (report.pixels_uncertain, "no class reaches the threshold in"),
    ):
        if count:
            print(f"warning: {why} {count:,} pixels; they are nodata in the map")


def summary(pixels: dict[str, int], nodata: int) -> str:
    """Share of each class among the mapped pixels, a line each."""
    mapped = sum(pixels.values())
    if mapped == 0:
        return "no pixel of the scene holds data: the map is empty"
    width = max(map(len, pixels))
    lines = [f"{name:<{width}}  {100 * n / mapped:5.1f} %" for name, n in pixels.items()]
    if nodata:
        lines.append(f"({nodata:,} of {mapped + nodata:,} pixels hold no data)")
    return "\n".join(lines)
