"""Apply a checkpoint to a scene."""

import argparse
from pathlib import Path

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
    parser.add_argument(
        "--scores", type=Path, metavar="PATH", help="also write the scores of all classes (.tif)"
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
    from rsmamba.files import check_output, write_text
    from rsmamba.infer import map_scene

    if args.report:
        check_output(args.report, overwrite=args.overwrite)
    report = map_scene(
        args.checkpoint,
        args.scene,
        args.out,
        spec=args.spec,
        tile=args.tile,
        halo=args.halo,
        blend=args.blend,
        batch_size=args.batch_size,
        block=args.block,
        scores=args.scores,
        bands=args.bands,
        assume_crs=args.assume_crs,
        device=args.device,
        bf16=args.bf16,
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    if args.report:
        write_text(args.report, report.to_json() + "\n")
    if not args.quiet:
        print(summary(report.pixels, report.pixels_nodata + report.pixels_not_finite))
        speed = f", {report.km2_per_second:.3g} km²/s" if report.km2_per_second else ""
        print(
            f"{args.out}: {report.width} x {report.height} px, "
            f"{report.tiles_predicted} tiles predicted, {report.tiles_skipped} without data, "
            f"{report.seconds['total']:.1f} s{speed}"
        )
        if report.pixels_not_finite:
            print(
                f"warning: the model gave no finite score for {report.pixels_not_finite:,} pixels; "
                "they are nodata in the map"
            )
    return 0


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
