"""Stock TorchGeo trains our backbones from YAML alone: its tasks, data modules, command line."""

import ast
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from torchgeo.main import main
from torchgeo.tasks import Classification

import rsmamba.models
from rsmamba.errors import BandMismatchError, CheckpointError, ConfigError, UnknownModelError
from rsmamba.models.checkpoints import read_spec, save_safetensors
from rsmamba.spec import ModelSpec
from rsmamba.tasks.callbacks import Register

REGISTER = "rsmamba.tasks.callbacks.Register"
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """TorchGeo leaves config.yaml in the working directory."""
    monkeypatch.chdir(tmp_path)


def picture(path, size=64, values=256, bands=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size, size, bands) if bands > 1 else (size, size)
    Image.fromarray(RNG.integers(0, values, shape, dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """UC Merced's layout with two classes."""
    root = tmp_path_factory.mktemp("ucmerced")
    names = []
    for label in ("agricultural", "airplane"):
        for i in range(3):
            names.append(f"{label}{i:02d}.png")
            picture(root / "UCMerced_LandUse" / "Images" / label / names[-1])
    for split in ("train", "val", "test"):
        (root / f"uc_merced-{split}.txt").write_text("\n".join(names))
    return {"class_path": "torchgeo.datamodules.UCMercedDataModule", "init_args": {"batch_size": 2},
            "dict_kwargs": {"root": str(root)}}  # fmt: skip


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """LoveDA's layout."""
    root = tmp_path_factory.mktemp("loveda")
    for split in ("Train", "Val"):
        for scene in ("Urban", "Rural"):
            for i in range(2):
                picture(root / split / scene / "images_png" / f"{i}.png")
                picture(root / split / scene / "masks_png" / f"{i}.png", values=8, bands=1)
    return {"class_path": "torchgeo.datamodules.LoveDADataModule", "init_args": {"batch_size": 2},
            "dict_kwargs": {"root": str(root)}}  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """LEVIR-CD's layout."""
    root = tmp_path_factory.mktemp("levircd")
    for split in ("train", "val", "test"):
        for i in range(2):
            for folder in ("A", "B"):
                picture(root / folder / f"{split}_{i}.png", 128)
            picture(root / "label" / f"{split}_{i}.png", 128, 2, 1)
    return {"class_path": "torchgeo.datamodules.LEVIRCDDataModule",
            "init_args": {"batch_size": 2, "patch_size": 64},
            "dict_kwargs": {"root": str(root)}}  # fmt: skip


def recipe(folder, task, data, options, short=False, **register):
    """A YAML file that trains one step and saves last.ckpt."""
    callbacks = [
        {"class_path": REGISTER, "init_args": register},
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
         "init_args": {"dirpath": str(folder), "filename": "last"}},
    ]  # fmt: skip
    trainer = {
        "accelerator": "cpu", "max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1,
        "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False, "callbacks": callbacks,
        "num_sanity_val_steps": 0,
    }  # fmt: skip
    # In this process our own tasks are loaded too: short names would be ambiguous.
    task = task if short else f"torchgeo.tasks.{task}"
    config = {"model": {"class_path": task, "init_args": options}, "data": data, "trainer": trainer}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def fit(folder, *args, **register):
    path = recipe(folder, *args, **register)
    main(["fit", "--config", str(path)])
    return folder / "last.ckpt"


TINY = "roma_tiny_patch16"


@pytest.mark.parametrize(
    "model", [TINY, pytest.param("spatial_mamba_tiny", marks=pytest.mark.slow)]
)
def test_classification(scenes, tmp_path, model):
    path = fit(tmp_path, "Classification", scenes, {"model": model, "num_classes": 2})
    spec = read_spec(path)
    assert (spec.task, spec.architecture) == ("classification", model)
    assert spec.std == (255.0, 255.0, 255.0)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert any(key.endswith("A_log") for key in state)


SEGMENT = [
    ("unet", "tu-spatial_mamba_tiny"),
    ("upernet", "tu-roma_tiny_patch16_pyramid"),
    ("segformer", "tu-spatial_mamba_tiny"),
    ("segformer", "tu-roma_tiny_patch16_pyramid"),
    ("dpt", "tu-roma_tiny_patch16"),
]


@pytest.mark.parametrize(
    ("model", "backbone"),
    [
        pytest.param(*case, marks=() if i == 1 else pytest.mark.slow)
        for i, case in enumerate(SEGMENT)
    ],
)
def test_segmentation(masks, tmp_path, model, backbone):
    options = {"model": model, "backbone": backbone, "num_classes": 8, "loss": "ce"}
    path = fit(tmp_path, "SemanticSegmentation", masks, options)
    spec = read_spec(path)
    assert (spec.task, spec.architecture) == ("segmentation", backbone)


@pytest.mark.slow
def test_change_detection_starts_from_weights_of_one_date(pairs, tmp_path):
    torch.manual_seed(3)
    source = timm.create_model("roma_tiny_patch16_pyramid", num_classes=0)
    spec = replace(SPEC, bands=("red", "green", "blue"))
    save_safetensors(source, spec, tmp_path / "rgb.safetensors")
    options = {
        "model": "unet", "backbone": "tu-roma_tiny_patch16_pyramid.rgb", "weights": True,
        "task": "binary", "in_channels": 3, "freeze_backbone": True,
    }  # fmt: skip
    path = fit(
        tmp_path, "ChangeDetection", pairs, options, bands=["red", "green", "blue"],
        weights={"roma_tiny_patch16_pyramid.rgb": str(tmp_path / "rgb.safetensors")},
    )  # fmt: skip
    state = torch.load(path, weights_only=True)["state_dict"]
    stem = next(v for k, v in state.items() if k.endswith("patch_embed.proj.weight"))
    wanted = torch.cat([source.patch_embed.proj.weight] * 2, dim=1) / 2**0.5
    torch.testing.assert_close(stem, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["tu-spatial_mamba_tiny", "tu-roma_tiny_patch16_pyramid"])
def test_change_detection(pairs, tmp_path, backbone):
    options = {"model": "fcsiamdiff", "backbone": backbone, "task": "binary", "in_channels": 3}
    path = fit(tmp_path, "ChangeDetection", pairs, options)
    assert read_spec(path).task == "change"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["BYOL", "MoCo", "SimCLR"])
@pytest.mark.parametrize("model", [TINY, "spatial_mamba_tiny"])
def test_self_supervision(scenes, tmp_path, task, model):
    options = {"model": model, "in_channels": 3}
    options |= {} if task == "BYOL" else {"memory_bank_size": 0}
    path = fit(tmp_path, task, scenes, options)
    spec = read_spec(path)
    assert (spec.task, spec.task_class, spec.architecture) == (
        "backbone", "timm.create_model", model
    )  # fmt: skip


def test_a_tag_serves_weights(scenes, tmp_path):
    torch.manual_seed(3)
    source = timm.create_model(TINY, num_classes=0)
    save_safetensors(source, None, tmp_path / "encoder.safetensors")
    weights = {f"{TINY}.mine": str(tmp_path / "encoder.safetensors")}
    options = {
        "model": f"{TINY}.mine", "weights": True, "num_classes": 2, "freeze_backbone": True,
    }  # fmt: skip
    path = fit(tmp_path, "Classification", scenes, options, weights=weights)
    state = torch.load(path, weights_only=True)["state_dict"]
    key = "blocks.3.mixer.in_proj.weight"
    torch.testing.assert_close(state[f"model.{key}"], source.state_dict()[key])


def test_a_served_file_reaches_encoders_of_segmentation_models(tmp_path):
    import segmentation_models_pytorch as smp

    torch.manual_seed(3)
    source = timm.create_model("spatial_mamba_tiny", num_classes=0)
    save_safetensors(source, None, tmp_path / "encoder.safetensors")
    rsmamba.models.serve_weights("spatial_mamba_tiny.own", tmp_path / "encoder.safetensors")
    unet = smp.Unet("tu-spatial_mamba_tiny.own", encoder_weights="imagenet", classes=2)
    key = "stages.2.blocks.1.mixer.A_log"
    got = unet.encoder.model.state_dict()
    name = next(k for k in got if k.endswith(key))
    torch.testing.assert_close(got[name], source.state_dict()[key])


SPEC = ModelSpec(
    task="backbone", task_class="timm.create_model", task_kwargs={}, architecture=TINY,
    bands=("nir", "red", "green"), mean=(0.0,) * 3, std=(1.0,) * 3,
)  # fmt: skip


@pytest.fixture
def infrared(tmp_path):
    """A file of weights for near infrared, red and green."""
    torch.manual_seed(3)
    source = timm.create_model(TINY, num_classes=0)
    save_safetensors(source, SPEC, tmp_path / "irrg.safetensors")
    return source, str(tmp_path / "irrg.safetensors")


def test_served_weights_follow_the_bands_that_are_named(infrared):
    source, path = infrared
    rsmamba.models.serve_weights(f"{TINY}.irrg", path, bands=("green", "red", "nir"))
    model = timm.create_model(f"{TINY}.irrg", pretrained=True, num_classes=0)
    stem = source.patch_embed.proj.weight
    torch.testing.assert_close(model.patch_embed.proj.weight, stem.flip(1))
    # Two dates side by side: each has the weights of one, and the response keeps its size.
    pair = timm.create_model(f"{TINY}.irrg", pretrained=True, num_classes=0, in_chans=6)
    wanted = torch.cat([stem.flip(1)] * 2, dim=1) / 2**0.5
    torch.testing.assert_close(pair.patch_embed.proj.weight, wanted)
    with pytest.raises(BandMismatchError):
        timm.create_model(f"{TINY}.irrg", pretrained=True, in_chans=5)


def test_a_file_given_to_timm_is_not_repeated_over_other_bands(infrared):
    _, path = infrared
    overlay = {"file": path}
    model = timm.create_model(TINY, pretrained=True, pretrained_cfg_overlay=overlay)
    assert model.load_report.coverage == 1
    with pytest.raises(BandMismatchError):
        timm.create_model(TINY, pretrained=True, in_chans=6, pretrained_cfg_overlay=overlay)


def test_what_was_loaded_is_said_and_the_specs_padding_is_taken(tmp_path, caplog):
    torch.manual_seed(3)
    source = timm.create_model("spatial_mamba_tiny", num_classes=0, fusion_padding="zeros")
    spec = replace(SPEC, architecture="spatial_mamba_tiny", task_kwargs={"fusion_padding": "zeros"})
    save_safetensors(source, spec, tmp_path / "zeros.safetensors")
    rsmamba.models.serve_weights("spatial_mamba_tiny.zeros", tmp_path / "zeros.safetensors")
    model = timm.create_model("spatial_mamba_tiny.zeros", pretrained=True, features_only=True)
    paddings = {m.padding for m in model.modules() if hasattr(m, "kernel_5")}
    assert paddings == {"zeros"}
    assert "backbone tensors loaded" in caplog.text
    other = timm.create_model(
        "spatial_mamba_tiny.zeros", pretrained=True, fusion_padding="replicate"
    )
    assert {m.padding for m in other.modules() if hasattr(m, "kernel_5")} == {"replicate"}


def test_a_file_of_another_family_is_refused_by_name(tmp_path):
    source = timm.create_model("spatial_mamba_tiny", num_classes=0)
    spec = replace(SPEC, architecture="spatial_mamba_tiny", task_kwargs={"fusion_padding": "zeros"})
    save_safetensors(source, spec, tmp_path / "spatial.safetensors")
    rsmamba.models.serve_weights(f"{TINY}.other", tmp_path / "spatial.safetensors")
    with pytest.raises(CheckpointError, match="no backbone of this kind"):
        timm.create_model(f"{TINY}.other", pretrained=True)


def test_data_of_other_bands_than_the_weights_stop_before_the_first_step(
    infrared, scenes, tmp_path
):
    _, path = infrared
    options = {"model": f"{TINY}.irrg2", "weights": True, "num_classes": 2}
    weights = {f"{TINY}.irrg2": path}
    fitted = fit(tmp_path, "Classification", scenes, options, weights=weights)
    assert read_spec(fitted).bands == ("nir", "red", "green")  # nobody says otherwise
    module = Classification(**options)
    data = SimpleNamespace(bands=("red", "green", "blue"))
    with pytest.raises(BandMismatchError, match="Register"):
        Register().on_fit_start(SimpleNamespace(datamodule=data), module)
    data.bands += ("nir",)  # another number, that no number of dates explains
    with pytest.raises(BandMismatchError, match="number of bands"):
        Register().on_fit_start(SimpleNamespace(datamodule=data), module)


def test_bands_that_nobody_names_are_numbered(scenes, tmp_path):
    """Three bands need not be red, green and blue."""
    options = {"model": TINY, "num_classes": 2}
    path = fit(tmp_path, "Classification", scenes, options)
    assert read_spec(path).bands == ("band_1", "band_2", "band_3")
    (tmp_path / "named").mkdir()
    named = fit(
        tmp_path / "named", "Classification", scenes, options, bands=["nir", "red", "green"]
    )
    assert read_spec(named).bands == ("nir", "red", "green")


def test_weights_that_nobody_serves_are_an_error_with_the_remedy():
    with pytest.raises(CheckpointError, match=r"serve_weights\('roma_tiny_patch16\.unheard'"):
        timm.create_model(f"{TINY}.unheard", pretrained=True)
    with pytest.raises(CheckpointError, match=r"roma_tiny_patch16\.mine"):
        timm.create_model(TINY, pretrained=True)
    with pytest.raises(UnknownModelError, match="resnet18"):
        rsmamba.models.serve_weights("resnet18.mine", "a.pth")
    with pytest.raises(ConfigError, match="no tag"):
        rsmamba.models.serve_weights(TINY, "a.pth")


def test_torchgeos_registry_builds_them():
    from torchgeo.models import get_model, list_models

    Register()
    names = {n for n in timm.list_models() if n.startswith(("roma_", "spatial_mamba_"))}
    assert len(names) == 11 and names <= set(list_models())
    model = get_model(TINY, num_classes=4, in_chans=6)
    assert model(torch.randn(1, 6, 64, 64)).shape == (1, 4)


def test_a_task_without_a_spec_trains_all_the_same(scenes, tmp_path, caplog):
    options = {"model": TINY, "num_outputs": 1}
    path = fit(tmp_path, "Regression", scenes, options)
    assert "carry no ModelSpec" in caplog.text
    assert torch.load(path, weights_only=True)["state_dict"]


def test_deeplab_is_refused_by_name(masks, tmp_path):
    options = {"model": "deeplabv3+", "backbone": "tu-spatial_mamba_tiny", "num_classes": 8}
    # The command line wraps what a task's constructor raises.
    with pytest.raises(ValueError, match="output_stride=16"):
        fit(tmp_path, "SemanticSegmentation", masks, options)


def test_the_command_line_of_torchgeo_needs_no_python_of_ours(masks, tmp_path):
    options = {"model": "unet", "backbone": "tu-roma_tiny_patch16_pyramid", "num_classes": 8}
    path = recipe(tmp_path, "SemanticSegmentation", masks, options, short=True)
    done = subprocess.run(
        [sys.executable, "-c", "from torchgeo.main import main; main()", "fit", "--config", path],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_spec(tmp_path / "last.ckpt").task == "segmentation"


def test_importing_the_models_loads_nothing_but_torch_and_timm():
    code = (
        "import sys, torch, timm; before = set(sys.modules); import rsmamba.models; "
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    more = set(ast.literal_eval(done.stdout)) - set(sys.stdlib_module_names)
    assert more == {"rsmamba", "rsmamba_kernels"}
