"""Band tables and names: what is understood, what is refused, when data and model disagree."""

import subprocess
import sys

import pytest

from rsmamba.errors import BandMismatchError
from rsmamba.sensors import COMMON, SENSORS, Band, bands_of, check_bands

RGB = ("red", "green", "blue")


def labels(spec, **options):
    return [band.label for band in bands_of(spec, **options)]


def test_the_sensors_have_their_bands():
    assert {name: len(sensor.bands) for name, sensor in SENSORS.items()} == {
        "sentinel-2": 13,
        "landsat-8": 11,
        "landsat-9": 11,
        "naip": 4,
        "rgb": 3,
    }


@pytest.mark.parametrize("sensor", SENSORS.values(), ids=SENSORS)
def test_every_band_lies_where_its_common_name_says(sensor):
    # the limits are STAC's, the centres the agencies': a slip in either table shows here
    for band in sensor.bands:
        limits = COMMON[band.common_name]
        assert abs(band.wavelength - limits.wavelength) <= limits.width / 2, band
        assert 0 < band.width <= 1.7 * limits.width, band
    assert sensor.source
    assert len({band.label for band in sensor.bands}) == len(sensor.bands)


def test_figures_agree_with_an_independent_table():
    from torchgeo.datasets import Landsat8, Sentinel2

    for band in SENSORS["sentinel-2"].bands:  # there: of one satellite, as measured
        assert band.wavelength == pytest.approx(1000 * Sentinel2.wavelengths[band.name], rel=0.012)
    for band in SENSORS["landsat-8"].bands:
        assert band.wavelength == pytest.approx(1000 * Landsat8.wavelengths[band.name])


def test_ground_sampling_distances():
    gsd = {b.name: b.gsd for b in bands_of("sentinel-2")}
    assert [n for n, d in gsd.items() if d == 10] == ["B02", "B03", "B04", "B08"]
    assert [n for n, d in gsd.items() if d == 60] == ["B01", "B09", "B10"]
    gsd = {b.name: b.gsd for b in bands_of("landsat-8")}
    assert (gsd["B8"], gsd["B4"], gsd["B10"]) == (15, 30, 100)


@pytest.mark.parametrize("name", ["sentinel-2", "Sentinel2", "SENTINEL_2"])
def test_a_sensor_stands_for_its_bands(name):
    assert bands_of(name) == SENSORS["sentinel-2"].bands


def test_names_of_torchgeo_are_understood():
    from torchgeo.datasets import NAIP, OSCD, Landsat8

    assert bands_of(OSCD.all_bands) == bands_of("sentinel-2")
    assert labels(OSCD.rgb_bands) == list(RGB)
    assert labels(NAIP.all_bands) == ["red", "green", "blue", "nir"]
    assert bands_of(NAIP.rgb_bands) == bands_of("naip")[:3]
    assert bands_of(NAIP.all_bands, sensor="naip") == bands_of("naip")
    assert bands_of(Landsat8.default_bands, sensor="landsat-8") == bands_of("landsat-8")[:7]
    # as in the metadata of TorchGeo's weights: B8a tells that all are Sentinel-2's
    assert labels(["B4", "B8a", "B11"]) == ["red", "nir08", "swir16"]


@pytest.mark.parametrize(
    ("name", "label", "wavelength"),
    [
        ("RED", "red", 655),
        (" nir ", "nir", 880),
        ("sentinel-2:B4", "red", 665),
        ("Sentinel2:b04", "red", 665),
        ("landsat-8:B4", "red", 655),
        ("landsat-9:SR_B5", "nir08", 865),
        ("landsat-8:ST_B10", "lwir11", 10895),
        ("sentinel-2:swir16", "swir16", 1610),
        ("naip:NIR", "nir", 845),
        ("B08A", "nir08", 865),
        ("red@660", "red", 660),
        ("Leaf@ 531 / 12", "leaf", 531),
        ("VV@", "vv", None),
    ],
)
def test_one_name(name, label, wavelength):
    (band,) = bands_of([name])
    assert (band.label, band.wavelength) == (label, wavelength)


def test_the_same_number_is_another_band_on_another_sensor():
    assert labels(["B11"], sensor="sentinel-2") == ["swir16"]
    assert labels(["B11"], sensor="landsat-8") == ["lwir12"]


def test_bands_and_names_can_be_mixed():
    own = Band("leaf", 531, 12)
    mixed = bands_of(["landsat-8:B4", own, "VV@", "nir@842/115"])
    assert mixed[1] is own
    assert [band.width for band in mixed] == [30, 12, None, 115]
    assert mixed[3].common_name == "nir"  # so it is the same band as another's nir


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (["red", "gren"], {}, "'gren', the nearest known one is green; .* NAME@NANOMETRES"),
        (["B"], {}, "unknown band 'B'"),
        (["zzz"], {}, "known are blue, .*yellow; .*NAME@NANOMETRES"),
        (["B4", "B3", "B2"], {}, "B4 differs between sensors: .*sentinel-2:B4 or landsat-8:B4"),
        (["B10"], {}, "differs between sensors"),
        (["SR_B4"], {}, "differs between sensors"),
        (["nir"], {"sensor": "landsat-8"}, "landsat-8 has no band 'nir', .* nir08"),
        (["landsat-8:B12"], {}, "landsat-8 has no band 'B12'"),
        ("sentinel-3", {}, "did you mean sentinel-2.*known are sentinel-2, landsat-8"),
        (["spot:red"], {}, "unknown sensor 'spot'"),
        (["red@far"], {}, "'red@far' is no custom band"),
        (["@600"], {}, "is no custom band"),
        (["red@/30"], {}, "is no custom band"),
        (["red@-660"], {}, "-660.0 nm is no wavelength"),
        (["red@nan"], {}, "nan nm is no wavelength"),
        (["red@660/0"], {}, "0.0 nm is no wavelength"),
    ],
)
def test_what_is_refused_names_a_remedy_in_one_line(spec, options, message):
    with pytest.raises(BandMismatchError, match=message) as caught:
        bands_of(spec, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "model"),
    [
        (RGB, RGB),
        (("Red", "GREEN", "blue"), RGB),
        (("B04", "B03", "B02"), RGB),
        (("R", "G", "B"), ("sentinel-2:B4", "landsat-8:B3", "blue@480")),
        (("B4", "B8A"), ("B04", "B8A")),
        ((None, "", "band_3"), RGB),
        (RGB, ("band_1", "band_2", "band_3")),
        (("VV", "vh"), ("vv", "VH")),
    ],
)
def test_bands_that_agree_pass(data, model):
    check_bands(data, model, "the data")
    check_bands(data, model, "the data", described=True)


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize(
    ("data", "model", "kind"),
    [
        (("red", "green"), RGB, "number"),
        (("blue", "green", "red"), RGB, "order"),
        (("B02", "B03", "B04"), RGB, "order"),
        (("vh", "vv"), ("VV", "VH"), "order"),
        (("nir", "red", "green"), RGB, "list"),
        (("red", "green", "B11", "B12"), ("red", "green", "lwir11", "lwir12"), "list"),
        (("green", None, None), RGB, "list"),
    ],
)
def test_bands_that_differ_are_refused_with_both_lists(data, model, kind, described):
    with pytest.raises(BandMismatchError, match=f"scene.tif: the {kind} of bands") as caught:
        check_bands(data, model, "scene.tif", remedy="mend it", described=described)
    text = str(caught.value)
    assert f"{len(data)} ({', '.join(n or '?' for n in data)})" in text
    assert f"{len(model)} ({', '.join(model)}): mend it" in text


def test_free_text_of_a_file_counts_only_if_it_is_a_band():
    text = ("reflectance, sheet 7", "b", "c")
    check_bands(text, RGB, "scene.tif", described=True)
    with pytest.raises(BandMismatchError, match="list of bands"):
        check_bands(text, RGB, "the data")


def test_the_module_needs_neither_torch_nor_numpy():
    code = "import sys, rsmamba.sensors; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
