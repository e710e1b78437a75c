"""Well-known classification sets: a label means the same class whichever folders are there."""

import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from rsmamba.data import (
    AIDDataModule,
    EuroSATDataModule,
    ImageFolderDataModule,
    RESISC45DataModule,
    UCMercedDataModule,
)
from rsmamba.data.aid import AID
from rsmamba.data.eurosat import EuroSATRGB
from rsmamba.data.resisc45 import RESISC45
from rsmamba.data.ucmerced import UCMerced
from rsmamba.errors import BandMismatchError, ConfigError, LabelError
from tests.data.aid import data as aid
from tests.data.eurosat import data as eurosat
from tests.data.resisc45 import data as resisc45
from tests.data.ucmerced import data as ucmerced

#: Data module, data set, fake, options, folder, number of classes, numbers of the fake's classes:
#: those in the sets' published lists.
SETS = {
    "aid": (AIDDataModule, AID, aid, {}, "AID", 30, [0, 1, 3]),
    "ucmerced": (
        UCMercedDataModule,
        UCMerced,
        ucmerced,
        {},
        "UCMerced_LandUse/Images",
        21,
        [0, 1, 3],
    ),
    "eurosat": (
        EuroSATDataModule,
        EuroSATRGB,
        eurosat,
        {"images": "jpg"},
        "2750",
        10,
        [0, 1, 9],
    ),
    "resisc45": (RESISC45DataModule, RESISC45, resisc45, {}, "NWPU-RESISC45", 45, [0, 1, 35]),
}


@pytest.fixture(params=SETS)
def case(request, tmp_path):
    module, dataset, fake, options, folder, count, numbers = SETS[request.param]
    root = fake.make(tmp_path, per_class=10)
    return module, dataset, fake, options, root, root / folder, count, numbers


def test_missing_classes_leave_the_numbers_of_the_others(case, caplog):
    module, dataset, fake, options, root, folder, count, numbers = case
    m = module(root, image_size=16, **options)
    with caplog.at_level(logging.WARNING):
        m.setup("fit")
    (message,) = [r.getMessage() for r in caplog.records if "no images of" in r.getMessage()]
    assert f"no images of {count - 3} of the {count} classes" in message
    assert str(folder) in message
    assert len(m.classes) == count
    assert [m.classes.index(name) for name in fake.CLASSES] == numbers
    assert {label for _, label in m.train_dataset.imgs} == set(numbers)
    for path, label in dataset(root, None).imgs:
        assert f"/{m.classes[label]}/" in path
    shutil.rmtree(folder / fake.CLASSES[0])
    later = module(root, image_size=16, **options)
    later.setup("fit")
    assert {label for _, label in later.train_dataset.imgs} == set(numbers[1:])


def test_a_folder_that_is_no_class_is_named_with_the_remedy(case):
    module, dataset, fake, options, root, folder, *_ = case
    shutil.copytree(folder / fake.CLASSES[0], folder / "results")
    for make in (
        lambda: module(root, **options).setup("fit"),
        lambda: dataset(root, None),
    ):
        with pytest.raises(LabelError, match=r"results: is no class.*remove") as caught:
            make()
        assert "\n" not in str(caught.value)


def test_image_folders_take_whatever_classes_are_there(tmp_path):
    root = aid.make(tmp_path, per_class=10)
    (root / "AID/Beach").rename(root / "AID/results")
    m = ImageFolderDataModule(root / "AID", protocol="ratio", image_size=16)
    m.setup("fit")
    assert m.classes == ("Airport", "BareLand", "results")


def test_odd_images_are_refused_with_a_remedy_that_the_data_module_takes(case):
    module, _, _, options, root, folder, *_ = case
    for i, path in enumerate(sorted(folder.rglob("*.jpg"))):
        with Image.open(path) as image:
            odd = image.convert(("L", "CMYK")[i % 2])
        odd.save(path)
    m = module(root, image_size=16, batch_size=4, **options)
    m.setup("test")
    with pytest.raises(BandMismatchError, match="set convert=True"):
        next(iter(m.test_dataloader()))
    m = module(root, image_size=16, batch_size=4, convert=True, **options)
    m.setup("test")
    (batch,) = [next(iter(m.test_dataloader()))]
    assert batch["image"].shape == (4, 3, 16, 16)
    assert np.isfinite(batch["image"].numpy()).all()


def test_bands_of_sentinel_2_are_not_converted(tmp_path):
    with pytest.raises(ConfigError, match="images='jpg'"):
        EuroSATDataModule(tmp_path, convert=True)
