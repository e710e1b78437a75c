"""Patch embeddings of a scene as a table: what a backbone sees, where it sees it."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyproj
import rasterio
import shapely
import timm
import torch
from numpy.typing import NDArray
from pyarrow import parquet
from torch import Tensor, nn

import rsmamba.models  # noqa: F401  (registers our backbones with timm)
from rsmamba import __version__
from rsmamba.data.areas import Area
from rsmamba.errors import CheckpointError, ConfigError, SpecError
from rsmamba.files import atomic_path, check_output
from rsmamba.gis.raster import RasterGrid
from rsmamba.infer.grid import Box
from rsmamba.infer.reader import GDAL_OPTIONS, read_ahead
from rsmamba.infer.source import SceneSource
from rsmamba.models.checkpoints import load_backbone, read_spec
from rsmamba.spec import SPEC_KEY, ModelSpec

#: One vector per patch of the network, or their mean over a tile.
Unit = Literal["patch", "tile"]


@dataclass(frozen=True)
class EmbedReport:
    """What was written.

    Attributes:
        rows: Number of vectors.
        size: Length of a vector.
        skipped: Patches or tiles without a valid pixel.
        pixels: Side in pixels of what a vector stands for.
        seconds: Wall time.
    """

    rows: int
    size: int
    skipped: int
    pixels: int
    seconds: float


class Embedder:
    """A frozen backbone from raw pixels to one vector per patch.

    Args:
        backbone: timm model with ``forward_intermediates``.
        spec: Bands, mean and deviation of its input.
        device: Where it runs; CUDA if there is one.

    Attributes:
        stride: Side in pixels of a patch.
        size: Length of a vector.
    """

    def __init__(
        self, backbone: nn.Module, spec: ModelSpec, device: str | torch.device | None = None
    ) -> None:
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device, self.spec = torch.device(where), spec
        self.backbone: Any
        self.backbone = backbone.to(self.device).eval()
        stages: Any = self.backbone.feature_info
        last = stages[-1]
        self.stride, self.size = int(last["reduction"]), int(last["num_chs"])
        self._mean = torch.tensor(spec.mean, device=self.device).view(-1, 1, 1)
        self._std = torch.tensor(spec.std, device=self.device).view(-1, 1, 1)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Vectors (B, D, H / stride, W / stride) of raw images (B, C, H, W)."""
        images = (images.to(self.device) * self.spec.scale - self._mean) / self._std
        (features,) = self.backbone.forward_intermediates(
            images, indices=1, norm=True, intermediates_only=True
        )
        return features.float().cpu()


def load_embedder(
    checkpoint: str | Path,
    spec: ModelSpec | str | Path | None = None,
    device: str | torch.device | None = None,
) -> Embedder:
    """The backbone of a checkpoint: of pretraining, of a task, or converted weights.

    Args:
        checkpoint: ``.ckpt`` or ``.safetensors``.
        spec: A spec, or a file that has one, if the checkpoint carries none.
        device: Where it runs; CUDA if there is one.

    Raises:
        DataNotFoundError: If a file is not there.
        SpecError: If there is no spec.
        CheckpointError: If the weights do not fit the architecture that the spec names.
    """
    if spec is None or isinstance(spec, str | Path):
        spec = read_spec(checkpoint if spec is None else spec)
    kwargs = {k: v for k, v in _encoder_options(spec).items() if v is not None}
    try:
        backbone = timm.create_model(
            spec.architecture, in_chans=spec.in_channels, num_classes=0, **kwargs
        )
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint}: its backbone {spec.architecture!r} cannot be built with {kwargs}: "
            f"{error}"
        ) from error
    if not hasattr(backbone, "forward_intermediates"):
        raise SpecError(f"{spec.architecture} gives no patch features: take another backbone")
    load_backbone(backbone, str(checkpoint))
    return Embedder(backbone, spec, device)


def _encoder_options(spec: ModelSpec) -> dict[str, Any]:
    """Arguments of the timm model, wherever its task keeps them."""
    given = spec.task_kwargs
    found = dict(given.get("model_kwargs") or given.get("backbone_kwargs") or {})
    if spec.task == "pretraining":
        # The encoder of pretraining: one direction, no class token (RoMA, section 3).
        found |= {key: given.get(key) for key in ("img_size", "patch_size", "embed_dim", "depth")}
        found |= {"directions": 1, "class_token": False, "global_pool": "avg"}
    if spec.task == "backbone":
        found |= {k: v for k, v in given.items() if k not in ("in_chans", "num_classes")}
    return found


def embed_scene(
    model: str | Path | Embedder,
    src: str | Path,
    dst: str | Path,
    *,
    spec: ModelSpec | str | Path | None = None,
    per: Unit = "patch",
    tile: int = 224,
    halo: int = 0,
    batch_size: int = 8,
    scene_id: str | None = None,
    aoi: Area | None = None,
    aoi_crs: str = "OGC:CRS84",
    assume_crs: str | None = None,
    device: str | torch.device | None = None,
    overwrite: bool = False,
) -> EmbedReport:
    """Write what a backbone makes of each patch of a scene as GeoParquet.

    Columns: ``scene`` (text), ``row`` and ``col`` (first pixel), ``valid`` (share of valid pixels),
    ``embedding`` (fixed-size list of float32) and ``geometry`` (outline in the scene's CRS, WKB).
    Patches without a valid pixel are left out. Rows are written tile row by tile row: memory does
    not grow with the scene.

    Args:
        model: Checkpoint with a ModelSpec, or an :class:`Embedder`.
        src: Scene: file, URL, GDAL dataset name or ``sample:...``.
        dst: File to write (.parquet).
        spec: ModelSpec or its file, for a checkpoint without one.
        per: ``"patch"``: a vector for each patch of the network; ``"tile"``: the mean over the
            patches of each tile.
        tile: Side in pixels of what the network sees at once.
        halo: Context in pixels around what is kept of a tile.
        batch_size: Tiles per forward.
        scene_id: Name of the scene in the table; its file name without suffix if None.
        aoi: This area only: bounds [minx, miny, maxx, maxy] or a file of polygons.
        aoi_crs: CRS of bounds.
        assume_crs: CRS of a scene that has none.
        device: Where the model runs; CUDA if there is one.
        overwrite: Replace an existing file.

    Returns:
        The report.

    Raises:
        RsmambaError: One of its subclasses, for whatever can be mended. Nothing is written then.
    """
    started = time.perf_counter()
    if per not in get_args(Unit):
        raise ConfigError(f"per={per!r}: use one of {', '.join(get_args(Unit))}")
    if Path(dst).suffix.lower() != ".parquet":
        raise ConfigError(
            f"cannot write {dst}: embeddings are GeoParquet, end its name in .parquet"
        )
    check_output(dst, overwrite=overwrite)
    with rasterio.Env(**GDAL_OPTIONS), SceneSource(src, assume_crs=assume_crs) as source:
        if aoi is not None:
            source.restrict(aoi, aoi_crs)
        embedder = model if isinstance(model, Embedder) else load_embedder(model, spec, device)
        source.expect(embedder.spec)
        for name, pixels in (("tile", tile), ("halo", halo)):
            if pixels % embedder.stride:
                raise ConfigError(
                    f"{name}={pixels} is no multiple of the network's patches of "
                    f"{embedder.stride} px"
                )
        if tile <= 2 * halo:
            raise ConfigError(f"tile {tile} with halo {halo} leaves nothing to keep")
        unit = tile - 2 * halo if per == "tile" else embedder.stride
        table = _Table(source.grid, scene_id or Path(str(src)).stem, embedder.size, unit)
        with atomic_path(dst) as unfinished, table.open(unfinished, embedder.spec) as writer:
            for boxes, images, valid in _batches(source, tile, halo, batch_size):
                vectors = embedder(torch.from_numpy(images)).numpy()
                shares = _shares(valid, embedder.stride)
                writer.write_table(table.rows(boxes, vectors, shares, halo, per))
    seconds = round(time.perf_counter() - started, 3)
    return EmbedReport(table.count, embedder.size, table.skipped, unit, seconds)


def _batches(
    source: SceneSource, tile: int, halo: int, batch_size: int
) -> Iterator[tuple[list[Box], NDArray[np.float32], NDArray[np.bool_]]]:
    """Windows of tiles with their pixels and validity, a batch at a time, in scene order.

    Unlike those of a map, all windows lie on one lattice: patches of neighbours continue each
    other.
    """
    core, grid = tile - 2 * halo, source.grid
    lefts = [left - halo for left in range(0, grid.width, core)]
    tops = [top - halo for top in range(0, grid.height, core)]
    strips = [Box(top, lefts[0], top + tile, lefts[-1] + tile) for top in tops]
    for strip, pixels in zip(strips, read_ahead(source.read, strips), strict=True):
        for i in range(0, len(lefts), batch_size):
            boxes = [
                Box(strip.top, left, strip.bottom, left + tile)
                for left in lefts[i : i + batch_size]
            ]
            parts = [box.within(strip) for box in boxes]
            images = np.stack([pixels.image[(slice(None), *part)] for part in parts])
            yield boxes, images, np.stack([pixels.valid[part] for part in parts])


class _Table:
    """Turns vectors into rows of GeoParquet, and counts them."""

    def __init__(self, grid: RasterGrid, scene: str, size: int, unit: int) -> None:
        self._grid, self._scene, self._unit = grid, scene, unit
        self.count = self.skipped = 0
        self.schema = pa.schema(
            [
                pa.field("scene", pa.string()),
                pa.field("row", pa.int64()),
                pa.field("col", pa.int64()),
                pa.field("valid", pa.float32()),
                pa.field("embedding", pa.list_(pa.float32(), size)),
                pa.field("geometry", pa.binary()),
            ]
        )

    def open(self, path: Path, spec: ModelSpec) -> parquet.ParquetWriter:
        """A writer with GeoParquet's metadata (https://geoparquet.org, version 1.1)."""
        crs = pyproj.CRS.from_wkt(self._grid.crs.to_wkt()).to_json_dict()
        column = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": crs}
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        metadata = {"geo": json.dumps(geo), SPEC_KEY: spec.to_json(), "rsmamba": __version__}
        return parquet.ParquetWriter(path, self.schema.with_metadata(metadata), compression="zstd")

    def rows(
        self,
        boxes: list[Box],
        vectors: NDArray[np.float32],
        shares: NDArray[np.float64],
        halo: int,
        per: Unit,
    ) -> pa.Table:
        """Rows of a batch of tiles.

        Args:
            boxes: Windows of the tiles.
            vectors: (B, D, h, w).
            shares: (B, h, w) share of valid pixels of each patch.
            halo: Margin of the windows in pixels, which is not kept.
            per: What gets a row.
        """
        margin = halo * vectors.shape[2] // boxes[0].height
        inner = slice(margin, vectors.shape[2] - margin)
        vectors, shares = vectors[:, :, inner, inner], shares[:, inner, inner]
        if per == "tile":
            weight = shares / np.maximum(shares.sum((1, 2), keepdims=True), 1e-9)
            vectors = (vectors * weight[:, None]).sum((2, 3), keepdims=True)
            shares = shares.mean((1, 2), keepdims=True)
        steps = np.arange(shares.shape[1]) * self._unit + halo
        rows = np.array([box.top for box in boxes])[:, None, None] + steps[:, None]
        cols = np.array([box.left for box in boxes])[:, None, None] + steps
        rows, cols = np.broadcast_to(rows, shares.shape), np.broadcast_to(cols, shares.shape)
        keep = shares > 0
        inside = (rows < self._grid.height) & (cols < self._grid.width)
        self.count += int(keep.sum())
        self.skipped += int((inside & ~keep).sum())
        flat = np.moveaxis(vectors, 1, -1)[keep].astype(np.float32)
        return pa.table(
            {
                "scene": pa.array([self._scene] * len(flat), pa.string()),
                "row": rows[keep],
                "col": cols[keep],
                "valid": shares[keep].astype(np.float32),
                "embedding": pa.FixedSizeListArray.from_arrays(
                    pa.array(flat.ravel()), vectors.shape[1]
                ),
                "geometry": pa.array(
                    shapely.to_wkb(self._outlines(rows[keep], cols[keep])), pa.binary()
                ),
            },
            schema=self.schema,
        )

    def _outlines(self, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[Any]:
        """Outlines of patches, cut at the border of the scene."""
        bottom = np.minimum(rows + self._unit, self._grid.height)
        right = np.minimum(cols + self._unit, self._grid.width)
        top, left = np.maximum(rows, 0), np.maximum(cols, 0)
        x = np.stack([left, right, right, left], 1)
        y = np.stack([top, top, bottom, bottom], 1)
        a, b, c, d, e, f = self._grid.transform[:6]
        corners = np.stack([a * x + b * y + c, d * x + e * y + f], -1)
        return np.asarray(shapely.polygons(corners))


def _shares(valid: NDArray[np.bool_], stride: int) -> NDArray[np.float64]:
    """Share of valid pixels of each patch, (B, H / stride, W / stride)."""
    count, height, width = valid.shape
    patches = valid.reshape(count, height // stride, stride, width // stride, stride)
    shares: NDArray[np.float64] = patches.mean((2, 4))
    return shares
