"""Golden fixtures: weights and inputs re-created from names, outputs compared with stored values.

The fixtures in ``tests/data/golden`` were recorded from the published reference classes. No
weights are stored: every parameter is a function of its published key (see :func:`fill`), every
input of its name (see :func:`normal`). A fixture is a pair ``NAME.json`` (shapes, statistics,
cases) and ``NAME.npz`` (values, whole or sampled).
"""

import json
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "data" / "golden"

#: Tolerances relative to the largest magnitude of the tensor.
RTOL = {torch.float64: 1e-9, torch.float32: 1e-4}

_A_LOG = {"A_log", "A_b_log", "A_c_log", "A_c_b_log", "A_logs"}
_SKIP = {"D", "D_b", "D_c", "D_c_b", "Ds"}
_DT = ("dt_proj", "dt_proj_b", "dt_proj_c", "dt_proj_c_b")
_DT_BIAS = (*(f"{name}.bias" for name in _DT), "dt_projs_bias")
_DT_WEIGHT = (*(f"{name}.weight" for name in _DT), "dt_projs_weight")


def normal(name: str, shape: Sequence[int]) -> np.ndarray:
    """Standard normal float32 numbers that depend on nothing but the name."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("utf-8"))))
    return generator.standard_normal(prod(shape), dtype=np.float32).reshape(shape)


def tensor(name: str, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    """The input or cotangent called NAME: ``x("input:" + NAME)``."""
    return torch.from_numpy(normal(f"input:{name}", shape)).to(dtype)


def fill(key: str, shape: Sequence[int], prefix: str = "") -> np.ndarray:
    """The value of one parameter or buffer under its published key, in float32 (int64 counters).

    ``mask`` and sin-cos tables keep the constructor's value and must not be asked for.
    """
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    f32 = np.float32
    x = normal(prefix + key, shape)
    if last in _A_LOG:
        states = np.log(np.arange(1, shape[-1] + 1)).astype(f32)
        value = states + f32(0.1) * x
    elif last in _SKIP or last == "running_var":
        value = f32(1) + f32(0.1) * (np.abs(x) if last == "running_var" else x)
    elif key.endswith(_DT_BIAS):
        value = f32(-3) + f32(0.5) * x
    elif key.endswith(_DT_WEIGHT):
        value = f32(0.5 / np.sqrt(shape[-1])) * x
    elif last == "running_mean":
        value = f32(0.1) * x
    elif last in {"pos_embed", "dec_pos_embed"}:
        value = f32(0.2) * x
    elif last in {"cls_token", "ar_token", "angle_embed"}:
        value = f32(0.5) * x
    elif last == "alpha":
        value = f32(1 / 3) + f32(0.05) * x
    elif last.startswith("kernel_3"):
        value = f32(0.1) + f32(0.1) * x
    elif last == "bias":
        value = f32(0.05) * x
    elif last == "weight" and len(shape) == 1:
        value = f32(1) + f32(0.1) * x
    else:
        value = f32(1 / np.sqrt(prod(shape[1:]))) * x
    return value.astype(f32)


def fill_state_dict(
    entries: Iterable[Sequence[Any]], *, prefix: str = "", keep: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Published state dict of a fixture: ``entries`` are its ``[key, shape, ...]`` rows.

    Keys whose last part is in ``keep`` are left out: the constructor's value stands.
    """
    skipped = set(keep)
    return {
        key: torch.from_numpy(fill(key, shape, prefix))
        for key, shape, *_ in entries
        if key.rsplit(".", 1)[-1] not in skipped
    }


class Fixture:
    """One fixture: ``meta`` (the JSON) and ``arrays`` (the NPZ)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.meta: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}

    def __contains__(self, name: str) -> bool:
        return name in self.meta["tensors"]

    def full(self, name: str) -> Tensor:
        """A tensor that is stored whole."""
        return torch.from_numpy(self.arrays[name])

    def names(self, prefix: str) -> list[str]:
        """Names of stored tensors that start with ``prefix``."""
        return [name for name in self.meta["tensors"] if name.startswith(prefix)]

    def assert_close(self, name: str, actual: Tensor, rtol: float | None = None) -> None:
        """Compare shape, values (all or the stored samples) and, for samples, norm and maximum.

        Args:
            name: Name of the stored tensor.
            actual: What our code computed.
            rtol: Allowed error relative to the stored ``absmax``; by default by ``actual.dtype``.
        """
        entry = self.meta["tensors"][name]
        assert not entry.get("none"), f"{name}: the reference has no gradient here"
        assert list(actual.shape) == entry["shape"], f"{name}: {list(actual.shape)}"
        rtol = RTOL[actual.dtype] if rtol is None else rtol
        flat = actual.detach().double().reshape(-1)
        if name in self.arrays:
            expected, got = self.arrays[name].reshape(-1), flat
        else:
            expected = self.arrays[f"{name}#val"]
            got = flat[torch.from_numpy(self.arrays[f"{name}#idx"]).long()]
        wanted = torch.from_numpy(np.asarray(expected, np.float64))
        # Gradients that vanish mathematically hold rounding noise only; there the size of the
        # noise, not its digits, can agree.
        scale = entry.get("absmax") or float(wanted.abs().max())
        error = float((got - wanted).abs().max()) if wanted.numel() else 0.0
        assert error <= rtol * max(scale, 1e-12), f"{name}: {error:.3e} of {scale:.3e}"
        if "l2" in entry:
            assert abs(float(flat.norm()) - entry["l2"]) <= rtol * max(entry["l2"], 1e-12), name


@cache
def fixture(name: str) -> Fixture:
    """Load a fixture once per test run."""
    return Fixture(name)
