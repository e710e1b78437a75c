"""Backend choice: argument > RSMAMBA_KERNELS > automatic."""

import pytest
import torch

from rsmamba_kernels import BackendError, selective_scan, status
from rsmamba_kernels import dispatch as dispatching
from rsmamba_kernels.dispatch import Backend, register, resolve


@pytest.fixture
def toy(monkeypatch):
    """A registry of two operators: "twice" has a fast backend for float32, "once" has none."""
    monkeypatch.setattr(dispatching, "_REGISTRY", {})
    monkeypatch.delenv("RSMAMBA_KERNELS", raising=False)
    register("twice", Backend("reference", lambda x: 2 * x))
    register(
        "twice",
        Backend(
            "fast",
            lambda x: x + x,
            priority=1,
            refuses=lambda t: None if t.dtype == torch.float32 else "float32 only",
        ),
    )
    register("once", Backend("reference", lambda x: x))


SINGLE, DOUBLE = torch.zeros(1), torch.zeros(1, dtype=torch.float64)


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

    def test_a_backend_asked_for_by_name_never_falls_back(self, monkeypatch):
        with pytest.raises(BackendError, match="float32 only"):
            resolve("twice", DOUBLE, "fast")
        monkeypatch.setenv("RSMAMBA_KERNELS", "fast")
        with pytest.raises(BackendError, match="float32 only"):
            resolve("twice", DOUBLE)

    def test_an_operator_without_a_fitting_backend_says_so(self):
        register("rare", Backend("fast", lambda x: x, refuses=lambda t: "needs a GPU"))
        with pytest.raises(BackendError, match="rare: no backend takes"):
            resolve("rare", SINGLE)

    def test_status_names_the_active_backend_and_why_not_the_others(self):
        once, twice = status(DOUBLE)
        assert (once.operator, once.backend, once.others) == ("once", "reference", ())
        assert twice.backend == "reference"
        assert twice.others == (("fast", "float32 only"),)
        assert status(SINGLE)[1].others == (("reference", "fast is preferred"),)


def test_every_operator_has_a_reference_that_takes_doubles():
    report = {entry.operator: entry for entry in status(DOUBLE)}
    assert {"selective_scan", "state_fusion", "state_scan"} <= set(report)
    assert all(entry.backend == "reference" for entry in report.values())


def test_a_scan_by_an_unknown_backend_is_refused():
    x, a = torch.zeros(1, 2, 3), -torch.ones(3, 4)
    with pytest.raises(BackendError, match="nothing"):
        selective_scan(x, x, a, torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), backend="nothing")
