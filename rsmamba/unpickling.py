"""Reading PyTorch files without running anything that is in them.

A ``.pth`` file is a pickle: a program that names the functions to call. ``torch.load`` with
``weights_only=True`` interprets it with a short list of harmless ones, and this module lends it
inert classes for the few others that published files need: training arguments and configurations,
which are dropped. The classes that the file means are neither imported nor needed.
"""

import pickle
import re
import threading
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, Self

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from rsmamba.errors import CheckpointError


class Inert:
    """Takes the place of an object: swallows its arguments and its state, keeps nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """An empty object; constructors and factories of the file end here."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Drop the state."""


class InertMapping(Inert):
    """Takes the place of a class derived from dict, whose items the pickle sets one by one."""

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        """An empty OrderedDict: of the mappings with attributes, the one that torch lets fill."""
        return OrderedDict()


class InertMethod(Inert):
    """Takes the place of ``getattr``, by which pickles name the methods of a class."""

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """An inert object for a method of an inert class, and nothing for any other.

        Raises:
            UnpicklingError: Names ``builtins.getattr``.
        """
        owner = args[0] if args else None
        if isinstance(owner, type) and issubclass(owner, Inert):
            return super().__new__(cls)
        raise pickle.UnpicklingError("GLOBAL builtins.getattr is used on what is no configuration")


_STAND_INS: dict[str, type[Inert]] = {
    "argparse.Namespace": Inert,
    "builtins.getattr": InertMethod,
    "numpy.dtype": Inert,
    "numpy.ndarray": Inert,
    # Named so before NumPy 2, and since.
    "numpy.core.multiarray.scalar": Inert,
    "numpy.core.multiarray._reconstruct": Inert,
    "numpy._core.multiarray.scalar": Inert,
    "numpy._core.multiarray._reconstruct": Inert,
    "addict.addict.Dict": InertMapping,
    "mmcv.utils.config.Config": Inert,
    "mmcv.utils.config.ConfigDict": InertMapping,
    "mmengine.config.config.Config": Inert,
    "mmengine.config.config.ConfigDict": InertMapping,
    "mmengine.logging.history_buffer.HistoryBuffer": Inert,
    "yacs.config.CfgNode": InertMapping,
}
#: Of these libraries of configurations, every class has a stand-in.
_LIBRARIES = ("addict.", "mmcv.", "mmengine.", "yacs.")
_MAPPINGS = ("CfgNode", "Dict")

#: torch keeps one list of allowed classes per process.
_LOCK = threading.Lock()


def load_pickle(path: Path, *, stand_ins: bool) -> Any:
    """Content of a PyTorch file on the CPU, without executing anything in it.

    Args:
        path: The file, in the zip format or the one before.
        stand_ins: Whether arguments and configurations of published files become inert objects;
            otherwise they are refused too.

    Returns:
        What was saved.

    Raises:
        CheckpointError: If the file is unreadable, or names anything else than tensors, plain
            values and what has a stand-in. Nothing of the file is executed.
    """
    try:
        with _LOCK:
            table = dict(_STAND_INS) if stand_ins else {}
            unknown = [name for name in _disallowed(path) if name not in table]
            if stand_ins:
                table |= {name: _stand_in(name) for name in unknown if name.startswith(_LIBRARIES)}
            if refused := sorted(set(unknown) - set(table)):
                raise _refusal(path, f"it holds {', '.join(refused)}")
            with safe_globals([(cls, name) for name, cls in table.items()]):
                return _load(path)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        text = str(error)
        if named := re.search(r"GLOBAL ([\w.]+)", text):
            raise _refusal(path, f"it holds {named[1]}") from error
        protocol = ", or in a pickle protocol other than 2" if "operand" in text else ""
        raise _refusal(path, f"it is damaged or no PyTorch file{protocol}") from error
    # torch's own words on zip files, e.g. that one is cut short.
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} is no readable checkpoint ({reason}): copy it again, or save its state dict"
        ) from error
    # What is no pickle, or a damaged one, can fail in any way, e.g. take an item of an empty stack.
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged or not a PyTorch file: copy it again, or save the state dict with "
            "torch.save"
        ) from error


def _load(path: Path) -> Any:
    with warnings.catch_warnings():
        # Of storages of old files and of other protocols: nothing that a user could act on.
        warnings.simplefilter("ignore", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def _disallowed(path: Path) -> list[str]:
    """Names in a zip file's pickle that torch does not allow; nothing of it is interpreted."""
    try:
        return get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # the old format, which torch.load judges as it goes
        return []


def _stand_in(name: str) -> type[Inert]:
    """Inert class for a name of one of the known libraries."""
    return InertMapping if name.endswith(_MAPPINGS) else Inert


def _refusal(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a plain weights file ({found}) and nothing was loaded: "
        "save its state dict alone"
    )
