"""Package layout that pyproject.toml cannot express: three source folders, one wheel."""

from setuptools import find_packages, setup

# recipes/ stands at the top of the repository, where users look for it, and is installed as the
# data package `rsmamba.recipes`, where the command line finds it.
setup(
    packages=[
        *find_packages(".", include=["rsmamba", "rsmamba.*"]),
        *find_packages("kernels", include=["rsmamba_kernels", "rsmamba_kernels.*"]),
        "rsmamba.recipes",
    ],
    package_dir={"rsmamba_kernels": "kernels/rsmamba_kernels", "rsmamba.recipes": "recipes"},
)
