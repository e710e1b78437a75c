import subprocess
import sys

import pytest

import rsmamba
from rsmamba.cli import main
from rsmamba.errors import DataNotFoundError


def one_line(capsys):
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1, err
    assert "Traceback" not in err
    return err


def test_the_overview_names_every_verb(capsys):
    assert main.run([]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {verb} " in overview for verb in main.VERBS)


def test_a_mistyped_verb_suggests_the_nearest(capsys):
    assert main.run(["mpa"]) == 2
    assert "did you mean `rsmamba map`?" in one_line(capsys)


def test_a_users_error_is_one_line_and_status_2(capsys, monkeypatch):
    class Verb:
        HELP = "x"

        @staticmethod
        def configure(parser):
            parser.add_argument("--number", type=int)

        @staticmethod
        def run(args):
            raise DataNotFoundError("no folder\n/there: make it")

    monkeypatch.setattr(main, "import_module", lambda name: Verb)
    assert main.run(["doctor"]) == 2
    assert one_line(capsys) == "rsmamba: error: no folder /there: make it\n"
    assert main.run(["doctor", "--number", "three"]) == 2
    assert "--number" in one_line(capsys)


def test_an_error_of_ours_is_not_hidden(monkeypatch):
    class Verb:
        HELP = "x"
        configure = staticmethod(lambda parser: None)

        @staticmethod
        def run(args):
            raise ZeroDivisionError

    monkeypatch.setattr(main, "import_module", lambda name: Verb)
    with pytest.raises(ZeroDivisionError):
        main.run(["doctor"])


def test_ctrl_c_is_status_130_without_a_traceback(capsys, monkeypatch):
    class Verb:
        HELP = "x"
        configure = staticmethod(lambda parser: None)

        @staticmethod
        def run(args):
            raise KeyboardInterrupt

    monkeypatch.setattr(main, "import_module", lambda name: Verb)
    assert main.run(["doctor"]) == 130
    assert "interrupted" in one_line(capsys)


@pytest.mark.parametrize("verb", [v for v in main.VERBS if v not in main._LIGHTNING])
def test_every_verb_has_help_of_its_own(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main.run([verb, "--help"])
    assert stop.value.code == 0
    assert f"rsmamba {verb}" in capsys.readouterr().out


def test_recipes_are_listed_and_found(capsys):
    assert main.run(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert "segment/buildings_demo" in listed
    assert main.run(["recipes", "segment/buildings_demo"]) == 0
    assert capsys.readouterr().out.strip().endswith("buildings_demo.yaml")
    assert main.run(["recipes", "segment/building"]) == 2
    assert "recipe:segment/buildings_demo" in one_line(capsys)


def test_samples_are_listed_with_their_licence(capsys):
    assert main.run(["samples"]) == 0
    listed = capsys.readouterr().out
    assert "sample:buildings" in listed
    assert "ODbL" in listed


def test_the_doctor_names_backends_drivers_and_the_next_step(capsys):
    assert main.run(["doctor"]) == 0
    report = capsys.readouterr().out
    for word in ("torch ", "selective_scan", "state_fusion", "COG", "GPKG", "rsmamba demo"):
        assert word in report, word


def test_an_unknown_operator_backend_is_a_users_error(capsys, monkeypatch):
    monkeypatch.setenv("RSMAMBA_KERNELS", "fast")
    assert main.run(["doctor"]) == 2
    message = one_line(capsys)
    assert "RSMAMBA_KERNELS=fast" in message
    assert "choose one of" in message


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "rsmamba", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"rsmamba {rsmamba.__version__}")
