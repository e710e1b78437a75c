"""Show what this installation is and can do."""

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version

HELP = "Show versions, device, which operator backend is active and why, and GDAL's drivers."

_PACKAGES = (
    "rsmamba",
    "torch",
    "torchvision",
    "torchgeo",
    "lightning",
    "timm",
    "segmentation-models-pytorch",
    "kornia",
    "triton",
    "rasterio",
    "geopandas",
    "pyogrio",
    "numpy",
)
_OPTIONAL = ("mamba-ssm", "causal-conv1d")
#: What the map verbs write.
_RASTER_DRIVERS = ("GTiff", "COG", "VRT")
_VECTOR_DRIVERS = ("GPKG", "FlatGeobuf", "GeoJSON")


def configure(parser: argparse.ArgumentParser) -> None:
    """This verb has no options."""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads (no CUDA device)"
    properties = torch.cuda.get_device_properties(0)
    return (
        f"{torch.cuda.device_count()} x {properties.name}, "
        f"{properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
    )


def run(args: argparse.Namespace) -> int:
    """Print the report; status 1 if something that rsmamba needs is missing."""
    import pyogrio
    import rasterio
    from rasterio.drivers import raster_driver_extensions  # noqa: F401  (GDAL is usable)

    import rsmamba.models  # noqa: F401
    from rsmamba_kernels import status

    missing = []
    print(f"python      {platform.python_version()} on {platform.platform()}")
    for package in _PACKAGES:
        found = _version(package)
        print(f"{package:<28}{found or 'not installed'}")
        if found is None and package != "triton":
            missing.append(package)
    for package in _OPTIONAL:
        print(f"{package:<28}{_version(package) or 'not installed (optional)'}")
    print(f"\ndevice      {_device()}")
    print("\noperator backends")
    for entry in status():
        print(f"  {entry.operator:<16}{entry.backend:<12}{entry.reason}")
        for other, why in entry.others:
            print(f"  {'':<16}not {other}: {why}")
    with rasterio.Env() as env:
        raster = env.drivers()
    vector = pyogrio.list_drivers(write=True)
    gdal = f"{rasterio.__gdal_version__} (rasterio), {pyogrio.__gdal_version_string__} (pyogrio)"
    print(f"\nGDAL        {gdal}")
    for kind, wanted, drivers in (
        ("raster", _RASTER_DRIVERS, raster),
        ("vector", _VECTOR_DRIVERS, vector),
    ):
        absent = [name for name in wanted if name not in drivers]
        missing += [f"GDAL driver {name}" for name in absent]
        present = ", ".join(name for name in wanted if name in drivers)
        print(f"  {kind} drivers: {present}" + (f"; MISSING {', '.join(absent)}" if absent else ""))
    if missing:
        print(f"\nMissing: {', '.join(missing)}. Reinstall with `pip install rsmamba`.")
        return 1
    print("\nAll is well. `rsmamba demo` makes a map in minutes; `rsmamba recipes` lists recipes.")
    return 0
