"""Names of bands on their way from a recipe to the stem's weights, the data and the ModelSpec."""

import geopandas as gpd
import pytest
import timm
import torch
import yaml
from shapely import box

from rsmamba.cli.train import run_lightning
from rsmamba.errors import BandMismatchError, ConfigError
from rsmamba.models.checkpoints import load_backbone, read_spec, save_safetensors
from rsmamba.spec import ModelSpec
from rsmamba.tasks import SceneClassification, SemanticSegmentation
from rsmamba.tasks.callbacks import build_spec
from tests.data.scenes.data import CRS, EAST, NORTH, noise, write
from tests.tasks.conftest import MemoryModule

FOUR = ["red", "green", "blue", "nir"]
SMALL = {"img_size": 64, "embed_dim": 32}  # not depth, which smp takes for the encoder's
CLASSIFY = {"num_classes": 3, "model_kwargs": SMALL}
SEGMENT = {
    "backbone": "roma_tiny_patch16_pyramid",
    "backbone_kwargs": SMALL,
    "decoder_kwargs": {"decoder_channels": 16},
    "norm": "groupnorm",
}
PROBE = {"mode": "probe", "l2_grid": [0.1], **CLASSIFY}


def rgb_file(path, bands=("red", "green", "blue")):
    torch.manual_seed(0)
    model = timm.create_model("roma_tiny_patch16", in_chans=len(bands), **SMALL)
    spec = ModelSpec(
        task="backbone",
        task_class="timm.create_model",
        task_kwargs=SMALL,
        architecture="roma_tiny_patch16",
        bands=tuple(bands),
        mean=(0.0,) * len(bands),
        std=(1.0,) * len(bands),
    )
    save_safetensors(model, spec, path)
    return str(path), model.patch_embed.proj.weight.detach()


@pytest.fixture
def weights(tmp_path):
    return rgb_file(tmp_path / "roma.safetensors")


def scenes_of(bands, count=3):
    def sample(index):
        image = torch.randn(count, 64, 64, generator=torch.Generator().manual_seed(index))
        return {"image": image, "label": torch.tensor(index % 3)}

    data = MemoryModule(sample, classes=("a", "b", "c"), count=4)
    data.bands = bands
    return data


# --- a recipe ----------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path, weights):
    """Segmentation of a four-band scene from weights for red, green and blue, one step."""
    write(tmp_path / "scenes" / "a.tif", noise(96, 96, bands=4), photometric="minisblack")
    house = gpd.GeoDataFrame(geometry=[box(EAST + 8, NORTH - 80, EAST + 80, NORTH - 8)], crs=CRS)
    house.to_file(tmp_path / "houses.gpkg")
    return {
        "model": {
            "class_path": "rsmamba.tasks.SemanticSegmentation",
            "init_args": {"weights": weights[0], "in_channels": 4, "bands": FOUR, **SEGMENT},
        },
        "data": {
            "class_path": "rsmamba.data.LabelledScenesDataModule",
            "init_args": {
                "images": str(tmp_path / "scenes"),
                "labels": str(tmp_path / "houses.gpkg"),
                "classes": ["house"],
                "bands": FOUR,
                "patch_size": 32,
                "block_size": 32,
                "batch_size": 2,
                "length": 2,
            },
        },
        "trainer": {
            "max_steps": 1,
            "accelerator": "cpu",
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(tmp_path),
            "callbacks": [
                {"class_path": "rsmamba.tasks.callbacks.WriteModelSpec"},
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": str(tmp_path / "run"), "filename": "last"},
                },
            ],
        },
    }


def fit(recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return run_lightning("fit", ["--config", str(tmp_path / "recipe.yaml")])


def test_a_recipe_fits_weights_for_rgb_to_four_bands(recipe, weights, tmp_path, capsys):
    cli = fit(recipe, tmp_path)
    assert "nir new" in capsys.readouterr().err
    assert cli.trainer.global_step == 1
    report = cli.model.load_report
    assert report.bands == tuple(FOUR)
    assert report.coverage >= 0.95
    assert "stem: red, green, blue taken by name; nir new (mean of the others, scaled)" in str(
        report
    )
    spec = read_spec(tmp_path / "run" / "last.ckpt")
    assert spec.bands == tuple(FOUR)
    assert spec.task_kwargs["bands"] == FOUR
    again = SemanticSegmentation(**spec.task_kwargs)
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    again.load_state_dict(state, strict=True)


def test_a_recipe_without_bands_names_the_option(recipe, tmp_path):
    del recipe["model"]["init_args"]["bands"]
    with pytest.raises(BandMismatchError, match=r"3 bands \(red, green, blue\).*takes 4.*bands="):
        fit(recipe, tmp_path)


def test_a_recipe_whose_data_have_other_bands_stops_before_the_first_step(recipe, tmp_path):
    recipe["data"]["init_args"]["bands"] = ["nir", "red", "green", "blue"]
    with pytest.raises(BandMismatchError, match=r"nir, red, green, blue.*red, green, blue, nir"):
        fit(recipe, tmp_path)
    assert not (tmp_path / "run").exists()


# --- the option --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [CLASSIFY, PROBE])
def test_a_classifiers_stem_follows_the_order_of_its_bands(mode, weights):
    path, stem = weights
    task = SceneClassification(weights=path, bands=["blue", "green", "red"], **mode)
    backbone = task.model if mode is CLASSIFY else task.features.backbone
    assert torch.equal(backbone.patch_embed.proj.weight, stem.flip(1))
    assert task.hparams["bands"] == ["blue", "green", "red"]


@pytest.mark.parametrize("task_class", [SceneClassification, SemanticSegmentation])
def test_bands_and_in_channels_must_agree(task_class):
    with pytest.raises(ConfigError, match=r"4 bands \(red, green, blue, nir\), but in_channels=3"):
        task_class(bands=FOUR)
    with pytest.raises(ConfigError, match="list of band names"):
        task_class(bands="red")


# --- data --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [CLASSIFY, PROBE])
def test_data_of_other_bands_than_the_weights_name_the_option(mode, weights, trainer):
    task = SceneClassification(weights=weights[0], **mode)
    with pytest.raises(
        BandMismatchError, match=r"nir, red, green.*red, green, blue.*the task's option bands"
    ):
        trainer().fit(task, scenes_of(("nir", "red", "green")))


def test_the_option_makes_the_same_data_fit(weights, trainer):
    task = SceneClassification(weights=weights[0], bands=["nir", "red", "green"], **CLASSIFY)
    run = trainer(limit_train_batches=1, limit_val_batches=0)
    run.fit(task, scenes_of(("B08", "B04", "B03")))
    assert run.global_step == 1
    assert task.model.patch_embed.proj.weight.grad[:, 0].abs().max() > 0  # nir, a new band


def test_the_option_is_compared_with_the_data_also_without_weights(trainer):
    task = SceneClassification(bands=["nir", "red", "green"], **CLASSIFY)
    with pytest.raises(BandMismatchError, match="correct the task's bands"):
        trainer().fit(task, scenes_of(("red", "green", "blue")))


# --- the spec and the report -------------------------------------------------------------------


def test_the_spec_names_the_bands_that_are_known(tmp_path):
    path, _ = rgb_file(tmp_path / "irrg.safetensors", bands=("nir", "red", "green"))
    # a data module that was told no names has placeholders, which say less than the option
    for named in ((), ("band_1", "band_2", "band_3")):
        task = SceneClassification(bands=["blue", "green", "red"], **CLASSIFY)
        assert build_spec(task, scenes_of(named)).bands == ("blue", "green", "red")
    for mode in (CLASSIFY, PROBE):
        task = SceneClassification(weights=path, **mode)
        assert build_spec(task, scenes_of(())).bands == ("nir", "red", "green")
        assert build_spec(task, scenes_of(("NIR", "R", "G"))).bands == ("NIR", "R", "G")
    task = SceneClassification(**CLASSIFY)
    # Three bands need not be red, green and blue.
    assert build_spec(task, scenes_of(())).bands == ("band_1", "band_2", "band_3")


def test_the_report_names_bands_only_where_they_are_known(weights, tmp_path):
    path, _ = weights
    model = timm.create_model("roma_tiny_patch16", **SMALL)
    assert load_backbone(model, path).bands == ("red", "green", "blue")
    assert load_backbone(model, path, bands=("B04", "B03", "B02")).bands == ("B04", "B03", "B02")
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    assert load_backbone(model, tmp_path / "bare.pth").bands == ()
    # two dates of three bands through one stem: six names, three channels
    pair = ModelSpec(
        task="change",
        task_class="torchgeo.tasks.ChangeDetection",
        task_kwargs={},
        architecture="roma_tiny_patch16",
        bands=("red", "green", "blue") * 2,
        mean=(0.0,) * 6,
        std=(1.0,) * 6,
    )
    save_safetensors(model, pair, tmp_path / "pair.safetensors")
    assert load_backbone(model, tmp_path / "pair.safetensors").bands == ()
