"""Backend choice: argument > RSMAMBA_KERNELS > automatic, after a trial against the reference."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rsmamba_kernels import BackendError, selective_scan, status
from rsmamba_kernels import dispatch as dispatching
from rsmamba_kernels.dispatch import Backend, Request, entry, register, resolve

SINGLE, DOUBLE = Request("cpu"), Request("cpu", (torch.float64,))


def singles_only(request):
    return None if set(request.dtypes) == {torch.float32} else "float32 only"


@pytest.fixture
def toy(monkeypatch):
    """A registry of two operators: "twice" has a fast backend for float32, "once" has none."""
    monkeypatch.setattr(dispatching, "_REGISTRY", {})
    dispatching._say_once.cache_clear()
    monkeypatch.delenv("RSMAMBA_KERNELS", raising=False)
    register("twice", Backend("reference", lambda x: 2 * x))
    register("once", Backend("reference", lambda x: x))
    add_kernel("fast", lambda x: x + x, lambda dy, x: [2 * dy])
    entry("twice").example = lambda device: ([torch.ones(2, 3, device=device)], [])


def add_kernel(name, forward, backward, priority=1):
    register(
        "twice",
        Backend(name, forward=forward, backward=backward, priority=priority, refuses=singles_only),
    )


@pytest.mark.usefixtures("toy")
class TestChoice:
    def test_automatic_takes_the_highest_priority_that_accepts(self):
        assert resolve("twice", SINGLE).name == "fast"
        assert resolve("twice", DOUBLE).name == "reference"

    def test_the_argument_beats_the_environment(self, monkeypatch):
        monkeypatch.setenv("RSMAMBA_KERNELS", "fast")
        assert resolve("twice", SINGLE, "reference").name == "reference"
        assert resolve("twice", SINGLE).name == "fast"
        assert resolve("twice", DOUBLE, "auto").name == "reference"

    def test_the_environment_leaves_operators_alone_that_lack_the_backend(self, monkeypatch):
        monkeypatch.setenv("RSMAMBA_KERNELS", "fast")
        assert resolve("once", SINGLE).name == "reference"

    def test_an_unknown_name_is_refused_with_the_known_ones(self, monkeypatch):
        with pytest.raises(BackendError, match="choose one of auto, fast, reference"):
            resolve("twice", SINGLE, "cuda")
        monkeypatch.setenv("RSMAMBA_KERNELS", "cuda")
        with pytest.raises(BackendError, match="RSMAMBA_KERNELS=cuda"):
            resolve("once", SINGLE)

    def test_an_argument_never_falls_back(self):
        with pytest.raises(BackendError, match="float32 only"):
            resolve("twice", DOUBLE, "fast")

    def test_the_environment_falls_back_and_says_so_once(self, monkeypatch, caplog):
        monkeypatch.setenv("RSMAMBA_KERNELS", "fast")
        for _ in range(3):
            assert resolve("twice", DOUBLE).name == "reference"
        assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
            "twice: RSMAMBA_KERNELS=fast cannot be used (float32 only)"
        ]

    def test_an_operator_without_a_fitting_backend_says_so(self):
        register("rare", Backend("fast", lambda x: x, refuses=lambda r: "needs a GPU"))
        with pytest.raises(BackendError, match="rare: no backend takes"):
            resolve("rare", SINGLE)

    def test_a_backend_below_zero_runs_on_request_only(self):
        add_kernel("oracle", lambda x: 2 * x, lambda dy, x: [2 * dy], priority=-1)
        add_kernel("fast", lambda x: x, lambda dy, x: [dy], priority=1)
        assert resolve("twice", SINGLE).name == "reference"
        assert resolve("twice", SINGLE, "oracle").name == "oracle"

    def test_status_names_the_active_backend_and_why_not_the_others(self):
        once, twice = status("cpu")
        assert (once.operator, once.backend, once.others) == ("once", "reference", ())
        assert (twice.backend, twice.others) == ("fast", (("reference", "fast is preferred"),))


@pytest.mark.usefixtures("toy")
class TestTrial:
    @pytest.mark.parametrize(
        ("forward", "backward"),
        [
            pytest.param(lambda x: 2.1 * x, lambda dy, x: [2 * dy], id="output"),
            pytest.param(lambda x: 2 * x, lambda dy, x: [dy], id="gradient"),
            pytest.param(lambda x: x * torch.nan, lambda dy, x: [2 * dy], id="nan"),
        ],
    )
    def test_a_backend_that_disagrees_with_the_reference_is_passed_over(
        self, forward, backward, caplog
    ):
        add_kernel("wrong", forward, backward, priority=2)
        assert resolve("twice", SINGLE).name == "fast"
        assert "'wrong' is off: it disagrees with the reference" in caplog.text
        assert "disagrees" in dict(status("cpu")[1].others)["wrong"]

    def test_a_backend_that_fails_is_passed_over_and_tried_once(self, caplog):
        tries = []

        def fails(x):
            tries.append(x)
            raise OSError("no compiler")

        add_kernel("broken", fails, None, priority=2)
        add_kernel("broken", fails, lambda dy, x: [dy], priority=2)
        for _ in range(3):
            assert resolve("twice", SINGLE).name == "fast"
        assert len(tries) == 1
        assert "OSError: no compiler" in caplog.text

    def test_an_explicit_request_is_not_second_guessed(self):
        add_kernel("wrong", lambda x: 3 * x, lambda dy, x: [3 * dy], priority=2)
        assert resolve("twice", SINGLE, "wrong").name == "wrong"

    def test_the_trial_sees_none_of_the_callers_modes(self):
        states = []

        def forward(x):
            states.append((torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
            return 2 * x

        add_kernel("curious", forward, lambda dy, x: [2 * dy], priority=2)
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert resolve("twice", SINGLE).name == "curious"
        assert states == [(False, False)]

    def test_others_wait_for_the_trial_in_progress(self):
        started = threading.Event()

        def slow(x):
            started.set()
            time.sleep(0.2)
            return 3 * x

        add_kernel("slow", slow, lambda dy, x: [dy], priority=2)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(lambda: resolve("twice", SINGLE).name)
            started.wait()
            second = pool.submit(lambda: resolve("twice", SINGLE).name)
            assert (first.result(), second.result()) == ("fast", "fast")

    def test_an_interrupted_trial_is_made_again(self):
        tries = []

        def forward(x):
            tries.append(x)
            if len(tries) == 1:
                raise KeyboardInterrupt
            return 3 * x

        add_kernel("late", forward, lambda dy, x: [2 * dy], priority=2)
        with pytest.raises(KeyboardInterrupt):
            resolve("twice", SINGLE)
        assert resolve("twice", SINGLE).name == "fast"
        assert len(tries) == 2

    def test_a_trial_may_use_the_operator(self):
        def forward(x):
            assert resolve("twice", SINGLE).name == "curious"
            return 2 * x

        add_kernel("curious", forward, lambda dy, x: [2 * dy], priority=2)
        assert resolve("twice", SINGLE).name == "curious"


def test_every_operator_takes_doubles():
    x = torch.rand(1, 3, 4, dtype=torch.float64)
    a, w = -torch.ones(4, 2).double(), torch.ones(1, 3, 2).double()
    assert selective_scan(x, x, a, w, w).dtype == torch.float64


def test_a_scan_by_an_unknown_backend_is_refused():
    x, a = torch.zeros(1, 2, 3), -torch.ones(3, 4)
    with pytest.raises(BackendError, match="nothing"):
        selective_scan(x, x, a, torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), backend="nothing")
