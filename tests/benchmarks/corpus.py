"""Times the index of a large collection, and how many windows a second are read.

``python tests/benchmarks/corpus.py`` makes an index of 4 million names (of no files), and in
processes of their own measures: reading it with the file out of the page cache, the split, draws
(image, name and random numbers of a sample), and memory. Then it lists real folders of empty
files, and reads windows of images: the shipped ones, and those of folders given as arguments,
beside TorchGeo's ``MillionAID`` class with torchvision's random crop where a folder holds photos.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

CLASSES, DRAWS, REPEATS = 51, 20_000, 5


def report(what: str, seconds: list[float], each: int = 0) -> None:
    """One line: fastest and median, and the load of the machine."""
    low, mid = min(seconds), statistics.median(seconds)
    rate = f", {each / low:,.0f} /s at best, {each / mid:,.0f} /s at the median" if each else ""
    load = os.getloadavg()[0]
    print(f"{what:<52} min {low:.3f} s, median {mid:.3f} s{rate} (load {load:.1f})", flush=True)


def timed(run: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Seconds of each run."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def memory() -> float:
    """What this process holds at present, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def make(path: Path, count: int) -> None:
    """Write an index of made-up names."""
    from rsmamba.data.corpus import FileIndex

    chunks = []
    for start in range(0, count, 100_000):
        some = range(start, min(start + 100_000, count))
        names = [f"train/class_{i % CLASSES:02d}/sub_{i % 7}/P{i:07d}.jpg" for i in some]
        chunks.append(pa.array(names, pa.large_string()))
    index = FileIndex(pa.concat_arrays(chunks), "/nowhere")
    report(f"writing an index of {count:,} names", timed(lambda: index.write(path), 1))
    print(f"{'':<52} {path.stat().st_size / 1e6:.0f} MB of Parquet")


def use(path: Path) -> None:
    """In a process of its own: read, split and draw once; print what it took."""
    from rsmamba.data.collection import SceneCollection
    from rsmamba.data.corpus import FileIndex
    from rsmamba.data.many_names import hold_back
    from rsmamba.data.opening import BadFiles, Reading
    from rsmamba.data.sampling import Lottery

    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = memory()
    start = time.perf_counter()
    index = FileIndex.read(path)
    loaded = time.perf_counter() - start
    after = memory()
    start = time.perf_counter()
    held = hold_back(index.names, None, 0.01, 0)
    images = SceneCollection(index, Reading(), BadFiles(0)).subset(np.flatnonzero(~held))
    split = time.perf_counter() - start
    lottery = Lottery(len(images), len(images), 0)
    places = np.random.default_rng(0).integers(0, len(images), DRAWS).tolist()
    start = time.perf_counter()
    for place in places:
        item, rng = lottery.draw(place)
        images.paths(item)
        rng.random()
    drawn = time.perf_counter() - start
    print(loaded, split, drawn, after - before, memory() - before)


def index(count: int) -> None:
    """Figures of an index of made-up names."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.parquet"
        make(path, count)
        command = [sys.executable, __file__, "--use", str(path)]
        runs = []
        for _ in range(REPEATS):
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            runs.append([float(value) for value in out.split()])
        loaded, split, drawn, first, last = (list(values) for values in zip(*runs, strict=True))
    report("reading it in a new process, file not cached", loaded)
    report("splitting it, 1 % held back", split)
    report(f"{DRAWS:,} draws: image, name, random numbers", drawn, DRAWS)
    print(f"{'memory of the names / of all of this':<52} {max(first):.0f} / {max(last):.0f} MB")


def listing(count: int) -> None:
    """How fast real folders are listed, beside pathlib."""
    from rsmamba.data.corpus import find_images

    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            path = Path(folder) / f"class_{i % CLASSES:02d}/{i:07d}.jpg"
            if i < CLASSES:
                path.parent.mkdir()
            path.touch()
        report(
            f"listing {count:,} files with pathlib and sorting them",
            timed(lambda: sorted(p for p in Path(folder).rglob("*.jpg") if p.is_file()), 3),
            count,
        )
        file = Path(folder) / "index.parquet"
        again = timed(lambda: find_images(folder, index=file, refresh=True), 3)
        report("the same, and writing the index", again, count)
        report("the same from the index", timed(lambda: find_images(folder, index=file), 3), count)


def windows(root: str, count: int) -> None:
    """Windows of 192 px a second, in this process."""
    from rsmamba.data import ScenePatches

    for cache in (False, True):
        data = ScenePatches(root, 192, count * REPEATS, cache=cache, max_bad_files=100)
        kind = "decoded in memory" if cache else "from disk"
        seconds = []
        for start in range(0, count * REPEATS, count):
            seconds += timed(partial(read, data, range(start, start + count)), 1)
        report(f"{count} windows of {root}, {kind}", seconds, count)


def read(data: Any, items: range) -> None:
    """Read samples."""
    for item in items:
        data[item]


def torchgeo(root: str, count: int) -> None:
    """The same by TorchGeo's class (float images) and torchvision's random resized crop."""
    from torchgeo.datasets import MillionAID
    from torchvision.transforms.v2 import Compose, RandomHorizontalFlip, RandomResizedCrop

    files = sorted(str(p) for p in Path(root).rglob("*.jpg"))
    if not files:
        return
    with tempfile.TemporaryDirectory() as folder:  # its layout: split/class/class/*.jpg
        place = Path(folder) / "train/a/b"
        place.mkdir(parents=True)
        for i, file in enumerate(files):
            (place / f"{i}.jpg").symlink_to(Path(file).resolve())
        data = MillionAID(folder, checksum=False)
        crop = Compose([RandomResizedCrop(192, (0.2, 1.0)), RandomHorizontalFlip()])
        order = np.random.default_rng(0).integers(0, len(data), count).tolist()

        def read() -> None:
            for i in order:
                crop(data[i]["image"]).float()

        report(f"{count} windows of {root}, TorchGeo", timed(read), count)


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", help="images to read windows of")
    parser.add_argument("--count", type=int, default=4_000_000, help="names in the index")
    parser.add_argument("--files", type=int, default=100_000, help="empty files to list")
    parser.add_argument("--windows", type=int, default=300, help="windows to read at a time")
    parser.add_argument("--use", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.use:
        use(options.use)
        return
    index(options.count)
    listing(options.files)
    for root in ("sample:aerial_unlabelled", *options.folders):
        windows(root, options.windows)
        if not root.startswith("sample:"):
            torchgeo(root, options.windows)


if __name__ == "__main__":
    main()
