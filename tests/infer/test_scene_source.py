"""Scenes: borders, every kind of nodata, and what is refused."""

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from rsmamba.errors import BandMismatchError, CRSError, DataNotFoundError, ImageReadError
from rsmamba.infer.grid import Box
from rsmamba.infer.source import SceneSource
from tests.infer.conftest import spec

WHOLE = Box(0, 0, 6, 8)
RAMP = np.arange(1, 3 * 6 * 8 + 1).reshape(3, 6, 8)


def read(path, box=WHOLE, model=None, **options):
    with SceneSource(path, **options) as source:
        source.expect(model if model is not None else spec())
        return source.read(box)


def test_windows_beyond_the_border_are_mirrored_and_not_valid(make_scene):
    pixels = read(make_scene(RAMP.astype(np.uint8)), Box(-3, -2, 9, 13))
    padded = np.pad(RAMP, ((0, 0), (3, 3), (2, 5)), mode="reflect")
    np.testing.assert_array_equal(pixels.image, padded)
    inside = np.zeros((12, 15), bool)
    inside[3:9, 2:10] = True
    np.testing.assert_array_equal(pixels.valid, inside)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1)])
def test_one_pixel_wide_scenes_can_be_padded(make_scene, shape):
    image = np.arange(1, 3 * shape[0] * shape[1] + 1, dtype=np.uint16).reshape(3, *shape)
    pixels = read(make_scene(image), Box(-4, -4, 12, 12))
    assert pixels.valid.sum() == shape[0] * shape[1]
    np.testing.assert_array_equal(pixels.image[:, 4 : 4 + shape[0], 4 : 4 + shape[1]], image)


def with_gap(dtype, value):
    """The ramp with one pixel that is missing in all bands and one in the first only."""
    image = RAMP.astype(dtype)
    image[:, 2, 3] = value
    image[0, 4, 5] = value
    return image


def check_gap(pixels, *, single_filled):
    expected = np.ones((6, 8), bool)
    expected[2, 3] = False
    np.testing.assert_array_equal(pixels.valid, expected)
    np.testing.assert_array_equal(pixels.image[:, 2, 3], [10, 20, 30])  # the model's means
    if single_filled:
        assert pixels.image[0, 4, 5] == 10
    assert pixels.image[1, 4, 5] == RAMP[1, 4, 5]
    assert np.isfinite(pixels.image).all()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("int16", -9999), ("uint16", 65535), ("float32", np.nan), ("float64", -1.7e308)],
)
def test_declared_nodata_is_filled_with_the_band_mean(make_scene, dtype, value):
    check_gap(read(make_scene(with_gap(dtype, value), nodata=value)), single_filled=True)


def test_undeclared_nan_and_infinity_are_filled(make_scene):
    image = with_gap("float32", np.nan)
    image[2, 0, 0] = np.inf
    pixels = read(make_scene(image))
    check_gap(pixels, single_filled=True)
    assert pixels.image[2, 0, 0] == 30


def test_declared_zero_in_one_band_is_a_dark_value(make_scene):
    pixels = read(make_scene(with_gap("uint8", 0), nodata=0))
    check_gap(pixels, single_filled=False)
    assert pixels.image[0, 4, 5] == 0


def test_nodata_per_band(make_scene, tmp_path):
    first = make_scene(with_gap("int16", -1))
    vrt = tmp_path / "bands.vrt"
    bands = "".join(
        f'<VRTRasterBand dataType="Int16" band="{i}"><NoDataValue>{value}</NoDataValue>'
        f'<SimpleSource><SourceFilename relativeToVRT="1">{first.name}</SourceFilename>'
        f"<SourceBand>{i}</SourceBand></SimpleSource></VRTRasterBand>"
        for i, value in ((1, -1), (2, int(RAMP[1, 0, 1])), (3, -1))
    )
    with rasterio.open(first) as source:
        wkt, (c, a, b, f, d, e) = source.crs.to_wkt(), source.transform.to_gdal()
    vrt.write_text(
        f'<VRTDataset rasterXSize="8" rasterYSize="6"><SRS>{wkt.replace("&", "&amp;")}</SRS>'
        f"<GeoTransform>{c},{a},{b},{f},{d},{e}</GeoTransform>{bands}</VRTDataset>"
    )
    pixels = read(vrt)
    assert pixels.valid.all()  # band 2 declares another value
    assert pixels.image[0, 2, 3] == 10 and pixels.image[1, 2, 3] == -1
    assert pixels.image[1, 0, 1] == 20 and pixels.valid[0, 1]


def test_alpha_is_a_mask_and_not_a_band(make_scene):
    alpha = np.full((1, 6, 8), 255)
    alpha[0, 2, 3] = 0
    image = np.concatenate([RAMP, alpha]).astype(np.uint8)
    check_gap(read(make_scene(image, alpha=True)), single_filled=False)


def test_internal_masks_count(make_scene):
    mask = np.full((6, 8), 255, np.uint8)
    mask[2, 3] = 0
    check_gap(read(make_scene(RAMP.astype(np.uint8), mask=mask)), single_filled=False)


def test_the_models_nodata_serves_where_the_scene_declares_none(make_scene):
    image = with_gap("uint8", 0)
    undeclared = read(make_scene(image), model=spec(nodata=0.0))
    check_gap(undeclared, single_filled=False)
    assert read(make_scene(image, "other.tif")).valid.all()


def test_means_are_unscaled_before_they_fill(make_scene):
    image = with_gap("int16", -1)
    pixels = read(make_scene(image, nodata=-1), model=spec(scale=0.1))
    np.testing.assert_allclose(pixels.image[:, 2, 3], [100, 200, 300])


def test_band_count_is_checked_and_both_are_listed(make_scene):
    path = make_scene(RAMP[:2].astype(np.uint8))
    with pytest.raises(BandMismatchError, match=r"2 \(gray, undefined\).*3 \(red, green, blue\)"):
        read(path)


def test_band_order_is_checked_by_name(make_scene):
    image = RAMP.astype(np.uint8)
    with pytest.raises(BandMismatchError, match="order"):
        read(make_scene(image, names=("Blue", "Green", "Red")))
    with pytest.raises(BandMismatchError, match=r"3 \(B08, B04, B03\).*3 \(red, green, blue\)"):
        read(make_scene(image, "infrared.tif", names=("B08", "B04", "B03")))
    for names in (("Red", "Green", "Blue"), ("B04", "B03", "B02"), ("sheet 7", "b", "c"), None):
        assert read(make_scene(image, "right.tif", names=names)).valid.all()


def test_a_missing_crs_can_be_assumed(make_scene):
    path = make_scene(RAMP.astype(np.uint8), crs=None)
    with pytest.raises(CRSError, match="--assume-crs"):
        read(path)
    with SceneSource(path, assume_crs="EPSG:28992") as source:
        assert source.grid.crs.to_epsg() == 28992
    with pytest.raises(CRSError, match="not a coordinate reference system"):
        read(path, assume_crs="EPSG:nonsense")


def test_a_declared_crs_is_not_overruled(make_scene):
    with pytest.raises(CRSError, match="32633"):
        read(make_scene(RAMP.astype(np.uint8)), assume_crs="EPSG:28992")


def test_ground_control_points_alone_are_refused(make_scene):
    path = make_scene(RAMP.astype(np.uint8), crs=None, transform=Affine.identity())
    points = [
        rasterio.control.GroundControlPoint(row, col, col, -row)
        for row, col in ((0, 0), (0, 8), (6, 0))
    ]
    with rasterio.open(path, "r+") as target:
        target.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    with pytest.raises(CRSError, match="gdalwarp"):
        read(path)


def test_files_that_are_no_raster_are_refused(tmp_path):
    with pytest.raises(DataNotFoundError, match="absent"):
        read(tmp_path / "absent.tif")
    text = tmp_path / "text.tif"
    text.write_text("no image")
    with pytest.raises(ImageReadError, match=r"text\.tif") as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_complex_pixels_are_refused(make_scene):
    with pytest.raises(ImageReadError, match="complex"):
        read(make_scene(RAMP.astype(np.complex64)))


def test_a_truncated_file_is_refused_when_it_is_read(make_scene):
    image = np.random.default_rng(0).integers(1, 255, (3, 256, 256), dtype=np.uint8)
    path = make_scene(image, compress="deflate", tiled=True, blockxsize=64, blockysize=64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageReadError, match="truncated") as caught:
        read(path, Box(0, 0, 256, 256))
    assert "\n" not in str(caught.value)


def test_python_in_a_vrt_does_not_run(make_scene, tmp_path, monkeypatch):
    monkeypatch.setenv("GDAL_VRT_ENABLE_PYTHON", "YES")
    first, proof = make_scene(RAMP.astype(np.uint8)), tmp_path / "proof"
    vrt = tmp_path / "code.vrt"
    vrt.write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="6"><SRS>EPSG:32633</SRS>'
        "<GeoTransform>0,1,0,0,0,-1</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand">'
        "<PixelFunctionType>run</PixelFunctionType>"
        "<PixelFunctionLanguage>Python</PixelFunctionLanguage><PixelFunctionCode><![CDATA["
        f"\ndef run(*a, **k):\n    open({str(proof)!r}, 'w').close()\n]]></PixelFunctionCode>"
        f'<SimpleSource><SourceFilename relativeToVRT="1">{first.name}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    one_band = spec(bands=("red",), mean=(0.0,), std=(1.0,))
    with pytest.raises(ImageReadError):
        read(vrt, model=one_band)
    assert not proof.exists()
