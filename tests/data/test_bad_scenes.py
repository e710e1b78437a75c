"""Images that are not what they should be: counted and named, or refused with the remedy."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from rsmamba.data import ScenePatches, ScenePatchesDataModule
from rsmamba.data.images import Scene
from rsmamba.data.opening import BadFiles
from rsmamba.errors import BandMismatchError, DataNotFoundError, ImageReadError
from tests.data.scenes.data import noise, write


def photo(path, mode="RGB", size=(40, 40), seed=0):
    """A smooth image of any of Pillow's modes."""
    small = noise(size[1] // 8 + 1, size[0] // 8 + 1, seed=seed).transpose(1, 2, 0)
    image = Image.fromarray(small).resize(size).convert(mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Four good JPEGs."""
    for i in range(4):
        photo(tmp_path / f"{i}.jpg", seed=i)
    return tmp_path


def sixteen_bit(path, bands=3):
    values = noise(40, 40, bands).astype(np.uint16) * 200
    with rasterio.open(
        path, "w", driver="PNG", count=bands, height=40, width=40, dtype="uint16"
    ) as target:
        target.write(values)
    return path


def cut(path, keep=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def fault(kind, path):
    """Put a bad file at a path (with the suffix that suits it); return it."""
    if kind in ("cut.jpg", "cut.png"):
        cut(photo(path.with_name(kind), size=(90, 90)), keep=0.7)
    elif kind == "cut.tif":
        cut(write(path.with_name(kind), noise(200, 200), compress="deflate"))
    elif kind == "pixel.png":
        photo(path.with_name(kind), size=(1, 1))
    elif kind == "grey.jpg":
        photo(path.with_name(kind), "L")
    elif kind == "cmyk.jpg":
        photo(path.with_name(kind), "CMYK")
    elif kind == "deep.png":
        sixteen_bit(path.with_name(kind))
    elif kind == "deep.tif":
        write(path.with_name(kind), noise(40, 40).astype(np.uint16))
    elif kind == "inks.tif":
        write(path.with_name(kind), noise(40, 40, 4), photometric="cmyk")
    elif kind == "complex.tif":
        write(path.with_name(kind), noise(40, 40).astype(np.complex64))
    elif kind == "empty.tif":
        path.with_name(kind).touch()
    elif kind == "text.jpg":
        path.with_name(kind).write_text("no image")
    elif kind == "bomb.png":
        header = photo(path.with_name(kind)).read_bytes()
        start = header[12:16] + (20_000).to_bytes(4, "big") * 2 + header[24:29]
        check = zlib.crc32(start).to_bytes(4, "big")
        path.with_name(kind).write_bytes(header[:12] + start + check + header[33:])
    return path.with_name(kind)


FAULTS = {
    "cut.jpg": r"cannot be decoded.*copy or download it again",
    "cut.png": r"cannot be decoded.*copy or download it again",
    "cut.tif": r"cannot be decoded.*copy or download it again",
    "pixel.png": r"single pixel.*remove it",
    "grey.jpg": r"choose common ones with indexes",
    "cmyk.jpg": r"is CMYK.*convert=True",
    "deep.png": r"uint16.*scales=",
    "deep.tif": r"uint16.*scales=",
    "inks.tif": r"is CMYK.*convert=True",
    "complex.tif": r"complex64, not real numbers",
    "empty.tif": r"not a readable image.*leave it out",
    "text.jpg": r"not a readable image.*leave it out",
    "bomb.png": r"too large.*gdal_translate",
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", FAULTS)
def test_a_bad_file_is_named_with_the_remedy_or_counted(folder, monkeypatch, kind, large):
    if large:
        monkeypatch.setattr("rsmamba.data.collection.HEADERS", 2)
    bad = fault(kind, folder / "x")

    def read_all(**options):
        data = ScenePatches(folder, size=16, length=40, **options)
        return data, torch.stack([data[i]["image"] for i in range(40)])

    with pytest.raises((ImageReadError, BandMismatchError), match=FAULTS[kind]) as error:
        read_all()
    assert kind in str(error.value)
    with pytest.warns(UserWarning, match=rf"left out: .*{kind}"):
        data, images = read_all(max_bad_files=1)
    assert list(data.bad_files) == [bad]
    assert images.shape == (40, 3, 16, 16)
    bad.unlink()
    if large:  # the bad file changes its own samples only
        good = ScenePatches(folder, size=16, length=40)
        assert not torch.equal(torch.stack([good[i]["image"] for i in range(40)]), images)


def test_a_bad_file_changes_only_the_samples_that_it_was_drawn_for(folder, monkeypatch):
    monkeypatch.setattr("rsmamba.data.collection.HEADERS", 2)

    def samples(**options):
        data = ScenePatches(folder, size=16, length=40, **options)
        drawn = [data.lottery.draw(i)[0] for i in range(40)]
        return drawn, [data[i]["image"] for i in range(40)]

    drawn, before = samples()
    cut(folder / "2.jpg")
    with pytest.warns(UserWarning, match=r"2\.jpg"):
        _, after = samples(max_bad_files=1)
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [item != 2 for item in drawn]


def test_alpha_is_a_mask_among_images_without(folder):
    rgba = np.full((40, 40, 4), 77, np.uint8)
    rgba[:20, :, 3] = 0
    Image.fromarray(rgba).save(folder / "alpha.png")
    data = ScenePatches(folder, size=16, length=40)
    assert len(data.scenes) == 5
    assert not data.bad_files
    pixels, valid = Scene.open(folder / "alpha.png").read()
    assert pixels.shape == (3, 40, 40)
    assert valid.mean() == 0.5
    palette = Image.fromarray(rgba[..., 0], "P")
    palette.putpalette([0, 0, 0] * 77 + [9, 8, 7])
    palette.info["transparency"] = 77
    palette.save(folder / "palette.png", transparency=77)
    pixels, valid = Scene.open(folder / "palette.png").read()
    assert pixels[:, 0, 0].tolist() == [9, 8, 7]
    assert not valid.any()


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_images_have_one_band_or_three_equal_ones(tmp_path, mode):
    for i in range(2):
        photo(tmp_path / f"{i}.png", mode, seed=i)
    one = ScenePatches(tmp_path, size=16, length=2)
    assert one.bands == ("band_1",)
    three = ScenePatches(tmp_path, size=16, length=2, convert=True)
    assert three.bands == ("red", "green", "blue")
    for i in range(2):
        assert torch.equal(one[i]["image"].expand(3, -1, -1), three[i]["image"])
    with pytest.raises(BandMismatchError, match=r"band 2 was asked for.*convert=True"):
        ScenePatches(tmp_path, size=16, indexes=[1, 2])


def test_types_are_mixed_by_an_explicit_rule_only(tmp_path):
    write(tmp_path / "a.tif", np.full((1, 40, 40), 100, np.uint8), nodata=0)
    write(tmp_path / "b.tif", np.full((1, 40, 40), 4000, np.uint16), nodata=0)
    message = r"uint8 in a\.tif; uint16 in b\.tif.*scales=\{uint8: 1\.0, uint16: 1\.0\}"
    with pytest.raises(BandMismatchError, match=message):
        ScenePatches(tmp_path, size=16)
    data = ScenePatches(tmp_path, size=16, length=8, scales={"uint8": 1, "uint16": 0.0255})
    assert {round(float(data[i]["image"].mean()), 3) for i in range(8)} == {100.0, 102.0}
    with pytest.raises(BandMismatchError, match=r"b\.tif: stores uint16.*for uint8 only"):
        ScenePatches(tmp_path, size=16, scales={"uint8": 1})
    module = ScenePatchesDataModule(
        tmp_path / "b.tif", 16, 1, val_fraction=0, scales={"uint16": 0.5}, length=1
    )
    module.setup("fit")
    assert module.mean.tolist() == [2000.0]
    assert module.factor == 0.5


def test_behind_vsi_paths_photos_are_as_strictly_read(tmp_path):
    faults = {
        "cut.jpg": r"cannot be decoded",
        "cut.png": r"cannot be decoded",
        "cmyk.jpg": r"is CMYK.*convert=True",
        "pixel.png": r"has a single pixel",
    }
    for kind in faults:
        fault(kind, tmp_path / "x")
    photo(tmp_path / "palette.png", "P")
    photo(tmp_path / "grey.png", "L")
    photo(tmp_path / "good.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        for path in tmp_path.glob("*.*g"):
            file.write(path, path.name)
    for kind, message in (faults | {"palette.png": r"has a palette.*unpack"}).items():
        with pytest.raises((ImageReadError, BandMismatchError), match=rf"{kind}: {message}"):
            ScenePatches(f"/vsizip/{tmp_path}/all.zip/{kind}", size=16)
    for name, options in (("good.png", {}), ("grey.png", {}), ("grey.png", {"convert": True})):
        there = ScenePatches(f"/vsizip/{tmp_path}/all.zip/{name}", size=16, length=1, **options)
        here = ScenePatches(tmp_path / name, size=16, length=1, **options)
        assert torch.equal(there[0]["image"], here[0]["image"])


VRT = """<VRTDataset rasterXSize="{w}" rasterYSize="40">{bands}</VRTDataset>"""
BAND = """<VRTRasterBand dataType="Byte" band="{b}">{sources}</VRTRasterBand>"""
SOURCE = """<SimpleSource><SourceFilename relativeToVRT="1">{name}</SourceFilename>
<SourceBand>{b}</SourceBand><SrcRect xOff="0" yOff="0" xSize="40" ySize="40"/>
<DstRect xOff="{x}" yOff="0" xSize="40" ySize="40"/></SimpleSource>"""


def mosaic(path: Path, names):
    """A VRT of images side by side."""
    bands = "".join(
        BAND.format(
            b=b,
            sources="".join(SOURCE.format(name=n, b=b, x=40 * i) for i, n in enumerate(names)),
        )
        for b in (1, 2, 3)
    )
    path.write_text(VRT.format(w=40 * len(names), bands=bands))
    return path


def test_a_vrt_is_one_image_and_names_a_missing_source(tmp_path):
    tiles = [noise(40, 40, seed=i) for i in range(2)]
    for i, tile in enumerate(tiles):
        write(tmp_path / f"t{i}.tif", tile)
    path = mosaic(tmp_path / "all.vrt", ["t0.tif", "t1.tif"])
    for root in (path, f"{tmp_path}/*.vrt", [str(path)]):
        data = ScenePatches(root, size=16, cache=False)
        assert len(data.scenes) == 1
        np.testing.assert_array_equal(data.scenes[0].read()[0], np.concatenate(tiles, 2))
    broken = mosaic(tmp_path / "broken.vrt", ["t0.tif", "gone.tif"])
    with pytest.raises(ImageReadError, match=r"broken\.vrt: cannot be decoded.*gone\.tif"):
        ScenePatches(broken, size=16)


def test_a_vrt_runs_no_code(tmp_path):
    code = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()"
    band = (
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand">'
        "<PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python"
        f"</PixelFunctionLanguage><PixelFunctionCode><![CDATA[{code}\ndef f(*a, **k): pass\n]]>"
        "</PixelFunctionCode></VRTRasterBand>"
    )
    path = tmp_path / "code.vrt"
    path.write_text(VRT.format(w=40, bands=band))
    with pytest.raises(ImageReadError, match=r"code\.vrt"):
        ScenePatches(path, size=16, length=1)[0]
    assert not (tmp_path / "ran").exists()


def test_a_file_that_vanishes_after_listing_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("rsmamba.data.collection.HEADERS", 2)
    monkeypatch.setattr("rsmamba.data.collection.PROBED", 1)
    options = {"size": 16, "length": 40, "index": folder.parent / "index.parquet"}
    data = ScenePatches(folder, max_bad_files=1, **options)
    (folder / "3.jpg").unlink()
    with pytest.warns(UserWarning, match=r"3\.jpg: there is no such file.*refresh=True"):
        assert all(data[i]["image"].shape == (3, 16, 16) for i in range(40))
    assert list(data.bad_files) == [folder / "3.jpg"]


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"no images in there.*\.tif"):
        ScenePatches(tmp_path)


def test_a_file_that_is_replaced_is_read_anew(tmp_path):
    path = write(tmp_path / "a.tif", np.full((1, 32, 32), 1, np.uint8))
    scene = Scene.open(path)
    assert scene.read()[0].max() == 1
    path.unlink()
    write(path, np.full((1, 32, 32), 2, np.uint8))
    assert scene.read()[0].min() == 2


def test_only_so_many_files_are_open(tmp_path):
    from rsmamba.data import rasters

    scenes = [
        Scene.open(write(tmp_path / f"{i}.tif", np.full((1, 8, 8), i, np.uint8)))
        for i in range(rasters.OPEN_FILES + 5)
    ]
    for i, scene in enumerate(scenes):
        assert scene.read()[0].max() == i
    assert len(rasters._FILES.files) == rasters.OPEN_FILES


@pytest.mark.parametrize("workers", [0, 4])
def test_bad_files_are_counted_whichever_worker_meets_them(folder, workers):
    cut(folder / "1.jpg", 0.4)
    cut(folder / "2.jpg", 0.4)

    def load(**options):
        module = ScenePatchesDataModule(
            folder, 16, 2, workers, length=24, val_fraction=0, cache=False, mean=[0.0] * 3,
            std=[1.0] * 3, **options,
        )  # fmt: skip
        module.setup("fit")
        return module, torch.cat([b["image"] for b in module.train_dataloader()])

    with pytest.warns(UserWarning, match="left out") if not workers else pytest.warns():
        module, images = load(max_bad_files=2)
    assert sorted(p.name for p in module.bad_files) == ["1.jpg", "2.jpg"]
    assert images.shape == (24, 3, 16, 16)
    with (
        pytest.warns(),
        pytest.raises(ImageReadError, match=r"\.jpg.*2 bad file\(s\), max_bad_files=1"),
    ):
        load(max_bad_files=1)


def test_the_list_of_bad_files_goes_with_its_owner(tmp_path):
    bad = BadFiles(1)
    with pytest.warns(UserWarning, match="left out: because"):
        bad.add(tmp_path / "a.tif", ImageReadError("because"))
    bad.add(tmp_path / "a.tif", ImageReadError("again"))
    assert bad.reasons == {tmp_path / "a.tif": "because"}
    assert bad.left == 0
    file = bad._list
    assert file.is_file()
    del bad
    assert not file.exists()


def test_bad_files_are_counted_without_a_place_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "none"))
    bad = BadFiles(0)
    with pytest.raises(ImageReadError, match=r"because; 1 bad file\(s\), max_bad_files=0"):
        bad.add(tmp_path / "a.tif", ImageReadError("because"))
    assert bad.reasons == {tmp_path / "a.tif": "because"}
