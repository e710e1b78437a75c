"""What every Triton backend needs around its kernels; importing this does not import Triton.

Device functions that kernels call are in :mod:`rsmamba_kernels.triton_math`, which does import it.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import math
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsmamba_kernels.checks import is_set

#: What the kernels load and store, and Triton's names for it; they compute in float32.
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

#: Along the second and the third axis of a grid.
MOST_PROGRAMS = 65535

_DEVICES = ("cuda", "xpu")
_OLDEST_CUDA = (8, 0)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU; it must be set before the import."""
    return is_set("TRITON_INTERPRET")


def refuses(device_type: str, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why Triton cannot compute with such tensors here, or None if it can.

    Args:
        device_type: ``"cuda"``, ``"xpu"``, ``"cpu"``, ...
        dtypes: Element types of the operator's tensors.
    """
    others = [str(dtype) for dtype in dtypes if dtype not in DTYPES]
    if others:
        return f"computes in float32, not in {others[0]}"
    if interpreted():
        elsewhere = f"triton's interpreter computes on the CPU, not on {device_type}"
        return interpreter_problem() or (elsewhere if device_type != "cpu" else None)
    if problem := missing():
        return problem
    if device_type not in _DEVICES:
        return f"needs a GPU, not {device_type}; TRITON_INTERPRET=1 emulates one, slowly"
    return _compiler_problem() or (_capability_problem() if device_type == "cuda" else None)


def missing() -> str | None:
    """Why Triton cannot be imported, or None if it can."""
    return None if importlib.util.find_spec("triton") else "triton is not installed"


def interpreter_problem() -> str | None:
    """Why Triton's interpreter does not work here, or None if it does.

    That of Triton 3.6 and before stops in loops whose length is a NumPy array.
    """
    if problem := missing():
        return problem
    numpy, triton = (importlib.metadata.version(name) for name in ("numpy", "triton"))
    if _numbers(numpy) >= (2, 4) and _numbers(triton) < (3, 7):
        return f"the interpreter of triton {triton} needs numpy < 2.4, not {numpy}"
    return None


def _numbers(version: str) -> tuple[int, int]:
    """Major and minor number of ``"3.6.0+git1"``."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _compiler_problem() -> str | None:
    """Triton compiles a small C program per kernel: the one that launches it."""
    if not any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang")))):
        return "triton needs a C compiler at run time: install gcc or clang, or set CC"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    header = Path(sysconfig.get_paths(scheme)["include"]) / "Python.h"
    if not header.is_file():
        return f"triton needs Python's headers at run time: {header} is missing (python3-dev)"
    return None


@functools.cache
def _capability_problem() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability()
    if torch.version.hip is None and capability < _OLDEST_CUDA:
        return f"needs compute capability 8.0, this device has {capability[0]}.{capability[1]}"
    return None


def image_problem(shape: Sequence[int]) -> str | None:
    """Why kernels that count within an image in 32 bits cannot take (B, ..., D) tensors, or None.

    Args:
        shape: Of the tensors.
    """
    if math.prod(shape[1:]) < 2**31:
        return None
    return f"it counts within an image in 32 bits, {tuple(shape[1:])} is too large: cut images up"


def as_images(tensor: Tensor) -> Tensor:
    """(B, ..., D) as (B, L, D) with a contiguous last dimension; a view where possible.

    Raises:
        ValueError: If an image is so large that the kernels cannot count its elements.
    """
    if problem := image_problem(tensor.shape):
        raise ValueError(problem)
    images = tensor.flatten(1, -2)
    dense = images.stride(-1) == 1 or images.shape[-1] == 1
    if not dense or images.shape[1] * images.stride(1) >= 2**31:
        images = images.contiguous()
    return images


def split_images(
    arguments: Sequence[Any], axes: Sequence[int | None], most: int
) -> Iterator[list[Any]]:
    """Arguments for at most so many images at a time, where a grid has no room for more.

    Args:
        arguments: Those for all images.
        axes: For each of the first ones the axis of its images, None for none.
        most: Number of images.
    """
    total = arguments[0].shape[axes[0]]
    for start in range(0, total, most):
        count = min(most, total - start)
        yield [
            argument if axis is None else argument.narrow(axis, start, count)
            for argument, axis in zip_longest(arguments, axes)
        ]


def join_images(
    results: Iterable[Sequence[Tensor]], axes: Sequence[int | None]
) -> tuple[Tensor, ...]:
    """What was computed for each of the parts, as for all: together, or added up in their order.

    Args:
        results: Tensors for each part.
        axes: For each of a part's tensors the axis of its images, None for a sum over them.
    """
    return tuple(
        torch.stack(tensors).sum(0) if axis is None else torch.cat(tensors, axis)
        for tensors, axis in zip(zip(*results, strict=True), axes, strict=True)
    )


def as_rows(tensor: Tensor) -> Tensor:
    """(..., D) as (N, D) with a contiguous last dimension; a view where possible."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def parameter(tensor: Tensor | None) -> Tensor | None:
    """A parameter as contiguous float32."""
    return None if tensor is None else tensor.to(torch.float32).contiguous()


def ceil_div(number: int, by: int) -> int:
    """Quotient, rounded up."""
    return -(-number // by)


def power_of_two(number: int) -> int:
    """Smallest power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


def register_limit(device: torch.device, registers: int) -> dict[str, int]:
    """Compiler option for the registers of a thread; only NVIDIA's assembler knows it."""
    nvidia = not torch.version.hip and device.type != "xpu"
    return {"maxnreg": registers} if nvidia else {}


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a kernel became, as the tools that Triton ships tell it.

    Attributes:
        registers: Registers per thread.
        stack: Bytes of local memory per thread; spilled registers would be there.
        spills: Instructions that load from or store to local memory.
        shared: Bytes of shared memory per program.
        instructions: All instructions, less the padding at the end.
        loops: Instructions in each loop, in the order of their ends; an outer loop counts the
            ones inside it.
        mix: How often each opcode occurs (``"MUFU.EX2"``, ``"FFMA"``, ...).
        sass: The listing.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    instructions: int
    loops: tuple[int, ...]
    mix: dict[str, int]
    sass: str


def describe(kernel: Any, arguments: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """The specialisation that a launch with these arguments would compile.

    Lets :func:`ahead_of_time` compile what a launch would, from tensors on the meta device.

    Args:
        kernel: A function under ``@triton.jit``.
        arguments: All its arguments by name; tensors of any device.

    Returns:
        Types such as ``"*bf16:16"`` (``:16`` where the value is a multiple of 16, as Triton
        assumes then) and the values that are known at compile time.
    """
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    for parameter in kernel.params:
        name, value = parameter.name, arguments[parameter.name]
        special = not parameter.do_not_specialize
        if isinstance(value, Tensor):
            aligned = value.storage_offset() * value.element_size() % 16 == 0
            kind = {**DTYPES, torch.int32: "i32", torch.int64: "i64"}[value.dtype]
            signature[name] = f"*{kind}" + ":16" * aligned
        elif parameter.is_constexpr or value is None or (special and value == 1):
            constants[name] = value
        elif isinstance(value, int):
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
            signature[name] = kind + ":16" * (special and value % 16 == 0)
        else:
            signature[name] = "fp32"
    return signature, constants


def ahead_of_time(
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    options: dict[str, Any] | None = None,
    arch: int = 90,
) -> Compiled:
    """Compile a kernel for an NVIDIA architecture without having one.

    Args:
        kernel: A function under ``@triton.jit`` (in a process without ``TRITON_INTERPRET``).
        signature: Types of the run-time arguments, see :func:`describe`.
        constants: Values of the others.
        options: ``num_warps`` and the like.
        arch: 80 for sm_80, 90 for sm_90, ...

    Raises:
        FileNotFoundError: If cuobjdump is not among Triton's tools.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(kernel.arg_names)
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if kind.endswith(":16")
    }
    types = {n: signature[n].split(":")[0] if n in signature else "constexpr" for n in names}
    source = ASTSource(kernel, types, constexprs=constants, attrs=aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options or {})
    return read_cubin(binary.asm["cubin"])


@dataclass(frozen=True, slots=True)
class Launch:
    """What a kernel is launched with.

    Attributes:
        kernel: ``"module:function"``, imported when it runs.
        grid: Numbers of programs.
        arguments: All its arguments by name.
        options: For the compiler, ``num_warps`` and the like.
    """

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]

    def __call__(self) -> None:
        """Run it on the GPU that the tensors are on."""
        with _device_of(self.arguments.values()):
            self._function()[self.grid](**self.arguments, **self.options)

    def compile(self, arch: int) -> Compiled:
        """Compile it for an NVIDIA architecture without having one; tensors may be on meta."""
        function = self._function()
        signature, constants = describe(function, self.arguments)
        return ahead_of_time(function, signature, constants, self.options, arch)

    def _function(self) -> Any:
        module, name = self.kernel.split(":")
        return getattr(importlib.import_module(module), name)


def _device_of(arguments: Iterable[Any]) -> AbstractContextManager[Any]:
    """Make the tensors' GPU the current one: that is where Triton launches."""
    device = next(value.device for value in arguments if isinstance(value, Tensor))
    if device.type not in _DEVICES:
        return nullcontext()
    return getattr(torch, device.type).device(device)


def tool(name: str) -> Path | None:
    """Where Triton ships ``ptxas``, ``cuobjdump`` or ``nvdisasm``; None if it does not."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
    return path if path.is_file() else None


def read_cubin(cubin: bytes) -> Compiled:
    """Count what is in a compiled kernel."""
    cuobjdump = tool("cuobjdump")
    if cuobjdump is None:
        raise FileNotFoundError("this Triton ships no cuobjdump")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, sass = (
            subprocess.run(  # noqa: S603
                [cuobjdump, flag, path], check=True, capture_output=True, text=True
            ).stdout
            for flag in ("-res-usage", "-sass")
        )
    used = {name: int(number) for name, number in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}
    code = _instructions(sass)
    mix: dict[str, int] = {}
    for _, opcode, _ in code:
        mix[opcode] = mix.get(opcode, 0) + 1
    return Compiled(
        registers=used["REG"],
        stack=used["STACK"],
        spills=sum(n for opcode, n in mix.items() if opcode.startswith(("LDL", "STL"))),
        shared=used["SHARED"],
        instructions=len(code),
        loops=_loops(code),
        mix=dict(sorted(mix.items())),
        sass=sass,
    )


def _instructions(sass: str) -> list[tuple[int, str, str]]:
    """(address, opcode, operands) of every instruction before the padding."""
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*) ?([^;]*);", sass)
    code = [(int(address, 16), opcode, rest) for address, opcode, rest in lines]
    while code and (code[-1][1] == "NOP" or _is_trap(*code[-1])):
        code.pop()
    return code


def _is_trap(address: int, opcode: str, rest: str) -> bool:
    """Whether it branches to itself, as behind the end of every kernel."""
    return opcode == "BRA" and rest.strip() == f"0x{address:x}"


def _loops(code: list[tuple[int, str, str]]) -> tuple[int, ...]:
    """Length of the code between each branch backwards and its target."""
    position = {address: at for at, (address, _, _) in enumerate(code)}
    lengths = []
    for at, (address, opcode, rest) in enumerate(code):
        if opcode.startswith("BRA") and (found := re.search(r"0x([0-9a-f]+)", rest)):
            target = int(found[1], 16)
            if target <= address:
                lengths.append(at - position[target] + 1)
    return tuple(lengths)
