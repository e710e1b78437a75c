"""fit, validate, test, predict: Lightning's command line on TorchGeo's base classes."""

import os
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any

from rsmamba.cli.recipes import find_recipe
from rsmamba.errors import ConfigError, DataNotFoundError, RsmambaError

#: Recipes that ship with rsmamba are named `recipe:segment/buildings_demo` anywhere.
RECIPE_PREFIX = "recipe:"


def run(verb: str, argv: Sequence[str]) -> int:
    """Run one of Lightning's verbs.

    Args:
        verb: ``fit``, ``validate``, ``test`` or ``predict``.
        argv: Its arguments; ``--config recipe:NAME`` finds a shipped recipe.

    Returns:
        Exit status 0.

    Raises:
        ConfigError: If the recipe or the options cannot be parsed.
        RsmambaError: Whatever the task and the data module find wrong.
    """
    run_lightning(verb, argv)
    return 0


def run_lightning(verb: str, argv: Sequence[str]) -> Any:
    """Like :func:`run`, and hand back the LightningCLI with its trainer, task and data module."""
    # jsonargparse would import heavy modules for nothing if the recipe is not even there
    args = [verb, *_resolve_recipes(argv)]

    from lightning.pytorch.cli import LightningCLI
    from torchgeo.datamodules import BaseDataModule, MisconfigurationException
    from torchgeo.datasets import DatasetNotFoundError
    from torchgeo.tasks import BaseTask

    import rsmamba.data
    import rsmamba.tasks  # noqa: F401  (short class names in recipes)

    # TorchGeo's defaults for cloud-optimised reads, unless the user has chosen
    os.environ.setdefault("GDAL_DISABLE_READDIR_ON_OPEN", "EMPTY_DIR")
    program, sys.argv = sys.argv, sys.argv[:1]  # LightningCLI warns about arguments in both
    try:
        return LightningCLI(
            model_class=BaseTask,
            datamodule_class=BaseDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "exit_on_error": False,
                **{v: {"exit_on_error": False} for v in ("fit", "validate", "test", "predict")},
            },
            args=args,
        )
    except DatasetNotFoundError as error:
        raise DataNotFoundError(str(error)) from error
    except (ArgumentError, MisconfigurationException) as error:
        raise ConfigError(_innermost(error)) from error
    finally:
        sys.argv = program


def _resolve_recipes(argv: Sequence[str]) -> list[str]:
    """Replace ``recipe:NAME`` by the path of the shipped file; say so if a file is missing."""
    resolved = []
    for i, argument in enumerate(argv):
        flag, value = "", argument
        if argument.startswith("--config="):
            flag, _, value = argument.partition("=")
        if value.startswith(RECIPE_PREFIX):
            value = str(find_recipe(value.removeprefix(RECIPE_PREFIX)))
        is_config = bool(flag) or (i > 0 and argv[i - 1] in {"--config", "-c"})
        if is_config and not os.path.isfile(value):  # noqa: PTH113  (may also be inline YAML)
            raise DataNotFoundError(
                f"no recipe file {value}: `rsmamba recipes` lists those that ship, "
                f"`--config {RECIPE_PREFIX}NAME` uses one"
            )
        resolved.append(f"{flag}={value}" if flag else value)
    return resolved


def _innermost(error: BaseException) -> str:
    """jsonargparse nests the reason; a user's own error inside it is the better message."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RsmambaError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return str(error)
