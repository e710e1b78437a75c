"""Published files are read with stand-ins, and nothing in any file is executed."""

import argparse
import builtins
import os
import pickle
import re
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from rsmamba.errors import CheckpointError, ConfigError
from rsmamba.models.checkpoints import convert, convert_file, load_backbone, read_checkpoint
from rsmamba.unpickling import Inert, load_pickle
from rsmamba.weights_file import read_weights
from tests.models.published_files import CfgNode, Config, ConfigDict, libraries, save, shallow

WEIGHTS = {"layers.0.norm.weight": torch.arange(3.0)}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_training_arguments_and_configurations_are_read_as_stand_ins(zipped, tmp_path):
    path = save(tmp_path / "w.pth", {"model": WEIGHTS}, zipped=zipped)
    file = read_weights(path)
    assert file.key == "model" and file.tensors.keys() == WEIGHTS.keys()
    assert torch.equal(file.tensors["layers.0.norm.weight"], torch.arange(3.0))
    assert not {"yacs", "addict", "mmengine"} & sys.modules.keys()
    assert not [g for g in torch.serialization.get_safe_globals() if isinstance(g, tuple)]
    content = load_pickle(path, stand_ins=True)
    assert type(content["args"]) is Inert and vars(content["args"]) == {}
    assert type(content["cfg"]) is type(content["max_accuracy"]) is Inert
    assert content["epoch"] == 299


def test_other_classes_of_the_configuration_libraries_are_inert_too(tmp_path):
    with libraries():
        module = sys.modules["mmengine.config.config"]
        module.LazyDict = type("LazyDict", (dict,), {"__module__": module.__name__})
        module.Lazy = type("Lazy", (), {"__module__": module.__name__})
        lazy = module.Lazy()
        lazy.x = 1
        torch.save({"model": WEIGHTS, "a": lazy, "b": module.LazyDict(c=1)}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").tensors.keys() == WEIGHTS.keys()


def test_the_strict_reader_refuses_what_lightning_would(tmp_path):
    torch.save({"state_dict": WEIGHTS, "a": argparse.Namespace(x=1)}, tmp_path / "w.ckpt")
    with pytest.raises(CheckpointError, match=r"it holds argparse\.Namespace"):
        read_checkpoint(tmp_path / "w.ckpt")


class Call:
    """Pickled as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def bombs(folder):
    """Objects that make a folder when unpickled, by the name that must be refused."""
    evil = str(folder / "evil")
    code = f"__import__('os').mkdir({evil!r})"
    mkdir = Call(os.mkdir, evil)
    system = Call(os.system, f"mkdir {evil}")
    return {
        "os.mkdir": (f"{os.name}.mkdir", mkdir),
        "os.system": (f"{os.name}.system", system),
        "eval": ("builtins.eval", Call(eval, code)),
        "exec": ("builtins.exec", Call(exec, code)),
        "in a namespace": ("builtins.eval", argparse.Namespace(a=[{"b": Call(eval, code)}])),
        "in a config": (f"{os.name}.mkdir", CfgNode(a=CfgNode(b=mkdir))),
        "as an argument": (f"{os.name}.system", Call(ConfigDict, system)),
        "as a key": ("builtins.eval", {Call(eval, code): 1}),
        "as a state": ("builtins.eval", _with_state(Config, Call(eval, code))),
        "import": ("builtins.__import__", Call(builtins.__import__, "this")),
        "pickle in a pickle": ("pickle.loads", Call(pickle.loads, pickle.dumps(1))),
    }


def _with_state(cls, state):
    class Stateful:
        def __reduce__(self):
            return cls, (), state

    return Stateful()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("kind", bombs(Path()))
def test_a_bomb_is_refused_by_name_and_does_not_go_off(kind, zipped, tmp_path):
    name, bomb = bombs(tmp_path)[kind]
    path = tmp_path / "w.pth"
    with libraries():
        content = {"x": bomb, "model": WEIGHTS}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="nothing was loaded") as caught:
        read_weights(path)
    text = str(caught.value)
    # torch leaves out "builtins." where it names one itself.
    assert name in text or (not zipped and name.removeprefix("builtins.") in text)
    assert "\n" not in text and not (tmp_path / "evil").exists()


def test_the_bombs_would_go_off_elsewhere(tmp_path):
    _, bomb = bombs(tmp_path)["in a namespace"]
    torch.save({"x": bomb}, tmp_path / "w.pth")
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert (tmp_path / "evil").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_getattr_reaches_nothing_but_stand_ins(zipped, tmp_path):
    path = tmp_path / "w.pth"
    content = {"model": WEIGHTS, "x": Call(getattr, torch.Tensor, "__init__")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"it holds builtins\.getattr"):
        read_weights(path)


class Shadowed:
    """Pickled as an OrderedDict whose methods are hidden by attributes."""

    def __init__(self, items):
        self.items = items

    def __reduce__(self):
        shadows = dict.fromkeys(("items", "keys", "get", "__getitem__"), "not a method")
        return OrderedDict, (), shadows, None, iter(self.items.items())


def test_names_cannot_be_shadowed_by_attributes(tmp_path):
    torch.save(Shadowed({"state_dict": Shadowed(WEIGHTS)}), tmp_path / "w.pth")
    assert torch.load(tmp_path / "w.pth").items == "not a method"
    assert read_weights(tmp_path / "w.pth").tensors.keys() == WEIGHTS.keys()


@pytest.mark.parametrize(
    "data", [b"", b"no pickle", b"\x80\x02.", b"\x80\x02N.", b"PK\x03\x04" + bytes(40)]
)
def test_garbage_is_one_line_with_the_path(data, tmp_path):
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"w\.pth") as caught:
        read_weights(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_other_pickle_protocols_and_torchscript_are_refused_in_one_line(tmp_path):
    torch.save({"model": WEIGHTS, "x": ["y"]}, tmp_path / "4.pth", pickle_protocol=4)
    with pytest.raises(CheckpointError, match="pickle protocol other than 2"):
        read_weights(tmp_path / "4.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pth")
    with pytest.raises(CheckpointError, match="TorchScript") as caught:
        read_weights(tmp_path / "script.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        torch.eye(2).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
        torch.empty(2, device="meta"),
    ],
    ids=["sparse", "complex", "meta"],
)
def test_tensors_that_cannot_be_copied_are_refused(value, tmp_path):
    torch.save({"a": torch.zeros(1), "odd": value}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="odd is a sparse"):
        read_weights(tmp_path / "w.pth")


def test_keys_are_preferred_in_order_and_can_be_chosen(tmp_path):
    path = tmp_path / "w.pth"
    content = {k: {k: torch.zeros(1)} for k in ("model_ema", "state_dict", "model")}
    torch.save(content, path)
    file = read_weights(path)
    assert (file.key, file.others) == ("model", ("state_dict", "model_ema"))
    for key in content:
        assert list(read_weights(path, key=key).tensors) == [key]
    del content["model"]
    torch.save(content | {"model": None}, path)
    assert read_weights(path).key == "state_dict"
    with pytest.raises(CheckpointError, match="no weights under 'model': it has state_dict"):
        read_weights(path, key="model")
    torch.save({"model_ema": content["model_ema"]}, path)
    assert read_weights(path).key == "model_ema"
    torch.save(WEIGHTS, path)
    assert read_weights(path).key is None
    with pytest.raises(CheckpointError, match="a bare state dict"):
        read_weights(path, key="state_dict")
    with pytest.raises(ConfigError, match="key='ema'"):
        load_backbone(torch.nn.Linear(1, 1), path, key="ema")


def test_files_are_read_in_parallel(tmp_path):
    path = save(tmp_path / "w.pth", {"model": WEIGHTS})
    found = []
    threads = [
        threading.Thread(target=lambda: found.extend(read_weights(path).tensors)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == list(WEIGHTS) * 8


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_empty_file_is_called_empty(suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    path.touch()
    with pytest.raises(CheckpointError, match=rf"w{suffix} is empty: copy or download it again"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"import torch\n", b"<html>", b"\x00" * 64, b"PK\x03\x04"])
def test_what_is_no_checkpoint_is_called_so_with_a_remedy(content, tmp_path):
    for suffix, said in ((".pth", "Py[Tt]orch"), (".safetensors", "no complete safetensors file")):
        path = tmp_path / f"w{suffix}"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{said}.*: (copy|save)") as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)
        assert not re.search(r"\(\d*\)|\(\w*Error\)", str(caught.value))


@pytest.mark.parametrize(("name", "asked"), [("roma_cls_tiny", "roma-pretrain"),
                                             ("roma_pretrain_tiny", "roma")])  # fmt: skip
def test_a_source_that_the_file_is_not_of_is_told(name, asked, tmp_path):
    save(tmp_path / "w.pth", {"model": shallow(name)})
    other = {"roma": "roma-pretrain", "roma-pretrain": "roma"}[asked]
    with pytest.raises(CheckpointError, match=f"not a {asked} checkpoint, it looks like {other}:"):
        convert_file(tmp_path / "w.pth", tmp_path / "out.safetensors", source=asked)
    assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(CheckpointError, match=f"it looks like {other}: choose that source"):
        convert(shallow(name), source=asked)
