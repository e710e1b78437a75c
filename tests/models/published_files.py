"""Files as RoMA's, Spatial-Mamba's and OpenMMLab's training code writes them."""

import argparse
import re
import sys
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import torch

from tests.golden import fill_state_dict, fixture

#: Block and level numbers in the published names.
_ROMA_BLOCK = re.compile(r"layers\.(\d+)\.")
_SPATIAL_BLOCK = re.compile(r"layers\.\d+\.blocks\.(\d+)\.")


def entries(name):
    """Published keys, shapes and types; ``NAME:backbone`` for the dense Spatial-Mamba."""
    name, _, part = name.partition(":")
    meta = fixture(name).meta
    return (meta[part] if part else meta)["state_dict"]


def shallow(name, depth=2):
    """A published state dict with so many blocks (of each level), to be quick."""
    mark = _SPATIAL_BLOCK if "spatial" in name else _ROMA_BLOCK
    kept = [e for e in entries(name) if not (m := mark.match(e[0])) or int(m[1]) < depth]
    return fill_state_dict([e for e in kept if e[0] != "mask"])


class CfgNode(dict):
    """Like yacs': a dict with attributes."""

    def __init__(self, **items):
        super().__init__(**items)
        self.__dict__["__immutable__"] = False
        self.__dict__["__deprecated_keys__"] = set()

    def __getattr__(self, name):
        raise AttributeError(name)


class Dict(dict):
    """Like addict's: a dict that is its own state."""

    def __getstate__(self):
        return self

    def __setstate__(self, state):
        raise AssertionError("a state was given to the real class")


class ConfigDict(Dict):
    """Like mmengine's: built again from a dict."""

    def __reduce_ex__(self, protocol):
        return type(self), (dict(self),), None, None, None


class Config:
    """Like mmengine's: its state is a tuple."""

    def __getstate__(self):
        return ConfigDict(optimizer=ConfigDict(lr=0.1)), "config.py", "text", {"A": "B"}

    def __setstate__(self, state):
        raise AssertionError("a state was given to the real class")


class HistoryBuffer:
    """Like mmengine's: arrays, and functions of the class, pickled through getattr."""

    def __init__(self):
        self.log_history = np.array([0.5, 0.25])
        self.methods = {"mean": HistoryBuffer.mean}

    def mean(self):
        return self.log_history.mean()


_HOMES = {
    "yacs.config": (CfgNode,),
    "addict.addict": (Dict,),
    "mmengine.config.config": (ConfigDict, Config),
    "mmengine.logging.history_buffer": (HistoryBuffer,),
}


@contextmanager
def libraries():
    """The classes above under the names of their libraries, while files are written."""
    names = {".".join(home.split(".")[:n]) for home in _HOMES for n in (1, 2, 3)}
    before = {name: sys.modules.get(name) for name in names}
    owners = {}
    try:
        sys.modules.update({name: ModuleType(name) for name in names})
        for home, classes in _HOMES.items():
            for cls in classes:
                owners[cls], cls.__module__ = cls.__module__, home
                setattr(sys.modules[home], cls.__name__, cls)
        # Pickle finds a function by the module that it says it is from.
        HistoryBuffer.mean.__module__ = HistoryBuffer.__module__
        yield
    finally:
        for cls, module in owners.items():
            cls.__module__ = module
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def extras():
    """What published files hold beside the weights; to be made and saved inside `libraries`."""
    return {
        "args": argparse.Namespace(lr=1e-3, device=torch.device("cpu"), nested=CfgNode(a=1)),
        "config": CfgNode(MODEL=CfgNode(NAME="tiny"), TEST=[CfgNode(), 1]),
        "addict": Dict(a=Dict(b=1)),
        "cfg": Config(),
        "message_hub": {"log_scalars": {"loss": HistoryBuffer()}},
        "max_accuracy": np.float64(83.5),
        "curve": np.arange(3.0),
        "epoch": 299,
    }


def save(path, weights, *, zipped=True, **more):
    """Write a published file, e.g. ``save(path, {"model": state_dict})``, with all its extras."""
    with libraries():
        content = {**extras(), **weights, **more}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path
