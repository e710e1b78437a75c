"""Predictors: normalisation, probabilities, and which checkpoints are loaded."""

import json
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchgeo.tasks import SemanticSegmentation

from rsmamba.errors import CheckpointError, ConfigError, DataNotFoundError, SpecError
from rsmamba.infer import load_predictor
from rsmamba.spec import SPEC_KEY
from tests.infer.conftest import brightest, spec

KWARGS = {"model": "fcn", "in_channels": 3, "num_classes": 3, "num_filters": 4}


class PerPixel(nn.Module):
    """Logits of a 1 x 1 convolution."""

    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Conv2d(3, classes, 1)

    def forward(self, image):
        return self.head(image)


@pytest.fixture(scope="module")
def trained():
    """A stock TorchGeo task and its spec."""
    torch.manual_seed(1)
    task = SemanticSegmentation(**KWARGS)
    described = spec(task_class="torchgeo.tasks.SemanticSegmentation", task_kwargs=KWARGS)
    return task.eval(), described


@pytest.fixture
def checkpoint(tmp_path, trained):
    """Write a Lightning checkpoint with the given spec text."""

    def write(text=None, state=None, name="last.ckpt"):
        task, described = trained
        content = {
            "state_dict": task.state_dict() if state is None else state,
            "hyper_parameters": {},
            SPEC_KEY: described.to_json() if text is None else text,
        }
        if text == "":
            del content[SPEC_KEY]
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def images(seed=0):
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 60


def by_hand(task, raw):
    """Probabilities of a task for raw pixels, written out."""
    mean, std = torch.tensor([10.0, 20, 30]), torch.tensor([2.0, 4, 5])
    with torch.no_grad():
        logits = task((raw - mean[:, None, None]) / std[:, None, None])
    return logits.softmax(1)


def test_a_module_gets_normalised_pixels_and_gives_probabilities():
    module = PerPixel().train()
    scores = load_predictor(module, spec(), device="cpu")(images())
    torch.testing.assert_close(scores, by_hand(module, images()))
    assert not module.training and not scores.requires_grad


def test_scale_comes_before_mean():
    module = PerPixel()
    scaled = load_predictor(module, spec(scale=0.5), device="cpu")(images() * 2)
    torch.testing.assert_close(scaled, by_hand(module, images()))


def test_a_single_logit_becomes_two_classes():
    module = PerPixel(classes=1)
    predictor = load_predictor(module, spec(classes=("house",)), device="cpu")
    scores = predictor(images())
    assert scores.shape[1] == 2
    torch.testing.assert_close(scores.sum(1), torch.ones(2, 16, 16))
    assert predictor.class_names(2) == ("background", "house")


def test_a_callable_gets_raw_pixels_and_gives_its_scores():
    scores = load_predictor(brightest, device="cpu")(images())
    torch.testing.assert_close(scores, brightest(images()))


def test_bfloat16_is_close_and_comes_back_as_float32():
    module = PerPixel()
    scores = load_predictor(module, spec(), device="cpu", bf16=True)(images())
    exact = by_hand(module, images())
    assert scores.dtype == torch.float32
    assert 0 < (scores - exact).abs().max() < 0.05


def test_a_lightning_checkpoint_gives_what_the_task_gave(checkpoint, trained):
    predictor = load_predictor(checkpoint(), device="cpu")
    torch.testing.assert_close(predictor(images()), by_hand(trained[0], images()))
    assert predictor.spec == trained[1]


def test_a_safetensors_file_gives_what_the_task_gave(tmp_path, trained):
    task, described = trained
    path = tmp_path / "model.safetensors"
    save_file(task.state_dict(), path, metadata={SPEC_KEY: described.to_json()})
    predictor = load_predictor(path, device="cpu")
    torch.testing.assert_close(predictor(images()), by_hand(task, images()))


def test_a_spec_file_serves_a_checkpoint_without_one(checkpoint, trained, tmp_path):
    path = checkpoint("")
    with pytest.raises(CheckpointError, match="--spec FILE"):
        load_predictor(path, device="cpu")
    described = tmp_path / "spec.json"
    described.write_text(json.dumps(trained[1].to_dict(), indent=1))
    predictor = load_predictor(path, described, device="cpu")
    torch.testing.assert_close(predictor(images()), by_hand(trained[0], images()))


def test_pretrained_weights_are_not_fetched_again(checkpoint):
    kwargs = {**KWARGS, "weights": True}
    text = spec(task_class="torchgeo.tasks.SemanticSegmentation", task_kwargs=kwargs).to_json()
    assert load_predictor(checkpoint(text), device="cpu")(images()).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    "name",
    [
        "os.path.PurePath",
        "subprocess.Popen",
        "rsmamba_evil.Task",  # a prefix of the name is not the package
        "torchgeo.main.LightningCLI",
        "torchgeo.tasks.Absent",
        "torchgeo.absent.Task",
        "torchgeo.tasks.segmentation.nn.Linear",
        "rsmamba.spec.ModelSpec",
        "Task",
    ],
)
def test_foreign_classes_are_refused(checkpoint, name):
    with pytest.raises(CheckpointError, match="only tasks of rsmamba"):
        load_predictor(checkpoint(spec(task_class=name).to_json()), device="cpu")


def test_a_refused_module_is_not_even_imported(checkpoint, tmp_path, monkeypatch):
    proof = tmp_path / "proof"
    (tmp_path / "rsmamba_evil.py").write_text(f"open({str(proof)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError):
        load_predictor(checkpoint(spec(task_class="rsmamba_evil.Task").to_json()), device="cpu")
    assert not proof.exists()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickled_code_does_not_run(tmp_path):
    path, proof = tmp_path / "bomb.ckpt", tmp_path / "proof"
    torch.save({"state_dict": {}, "x": Bomb(str(proof))}, path)
    with pytest.raises(CheckpointError, match="nothing was loaded") as caught:
        load_predictor(path, device="cpu")
    assert not proof.exists() and "\n" not in str(caught.value)


def test_damaged_files_are_refused_in_one_line(checkpoint, tmp_path):
    whole = checkpoint()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole.read_bytes()[:-1000])
    text = tmp_path / "text.ckpt"
    text.write_text("no checkpoint")
    empty = tmp_path / "empty.ckpt"
    empty.touch()
    zipped = tmp_path / "zip.ckpt"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a", "b")
    tensors = tmp_path / "text.safetensors"
    tensors.write_text("no tensors")
    for path in (cut, text, empty, zipped, tensors):
        with pytest.raises(CheckpointError, match=path.name) as caught:
            load_predictor(path, device="cpu")
        assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_refused(checkpoint, trained):
    state = dict(trained[0].state_dict())
    name = next(iter(state))
    del state[name]
    with pytest.raises(CheckpointError, match="do not fit.*" + name.replace(".", r"\.")):
        load_predictor(checkpoint(state=state), device="cpu")


def test_a_task_that_cannot_be_built_is_named(checkpoint):
    text = spec(
        task_class="torchgeo.tasks.SemanticSegmentation", task_kwargs={"modle": "fcn"}
    ).to_json()
    with pytest.raises(CheckpointError, match="modle"):
        load_predictor(checkpoint(text), device="cpu")


@pytest.mark.parametrize("task", ["backbone", "pretraining"])
def test_weights_to_be_trained_further_say_what_they_are_for(checkpoint, task):
    text = spec(task=task, classes=()).to_json()
    with pytest.raises(SpecError, match=rf"last\.ckpt is a {task} .*weights:.* recipe") as caught:
        load_predictor(checkpoint(text), device="cpu")
    assert "\n" not in str(caught.value)
    with pytest.raises(SpecError, match=f"this one is a {task} "):
        load_predictor(PerPixel(), spec(task=task), device="cpu")


def test_other_mistakes_have_typed_errors(tmp_path, checkpoint):
    with pytest.raises(DataNotFoundError, match="absent"):
        load_predictor(tmp_path / "absent.ckpt")
    with pytest.raises(DataNotFoundError, match=r"absent\.json"):
        load_predictor(checkpoint(), tmp_path / "absent.json")
    with pytest.raises(SpecError, match="needs a ModelSpec"):
        load_predictor(PerPixel())
    with pytest.raises(ConfigError, match="classification"):
        load_predictor(PerPixel(), spec(task="classification"))
    with pytest.raises(ConfigError, match="classification"):
        load_predictor(checkpoint(spec(task="classification").to_json()))
    with pytest.raises(ConfigError, match="use cpu"):
        load_predictor(brightest, device="no-such-device")
    with pytest.raises(CheckpointError, match="--spec"):
        load_predictor(checkpoint("{}"))


@pytest.mark.parametrize(
    "answer", [lambda x: x[:, 0], lambda x: x[:, :, ::2], lambda x: x[:1], lambda x: None]
)
def test_scores_of_a_wrong_shape_are_refused(answer):
    with pytest.raises(ConfigError, match=r"expected|not a tensor"):
        load_predictor(answer, device="cpu")(images())


def test_class_names_must_fit_the_scores():
    predictor = load_predictor(brightest, spec(), device="cpu")
    with pytest.raises(SpecError, match="names 3"):
        predictor.class_names(4)
    with pytest.raises(ConfigError, match="255"):
        load_predictor(brightest, device="cpu").class_names(256)
    assert load_predictor(brightest, device="cpu").class_names(2) == ("class_0", "class_1")


@pytest.mark.gpu
def test_scores_stay_on_the_gpu():
    module = PerPixel()
    exact = by_hand(module, images())
    scores = load_predictor(module, spec())(images())
    assert scores.device.type == "cuda"
    torch.testing.assert_close(scores.cpu(), exact, atol=1e-4, rtol=1e-3)
