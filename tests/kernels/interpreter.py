"""Runs functions in a process of their own, with Triton's interpreter or without it.

``TRITON_INTERPRET`` counts when Triton is imported: one process can have one of the two. A test
file for Triton keeps its cases in a module of functions that import the kernels when called::

    CASES = {"it scans": partial(check_scan, ...), ...}

    def run(name: str, device: str) -> None:
        CASES[name](device)

    @pytest.mark.parametrize("name", CASES)
    def test_interpreted(name):
        interpreter.call("tests.kernels.triton_scan_cases:run", name, "cpu")

    @pytest.mark.gpu
    @pytest.mark.parametrize("name", CASES)
    def test_on_the_gpu(name):
        run(name, "cuda")

The child stays alive between calls, one for each of the two modes.
"""

import atexit
import functools
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pytest

from rsmamba_kernels.triton_support import interpreted, interpreter_problem, missing

_ROOT = Path(__file__).parents[2]


def call(function: str, *args: Any, interpret: bool = True) -> Any:
    """Call ``"module:function"`` with JSON values in a child; fail, or skip, as it did there.

    Args:
        function: Where the function is.
        args: What it gets.
        interpret: Whether Triton interprets kernels in that process.

    Returns:
        What it returned, through JSON.
    """
    if problem := interpreter_problem() if interpret else missing():
        pytest.skip(problem)
    child, errors = _child(interpret)
    assert child.stdin is not None and child.stdout is not None
    print(json.dumps([function, args]), file=child.stdin, flush=True)
    line = child.stdout.readline()
    if not line:
        _child.cache_clear()
        pytest.fail(f"the child died ({child.wait()}):\n{Path(errors).read_text()[-4000:]}", False)
    answer = json.loads(line)
    if "skipped" in answer:
        pytest.skip(answer["skipped"])
    if "failed" in answer:
        pytest.fail(answer["failed"], pytrace=False)
    return answer["returned"]


@functools.cache
def _child(interpret: bool) -> tuple[subprocess.Popen, str]:
    """The process that runs functions in that mode, and the file with its standard error."""
    errors = tempfile.NamedTemporaryFile(suffix=".log", delete=False)
    environment = os.environ | {
        "TRITON_INTERPRET": "01"[interpret],
        "OMP_NUM_THREADS": "1",
        "TRITON_CACHE_DIR": tempfile.mkdtemp(prefix="triton-"),
        "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "kernels")]),
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.kernels.interpreter"],
        cwd=_ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )

    def close() -> None:
        child.communicate()  # closes its input: it ends
        Path(errors.name).unlink(missing_ok=True)
        shutil.rmtree(environment["TRITON_CACHE_DIR"], ignore_errors=True)

    atexit.register(close)
    return child, errors.name


def _answer(function: str, args: list[Any]) -> dict[str, Any]:
    try:
        module, name = function.split(":")
        return {"returned": getattr(importlib.import_module(module), name)(*args)}
    except pytest.skip.Exception as reason:
        return {"skipped": str(reason)}
    except (Exception, pytest.fail.Exception):
        return {"failed": traceback.format_exc()}


def _hasten() -> None:
    """Twice as fast: prepare Triton's modules once for each device function, not at each call."""
    from triton.runtime.interpreter import InterpretedFunction

    prepare_and_call, prepared = InterpretedFunction.__call__, set()

    def call(function: InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
        if function in prepared:
            return function.rewrite()(*args, **kwargs)
        prepared.add(function)
        return prepare_and_call(function, *args, **kwargs)

    InterpretedFunction.__call__ = call


def _serve() -> None:
    """Answer one line of JSON with one line of JSON, until the input ends."""
    if interpreted():
        _hasten()
    # Whatever a function prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(_answer(*json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
