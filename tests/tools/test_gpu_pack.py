"""What a GPU machine without a package index is sent."""

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pack():
    spec = importlib.util.spec_from_file_location("gpu_pack", ROOT / "tools" / "gpu_pack.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_closure_holds_needs_of_needs_at_their_installed_versions(pack):
    found = pack.closure(["torchgeo"])
    assert found["torchgeo"] == importlib.metadata.version("torchgeo")
    assert {"rasterio", "affine", "numpy", "pyproj"} <= set(found)
    assert "pytest" not in found


def test_extras_are_followed_only_where_they_are_asked_for(pack):
    # rsmamba asks for jsonargparse[signatures], which needs docstring-parser.
    assert "docstring-parser" in pack.closure(["rsmamba"])
    assert "docstring-parser" not in pack.closure(["jsonargparse"])


def test_no_folder_is_above_the_limit_and_every_wheel_is_in_one(pack, tmp_path):
    wheels = []
    for i, size in enumerate([30, 70, 40, 20, 50, 10, 60]):
        wheels.append(tmp_path / f"{i}.whl")
        wheels[-1].write_bytes(bytes(size))
    folders = pack.split(wheels, 100)
    assert sorted(wheel for folder in folders for wheel in folder) == wheels
    assert all(sum(w.stat().st_size for w in folder) <= 100 for folder in folders)
    assert len(folders) == 3
