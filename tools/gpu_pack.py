"""Collect the wheels that a GPU machine without a package index lacks: `make gpu-pack`.

Such a machine is taken to have torch, triton, torchvision, timm, lightning and torchmetrics with
all that they need. Everything else that rsmamba and its tests need, at the versions of this
environment, is downloaded into numbered folders below a size, to be carried one after the other::

    python3 -m pip install --no-index --no-deps --target site gpu-pack/*/*.whl
    PYTHONPATH=site:.:kernels make gpu GPU_PYTHON=python3
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

#: What the machine has.
PRESENT = ("torch", "triton", "torchvision", "timm", "lightning", "torchmetrics")
#: What its tests need beside rsmamba itself.
TESTS = ("pytest", "pytest-timeout", "hypothesis", "rio-cogeo")


def closure(names: Iterable[str]) -> dict[str, str]:
    """Installed distributions that the named ones need, themselves included: name -> version."""
    found: dict[str, str] = {}
    waiting = [(name, frozenset[str]()) for name in names]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            installed = distribution(name)
        except PackageNotFoundError:  # optional, or of another platform
            continue
        found[canonicalize_name(name)] = installed.version
        for line in installed.requires or ():
            need = Requirement(line)
            environments = [{"extra": extra} for extra in (*extras, "")]
            if need.marker is None or any(need.marker.evaluate(e) for e in environments):
                waiting.append((canonicalize_name(need.name), frozenset(need.extras)))
    return found


def split(wheels: Iterable[Path], limit: int) -> list[list[Path]]:
    """Folders' contents, largest first, none above the limit unless one wheel is.

    Args:
        wheels: Files.
        limit: Bytes.
    """
    folders: list[tuple[int, list[Path]]] = []
    for wheel in sorted(wheels, key=lambda path: path.stat().st_size, reverse=True):
        size = wheel.stat().st_size
        for i, (filled, content) in enumerate(folders):
            if filled + size <= limit:
                folders[i] = filled + size, [*content, wheel]
                break
        else:
            folders.append((size, [wheel]))
    return [content for _, content in folders]


def main() -> None:
    """Parse arguments and collect."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-pack"))
    parser.add_argument("--limit", type=int, default=58, help="MiB a folder")
    arguments = parser.parse_args()
    present = closure(PRESENT)
    missing = {
        name: version
        for name, version in closure(["rsmamba", *TESTS]).items()
        if name not in present and name != "rsmamba"
    }
    with tempfile.TemporaryDirectory() as folder:
        pins = [f"{name}=={version}" for name, version in sorted(missing.items())]
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder]
        subprocess.run([*pip, *pins], check=True)  # noqa: S603 - pip, with pins of this environment
        parts = split(Path(folder).glob("*.whl"), arguments.limit * 2**20)
        shutil.rmtree(arguments.out, ignore_errors=True)
        for i, part in enumerate(parts):
            target = arguments.out / f"{i}"
            target.mkdir(parents=True)
            for wheel in part:
                shutil.move(wheel, target)
            size = sum(wheel.stat().st_size for wheel in target.iterdir()) / 2**20
            print(f"{target}: {len(part)} wheels, {size:.0f} MiB")


if __name__ == "__main__":
    main()
