"""EuroSAT: 13 bands as TorchGeo reads them, and the RGB images that it does not read."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from torchgeo.datasets import EuroSAT as TorchGeoEuroSAT

from rsmamba.data.eurosat import CLASSES, EuroSAT, EuroSATDataModule, EuroSATRGB
from rsmamba.data.images import quiet
from rsmamba.errors import (
    ArchiveError,
    BandMismatchError,
    ConfigError,
    DataNotFoundError,
    ImageReadError,
)
from tests.data.eurosat import data

SHARED = Path(__file__).parents[2] / "../shared/data/eurosat"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return data.make(tmp_path_factory.mktemp("eurosat"), per_class=10)


@pytest.fixture
def root(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.mark.parametrize("bands", [None, ("B08", "B8A", "B02")])
def test_samples_equal_torchgeos(tmp_path, bands):
    made = data.make(tmp_path, per_class=5, size=8, classes=CLASSES)
    kwargs = {} if bands is None else {"bands": bands}
    for split in ("train", "test"):
        ours = EuroSAT(made, split, **kwargs)
        theirs = TorchGeoEuroSAT(made, split, **kwargs)
        assert ours.imgs == theirs.imgs
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["label"], b["label"])
            assert a["image"].dtype == torch.float32


def test_bands_and_their_statistics_go_together(made):
    module = EuroSATDataModule(made, bands=["B8A", "B04"], batch_size=4, image_size=16)
    module.setup("test")
    batch = next(iter(module.test_dataloader()))
    assert batch["image"].shape == (4, 2, 16, 16)
    # The file's order puts B8A last: 13th and 4th band.
    means = batch["image"].mean((0, 2, 3))
    torch.testing.assert_close(means, torch.tensor([1309.5, 409.5]), atol=3, rtol=0)
    assert module.mean.tolist() == pytest.approx([2594.1408, 947.6262])
    assert module.bands == ("B8A", "B04")
    assert module.gsd == 40.0
    assert EuroSATDataModule(made).gsd == 10.0
    for wrong in (["B8A", "B13"], []):
        with pytest.raises(BandMismatchError, match=r"(B13|nothing) is no band of EuroSAT"):
            EuroSATDataModule(made, bands=wrong)


def test_rgb_images_are_read_with_the_same_splits(made):
    stock = EuroSATDataModule(made, images="jpg", protocol="torchgeo").split()
    bands = EuroSATDataModule(made, protocol="torchgeo").split()
    ratio = EuroSATDataModule(made, images="jpg").split()
    for part, names in EuroSATDataModule(made).split().items():
        assert [n.replace(".tif", ".jpg") for n in names] == ratio[part]
        assert [n.replace(".tif", ".jpg") for n in bands[part]] == stock[part]
    sample = EuroSATRGB(made, "val")[0]
    with Image.open(made / "2750" / stock["val"][0]) as image:
        assert np.array_equal(sample["image"].permute(1, 2, 0), np.array(image))
    assert EuroSATDataModule(made, images="jpg").bands == ("red", "green", "blue")
    with pytest.raises(ConfigError, match="leave bands out"):
        EuroSATDataModule(made, images="jpg", bands=["B02"])
    with pytest.raises(ConfigError, match="images='png'"):
        EuroSATDataModule(made, images="png")


@pytest.mark.parametrize("images", ["tif", "jpg"])
def test_a_batch_of_either_kind_is_plotted(made, images):
    module = EuroSATDataModule(made, images=images, batch_size=4, image_size=16)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    figure = module.plot(batch, predictions=batch["label"])
    assert len([a for a in figure.axes if a.images]) == 4
    pictures = [a.images[0].get_array() for a in figure.axes if a.images]
    assert all(p.shape == (16, 16, 3) and p.std() > 0 for p in pictures)


def test_missing_images_say_which_kind_is_looked_for(root, tmp_path):
    shutil.rmtree(root / "ds")
    with pytest.raises(DataNotFoundError, match=r"sentinel_2/tif/<class>.*images='jpg'"):
        EuroSATDataModule(root).setup("fit")
    shutil.rmtree(root / "2750")
    with pytest.raises(DataNotFoundError, match=r"2750/<class>.*EuroSAT\.zip.*images='tif'"):
        EuroSATDataModule(root, images="jpg").setup("fit")


def test_an_archive_of_either_kind_is_unpacked(root):
    for folder, name, images in (("ds", "EuroSATallBands", "tif"), ("2750", "EuroSAT", "jpg")):
        shutil.make_archive(root / name, "zip", root, folder)
        shutil.rmtree(root / folder)
        if images == "tif":
            with pytest.raises(ArchiveError, match=r"EuroSATallBands\.zip: its sha256"):
                EuroSATDataModule(root).prepare_data()
        module = EuroSATDataModule(root, images=images, checksum=images == "jpg")
        module.prepare_data()
        assert sum(map(len, module.split().values())) == 30


def test_damaged_and_foreign_files_are_named(root):
    folder = root / EuroSAT.base_dir / "Forest"
    cut, rgb = folder / "Forest_1.tif", folder / "Forest_2.tif"
    cut.write_bytes(cut.read_bytes()[:2000])
    with (
        quiet(),
        rasterio.open(rgb, "w", "GTiff", 16, 16, 3, dtype="uint8") as file,
    ):
        file.write(np.zeros((3, 16, 16), np.uint8))
    dataset = EuroSAT(root, names=["Forest_1", "Forest_2"])
    with pytest.raises(ImageReadError, match=r"Forest_1\.tif: cannot be decoded"):
        dataset[0]
    with pytest.raises(BandMismatchError, match=r"Forest_2\.tif: has 3 bands, not EuroSAT's 13"):
        dataset[1]


def test_everything_that_torchgeo_fetches_is_fetched_with_its_checksum(tmp_path, monkeypatch):
    fetched = []

    def fetch(url, root, sha256=None):
        fetched.append((url.rsplit("/", 1)[1], sha256))

    monkeypatch.setattr("rsmamba.data.eurosat.download_url", fetch)
    with pytest.raises(DataNotFoundError, match=r"no archive .*EuroSATallBands\.zip"):
        EuroSATDataModule(tmp_path, download=True).prepare_data()
    assert fetched == [
        (TorchGeoEuroSAT.filename, TorchGeoEuroSAT.sha256),
        *(
            (TorchGeoEuroSAT.split_filenames[part], TorchGeoEuroSAT.split_sha256s[part])
            for part in ("train", "val", "test")
        ),
    ]


@pytest.mark.shared
def test_the_real_rgb_images_are_read_and_split_as_recorded():
    if not SHARED.is_dir():
        pytest.skip("the developers' imagery is not here")
    module = EuroSATDataModule(SHARED, images="jpg", check_duplicates="error")
    module.setup("fit")
    assert len(module.classes) == 10
    names = [f"{n}\n" for part in ("train", "val", "test") for n in module.split()[part]]
    assert len(names) == 1200
    assert hashlib.sha256("".join(names).encode()).hexdigest()[:16] == "dcf44cf45b922a19"
    assert module.train_dataset[0]["image"].shape == (3, 64, 64)
