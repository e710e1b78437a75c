"""Bad input to `rsmamba fit` and `test`: one line that names the thing and the remedy, status 2."""

import pytest
import yaml

from rsmamba.cli import main
from rsmamba.cli.recipes import shipped_recipes
from rsmamba.errors import ConfigError
from rsmamba.tasks import SceneClassification

PROBE = "--config=recipe:classify/ucmerced_probe_demo"
SEGMENT = "--config=recipe:segment/buildings_demo"
PRETRAIN = "--config=recipe:pretrain/roma_tiny_demo"


@pytest.fixture
def fails(tmp_path, capsys):
    """Run a verb in an empty folder; the single error line."""

    def run(verb, *arguments):
        folder = tmp_path / "run"
        assert main.run([verb, *arguments, f"--trainer.logger.save_dir={folder}"]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        errors = [line for line in lines if line.startswith("rsmamba: error: ")]
        assert len(errors) == 1
        assert lines == errors
        assert not any("Traceback" in line for line in lines)
        assert not list(folder.rglob("*.ckpt"))
        return errors[0]

    return run


def test_an_unknown_backbone_suggests_the_nearest(fails):
    line = fails("fit", SEGMENT, "--model.init_args.backbone=spatial_mamba_tinny")
    assert "spatial_mamba_tinny" in line
    assert "did you mean spatial_mamba_tiny" in line


def test_a_missing_data_folder_is_named(fails, tmp_path):
    assert str(tmp_path / "gone") in fails("fit", PROBE, f"--data.root={tmp_path / 'gone'}")
    assert str(tmp_path / "gone") in fails("fit", SEGMENT, f"--data.images={tmp_path / 'gone'}")
    assert str(tmp_path / "gone") in fails("fit", PRETRAIN, f"--data.root={tmp_path / 'gone'}")


def test_an_unknown_option_is_named_without_a_type_dump(fails):
    line = fails("fit", SEGMENT, "--data.init_args.imges=x")
    assert "Option 'imges' is not accepted" in line
    assert "Subtypes" not in line


def test_band_counts_that_differ_name_both_sides(fails):
    line = fails("fit", SEGMENT, "--model.init_args.in_channels=4")
    assert "3 bands (red, green, blue)" in line
    assert "in_channels=4" in line


def test_a_missing_checkpoint_is_named(fails, tmp_path):
    gone = tmp_path / "gone.ckpt"
    assert str(gone) in fails("fit", SEGMENT, f"--model.init_args.weights={gone}")
    assert str(gone) in fails("test", PROBE, f"--ckpt_path={gone}")


def test_a_checkpoint_that_is_none_is_refused(fails, tmp_path):
    random = tmp_path / "random.ckpt"
    random.write_bytes(bytes(range(256)) * 16)
    assert "random.ckpt" in fails("test", PROBE, f"--ckpt_path={random}")


def test_no_arguments_at_all_is_one_line(capsys):
    assert main.run(["fit"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "required" in line


def test_a_missing_argument_of_a_verb_is_one_line(capsys):
    assert main.run(["map", "model.ckpt"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "scene, out" in line


def test_the_checkpoints_of_an_earlier_run_are_not_replaced(tmp_path, capsys):
    earlier = tmp_path / "checkpoints" / "last.ckpt"
    earlier.parent.mkdir()
    earlier.write_text("hours of work")
    assert main.run(["fit", PROBE, f"--trainer.logger.save_dir={tmp_path}"]) == 2
    assert "--overwrite" in capsys.readouterr().err.strip().splitlines()[-1]
    assert earlier.read_text() == "hours of work"


def test_an_image_size_that_does_not_fit_names_the_next(fails):
    assert "96 and 128" in fails("fit", PRETRAIN, "--model.init_args.img_size=100")


def test_a_missing_recipe_is_named(fails):
    assert "did you mean" in fails("fit", "--config=recipe:segment/buildngs_demo")
    assert "nowhere.yaml" in fails("fit", "--config=nowhere.yaml")


def test_an_error_of_a_task_survives_the_parsers_wrapping(fails, monkeypatch):
    def refuse(self):
        raise ConfigError("planted: name the thing")

    monkeypatch.setattr(SceneClassification, "configure_models", refuse)
    assert fails("fit", PROBE).endswith("planted: name the thing")


def test_a_folder_that_cannot_be_made_is_named(capsys):
    assert main.run(["fit", PROBE, "--trainer.logger.save_dir=/proc/none"]) == 2
    assert "/proc/none" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_is_complete_and_commented(name):
    text = shipped_recipes()[name].read_text()
    recipe = yaml.safe_load(text)
    assert {"model", "data", "trainer", "seed_everything"} <= set(recipe)
    assert text.startswith("# ")
    callbacks = [entry["class_path"] for entry in recipe["trainer"]["callbacks"]]
    assert "rsmamba.tasks.callbacks.WriteModelSpec" in callbacks
    # of a million images nobody wants the hashes
    assert ("rsmamba.tasks.callbacks.WriteManifest" in callbacks) != ("imagenet" in name)
    assert sum("#" in line for line in text.splitlines() if ":" in line) >= 10


def test_the_probe_recipe_trains_tests_and_leaves_a_checkpoint(tmp_path):
    save = f"--trainer.logger.save_dir={tmp_path}"
    small = [
        "--data.batch_size=16",
        "--trainer.limit_train_batches=4",
        "--trainer.limit_val_batches=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]
    assert main.run(["fit", PROBE, save, *small]) == 0
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    assert checkpoint.is_file()
    options = (tmp_path / "config.yaml").read_text()
    limit = "--trainer.limit_test_batches=1"
    assert main.run(["test", PROBE, save, f"--ckpt_path={checkpoint}", limit, *small]) == 0
    assert (tmp_path / "config.yaml").read_text() == options  # still those of the training
