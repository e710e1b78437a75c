"""Pictures that tasks, notebooks and the command line share."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.transform import Affine

from rsmamba.files import atomic_path
from rsmamba.gis.style import palette

#: Longest side of a preview, pixels: pictures of whole scenes are read decimated.
PREVIEW_SIZE = 1024


def stretch(image: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """Bands (C, H, W) as an RGB picture (H, W, 3): percentile stretch of the first three bands.

    Args:
        image: At least one band; one or two bands are shown in grey.
        valid: (H, W) pixels that count for the percentiles; others become white.

    Returns:
        uint8 picture. 8-bit images keep their values.
    """
    rgb = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    if rgb.dtype != np.uint8:
        rgb = rgb.astype(np.float64)
        for band in rgb:
            inside = band[valid] if valid is not None and valid.any() else band
            low, high = np.nanpercentile(inside, (2, 98))
            band[:] = (band - low) / max(high - low, 1e-12) * 255
    picture = np.nan_to_num(rgb).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    if valid is not None:
        picture = np.where(valid[..., None], picture, np.uint8(255))
    return picture


def map_preview(
    scene: str | Path,
    class_map: str | Path,
    out: str | Path,
    *,
    truth: str | Path | None = None,
    classes: Sequence[str] | None = None,
    title: str | None = None,
) -> Path:
    """Image, prediction and truth side by side, with legend and scale bar.

    Args:
        scene: The image that was mapped.
        class_map: Its class map, on the same grid.
        out: PNG to write (atomically; replaces an earlier one).
        truth: Polygons of the class that is drawn as class 1, in any CRS.
        classes: Class names; from the map's tags if None.
        title: Heading.

    Returns:
        ``out``.
    """
    from rsmamba.gis.evaluate import class_names

    with rasterio.open(class_map) as source:
        shape = _preview_shape(source.height, source.width)
        predicted = source.read(1, out_shape=shape, resampling=Resampling.nearest)
        names = tuple(classes or class_names(source))
        nodata, colours = source.nodata, _colours(source, len(names))
        crs, metres = source.crs, _metres_per_pixel(source)
        scale = (source.width / shape[1], source.height / shape[0])
        transform = source.transform @ Affine.scale(*scale)
    with rasterio.open(scene) as source:
        image = source.read(out_shape=(source.count, *shape), resampling=Resampling.average)
        valid = source.dataset_mask(out_shape=shape) > 0
    panels: list[tuple[str, NDArray[Any] | None]] = [("image", None), ("prediction", predicted)]
    if truth is not None:
        panels.append(("truth", _burn(truth, crs, transform, shape)))

    height = 4.2 * shape[0] / shape[1]
    figure = Figure(figsize=(4.2 * len(panels), min(height, 12) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    colours = colours or palette(len(names))
    picture = stretch(image, valid)
    for axis, (name, classes_here) in zip(axes, panels, strict=True):
        axis.imshow(picture)
        axis.set_title(name)
        axis.set_axis_off()
        if classes_here is not None:
            hidden = classes_here == 0 if len(names) == 2 else np.zeros(shape, bool)
            if nodata is not None:
                hidden |= classes_here == nodata
            axis.imshow(
                np.ma.masked_where(hidden, classes_here),
                cmap=ListedColormap(colours),
                vmin=-0.5,
                vmax=len(names) - 0.5,
                alpha=0.65,
                interpolation="nearest",
            )
    if metres:
        _scale_bar(axes[0], shape, metres * scale[0])
    shown = range(1, 2) if len(names) == 2 else range(len(names))
    figure.legend(
        handles=[Patch(color=colours[i], label=names[i]) for i in shown],
        loc="outside lower center",
        ncols=min(8, len(names)),
        frameon=False,
    )
    if title:
        figure.suptitle(title)
    return save(figure, out)


def _colours(source: Any, count: int) -> list[str]:
    """``#rrggbb`` per class from the map's colour table; empty if it has none."""
    try:
        table = source.colormap(1)
    except ValueError:  # rasterio: no colour table
        return []
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b, _ in (table[i] for i in range(count))]


def save(figure: Figure, out: str | Path) -> Path:
    """Write a figure by atomic rename."""
    out = Path(out)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=110)
    return out


def _preview_shape(height: int, width: int) -> tuple[int, int]:
    factor = min(1.0, PREVIEW_SIZE / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def _metres_per_pixel(source: Any) -> float | None:
    """Pixel width in metres at the scene's centre; None without a CRS."""
    if source.crs is None:
        return None
    if source.crs.is_projected:
        return abs(source.res[0]) * float(source.crs.linear_units_factor[1])
    latitude = (source.bounds.top + source.bounds.bottom) / 2
    return abs(source.res[0]) * 111_320 * math.cos(math.radians(latitude))


def _burn(truth: str | Path, crs: Any, transform: Affine, shape: tuple[int, int]) -> NDArray[Any]:
    import geopandas

    layer = geopandas.read_file(truth).to_crs(crs)
    if layer.empty:
        return np.zeros(shape, dtype=np.uint8)
    return rasterize(layer.geometry, out_shape=shape, transform=transform, dtype=np.uint8)


def _scale_bar(axis: Any, shape: tuple[int, int], metres_per_pixel: float) -> None:
    """A bar of a round length, about a fifth of the picture."""
    target = shape[1] * metres_per_pixel / 5
    power = 10 ** math.floor(math.log10(target))
    length = max(step * power for step in (1, 2, 5) if step * power <= target)
    pixels = length / metres_per_pixel
    x, y = shape[1] * 0.04, shape[0] * 0.95
    for colour, width in (("black", 5.0), ("white", 2.5)):
        axis.plot([x, x + pixels], [y, y], color=colour, linewidth=width, solid_capstyle="butt")
    label = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    axis.text(
        x, y - shape[0] * 0.02, label, color="white", fontsize=9, fontweight="bold", va="bottom"
    )
