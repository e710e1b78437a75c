"""Building the package where there is no C++ compiler."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: What a user does after the installation: computes, twice, and asks.
USE = """
import logging, sys
logging.basicConfig(format="%(name)s: %(message)s")
import torch, rsmamba_kernels
from rsmamba_kernels import selective_scan, state_scan, status
x, A = torch.ones(1, 4, 3), -torch.ones(3, 1)
for _ in range(2):
    y = selective_scan(x, x, A, x[..., :1], x[..., :1])
h = state_scan(x[:, None], x[:, None], A[:, 0], x[:, None, :, :1])
print(rsmamba_kernels.__file__)
print(bool(torch.isfinite(y).all() and torch.isfinite(h).all()))
for operator in status("cpu"):
    print(operator.operator, operator.backend, dict(operator.others).get("cpu"), sep="|")
"""


def without_compiler(folder, **variables):
    """This process's environment with a PATH that leads nowhere."""
    ours = ("CC", "CXX", "LDSHARED", "LDCXXSHARED", "TRITON_INTERPRET")
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ours and not key.startswith("RSMAMBA_")
    }
    return kept | {"PATH": str(folder)} | variables


def call(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options)


@pytest.mark.slow
def test_without_a_compiler_the_package_builds_and_the_next_backend_is_used(tmp_path):
    empty, source, site = (tmp_path / name for name in ("empty", "source", "site"))
    for folder in (empty, source):
        folder.mkdir()
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler, path=str(empty)):
        pytest.skip(f"Python names its compiler by an absolute path: {compiler}")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("librsmamba_cpu.*", "__pycache__")
    for name in ("kernels", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)

    built = call(
        *(sys.executable, "setup.py", "bdist_wheel", "--dist-dir", str(tmp_path)),
        cwd=source,
        env=without_compiler(empty),
    )
    (told,) = [line for line in (built.stdout + built.stderr).splitlines() if "failed" in line]
    assert "librsmamba_cpu" in told
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "librsmamba_cpu" in name]
        archive.extractall(site)

    used = call(
        *(sys.executable, "-c", USE),
        cwd=tmp_path,
        env=without_compiler(empty, PYTHONPATH=str(site)),
    )
    file, finite, *operators = used.stdout.splitlines()
    assert Path(file).is_relative_to(site)
    assert finite == "True"
    for line in operators:
        operator, backend, reason = line.split("|")
        assert backend == "reference", operator
        assert operator == "gate" or "was not built" in reason
    warnings = [line for line in used.stderr.splitlines() if line.startswith("rsmamba_kernels")]
    assert len(warnings) == 1
    assert "was not built: install a C++ compiler" in warnings[0]
