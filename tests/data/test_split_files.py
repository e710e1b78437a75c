"""Lists of images: RoMA's format and plain names, and every way in which they can be wrong."""

import json

import pytest

from rsmamba.data.aid import AIDDataModule
from rsmamba.data.split_files import list_images, read_splits
from rsmamba.errors import ConfigError, DataNotFoundError, LabelError
from tests.data.aid import data

CODES = {"Airport": 2, "BareLand": 0, "Beach": 1}  # in an order of their own, as in RSP's lists


@pytest.fixture
def root(tmp_path):
    return data.make(tmp_path, per_class=10)


def lists(root, line, train=range(1, 6), test=range(6, 11)):
    """Write both lists, a line per image by a function of class and file name."""
    files = {}
    for part, name, numbers in (("train", "train", train), ("test", "valid", test)):
        files[part] = root / f"{name}_labels_55_0.txt"
        rows = [line(c, f"{c.lower()}_{i}.jpg") for c in data.CLASSES for i in numbers]
        files[part].write_text("\n".join(rows) + "\n")
    return files


FORMATS = {
    "name class label": lambda c, f: f"{f} {c} {CODES[c]}",
    "class in other words": lambda c, f: (
        f"{f} {'bare_land' if c == 'BareLand' else c.lower()} 7{CODES[c]}"
    ),
    "name label": lambda c, f: f"{f}\t{CODES[c]}",
    "folder": lambda c, f: f"{c}/{f} {CODES[c]}",
    "long path": lambda c, f: f"/data/aid/all_img/{f} {c} {CODES[c]}",
    "windows": lambda c, f: f"D:\\aid\\{c}\\{f} {CODES[c]}",
    "other format": lambda c, f: f.replace(".jpg", ".tif"),
    "name": lambda c, f: f,
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_of_line_gives_the_same_split(root, form):
    files = lists(root, FORMATS[form])
    module = AIDDataModule(root, protocol="files", split_files=files, val_ratio=0.0)
    split = module.split()
    expected = [f"{c}/{c.lower()}_{i}.jpg" for c in data.CLASSES for i in range(1, 6)]
    assert sorted(split["train"]) == sorted(expected)
    assert len(split["test"]) == 15
    assert split["val"] == []
    module.setup("fit")
    labels = {name: module.classes[label] for name, label in module.train_dataset.samples}
    assert {path.split("/")[-2] == label for path, label in labels.items()} == {True}


def test_validation_is_carved_from_the_training_list_or_listed(root, tmp_path):
    files = lists(root, FORMATS["name class label"])
    carved = AIDDataModule(root, protocol="files", split_files=files, val_ratio=0.2)
    split = carved.split()
    assert {part: len(names) for part, names in split.items()} == {
        "train": 12,
        "val": 3,
        "test": 15,
    }
    assert {name.split("/")[0] for name in split["val"]} == set(data.CLASSES)
    other = AIDDataModule(root, protocol="files", split_files=files, val_ratio=0.2, split_seed=1)
    assert other.split()["val"] != split["val"]
    assert other.split()["test"] == split["test"]
    files["test"].write_text("".join(files["test"].read_text().splitlines(keepends=True)[:-1]))
    (root / "val.txt").write_text("Beach/beach_10.jpg 1\n")
    # Relative names are looked up in the root.
    names = {"train": files["train"].name, "val": "val.txt", "test": files["test"].name}
    listed = AIDDataModule(root, protocol="files", split_files=names)
    assert listed.split()["val"] == ["Beach/beach_10.jpg"]
    content = json.loads(listed.write_manifest(tmp_path / "m.json").read_text())
    assert set(content["settings"]) == {"protocol", "split_files"}
    anew = AIDDataModule(root, protocol="files", split_files=files)
    content = json.loads(anew.write_manifest(tmp_path / "m.json").read_text())
    assert content["settings"]["split_seed"] == 0
    assert content["settings"]["images_in_no_split"] == 1


def edited(files, part, change):
    rows = files[part].read_text().splitlines()
    change(rows)
    files[part].write_text("\n".join(rows) + "\n")


FAULTS = {
    "wrong label": (
        lambda rows: rows.__setitem__(2, "airport_3.jpg Airport 1"),
        LabelError,
        r"train_labels_55_0\.txt:\d+: \S+/\S+\.jpg .*label \d.*train_labels_55_0\.txt:\d+",
    ),
    "wrong class": (
        lambda rows: rows.__setitem__(2, "airport_3.jpg Beach 2"),
        LabelError,
        r"0\.txt:3: Airport/airport_3\.jpg is called Beach, but its folder is Airport",
    ),
    "wrong folder": (
        lambda rows: rows.__setitem__(2, "Beach/airport_3.jpg 2"),
        LabelError,
        r"Beach/airport_3\.jpg is listed in class Beach.*Airport/airport_3\.jpg",
    ),
    "unknown file": (
        lambda rows: rows.append("airport_99.jpg Airport 2"),
        DataNotFoundError,
        r"0\.txt:16: no image of 'airport_99\.jpg Airport 2'.*name class label",
    ),
    "no image": (
        lambda rows: rows.append("notes.txt 2"),
        DataNotFoundError,
        r"0\.txt:16: no image of 'notes\.txt 2'",
    ),
    "twice": (
        lambda rows: rows.append("Airport/airport_1.jpg 2"),
        ConfigError,
        r"0\.txt:16: Airport/airport_1\.jpg is listed already in .*train_labels_55_0\.txt:1;",
    ),
    "in both lists": (
        lambda rows: rows.append("airport_6.jpg Airport 2"),
        ConfigError,
        r"valid_labels_55_0\.txt:1: Airport/airport_6\.jpg is listed already in .*train.*:16",
    ),
    "empty": (lambda rows: rows.clear(), DataNotFoundError, r"train_labels_55_0\.txt: no names"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_with_its_line(root, fault):
    change, error, message = FAULTS[fault]
    files = lists(root, FORMATS["name class label"])
    edited(files, "train", change)
    with pytest.raises(error, match=message) as caught:
        AIDDataModule(root, protocol="files", split_files=files).setup("fit")
    assert "\n" not in str(caught.value)


def test_labels_that_change_their_meaning_from_one_list_to_the_other_are_refused(root):
    files = lists(root, FORMATS["name label"])
    swapped = {"Airport": 2, "BareLand": 1, "Beach": 0}
    edited(
        files,
        "test",
        lambda rows: rows.__setitem__(
            slice(None),
            [f"{c.lower()}_{i}.jpg {swapped[c]}" for c in data.CLASSES for i in range(6, 11)],
        ),
    )
    with pytest.raises(LabelError, match=r"valid_labels.*bareland_6.*contradicts.*train_labels"):
        AIDDataModule(root, protocol="files", split_files=files).split()


def test_a_missing_or_unreadable_list_is_named(root):
    files = lists(root, FORMATS["name"])
    files["test"].unlink()
    with pytest.raises(DataNotFoundError, match=r"no split file .*valid_labels_55_0\.txt"):
        AIDDataModule(root, protocol="files", split_files=files).setup("fit")
    files["test"].write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(DataNotFoundError, match=r"valid_labels_55_0\.txt: not readable"):
        AIDDataModule(root, protocol="files", split_files=files).setup("fit")


def test_options_that_do_not_go_together_are_refused(root):
    files = lists(root, FORMATS["name"])
    with pytest.raises(ConfigError, match="protocol='files' and split_files"):
        AIDDataModule(root, protocol="files")
    with pytest.raises(ConfigError, match="protocol='files' and split_files"):
        AIDDataModule(root, split_files=files)
    with pytest.raises(ConfigError, match=r"split_files has train, exam: expected"):
        AIDDataModule(root, protocol="files", split_files={"train": "a", "exam": "b"})


def test_names_shared_by_two_classes_need_their_folder(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg", "b/1.png", "b/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listing = list_images(tmp_path)
    assert listing.find("b/2.jpg") == listing.find("2") == "b/2.jpg"
    assert listing.find("x/a/1.tif") == "a/1.jpg"
    assert listing.find("1.png") == "b/1.png"
    assert listing.find("3.jpg") is None
    (tmp_path / "list.txt").write_text("1.jpg\n")
    with pytest.raises(ConfigError, match=r"1\.jpg may be a/1\.jpg or b/1\.jpg"):
        read_splits({"train": tmp_path / "list.txt"}, listing)


def test_folders_are_listed_as_torchvision_does(root):
    (root / "AID/Beach/deeper").mkdir()
    (root / "AID/Beach/beach_1.jpg").rename(root / "AID/Beach/deeper/zzz.JPG")
    (root / "AID/Beach/.hidden.jpg").touch()
    (root / "AID/Beach/notes.txt").touch()
    (root / "AID/.git").mkdir()
    listing = list_images(root / "AID")
    assert listing.classes == data.CLASSES
    beach = [name for name, label in listing.labels.items() if label == 2]
    assert beach[0] == "Beach/beach_10.jpg"
    assert beach[-1] == "Beach/deeper/zzz.JPG"
    assert len(beach) == 10
    assert list_images(root / "AID", ["Beach", "Airport", "BareLand"]).labels[beach[0]] == 0


def test_a_folder_that_is_no_data_set_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"no folder .*none"):
        list_images(tmp_path / "none")
    (tmp_path / "loose.jpg").touch()
    with pytest.raises(DataNotFoundError, match=r"no class folders"):
        list_images(tmp_path)
