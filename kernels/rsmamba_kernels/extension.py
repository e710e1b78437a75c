"""CUDA extensions of other packages: used when they really import, whatever their version says."""

import functools
import importlib

from rsmamba_kernels.dispatch import Request


@functools.cache
def problem(module: str) -> str:
    """What is wrong with an extension module, or "".

    A package can be installed without its extension (it was built without nvcc), or with one for
    another torch, whose import fails for an undefined symbol.
    """
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:
        return f"`import {module}` fails ({type(error).__name__}: {' '.join(str(error).split())})"
    return ""


def refuses(module: str, request: Request) -> str | None:
    """Why a backend on an extension module cannot take a call, or None if it can."""
    if request.device != "cuda":
        return f"it runs on CUDA, not on {request.device}"
    if request.compiling or request.wrapped:
        return "it cannot be traced"
    if request.empty:
        return "a tensor is empty"
    return problem(module) or None
