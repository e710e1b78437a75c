"""The C++ backend's library: where it is, which instruction set it uses, how its threads run.

The library has a plain C interface and knows neither Python nor torch: one build serves every
version of both. Kernels take ranges of independent units of work; ctypes releases the interpreter
lock while they run, so Python threads are all that is needed.
"""

import ctypes
import functools
import itertools
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from enum import IntEnum
from pathlib import Path

import torch
from torch import Tensor

_LOG = logging.getLogger(__name__)

_SUFFIX = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
#: Where setup.py leaves the library; absent if there was no C++ compiler.
LIBRARY = Path(__file__).with_name(f"librsmamba_cpu.{_SUFFIX}")
_ABI_VERSION = 2
_BUILD = "install a C++ compiler (g++ or clang++) and rsmamba again"

#: Environment variable that names the instruction set, for tests and comparisons.
ISA_ENVIRONMENT = "RSMAMBA_CPU_ISA"
#: Slowest first; the position is the library's number for it.
ISAS = ("baseline", "avx2", "avx512")

#: Channels per unit of work, as in csrc/abi.h.
SCAN_GROUP = 64
FUSION_GROUP = 32

#: State updates (or taps) below which waking threads costs more than they save.
_SMALL = 1 << 20
#: Ranges per thread: enough to even out a busy core.
_RANGES = 3

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Operation(IntEnum):
    """Kernels, numbered as in csrc/abi.h."""

    SCAN_FORWARD = 0
    SCAN_BACKWARD = 1
    STATE_SCAN_FORWARD = 2
    STATE_SCAN_BACKWARD = 3
    FUSION_FORWARD = 4
    FUSION_BACKWARD = 5
    CONVOLUTION_FORWARD = 6
    CONVOLUTION_BACKWARD = 7


class Rows(ctypes.Structure):
    """A (batch, row, last) tensor whose last dimension is contiguous."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("row", ctypes.c_int64),
    )


def fields(spec: Iterable[tuple[str, type]]) -> tuple[tuple[str, type], ...]:
    """Expand ``("a b c", type)`` into one ctypes field for each name."""
    return tuple((name, kind) for names, kind in spec for name in names.split())


def as_rows(tensor: Tensor) -> Tensor:
    """(B, ..., D) as float32 (B, L, D) with a contiguous last dimension; a view where possible."""
    tensor = tensor.detach().to(torch.float32).flatten(1, -2)
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def empty(*shape: int) -> Tensor:
    """What a kernel will fill; whatever the default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def rows(tensor: Tensor) -> Rows:
    """Describe what :func:`as_rows` returned; the caller keeps that tensor alive."""
    return Rows(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def row_tensors(**tensors: Tensor | None) -> dict[str, Tensor]:
    """The given tensors through :func:`as_rows`, less those that are None."""
    return {name: as_rows(tensor) for name, tensor in tensors.items() if tensor is not None}


def groups(channels: int, group: int) -> int:
    """Units of work per image."""
    return -(-channels // group)


def pointer(tensor: Tensor | None) -> int | None:
    """Address of a contiguous float32 tensor, null for None."""
    return None if tensor is None else tensor.data_ptr()


def weights(tensor: Tensor | None) -> Tensor | None:
    """A parameter as contiguous float32."""
    return None if tensor is None else tensor.detach().to(torch.float32).contiguous()


def add_in_order(parts: Tensor) -> Tensor:
    """Sum over the first dimension, first to last: the same bits whatever the threads."""
    return functools.reduce(torch.add, parts.unbind(0))


@functools.cache
def _load(path: Path) -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and what is wrong with it."""
    if not path.is_file():
        problem = f"{path.name} was not built: {_BUILD}"
    else:
        try:
            library = ctypes.CDLL(str(path))
            library.rsm_abi_version.restype = ctypes.c_int64
            version = library.rsm_abi_version()
        except (OSError, AttributeError) as error:
            problem = f"{path.name} cannot be loaded ({error}): {_BUILD}"
        else:
            if version == _ABI_VERSION:
                library.rsm_supports.argtypes = [ctypes.c_int64]
                library.rsm_run.argtypes = [
                    *(ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
                    *(ctypes.c_int64, ctypes.c_int64),
                ]
                return library, ""
            problem = f"{path.name} is of another version of rsmamba: install rsmamba again"
    _LOG.warning("The fast CPU operators are off: %s", problem)
    return None, problem


def supported_isas() -> tuple[str, ...]:
    """Instruction sets that the library and this processor have, slowest first."""
    library, _ = _load(LIBRARY)
    if library is None:
        return ()
    return tuple(name for i, name in enumerate(ISAS) if library.rsm_supports(i))


@functools.cache
def _isa(path: Path, asked: str | None) -> tuple[int, str]:
    """Number of the instruction set to use, or -1 and why there is none."""
    library, problem = _load(path)
    if library is None:
        return -1, problem
    supported = [name for i, name in enumerate(ISAS) if library.rsm_supports(i)]
    chosen = asked or supported[-1]
    if chosen not in supported:
        problem = f"{ISA_ENVIRONMENT}={chosen}: choose one of {', '.join(supported)}"
        _LOG.warning("The fast CPU operators are off: %s", problem)
        return -1, problem
    return ISAS.index(chosen), ""


def refuses(device: str, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why the C++ kernels cannot take such tensors, or None if they can."""
    if device != "cpu":
        return f"it runs on the CPU, not on {device}"
    for dtype in dtypes:
        if dtype not in _DTYPES:
            return f"it computes in float32, not in {dtype}"
    return _isa(LIBRARY, os.environ.get(ISA_ENVIRONMENT))[1] or None


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads beside the calling one; they start when first needed and stay."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="rsmamba")


# A forked child has none of its parent's threads: it would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def run(operation: Operation, args: ctypes.Structure, units: int, work: int) -> None:
    """Run a kernel over all its units, on up to ``torch.get_num_threads()`` threads.

    Args:
        operation: The kernel.
        args: Its arguments; whatever they point to stays alive in the caller.
        units: Number of independent units of work.
        work: State updates or taps in all; little work stays in the calling thread.

    Raises:
        MemoryError: If there is no memory for the kernel's scratch.
        RuntimeError: If the kernel refuses its arguments.
    """
    library, _ = _load(LIBRARY)
    isa, problem = _isa(LIBRARY, os.environ.get(ISA_ENVIRONMENT))
    if library is None or isa < 0:
        raise RuntimeError(problem)
    address = ctypes.addressof(args)
    threads = min(torch.get_num_threads(), os.cpu_count() or 1, units) if work > _SMALL else 1
    pieces = min(units, threads * _RANGES) if threads > 1 else 1
    ends = [units * i // pieces for i in range(pieces + 1)]
    ranges = deque(itertools.pairwise(ends))
    codes: list[int] = []

    def drain() -> None:
        while ranges:
            try:
                begin, end = ranges.popleft()
            except IndexError:  # another thread was faster
                return
            codes.append(library.rsm_run(isa, operation, address, begin, end))

    helpers: list[Future[None]] = []
    try:
        _start(drain, threads - 1, helpers)
        drain()
    finally:
        # Also when interrupted: nobody may write into tensors that this call gives up.
        ranges.clear()
        _finish(helpers)
    if 1 in codes:
        raise MemoryError(f"{operation.name}: no memory for the scratch of the C++ kernel")
    if any(codes):
        raise RuntimeError(f"{operation.name}: the C++ kernel refused its arguments ({max(codes)})")


def _start(task: Callable[[], None], count: int, started: list[Future[None]]) -> None:
    """Start a task on other threads; on fewer, or none, where there are no more to be had."""
    try:
        while len(started) < count:
            started.append(_pool().submit(task))
    except RuntimeError:
        _LOG.debug("%d of %d threads to be had", len(started), count)


def _finish(helpers: list[Future[None]]) -> None:
    """Wait until no helper runs, however often that is interrupted; then raise what was raised."""
    errors: list[BaseException] = []
    # One that has not started has nothing left to do.
    waiting = [helper for helper in helpers if not helper.cancel()]
    while waiting:
        try:
            wait(waiting)
            break
        except KeyboardInterrupt as interrupt:
            errors.append(interrupt)
    errors += [error for helper in waiting if (error := helper.exception()) is not None]
    if errors:
        raise errors[0]
