"""What pyproject.toml cannot express: three source folders and the operators' C++ library.

The library is plain C to the outside (no Python, no torch): one wheel per platform serves every
Python. It is optional: without a working C++ compiler the package installs without it, the wheel
is a pure one, and the operators run in PyTorch.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = Path("kernels/rsmamba_kernels/csrc")
LIBRARY = "rsmamba_kernels.librsmamba_cpu"
SUFFIX = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")

# -ffast-math would allow what the exponential's rounding forbids.
FLAGS = [
    *("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-fno-exceptions"),
    *("-fno-rtti", "-fvisibility=hidden", "-g0", "-Wno-psabi", "-Wno-maybe-uninitialized"),
]
# One translation unit per instruction set; the library chooses at run time.
UNITS = {"library.cpp": [], "unit_baseline.cpp": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    avx2 = ["-mavx2", "-mfma"]
    avx512 = [*avx2, "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"]
    UNITS |= {"unit_avx2.cpp": avx2, "unit_avx512.cpp": avx512}
if sys.platform == "darwin":
    # Not for both architectures at once: the flags are those of one.
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")


class BuildLibrary(build_ext):
    """Compile the units in parallel, each with its own flags, to a plainly named library."""

    def get_ext_filename(self, fullname: str) -> str:
        """No Python tag in the name: it is no Python module."""
        return f"{fullname.replace('.', os.sep)}.{SUFFIX}"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link; a failure is reported and leaves the package without the library."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.unlink(missing_ok=True)
        if self.compiler.compiler_type == "msvc":
            raise CompileError("the C++ operators need g++ or clang++")

        def compile_unit(source: str) -> list[str]:
            flags = FLAGS + UNITS[Path(source).name]
            return self.compiler.compile([source], self.build_temp, extra_postargs=flags)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [name for names in pool.map(compile_unit, ext.sources) for name in names]
        # Nothing of the C++ library is used: it must not become a dependency.
        unneeded = [] if sys.platform == "darwin" else ["-Wl,--as-needed"]
        self.compiler.link_shared_object(
            objects, str(target), extra_preargs=unneeded, target_lang="c++"
        )


class TagWheel(bdist_wheel):
    """Tag the wheel ``py3-none-PLATFORM`` with the library, ``py3-none-any`` without it."""

    def run(self) -> None:
        """Build first: only then is it known which of the two it is."""
        self.run_command("build")
        library = self.get_finalized_command("build_ext").get_ext_fullpath(LIBRARY)
        if not Path(library).is_file():
            self.distribution.ext_modules = []
            self.root_is_pure = True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3 and any ABI: the library knows neither."""
        return "py3", "none", super().get_tag()[2]


# recipes/ stands at the top of the repository, where users look for it, and is installed as the
# data package `rsmamba.recipes`, where the command line finds it.
setup(
    packages=[
        *find_packages(".", include=["rsmamba", "rsmamba.*"]),
        *find_packages("kernels", include=["rsmamba_kernels", "rsmamba_kernels.*"]),
        "rsmamba.recipes",
    ],
    package_dir={"rsmamba_kernels": "kernels/rsmamba_kernels", "rsmamba.recipes": "recipes"},
    ext_modules=[
        Extension(
            LIBRARY,
            sources=[str(CSRC / name) for name in UNITS],
            depends=sorted(str(path) for path in CSRC.glob("*.h")),
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": TagWheel},
)
