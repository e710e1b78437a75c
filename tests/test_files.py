import os

import pytest

from rsmamba.errors import OutputExistsError, OutputNotWritableError
from rsmamba.files import atomic_path, check_output, write_text


def test_an_existing_output_needs_overwrite(tmp_path):
    path = tmp_path / "map.tif"
    path.write_text("precious")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        check_output(path)
    assert check_output(path, overwrite=True) == path
    assert path.read_text() == "precious"


def test_a_missing_folder_and_a_folder_as_output_are_refused(tmp_path):
    with pytest.raises(OutputNotWritableError, match="create its folder"):
        check_output(tmp_path / "nowhere" / "map.tif")
    with pytest.raises(OutputNotWritableError, match="is a folder"):
        check_output(tmp_path)


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    # root may write anywhere, so the permission itself is planted
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputNotWritableError, match="no permission"):
        check_output(tmp_path / "map.tif")


def test_a_failed_writer_leaves_neither_the_file_nor_the_temporary(tmp_path):
    path = tmp_path / "map.tif"
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_a_failed_writer_leaves_the_earlier_file_as_it_was(tmp_path):
    path = tmp_path / "map.tif"
    path.write_text("earlier")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_keeps_the_suffix_and_the_file_the_umask(tmp_path):
    path = tmp_path / "report.json"
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".json"
        assert temporary.parent == tmp_path
        temporary.write_text("{}")
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    write_text(path, "[]")
    assert path.read_text() == "[]"
