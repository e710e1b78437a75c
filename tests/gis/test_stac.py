"""STAC: items of maps and of models, collections; read back by pystac, without any network."""

import hashlib
import json
import re
import socket
from dataclasses import replace
from datetime import UTC, datetime

import pystac
import pytest
import shapely
from pystac.extensions.classification import ClassificationExtension
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import MLMExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import RasterExtension
from rasterio.crs import CRS
from rasterio.transform import Affine
from shapely.geometry import shape

from rsmamba.errors import (
    ConfigError,
    DataNotFoundError,
    OutputExistsError,
    OutputNotWritableError,
    SpecError,
)
from rsmamba.gis.footprint import footprint
from rsmamba.gis.mlm import class_objects, model_item, model_name
from rsmamba.gis.raster import RasterGrid
from rsmamba.gis.stac import map_item, write_collection, write_item
from rsmamba.spec import ModelSpec

GRID = RasterGrid(300, 200, CRS.from_epsg(32633), Affine(10, 0, 399960, 0, -10, 5100000))
FIJI = RasterGrid(500, 500, CRS.from_epsg(3832), Affine(1000, 0, 3.1e6, 0, -1000, -1.8e6))
NAMES, COLOURS = ("Wasser & Moor", "Gebäude", "水"), ("#0000ff", "#aa00aa", "#00ff00")
MADE = datetime(2026, 5, 4, 12, 30, 15, 999, tzinfo=UTC)
SPEC = ModelSpec(
    task="segmentation",
    task_class="rsmamba.tasks.segment.SemanticSegmentation",
    task_kwargs={"model": "upernet", "lr": 1e-4},
    architecture="spatial_mamba_tiny",
    bands=("red", "green"),
    mean=(0.2, 0.3),
    std=(0.1, 0.2),
    scale=0.0001,
    nodata=0,
    gsd=10,
    image_size=(512, 512),
    classes=NAMES,
    colours=COLOURS,
    licence="CC-BY-4.0",
    source_sha256="ab" * 32,
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever opens a connection fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("something was fetched from the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def item_of(folder, grid=GRID, name="map", **changes):
    """An item with everything in it."""
    assets = {
        "class": folder / f"{name}.tif",
        "scores": folder / f"{name}_scores.tif",
        "uncertainty": folder / f"{name}_entropy.tif",
        "style": folder / f"{name}.qml",
        "polygons": folder / f"{name}.gpkg",
    }
    arguments = {
        "source": folder / "scenes" / "scene.tif",
        "classes": NAMES,
        "colours": COLOURS,
        "spec": SPEC,
        "model": folder / "models" / "model.json",
        "parameters": {"tile": 512, "halo": 64, "blend": "linear", "threshold": None},
        "created": MADE,
    }
    return map_item(grid, assets, **arguments | changes)


def read(path):
    """The JSON of an item."""
    return json.loads(path.read_text(encoding="utf-8"))


def test_an_item_says_where_when_and_on_which_grid(tmp_path):
    path = write_item(item_of(tmp_path), tmp_path / "map.json")
    item = pystac.Item.from_file(path)
    assert (item.id, item.datetime) == ("map", MADE.replace(microsecond=0))
    assert item.common_metadata.created == item.datetime
    assert item.common_metadata.gsd == pytest.approx(10, rel=1e-3)
    assert shape(item.geometry).equals(footprint(GRID))
    assert item.bbox == pytest.approx(shape(item.geometry).bounds)
    projection = ProjectionExtension.ext(item)
    assert (projection.code, projection.wkt2, projection.projjson) == ("EPSG:32633", None, None)
    assert projection.shape == [300, 200]
    assert projection.transform == list(GRID.transform[:6])
    assert projection.bbox == [399960, 5097000, 401960, 5100000]
    assert read(path)["stac_version"] == "1.1.0"


def test_the_date_is_that_of_the_scene_if_it_is_known(tmp_path):
    taken = datetime(2020, 7, 1, 10, 0, 0, tzinfo=UTC)
    item = item_of(tmp_path, acquired=taken)
    assert item.datetime == taken
    assert item.common_metadata.created == MADE.replace(microsecond=0)


def test_equal_input_gives_equal_bytes(tmp_path):
    first = write_item(item_of(tmp_path), tmp_path / "a.json").read_bytes()
    assert write_item(item_of(tmp_path), tmp_path / "b.json").read_bytes() == first


def test_assets_are_relative_and_typed_and_their_bands_say_how_pixels_are_stored(tmp_path):
    (tmp_path / "meta").mkdir()
    path = write_item(item_of(tmp_path), tmp_path / "meta" / "map.json")
    item = pystac.Item.from_file(path)
    hrefs = {name: asset.href for name, asset in item.assets.items()}
    assert hrefs["class"] == "../map.tif"
    assert hrefs["polygons"] == "../map.gpkg"
    absolute = item.assets["scores"].get_absolute_href()
    assert absolute == str(tmp_path / "map_scores.tif")
    assert item.assets["class"].media_type == pystac.MediaType.COG
    assert item.assets["style"].roles == ["style"]
    assert item.assets["polygons"].media_type == pystac.MediaType.GEOPACKAGE
    (band,) = RasterExtension.ext(item.assets["class"]).bands
    assert (band.nodata, band.data_type, band.scale) == (255, "uint8", None)
    scores = RasterExtension.ext(item.assets["scores"]).bands
    assert [b.properties["name"] for b in scores] == list(NAMES)
    assert all((b.nodata, b.scale) == (255, 1 / 254) for b in scores)
    assert len(RasterExtension.ext(item.assets["uncertainty"]).bands) == 1
    assert "raster:bands" not in item.assets["style"].extra_fields


def test_classes_have_values_names_titles_and_colours(tmp_path):
    path = write_item(item_of(tmp_path), tmp_path / "map.json")
    item = pystac.Item.from_file(path)
    classes = ClassificationExtension.ext(item.assets["class"]).classes
    found = [(c.value, c.name, c.title, c.description, c.color_hint) for c in classes]
    assert found == [
        (0, "Wasser_Moor", NAMES[0], NAMES[0], "0000FF"),
        (1, "Gebaude", NAMES[1], NAMES[1], "AA00AA"),
        (2, "class_2", NAMES[2], NAMES[2], "00FF00"),
    ]
    assert "Gebäude" in path.read_text(encoding="utf-8")


def test_machine_names_of_classes_stay_distinct_and_legal():
    found = [c.name for c in class_objects(["a b", "a/b", "a_b", "", "Ä"])]
    assert found == ["a_b", "a_b_1", "a_b_2", "class_3", "A"]
    assert all(re.fullmatch(r"[0-9A-Za-z_-]+", name) for name in found)
    for classes, colours in [([], []), (["a"], ["#000000", "#ffffff"])]:
        with pytest.raises(SpecError, match="one colour per class"):
            class_objects(classes, colours)


def test_an_item_tells_the_model_the_scene_and_the_parameters(tmp_path):
    values = read(write_item(item_of(tmp_path), tmp_path / "map.json"))
    properties = values["properties"]
    assert properties["processing:level"] == "L4"
    assert properties["processing:lineage"] == (
        "Classes predicted by spatial_mamba_tiny segmentation from scene.tif"
    )
    assert list(properties["processing:software"]) == ["rsmamba"]
    assert properties["rsmamba:parameters"]["halo"] == 64
    digest = hashlib.sha256(SPEC.to_json().encode()).hexdigest()
    assert properties["rsmamba:spec_sha256"] == digest
    assert properties["mlm:name"] == model_name(SPEC)
    assert properties["mlm:tasks"] == ["semantic-segmentation"]
    links = {link["rel"]: link for link in values["links"]}
    assert links["derived_from"]["href"] == "./models/model.json"
    assert links["derived_from"]["mlm:name"] == model_name(SPEC)
    assert links["via"]["href"] == "./scenes/scene.tif"
    assert values["assets"]["class"]["processing:expression"] == {
        "format": "stac-mlm",
        "expression": "./models/model.json",
    }
    # that extension is for items of models: its schema wants the asset of one
    assert not any("/mlm/" in uri for uri in values["stac_extensions"])
    prefixes = {uri.split("/")[3] for uri in values["stac_extensions"]}
    assert prefixes == {"projection", "processing", "classification", "raster"}


def test_a_map_of_a_bare_function_has_an_item_too(tmp_path):
    values = read(write_item(item_of(tmp_path, spec=None, model=None), tmp_path / "map.json"))
    assert [link["rel"] for link in values["links"]] == ["via"]
    assert not [key for key in values["properties"] if key.startswith("mlm:")]


@pytest.mark.parametrize(
    ("source", "href", "name"),
    [
        ("https://me:pw@host:81/a/s.tif?sig=secret#x", "https://host:81/a/s.tif", "s.tif"),
        ("/vsicurl/https://host/s.tif?sig=secret", "https://host/s.tif", "s.tif"),
        ("/vsis3/bucket/a/s.tif", "s3://bucket/a/s.tif", "s.tif"),
        ("/vsizip/a.zip/s.tif", None, "/vsizip/a.zip/s.tif"),
        ('NETCDF:"a.nc":var', None, 'NETCDF:"a.nc":var'),
    ],
)
def test_scenes_of_any_gdal_source_are_named_without_their_secrets(tmp_path, source, href, name):
    values = read(write_item(item_of(tmp_path, source=source), tmp_path / "map.json"))
    assert [x["href"] for x in values["links"] if x["rel"] == "via"] == ([href] if href else [])
    assert values["properties"]["processing:lineage"].endswith(f"from {name}")
    assert "secret" not in json.dumps(values)
    assert "pw@" not in json.dumps(values)


def test_an_item_across_the_antimeridian_is_split_and_its_box_has_west_over_east(tmp_path):
    values = read(write_item(item_of(tmp_path, FIJI), tmp_path / "map.json"))
    assert values["geometry"]["type"] == "MultiPolygon"
    outline = shape(values["geometry"])
    assert outline.is_valid
    west, south, east, north = values["bbox"]
    assert west > east
    assert (west, east) == pytest.approx((177.8, -177.7), abs=0.1)
    assert south < north < 0
    assert outline.covers(shapely.Point(179, -18))
    assert outline.covers(shapely.Point(-179, -18))
    assert not outline.covers(shapely.Point(0, -18))


def test_a_system_without_a_code_is_given_in_full_and_one_that_is_local_has_no_geometry(tmp_path):
    own = CRS.from_proj4("+proj=laea +lat_0=47 +lon_0=13 +datum=WGS84 +units=m")
    grid = RasterGrid(10, 20, own, Affine(10, 0, 0, 0, -10, 0))
    item = pystac.Item.from_file(write_item(item_of(tmp_path, grid), tmp_path / "a.json"))
    projection = ProjectionExtension.ext(item)
    assert projection.code is None
    assert CRS.from_wkt(projection.wkt2) == own
    assert projection.projjson["type"] == "ProjectedCRS"
    local = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    grid = RasterGrid(10, 20, local, Affine(1, 0, 0, 0, -1, 0))
    values = read(write_item(item_of(tmp_path, grid), tmp_path / "b.json"))
    assert values["geometry"] is None
    assert "bbox" not in values
    assert "gsd" not in values["properties"]


def test_a_system_that_only_resembles_a_code_is_not_given_that_code(tmp_path):
    wkt = CRS.from_epsg(32633).to_wkt().replace('"false_easting",500000', '"false_easting",500001')
    grid = RasterGrid(10, 20, CRS.from_wkt(wkt), Affine(10, 0, 4e5, 0, -10, 5e6))
    projection = ProjectionExtension.ext(item_of(tmp_path, grid))
    assert projection.code is None
    assert "500001" in projection.wkt2


def test_checksums_are_those_of_the_files(tmp_path):
    path = tmp_path / "map.tif"
    path.write_bytes(b"pixels")
    arguments = {"source": "s.tif", "classes": NAMES, "checksums": True}
    item = map_item(GRID, {"class": path}, **arguments)
    file = FileExtension.ext(item.assets["class"])
    assert file.size == 6
    assert file.checksum == "1220" + hashlib.sha256(b"pixels").hexdigest()
    with pytest.raises(DataNotFoundError, match=r"none\.tif.*write it first"):
        map_item(GRID, {"class": tmp_path / "none.tif"}, **arguments)
    with pytest.raises(ConfigError, match="'class'"):
        map_item(GRID, {"scores": path}, **arguments)


def test_an_item_is_written_whole_and_over_nothing(tmp_path):
    item = item_of(tmp_path)
    write_item(item, tmp_path / "map.json")
    before = (tmp_path / "map.json").read_bytes()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_item(item, tmp_path / "map.json")
    item.properties["rsmamba:parameters"]["threshold"] = float("nan")  # not JSON
    with pytest.raises(ValueError, match="JSON"):
        write_item(item, tmp_path / "map.json", overwrite=True)
    assert (tmp_path / "map.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["map.json"]
    with pytest.raises(OutputNotWritableError, match="create its folder"):
        write_item(item, tmp_path / "no" / "map.json")


def test_a_model_item_follows_the_rules_of_mlm_1_4(tmp_path):
    weights = tmp_path / "runs" / "last.ckpt"
    item = model_item(SPEC, weights, sha256="cd" * 32, created=MADE)
    path = write_item(item, tmp_path / "model.json")
    values = read(path)
    properties = values["properties"]
    assert "https://stac-extensions.github.io/mlm/v1.4.0/schema.json" in values["stac_extensions"]
    assert values["geometry"] is None
    assert values["id"] == "last"
    # required fields, and the patterns of the schema
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", properties["mlm:name"])
    assert properties["mlm:architecture"] == "spatial_mamba_tiny"
    assert properties["mlm:tasks"] == ["semantic-segmentation"]
    assert properties["mlm:framework"] == "PyTorch"
    assert all(re.fullmatch(r"[0-9a-zA-Z_.-]+", key) for key in properties["mlm:hyperparameters"])
    # exactly one asset is the model, with its kind
    (asset,) = values["assets"].values()
    assert "mlm:model" in asset["roles"]
    assert asset["mlm:artifact_type"] == "torch.save"
    assert asset["href"] == "./runs/last.ckpt"
    assert asset["file:checksum"] == "1220" + "cd" * 32
    # bands of the input are described
    (entry,) = properties["mlm:input"]
    assert entry["bands"] == ["red", "green"]
    assert [band["name"] for band in asset["raster:bands"]] == entry["bands"]
    assert "bands" not in properties  # STAC 1.1 forbids them there if no asset has them
    # null would mean "trained from scratch", which a spec does not say
    assert "mlm:pretrained_source" not in properties
    assert entry["input"]["shape"] == [-1, 2, 512, 512]
    assert len(entry["input"]["shape"]) == len(entry["input"]["dim_order"])
    (output,) = properties["mlm:output"]
    assert output["result"]["shape"] == [-1, 3, -1, -1]
    assert [c["value"] for c in output["classification:classes"]] == [0, 1, 2]
    assert properties["license"] == "CC-BY-4.0"
    assert MLMExtension.ext(pystac.Item.from_file(path)).mlm_name == model_name(SPEC)


def test_the_scaling_of_a_model_item_is_that_of_the_spec():
    properties = model_item(SPEC, "w.ckpt", created=MADE).properties
    steps = properties["mlm:input"][0]["value_scaling"]
    for step, mean, std in zip(steps, SPEC.mean, SPEC.std, strict=True):
        assert step["type"] == "z-score"
        for stored in (0, 1234, 10_000):
            assert (stored - step["mean"]) / step["stddev"] == pytest.approx(
                (stored * SPEC.scale - mean) / std
            )


@pytest.mark.parametrize(
    ("task", "tasks"),
    [
        ("classification", ["scene-classification"]),
        ("change", ["semantic-segmentation"]),
        ("detection", ["object-detection", "instance-segmentation"]),
        ("backbone", ["similarity-search"]),
        ("pretraining", ["generative"]),
    ],
)
def test_every_task_has_its_words_in_mlm(task, tasks):
    spec = ModelSpec(task, "a.B", {}, "roma_base_patch16", ("R@",), (0.0,), (1.0,))
    item = model_item(spec, "https://host/w.safetensors", created=MADE)
    assert item.properties["mlm:tasks"] == tasks
    (output,) = item.properties["mlm:output"]
    assert output["tasks"] == tasks
    assert len(output["result"]["shape"]) == len(output["result"]["dim_order"])
    assert all(re.fullmatch(r"[a-z_-]+", name) for name in output["result"]["dim_order"])
    assert "mlm:hyperparameters" not in item.properties
    assert "license" not in item.properties
    assert item.assets["model"].href == "https://host/w.safetensors"
    assert item.assets["model"].roles == ["mlm:model", "mlm:weights"]


def test_a_licence_that_is_no_identifier_is_called_other():
    spec = replace(SPEC, licence="non-commercial use only")
    assert model_item(spec, "w.ckpt", created=MADE).properties["license"] == "other"


def collected(tmp_path, **changes):
    """A collection over a map in Austria and one in Fiji, in two folders."""
    files = []
    for name, grid, day in [("austria", GRID, 1), ("fiji", FIJI, 9)]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        item = item_of(folder, grid, name, acquired=datetime(2024, 6, day, tzinfo=UTC))
        files.append(write_item(item, folder / f"{name}.json", overwrite=True))
    path = tmp_path / "collection.json"
    arguments = {"collection_id": "maps", "assets": {"mosaic": tmp_path / "all.vrt"}}
    write_collection(files, path, **arguments | changes)
    return path, files


def test_a_collection_links_its_items_both_ways(tmp_path):
    path, files = collected(tmp_path)
    before = read(files[0])
    catalog = pystac.Collection.from_file(path)
    items = list(catalog.get_items())
    assert [item.id for item in items] == ["austria", "fiji"]
    assert all(item.collection_id == "maps" for item in items)
    assert [link["href"] for link in read(path)["links"] if link["rel"] == "item"] == [
        "./austria/austria.json",
        "./fiji/fiji.json",
    ]
    up = {link["rel"]: link["href"] for link in before["links"]}
    assert {up[rel] for rel in ("root", "parent", "collection")} == {"../collection.json"}
    # the rest of an item stays as it was
    assert before["assets"]["class"]["href"] == "./austria.tif"
    assert up["via"] == "./scenes/scene.tif"
    assert before["assets"]["class"]["processing:expression"]["expression"] == "./models/model.json"


def test_a_collections_extent_holds_its_items_and_may_cross_the_antimeridian(tmp_path):
    path, _ = collected(tmp_path)
    values = read(path)
    ((west, south, east, north),) = values["extent"]["spatial"]["bbox"]
    assert west == pytest.approx(13.707, abs=0.01)  # Austria, and on eastwards to Fiji
    assert east == pytest.approx(-177.7, abs=0.1)
    assert south < -18
    assert north > 46
    assert values["extent"]["temporal"]["interval"] == [
        ["2024-06-01T00:00:00Z", "2024-06-09T00:00:00Z"]
    ]
    assert values["summaries"]["proj:code"] == ["EPSG:32633", "EPSG:3832"]
    assert values["summaries"]["mlm:name"] == [model_name(SPEC)]
    titles = [c["title"] for c in values["summaries"]["classification:classes"]]
    assert titles == list(NAMES)
    assert values["assets"]["mosaic"]["href"] == "./all.vrt"


def test_a_collection_can_be_made_again_with_the_same_result(tmp_path):
    path, files = collected(tmp_path)
    before = [file.read_bytes() for file in (path, *files)]
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_collection(files, path, collection_id="maps")
    write_collection(
        files, path, collection_id="maps", assets={"mosaic": tmp_path / "all.vrt"}, overwrite=True
    )
    assert [file.read_bytes() for file in (path, *files)] == before


def test_classes_that_differ_are_not_summarised(tmp_path):
    files = []
    for name, classes in [("a", NAMES), ("b", NAMES[:2])]:
        item = item_of(tmp_path, name=name, classes=classes, colours=COLOURS[: len(classes)])
        files.append(write_item(item, tmp_path / f"{name}.json"))
    write_collection(files, tmp_path / "collection.json", collection_id="maps")
    values = read(tmp_path / "collection.json")
    assert "classification:classes" not in values["summaries"]
    assert not values.get("stac_extensions")


def test_a_collection_of_what_is_no_item_or_has_one_id_twice_is_refused(tmp_path):
    path = tmp_path / "collection.json"
    first = write_item(item_of(tmp_path), tmp_path / "map.json")
    (tmp_path / "other").mkdir()
    second = write_item(item_of(tmp_path), tmp_path / "other" / "map.json")
    broken = tmp_path / "broken.json"
    broken.write_text('{"type": "Feature"')
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"type": "FeatureCollection", "features": []}')
    for files, error, says in [
        ([first, second], ConfigError, "'map'.*name the maps differently"),
        ([first, broken], ConfigError, "broken.json"),
        ([first, wrong], ConfigError, "wrong.json"),
        ([tmp_path / "none.json"], DataNotFoundError, "none.json"),
        ([], DataNotFoundError, "at least one map"),
    ]:
        with pytest.raises(error, match=says) as caught:
            write_collection(files, path, collection_id="maps")
        assert "\n" not in str(caught.value)
        assert not path.exists()
    assert "collection" not in read(first)
