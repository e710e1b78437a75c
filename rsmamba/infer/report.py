"""What a run was told to do, and what it did."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from rsmamba import __version__
from rsmamba.errors import ConfigError
from rsmamba.infer.grid import Blend
from rsmamba.infer.predict import Augmentation


@dataclass(frozen=True)
class MapOptions:
    """Options of :func:`map_scene` on which the result depends; see there."""

    tile: int
    halo: int
    blend: Blend
    block: int
    tta: Augmentation
    threshold: float | None
    aoi: str | list[float] | None
    aoi_crs: str
    resolution: float | None
    bands: list[int] | None
    assume_crs: str | None
    bf16: bool

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ConfigError: If the threshold is no score.
        """
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold={self.threshold}: scores lie between 0 and 1")


@dataclass(frozen=True)
class MapReport:
    """What was done, and what it took.

    Attributes:
        source: The scene.
        output: The class map.
        scores: The score raster, if one was asked for.
        uncertainty: The entropy raster, if one was asked for.
        complete: Whether the outputs are there; False for a shard that others have yet to follow,
            whose counts are then of its own blocks.
        width: Columns.
        height: Rows.
        crs: Coordinate reference system.
        area_km2: Area of the scene; None where the CRS leads to no place on Earth.
        blocks_resumed: Blocks that an earlier run had finished.
        tiles: Tiles of the grid.
        tiles_predicted: Tiles that went through the model.
        tiles_skipped: Tiles without a valid pixel, which did not.
        tiles_recomputed: Further forwards of tiles that straddle two blocks.
        pixels: Number of pixels per class name.
        pixels_nodata: Pixels without observation, and without class.
        pixels_not_finite: Pixels for which the model gave NaN or infinity; nodata in the map.
        pixels_uncertain: Pixels below the threshold; nodata in the map.
        failed: Parts of the scene that could not be read; nodata in the map.
        seconds: Wall time of ``read`` (waiting for pixels, which are read ahead), ``forward``,
            ``blend``, ``write`` and ``total``.
        km2_per_second: ``area_km2`` over the total time.
        peak_rss_mb: Largest resident memory of the process so far, in MB.
        parameters: Options of the run.
        spec_sha256: Hash of the model's spec; None if it has none.
        rsmamba_version: Version of this package.
    """

    source: str
    output: str
    scores: str | None
    uncertainty: str | None
    complete: bool
    width: int
    height: int
    crs: str
    area_km2: float | None
    blocks_resumed: int
    tiles: int
    tiles_predicted: int
    tiles_skipped: int
    tiles_recomputed: int
    pixels: dict[str, int]
    pixels_nodata: int
    pixels_not_finite: int
    pixels_uncertain: int
    failed: list[str]
    seconds: dict[str, float]
    km2_per_second: float | None
    peak_rss_mb: float
    parameters: dict[str, Any]
    spec_sha256: str | None
    rsmamba_version: str = __version__

    def to_json(self) -> str:
        """The report as indented JSON."""
        return json.dumps(asdict(self), indent=2)
