"""What the Triton kernels compile to for NVIDIA GPUs; none is needed.

The figures on record are in triton_aot.json. After a change that is meant, or with another Triton,
look at what changed and record them anew::

    python -m tests.kernels.triton_aot_cases
"""

import json
import sys
from pathlib import Path

import torch

from rsmamba_kernels.conv1d_silu.triton import Convolution
from rsmamba_kernels.gate.triton import launch as gate_launch
from rsmamba_kernels.selective_scan.triton import Scan
from rsmamba_kernels.state_fusion.triton import Fusion
from rsmamba_kernels.state_scan.triton import Scan as StateScan
from rsmamba_kernels.triton_support import missing, tool

RECORD = Path(__file__).with_name("triton_aot.json")
ARCHITECTURES = (80, 90)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
FLOAT = torch.float32


def meta(*shape, dtype=FLOAT):
    return torch.empty(*shape, dtype=dtype, device="meta")


def scan(dtype, k):
    """RoMA-B's scan of 128 images in k directions; B and C are slices, as in the mixer."""
    b, length, d, n = 128, 197, 768, 16
    wide = meta(k, b, length, 48 + 2 * n, dtype=dtype)
    u = meta(k, b, length, d, dtype=dtype)
    parameters = meta(k, d, n), wide[..., 48 : 48 + n], wide[..., 48 + n :], meta(k, d), meta(k, d)
    inputs = Scan(u, torch.empty_like(u), *parameters, True, range(k), 14, 14, 98)
    _, forward = inputs.forward()
    _, backward = inputs.backward(meta(b, length, d, dtype=dtype), u, torch.empty_like(u), 0, 1)
    return [forward, *backward]


def state_scan(dtype):
    """The first stage of Spatial-Mamba-T."""
    x, B = meta(128, 56, 56, 128, dtype=dtype), meta(128, 56, 56, 1, dtype=dtype)
    inputs = StateScan(x, torch.empty_like(x), meta(128), B, meta(128), True)
    return [inputs.forward()[1], inputs.backward(x, x)[1]]


def state_fusion(dtype, zeros):
    """The first stage of Spatial-Mamba-T."""
    h, C = meta(128, 56, 56, 128, dtype=dtype), meta(128, 56, 56, 1, dtype=dtype)
    inputs = Fusion(h, torch.empty_like(h), C, meta(128), meta(25, 128), zeros)
    return [
        inputs.forward()[1],
        *inputs.backward_states(h)[1],
        inputs.backward_weights(h)[1],
    ]


def conv1d_silu(dtype, orders):
    """RoMA-B's convolution of 128 images; x is half of a wider row."""
    x = meta(128, 197, 2 * 768, dtype=dtype)[..., :768]
    inputs = Convolution(x, meta(4, 768, 4), meta(4, 768), orders, 14, 14, 98)
    dout = meta(len(orders), 128, 197, 768, dtype=dtype)
    return [*inputs.forward()[1], *inputs.backward(dout)[2]]


def gate(dtype):
    """RoMA-B's gate of 128 images; z is half of a wider row."""
    y, wide = meta(128 * 197, 768, dtype=dtype), meta(128 * 197, 2 * 768, dtype=dtype)
    inputs, out = {"y": y, "z": wide[:, 768:], "scale": 0.25}, torch.empty_like(y)
    return [
        gate_launch("gate_forward", y.shape, **inputs, out=out),
        gate_launch("gate_backward", y.shape, **inputs, dout=y, dy=out, dz=out),
    ]


CASES = {
    "scan, 1 direction": lambda dtype: scan(dtype, 1),
    "scan, 4 directions": lambda dtype: scan(dtype, 4),
    "state scan": state_scan,
    "state fusion": lambda dtype: state_fusion(dtype, False),
    "state fusion, zeros": lambda dtype: state_fusion(dtype, True),
    "convolution, 1 direction": lambda dtype: conv1d_silu(dtype, (0,)),
    "convolution, 4 directions": lambda dtype: conv1d_silu(dtype, (0, 1, 2, 3)),
    "gate": gate,
}


def problem():
    """Why nothing can be compiled here, or None."""
    return missing() or (None if tool("cuobjdump") else "this Triton ships no cuobjdump")


def compiled(case, dtype, arch):
    """Name of each kernel of a case -> its figures; run it without the interpreter."""
    figures = {}
    for launch in CASES[case](DTYPES[dtype]):
        name = launch.kernel.split(":")[1]
        name += "".join(
            f", {key}" for key in ("BORDER", "FIRST", "LAST") if launch.arguments.get(key)
        )
        if name not in figures:
            code = launch.compile(arch)
            figures[name] = {
                "registers": code.registers,
                "stack": code.stack,
                "spills": code.spills,
                "instructions": code.instructions,
            }
    return figures


def record():
    """Write the figures of everything."""
    figures = {
        f"{case}, {dtype}, sm_{arch}": compiled(case, dtype, arch)
        for case in CASES
        for dtype in DTYPES
        for arch in ARCHITECTURES
    }
    RECORD.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(problem() or record())
