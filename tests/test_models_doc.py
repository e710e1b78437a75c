"""docs/models.md says what the code does."""

import importlib.util
import inspect
import json
import re
from pathlib import Path

import pytest
import timm
import torch
import yaml

from rsmamba.cli import main
from rsmamba.models import RoMA, RoMAPyramid, SpatialMamba
from rsmamba.models.checkpoints import save_safetensors
from rsmamba.spec import ModelSpec

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "models.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_the_table_of_sizes_is_what_the_verb_prints(capsys):
    assert main.run(["models", "--markdown"]) == 0
    begin, end = (f"<!-- rsmamba models --markdown: {which} -->" for which in ("begin", "end"))
    assert f"{begin}\n{capsys.readouterr().out}{end}" in TEXT


@pytest.mark.parametrize("model", [RoMA, RoMAPyramid, SpatialMamba])
def test_the_tables_of_options_are_the_signatures(model):
    section = TEXT.split(f"<!-- options: {model.__name__} -->\n", 1)[1].split("\n\n", 1)[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE))
    own = {
        name: parameter.default
        for name, parameter in inspect.signature(model).parameters.items()
        if parameter.kind != parameter.VAR_KEYWORD
    }
    assert list(rows) == list(own)
    for name, default in rows.items():
        assert default in ("by size", repr(own[name])), name


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the file that the examples read."""
    monkeypatch.chdir(tmp_path)
    spec = ModelSpec(
        task="backbone",
        task_class="timm.create_model",
        task_kwargs={"img_size": 224},
        architecture="roma_tiny_patch16",
        bands=("red", "green", "blue"),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    model = timm.create_model("roma_tiny_patch16", num_classes=0)
    save_safetensors(model, spec, tmp_path / "backbone.safetensors")
    return tmp_path


def test_the_python_blocks_run_and_print_what_they_say(folder, capsys):
    torch.manual_seed(0)
    namespace = {}
    code = blocks("python")
    assert len(code) >= 6
    for block in code:
        exec(block, namespace)
        printed = capsys.readouterr().out.replace("torch.Size([", "(").replace("])", ")")
        for said in re.findall(r"^# (.*)$|\)  # (\(.*\))$", block, re.MULTILINE):
            assert "".join(said) in printed


def test_the_yaml_blocks_build_what_they_name(folder):
    from lightning.pytorch import Callback
    from torchgeo.tasks import BaseTask

    def build(item):
        module, _, name = item["class_path"].rpartition(".")
        return getattr(importlib.import_module(module), name)(**item.get("init_args", {}))

    for block in blocks("yaml"):
        recipe = yaml.safe_load(block)
        assert all(isinstance(build(c), Callback) for c in recipe["trainer"]["callbacks"])
        assert isinstance(build(recipe["model"]), BaseTask)


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location(
        "backbones", ROOT / "tests" / "benchmarks" / "backbones.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_measured_section_is_written_between_its_markers(bench, tmp_path):
    document, figures = tmp_path / "models.md", tmp_path / "models.json"
    document.write_text(TEXT)
    quick = ["--quick", "--sizes", "32", "48", "--repeats", "2"]
    bench.main([*quick, "--markdown", str(document), "--json", str(figures)])
    begin, end = bench.MARKERS
    before, after = TEXT.split(begin)[0], TEXT.split(end)[1]
    written = document.read_text()
    assert written.startswith(before + begin) and written.endswith(end + after)
    report = json.loads(figures.read_text())
    runs = report["share"]["ms"]
    for whole, *parts in zip(*runs.values(), strict=True):
        assert 0 < sum(parts) < whole
    rows = report["growth"]
    assert [row["size"] for row in rows] == [32, 32, 48, 48]
    assert all(len(row["ms"]) == 2 and row["bytes"] > 4 * 3 * row["size"] for row in rows)
    assert rsmamba_operators_are_back()


def rsmamba_operators_are_back():
    import rsmamba.models.roma_layers
    import rsmamba_kernels

    names = ("conv1d_silu", "selective_scan_multi", "gate")
    return all(getattr(rsmamba.models.roma_layers, n) is getattr(rsmamba_kernels, n) for n in names)


def test_sizes_that_would_not_fit_are_left_out_and_said_so(bench, monkeypatch):
    monkeypatch.setattr(bench, "MEMORY", 1e6)
    with torch.inference_mode():
        rows = bench.growth({"roma_tiny_patch16": {"depth": 1}}, [32, 64, 512], 1, 1)
    assert [row["bytes"] is None for row in rows] == [False, False, True]
    assert rows[2]["expected_bytes"] >= 64 * rows[1]["bytes"]
    assert bench._megabytes(rows[2]).startswith("not run: about")


def test_a_document_without_markers_is_refused(bench, tmp_path):
    (tmp_path / "a.md").write_text("# Mine")
    with pytest.raises(SystemExit, match=r"a\.md has no lines"):
        bench.write_section(tmp_path / "a.md", "x")
    assert (tmp_path / "a.md").read_text() == "# Mine"
