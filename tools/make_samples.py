"""Rebuild the imagery that ships in ``rsmamba/samples`` from the full data sets.

For maintainers only: the result is in the repository, nobody else runs this. The source folder is
the developers' copy of UC Merced, of the HOT / OpenAerialMap building chips and of rasterio's
Landsat test scene, in TorchGeo's layouts. Same sources and same library versions give the same
bytes.

    python tools/make_samples.py --source ../shared/data --out rsmamba/samples
"""

import argparse
import hashlib
import json
import shutil
from collections import defaultdict
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
import torch
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine

SEED = "rsmamba-samples-1"
SIDE = 128
PER_CLASS = {"train": 15, "val": 3, "test": 12}
UNLABELLED = 1000
LABELLED_QUALITY, UNLABELLED_QUALITY = 80, 75
#: z19 tile that is held out: its 16 chips become the scene, the other four tiles' chips training.
HELD_OUT = (309614, 261633)
CHIP = 256
JPEG_PROFILE = {
    "driver": "GTiff",
    "dtype": "uint8",
    "count": 3,
    "crs": CRS.from_epsg(4326),
    "tiled": True,
    "blockxsize": 256,
    "blockysize": 256,
    "compress": "jpeg",
    "photometric": "ycbcr",
    "jpeg_quality": 90,
    "interleave": "pixel",
}


def order(name: str) -> str:
    """Sorting key that shuffles names in the same way on every machine."""
    return hashlib.sha256(f"{SEED}:{name}".encode()).hexdigest()


def look_alikes(
    paths: list[Path], peak: float = 0.12, agreement: float = 0.7
) -> dict[int, set[int]]:
    """Pairs of images that show the same ground, or ground that cannot be told apart.

    Phase correlation on 64 px thumbnails proposes a shift for every pair; the normalised
    cross-correlation of the overlapping part at 128 px decides. It finds UC Merced's repeated and
    overlapping crops (airplane01/02, sparseresidential52/55, tenniscourt37/44, parkinglot24/36)
    and, on purpose, also neighbouring stretches of one runway or beach.

    Returns:
        Index -> indices of its look-alikes, symmetric.
    """
    images = np.stack(
        [
            np.asarray(Image.open(p).convert("L").resize((128, 128), Image.Resampling.BOX))
            for p in paths
        ]
    ).astype(np.float32)
    small = torch.nn.functional.avg_pool2d(torch.from_numpy(images)[:, None], 2)[:, 0]
    small = small - small.mean((1, 2), keepdim=True)
    window = torch.hann_window(64, periodic=False)
    spectrum = torch.fft.rfft2(small * window[:, None] * window)
    spectrum = spectrum / (spectrum.abs() + 1e-3 * spectrum.abs().mean((1, 2), keepdim=True))

    links: dict[int, set[int]] = defaultdict(set)
    for i in range(len(paths) - 1):
        surface = torch.fft.irfft2(spectrum[i + 1 :] * spectrum[i].conj(), s=(64, 64)).flatten(1)
        height, place = surface.max(1)
        for k in torch.nonzero(height > peak)[:, 0].tolist():
            j = i + 1 + k
            dy, dx = ((v - 64 if v > 32 else v) * 2 for v in divmod(int(place[k]), 64))
            if _agreement(images[i], images[j], dy, dx) >= agreement:
                links[i].add(j)
                links[j].add(i)
    return links


def _agreement(a: np.ndarray, b: np.ndarray, dy: int, dx: int) -> float:
    """Best correlation of a and b shifted by (dy, dx) or one pixel more or less."""
    best = -1.0
    n = a.shape[0]
    for y in range(dy - 1, dy + 2):
        for x in range(dx - 1, dx + 2):
            u = a[max(0, -y) : min(n, n - y), max(0, -x) : min(n, n - x)]
            v = b[max(0, y) : min(n, n + y), max(0, x) : min(n, n + x)]
            u, v = u - u.mean(), v - v.mean()
            norm = float(np.sqrt((u * u).sum() * (v * v).sum()))
            best = max(best, float((u * v).sum()) / max(norm, 1e-6))
    return best


def shrink(source: Path, target: Path, quality: int) -> None:
    """Write a 128 px JPEG."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    small.save(target, "JPEG", quality=quality, optimize=True)


def make_ucmerced(source: Path, out: Path) -> None:
    """The labelled subset and, from other images, the unlabelled set."""
    paths = sorted((source / "ucmerced/UCMerced_LandUse/Images").glob("*/*.jpg"))
    links = look_alikes(paths)
    by_class: dict[str, list[int]] = defaultdict(list)
    for i, path in enumerate(paths):
        by_class[path.parent.name].append(i)

    labelled: set[int] = set()
    splits: dict[str, list[str]] = {split: [] for split in PER_CLASS}
    for members in by_class.values():
        chosen: list[int] = []
        # Look-alikes within the subset would leak from one of its splits to another.
        for i in sorted(members, key=lambda i: order(paths[i].name)):
            if len(chosen) < sum(PER_CLASS.values()) and not links[i] & labelled.union(chosen):
                chosen.append(i)
        if len(chosen) < sum(PER_CLASS.values()):
            raise SystemExit(f"{paths[members[0]].parent.name}: only {len(chosen)} distinct images")
        labelled.update(chosen)
        start = 0
        for split, count in PER_CLASS.items():
            splits[split] += [paths[i].name for i in chosen[start : start + count]]
            start += count

    for i in sorted(labelled):
        target = out / "ucmerced/UCMerced_LandUse/Images" / paths[i].parent.name / paths[i].name
        shrink(paths[i], target, LABELLED_QUALITY)
    for split, names in splits.items():
        (out / f"ucmerced/uc_merced-{split}.txt").write_text("\n".join(sorted(names)) + "\n")

    rest = [i for i in range(len(paths)) if i not in labelled and not links[i] & labelled]
    rest.sort(key=lambda i: order(paths[i].name))
    print(
        f"ucmerced: {len(labelled)} labelled, {len(rest)} of the others are no look-alike of them"
    )
    for n, i in enumerate(rest[:UNLABELLED]):
        shrink(paths[i], out / f"aerial_unlabelled/{n:04d}.jpg", UNLABELLED_QUALITY)


def tile(path: Path) -> tuple[int, int]:
    """Column and row of a chip named OAM-X-Y-Z."""
    _, x, y, _ = path.stem.split("-")
    return int(x), int(y)


def make_buildings(source: Path, out: Path) -> None:
    """Training chips and their labels, and the held-out scene."""
    source, out = source / "hotosm_buildings", out / "buildings"
    for folder in ("chips", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    held_out: dict[tuple[int, int], Path] = {}
    for chip in sorted((source / "chips").glob("*-21.tif")):
        x, y = tile(chip)
        if (x // 4, y // 4) == HELD_OUT:
            held_out[x % 4, y % 4] = chip
            continue
        with rasterio.open(chip) as src:
            pixels, transform = src.read(), src.transform
        write_jpeg(out / "chips" / chip.name, pixels, transform)
        shutil.copyfile(source / f"labels/{chip.stem}.geojson", out / f"labels/{chip.stem}.geojson")
    make_scene(held_out, source / "labels", out)


def write_jpeg(target: Path, pixels: np.ndarray, transform: Affine) -> None:
    """Write a JPEG-compressed GeoTIFF and check that its georeferencing is bit-equal."""
    _, height, width = pixels.shape
    with rasterio.open(
        target, "w", **JPEG_PROFILE, height=height, width=width, transform=transform
    ) as dst:
        dst.write(pixels)
    with rasterio.open(target) as src:
        if src.transform != transform:
            raise SystemExit(f"{target}: the transform changed by writing it")


def make_scene(chips: dict[tuple[int, int], Path], labels: Path, out: Path) -> None:
    """Mosaic of 4 x 4 chips and the polygons of all of them, whole again."""
    mosaic = np.zeros((3, 4 * CHIP, 4 * CHIP), np.uint8)
    transforms = {}
    for (x, y), chip in chips.items():
        with rasterio.open(chip) as src:
            mosaic[:, y * CHIP : (y + 1) * CHIP, x * CHIP : (x + 1) * CHIP] = src.read()
            transforms[x, y] = src.transform
    first, last = transforms[0, 0], transforms[3, 3]
    right, bottom = last @ (CHIP, CHIP)
    transform = Affine(
        (right - first.c) / (4 * CHIP), 0, first.c, 0, (bottom - first.f) / (4 * CHIP), first.f
    )
    # Web Mercator rows are not equally high in degrees; over 1024 px at z21 that must not matter.
    for (x, y), own in transforms.items():
        for corner in ((0, 0), (CHIP, CHIP)):
            place = ~transform @ (own @ corner)
            wanted = (x * CHIP + corner[0], y * CHIP + corner[1])
            if max(abs(p - w) for p, w in zip(place, wanted, strict=True)) > 1e-3:
                raise SystemExit(f"chip {x}, {y} does not fall on the scene's grid")
    write_jpeg(out / "scene.tif", mosaic, transform)
    bounds = (first.c, bottom, right, first.f)
    print("held-out scene [minx, miny, maxx, maxy]:", json.dumps(bounds))

    pieces = [gpd.read_file(labels / f"{chip.stem}.geojson") for _, chip in sorted(chips.items())]
    frame = whole_buildings(pieces)
    print(f"scene: {sum(map(len, pieces))} pieces are {len(frame)} buildings")
    (out / "scene.geojson").unlink(missing_ok=True)
    frame.to_file(out / "scene.geojson", driver="GeoJSON", COORDINATE_PRECISION=15, RFC7946="NO")


def whole_buildings(pieces: list[gpd.GeoDataFrame]) -> gpd.GeoDataFrame:
    """Undo the cuts at chip borders: one row per OpenStreetMap identity.

    Relations have no identity in the source; of those, the pieces that touch are one building.
    """
    parts: dict[int | None, list[shapely.Geometry]] = defaultdict(list)
    for frame in pieces:
        if frame.empty:  # a chip without buildings; its file has no columns either
            continue
        for identity, geometry in zip(frame["osm_id"], frame.geometry, strict=True):
            parts[None if np.isnan(identity) else int(identity)].append(geometry)
    # The cuts agree to 1e-15 degrees only: a grid of 1e-12 (2e-6 px) closes them.
    whole = {k: shapely.union_all(v, grid_size=1e-12) for k, v in parts.items()}
    rows: list[tuple[int | None, shapely.Geometry]] = [
        (k, whole[k]) for k in sorted(k for k in whole if k is not None)
    ]
    if None in whole:
        rows += [(None, part) for part in shapely.get_parts(whole[None])]
    return gpd.GeoDataFrame(
        {"osm_id": pd.array([k for k, _ in rows], dtype="Int64")},
        geometry=[v for _, v in rows],
        crs="OGC:CRS84",
    )


def make_landsat(source: Path, out: Path) -> None:
    """Landsat 7 with the slanted nodata collar of a real acquisition."""
    (out / "landsat").mkdir(parents=True, exist_ok=True)
    with rasterio.open(source / "geotiff/rasterio_RGB.byte_nodata0.tif") as src:
        pixels, profile = src.read(), src.profile
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 3,
        "height": profile["height"],
        "width": profile["width"],
        # The source spells the same UTM zone out without naming its code.
        "crs": CRS.from_epsg(32618),
        "transform": profile["transform"],
        "nodata": 0,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
        "predictor": 2,
        "zlevel": 9,
        "interleave": "pixel",
        "photometric": "rgb",
    }
    with rasterio.open(out / "landsat/bahamas.tif", "w", **profile) as dst:
        dst.write(pixels)


def main() -> None:
    """Rebuild everything and print the sizes."""
    parser = argparse.ArgumentParser(description="rebuild the shipped samples")
    parser.add_argument("--source", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("rsmamba/samples"))
    arguments = parser.parse_args()
    for name in ("ucmerced", "aerial_unlabelled", "buildings", "landsat"):
        shutil.rmtree(arguments.out / name, ignore_errors=True)
    make_ucmerced(arguments.source, arguments.out)
    make_buildings(arguments.source, arguments.out)
    make_landsat(arguments.source, arguments.out)
    total = 0
    for name in ("ucmerced", "aerial_unlabelled", "buildings", "landsat"):
        size = sum(p.stat().st_size for p in (arguments.out / name).rglob("*") if p.is_file())
        total += size
        print(f"{name}: {size / 1e6:.2f} MB")
    print(f"total: {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
