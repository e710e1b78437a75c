"""The main job, end to end, on the shipped imagery: pretrain, probe, fine-tune, map.

Every figure comes from a verb with a shipped recipe, and each command is printed: what this file
runs, a user can type. The preview is :func:`rsmamba.viz.map_preview`.
"""

import argparse
import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsmamba.errors import OutputExistsError, OutputNotWritableError

HELP = (
    "Pretrain, probe, fine-tune and map on the imagery that comes with rsmamba "
    "(about 6 minutes on 2 CPU cores)."
)

PRETRAIN = "pretrain/roma_tiny_demo"
PROBE = "classify/ucmerced_probe_demo"
SEGMENT = "segment/buildings_demo"
#: What a demo leaves in its folder; nothing else is ever deleted.
_MARKER = ".rsmamba-demo"
_CONTENT = {_MARKER, "pretrain", "probe", "segment", "map", "report.json"}

PROBE_FIGURE = "UC Merced probe (pretrained on other UC Merced images), overall accuracy"
SCENE = "sample:buildings/scene.tif"
TRUTH = "sample:buildings/scene.geojson"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write (./demo)")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few steps of everything: checks the installation, learns nothing",
    )


@dataclass
class Demo:
    """Folder, step clock and figures of one run."""

    out: Path
    quick: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announce a step and time it."""
        print(f"\n=== {name}", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def train(self, verb: str, recipe: str, folder: str, *options: str) -> dict[str, float]:
        """Run ``fit`` or ``test`` with a recipe; what it logged."""
        from rsmamba.cli.train import run_lightning

        arguments = [
            f"--config=recipe:{recipe}",
            f"--trainer.logger.init_args.save_dir={self.out / folder}",
            *options,
        ]
        if self.quick:
            arguments += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2"]
        show([verb, *arguments])
        cli = run_lightning(verb, arguments)
        return {k: float(v) for k, v in cli.trainer.callback_metrics.items()}

    def checkpoint(self, folder: str) -> Path:
        """Where a recipe with ``save_dir`` = ``folder`` leaves its last checkpoint."""
        return self.out / folder / "checkpoints" / "last.ckpt"


def show(argv: Sequence[str]) -> None:
    """Print a command as a user would type it."""
    print(f"    $ rsmamba {shlex.join(argv)}", flush=True)


def run(args: argparse.Namespace) -> int:
    """Run all steps, print the table, write ``report.json``."""
    from rsmamba.files import write_text

    demo = Demo(prepare_folder(args.out, overwrite=args.overwrite), quick=args.quick)
    start = time.perf_counter()
    pretrain(demo)
    probe(demo)
    segment(demo)
    make_map(demo)
    demo.seconds["total"] = time.perf_counter() - start
    report = {"figures": demo.figures, "seconds": demo.seconds, "quick": demo.quick}
    write_text(demo.out / "report.json", json.dumps(report, indent=2))
    print_table(demo)
    return 0


def prepare_folder(out: Path, *, overwrite: bool) -> Path:
    """An empty folder; an earlier demo in it is replaced if that was asked for.

    Raises:
        OutputExistsError: If it holds files and may not be replaced, or they are not a demo's.
        OutputNotWritableError: If it cannot be made.
    """
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise OutputExistsError(f"{out} is not empty: pass --overwrite, or another --out")
        strangers = {p.name for p in out.iterdir()} - _CONTENT
        if strangers or not (out / _MARKER).is_file():
            raise OutputExistsError(
                f"{out} holds more than a demo ({', '.join(sorted(strangers)[:3]) or 'not ours'}): "
                "choose another --out"
            )
        shutil.rmtree(out)
    try:
        (out / "map").mkdir(parents=True, exist_ok=True)
        (out / _MARKER).write_text("Written by `rsmamba demo`, which may replace this folder.\n")
    except OSError as error:
        raise OutputNotWritableError(f"cannot make folder {out}: {error.strerror}") from error
    return out


def pretrain(demo: Demo) -> None:
    """Self-supervised pretraining, beside answers that need no network."""
    with demo.step("pretrain"):
        logged = demo.train("fit", PRETRAIN, "pretrain")
    names = {
        "model": "val_loss",
        "zeros": "val_loss_zeros",
        "global mean patch": "val_loss_global_mean",
        "ridge on visible colours": "val_loss_ridge",
    }
    demo.figures["pretraining loss, held out"] = {k: logged[v] for k, v in names.items()}
    demo.figures["pretraining images/s"] = logged["images_per_second"]


def probe(demo: Demo) -> None:
    """The same linear probe on three kinds of features."""
    variants: dict[str, Sequence[str]] = {
        "pretrained": [f"--model.init_args.weights={demo.checkpoint('pretrain')}"],
        "random weights": [],
        "colour histogram": ["--model.init_args.model=colour_histogram"],
    }
    accuracy = {}
    for name, options in variants.items():
        folder = f"probe/{name.replace(' ', '_')}"
        with demo.step(f"probe, {name}"):
            demo.train("fit", PROBE, folder, *options)
            # the checkpoint has all weights: the test needs no pretrained ones
            same = [option for option in options if ".weights=" not in option]
            checkpoint = f"--ckpt_path={demo.checkpoint(folder)}"
            logged = demo.train("test", PROBE, folder, checkpoint, *same)
        accuracy[name] = logged["test_OverallAccuracy"]
    accuracy["chance"] = 1 / 21
    # in-domain: other images of the same collection were seen without labels
    demo.figures[PROBE_FIGURE] = accuracy


def segment(demo: Demo) -> None:
    """Fine-tune for buildings."""
    weights = f"--model.init_args.weights={demo.checkpoint('pretrain')}"
    with demo.step("segment"):
        demo.train("fit", SEGMENT, "segment", weights)


def make_map(demo: Demo) -> None:
    """Map the scene that nothing was trained on, and score the map."""
    from rsmamba import samples
    from rsmamba.cli.main import run as rsmamba
    from rsmamba.viz import map_preview

    folder = demo.out / "map"
    raster, polygons = folder / "buildings.tif", folder / "buildings.gpkg"
    scores = folder / "evaluation.json"
    checkpoint, report = str(demo.checkpoint("segment")), str(folder / "map.json")
    for argv in (
        ["map", checkpoint, SCENE, str(raster), "--report", report],
        ["vectorize", str(raster), str(polygons), "--classes", "building"],
        ["evaluate", str(raster), TRUTH, "--report", str(scores)],
    ):
        with demo.step(argv[0]):
            show(argv)
            if status := rsmamba(argv):
                raise SystemExit(status)
    map_preview(
        samples.resolve(SCENE), raster, folder / "preview.png", truth=samples.resolve(TRUTH)
    )
    result = json.loads(scores.read_text())
    answers = {"model": result} | {
        f"all {name}" + (" (majority)" if name == result["majority_class"] else ""): answer
        for name, answer in result["constant_answers"].items()
    }
    for key, label in (("iou", "IoU"), ("f1", "F1")):
        demo.figures[f"held-out scene, building {label}"] = {
            name: answer[key]["building"] for name, answer in answers.items()
        }


def print_table(demo: Demo) -> None:
    """All figures beside their baselines, then times and files."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="rsmamba demo: each figure beside the answers that need no learning")
    table.add_column("figure")
    table.add_column("rsmamba", justify="right", style="bold")
    table.add_column("beside")
    for name, values in demo.figures.items():
        if not isinstance(values, dict):
            continue
        first, *others = values.items()
        digits: Callable[[float], str] = "{:.3f}".format
        table.add_row(name, digits(first[1]), "\n".join(f"{digits(v)}  {k}" for k, v in others))
    console = Console()
    console.print()
    console.print(table)
    times = ", ".join(f"{name} {value:.0f} s" for name, value in demo.seconds.items())
    console.print(f"Times: {times}")
    folder = demo.out / "map"
    console.print(f"Open in QGIS: {folder / 'buildings.tif'}, {folder / 'buildings.gpkg'}")
    console.print(f"Look at: {folder / 'preview.png'}; all figures: {demo.out / 'report.json'}")
    if demo.quick:
        console.print("--quick: these figures say nothing, the models saw two batches.")
