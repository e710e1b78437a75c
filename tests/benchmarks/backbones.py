"""Times the backbones, and what they allocate, on this machine's CPU: ``make bench-models``.

1. The share of the scan, and of the other operators, in the forward of RoMA-Base: the operators are
   timed inside the forward.
2. Forward and peak memory from 224 pixels up, beside timm's ViT-Base as timm makes it. The models
   run in turn in one process, because machines are shared and noisy: compare figures of one run.
"""

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from torch import Tensor, nn

from rsmamba.files import write_text
from rsmamba.models import roma_layers
from rsmamba_kernels import status
from rsmamba_kernels.bench import Clock, machine

#: Begin and end of the section of the document that is written.
MARKERS = "<!-- make bench-models: begin -->", "<!-- make bench-models: end -->"
OPERATORS = ("conv1d_silu", "selective_scan_multi", "gate")
#: timm's ViT takes one size unless told otherwise; the others take any.
MODELS: dict[str, dict[str, Any]] = {
    "roma_base_patch16": {},
    "spatial_mamba_tiny": {},
    "spatial_mamba_base": {},
    "vit_base_patch16_224": {"dynamic_img_size": True},
}
#: Bytes of tensors beyond which a size is left out.
MEMORY = 16e9


def build(name: str, **options: Any) -> nn.Module:
    """A model with random weights."""
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


@contextmanager
def watched(clock: Clock) -> Iterator[dict[str, float]]:
    """Add up the milliseconds of RoMA's operators."""
    spent = dict.fromkeys(OPERATORS, 0.0)

    def timed(name: str) -> Callable[..., Tensor]:
        operator = getattr(roma_layers, name)

        def call(*args: Any, **kwargs: Any) -> Tensor:
            result: list[Tensor] = []
            spent[name] += clock(lambda: result.append(operator(*args, **kwargs)))
            return result[0]

        return call

    with mock.patch.multiple(roma_layers, **{name: timed(name) for name in OPERATORS}):
        yield spent


def share(name: str, size: int, batch: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of a forward of RoMA and of its operators in it, one entry per run."""
    model, image, clock = build(name), torch.randn(batch, 3, size, size), Clock("cpu")
    model(image)
    runs: dict[str, list[float]] = {key: [] for key in ("forward", *OPERATORS)}
    for _ in range(repeats):
        with watched(clock) as spent:
            runs["forward"].append(clock(partial(model, image)))
        for operator, milliseconds in spent.items():
            runs[operator].append(milliseconds)
    return {"model": name, "size": size, "batch": batch, "ms": runs}


def growth(
    models: dict[str, dict[str, Any]], sizes: Sequence[int], repeats: int, budget: float
) -> list[dict[str, Any]]:
    """Time and memory of each model at each size; all models in turn at one size.

    A model runs ``repeats`` times after one round without a watch, or as often as ``budget``
    seconds allow, once at least.
    """
    clock = Clock("cpu")
    built = {name: build(name, **options) for name, options in models.items()}
    rows: list[dict[str, Any]] = []
    for size in sizes:
        image = torch.randn(1, 3, size, size)
        rounds, entries = {}, {}
        for name, model in built.items():
            entry = entries[name] = {"model": name, "size": size, "bytes": None, "ms": []}
            rows.append(entry)
            expected = _expected([r for r in rows if r["model"] == name and r["bytes"]], size)
            entry["expected_bytes"] = expected
            if expected > MEMORY:
                continue
            start = time.perf_counter()
            entry["bytes"] = clock.peak(partial(model, image))
            taken = time.perf_counter() - start
            rounds[name] = max(1, min(repeats, int(budget / taken)))
            print(f"{name} {size}: {entry['bytes'] / 1e6:.0f} MB, {taken:.1f} s", flush=True)
        for round_ in range(max(rounds.values(), default=0)):
            for name in [name for name, count in rounds.items() if round_ < count]:
                entries[name]["ms"].append(clock(partial(built[name], image)))
    return rows


def _expected(rows: Sequence[dict[str, Any]], size: int) -> float:
    """Bytes that a size will take if they go on growing as they did from the last but one."""
    if len(rows) < 2:
        return 0.0
    before, last = rows[-2:]
    area = (size / last["size"]) ** 2
    return float(last["bytes"] * max(area, last["bytes"] / before["bytes"]))


def _ms(times: Sequence[float]) -> str:
    return f"{min(times):.0f} / {statistics.median(times):.0f} ({len(times)})" if times else "-"


def markdown(report: dict[str, Any]) -> str:
    """The section for the document."""
    first = report["share"]
    forward = first["ms"]["forward"]
    lines = [
        f"{report['machine']}, {report['threads']} threads, load {report['load'][0]:.1f} at the "
        f"start, {report['load'][1]:.1f} at the end (this run included), float32, random weights, "
        f"no gradients, operators: {report['backends']}. {report['note']}".rstrip(),
        "Milliseconds: min / median (runs).",
        "",
        f"Forward of `{first['model']}`, batch {first['batch']}, {first['size']} x {first['size']} "
        "pixels:",
        "",
        "| part | ms | share of the forward, min / median / max |",
        "|---|---:|---:|",
    ]
    for name, times in first["ms"].items():
        shares = sorted(t / whole for t, whole in zip(times, forward, strict=True))
        values = (shares[0], statistics.median(shares), shares[-1])
        text = " / ".join(f"{100 * value:.1f}" for value in values) + " %"
        lines.append(f"| {name} | {_ms(times)} | {'' if name == 'forward' else text} |")
    sizes = list(dict.fromkeys(row["size"] for row in report["growth"]))
    head = ["| model | " + " | ".join(map(str, sizes)) + " |", "|---" + "|---:" * len(sizes) + "|"]
    lines += ["", "Forward of one image by its side in pixels, milliseconds:", "", *head]
    lines += _rows(report["growth"], lambda row: _ms(row["ms"]))
    lines += ["", "Most that this forward allocates at one time, weights not included, MB:", ""]
    lines += [*head, *_rows(report["growth"], _megabytes)]
    return "\n".join(lines)


def _megabytes(row: dict[str, Any]) -> str:
    if row["bytes"] is None:
        return f"not run: about {row['expected_bytes'] / 1e6:.0f} expected"
    return f"{row['bytes'] / 1e6:.0f}"


def _rows(rows: Sequence[dict[str, Any]], text: Callable[[dict[str, Any]], str]) -> list[str]:
    """A line per model, a column per size."""
    names = dict.fromkeys(row["model"] for row in rows)
    return [
        f"| `{name}` | " + " | ".join(text(row) for row in rows if row["model"] == name) + " |"
        for name in names
    ]


def write_section(path: Path, text: str) -> None:
    """Replace what is between the markers of a document."""
    begin, end = MARKERS
    old = path.read_text()
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    if not pattern.search(old):
        raise SystemExit(f"{path} has no lines {begin} and {end}: add them where the figures go")
    write_text(path, pattern.sub(lambda _: f"{begin}\n{text}\n{end}", old))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments, run, print and write."""
    parser = argparse.ArgumentParser("backbones.py", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384, 512, 768, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--budget", type=float, default=10, help="seconds per model and size")
    parser.add_argument("--markdown", type=Path, help="document whose section to write")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--note", default="", help="what else ran, to stand with the figures")
    parser.add_argument("--quick", action="store_true", help="small models, to see that it works")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    load = [os.getloadavg()[0]]
    name, models = "roma_base_patch16", MODELS
    if arguments.quick:
        name = "roma_tiny_patch16"
        models = {name: {"depth": 1}, "vit_tiny_patch16_224": MODELS["vit_base_patch16_224"]}
    with torch.inference_mode():
        report = {
            "machine": machine("cpu") + f", timm {timm.__version__}",
            "threads": torch.get_num_threads(),
            "backends": ", ".join(f"{s.operator} {s.backend}" for s in status("cpu")),
            "share": share(name, 224, 4, arguments.repeats),
            "growth": growth(models, arguments.sizes, arguments.repeats, arguments.budget),
            "load": [*load, os.getloadavg()[0]],
            "note": arguments.note,
        }
    text = markdown(report)
    print(text)
    if arguments.markdown:
        write_section(arguments.markdown, text)
    if arguments.json:
        write_text(arguments.json, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
