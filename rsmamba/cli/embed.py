"""Write the embeddings of a scene."""

import argparse
from pathlib import Path

HELP = (
    "Write what a backbone makes of each patch of a scene: a GeoParquet table of outlines and "
    "vectors, to search, cluster and colour."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("checkpoint", help="checkpoint (.ckpt) or weights (.safetensors)")
    parser.add_argument("scene", help="raster that GDAL reads: a file, a URL or sample:NAME/FILE")
    parser.add_argument("out", type=Path, help="table to write (.parquet)")
    parser.add_argument(
        "--per",
        choices=("patch", "tile"),
        default="patch",
        help="a vector for each patch of the network, or the mean of each tile (default: patch)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        default=224,
        metavar="PX",
        help="pixels that the network sees at once (default: 224)",
    )
    parser.add_argument(
        "--halo",
        type=int,
        default=0,
        metavar="PX",
        help="pixels of context around what is kept of a tile (default: 0)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="tiles per forward pass (default: 8)"
    )
    parser.add_argument(
        "--scene-id", help="name of the scene in the table (default: its file name)"
    )
    parser.add_argument("--aoi", metavar="FILE", help="the polygons of this file only")
    parser.add_argument("--spec", type=Path, metavar="FILE", help="ModelSpec of a bare checkpoint")
    parser.add_argument(
        "--assume-crs", metavar="CRS", help="reference system of a scene that has none: EPSG:32633"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing table")


def run(args: argparse.Namespace) -> int:
    """Write the table; say what is in it."""
    from rsmamba.infer import embed_scene

    report = embed_scene(
        args.checkpoint,
        args.scene,
        args.out,
        spec=args.spec,
        per=args.per,
        tile=args.tile,
        halo=args.halo,
        batch_size=args.batch_size,
        scene_id=args.scene_id,
        aoi=args.aoi,
        assume_crs=args.assume_crs,
        device=args.device,
        overwrite=args.overwrite,
    )
    print(
        f"{args.out}: {report.rows:,} vectors of {report.size} for squares of {report.pixels} px, "
        f"{report.skipped:,} without data, {report.seconds:.1f} s"
    )
    return 0
