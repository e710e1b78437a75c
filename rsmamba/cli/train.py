"""fit, validate, test, predict: Lightning's command line on TorchGeo's base classes."""

import logging
import os
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsmamba.cli.recipes import find_recipe
from rsmamba.errors import ConfigError, DataNotFoundError, OutputExistsError, RsmambaError

#: Recipes that ship with rsmamba are named `recipe:segment/buildings_demo` anywhere.
RECIPE_PREFIX = "recipe:"


#: What Lightning takes for --ckpt_path besides a file.
_CHECKPOINT_WORDS = frozenset({"best", "last", "hpc", "null", "registry"})
#: Warnings that a user can do nothing about, or need not.
_NOTICES = (
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*is deprecated, use `isinstance.treespec.*",
    ".*Experiment logs directory.*",
    ".*is not supported by the model summary.*",
    ".*exists and is not empty.*",
    # torchmetrics' collections update one of several metrics and share its state with the others
    ".*of metric Multiclass.* was called before the ``update``.*",
)


def run(verb: str, argv: Sequence[str]) -> int:
    """Run one of Lightning's verbs.

    Args:
        verb: ``fit``, ``validate``, ``test`` or ``predict``.
        argv: Its arguments; ``--config recipe:NAME`` finds a shipped recipe, ``--overwrite``
            lets ``fit`` replace the checkpoints of an earlier run.

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
    overwrite = "--overwrite" in argv
    argv = [argument for argument in argv if argument != "--overwrite"]
    args = [verb, *_resolve_recipes(argv)]
    _check_checkpoint(argv)

    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
    from torchgeo.datamodules import BaseDataModule, MisconfigurationException
    from torchgeo.datasets import DatasetNotFoundError
    from torchgeo.tasks import BaseTask

    import rsmamba.data
    import rsmamba.tasks
    from rsmamba.tasks.checks import loaded_weights

    # Recipes may use short class names: of what is loaded.
    for package in (rsmamba.data, rsmamba.tasks):
        for name in package.__all__:
            getattr(package, name)
    _quieten()
    # TorchGeo's defaults for cloud-optimised reads, unless the user has chosen
    os.environ.setdefault("GDAL_DISABLE_READDIR_ON_OPEN", "EMPTY_DIR")
    program, sys.argv = sys.argv, sys.argv[:1]  # LightningCLI warns about arguments in both

    class Announce(Callback):
        """Say what the weights and the data are, once they have been checked."""

        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            """One line each."""
            describe = getattr(getattr(trainer, "datamodule", None), "report", lambda: None)
            for name, report in (("weights", loaded_weights(pl_module)), ("data", describe())):
                if report is not None and trainer.is_global_zero:
                    print(f"{name}: {report}", file=sys.stderr)

    class SaveOfFit(SaveConfigCallback):
        """Write the run's options beside it; testing or predicting leaves them as they are."""

        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            if stage == "fit":
                super().setup(trainer, pl_module, stage)

    class Checked(LightningCLI):
        """Lightning's command line that replaces no checkpoints."""

        def before_fit(self) -> None:
            """Refuse to train over an earlier run, unless it is resumed or may be replaced."""
            if not overwrite and not self._get(self.config, "ckpt_path"):
                _check_run_folder(self.trainer)

    try:
        return Checked(
            model_class=BaseTask,
            datamodule_class=BaseDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_defaults={"callbacks": [Announce()]},
            save_config_callback=SaveOfFit,
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
        raise _cause(error) or ConfigError(_reason(error)) from error
    except ValueError as error:  # jsonargparse wraps what a class's constructor raises
        if cause := _cause(error):
            raise cause from error
        raise
    finally:
        sys.argv = program


def _quieten() -> None:
    """Leave progress bars and warnings that matter; drop Lightning's notices."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _NOTICES:
        warnings.filterwarnings("ignore", message)


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


def _check_checkpoint(argv: Sequence[str]) -> None:
    """Refuse a checkpoint that is not there or cannot be read, before anything is built."""
    following = [*argv[1:], ""]
    for flag, value in zip(argv, following[: len(argv)], strict=True):
        name, equals, inline = flag.partition("=")
        path = inline if equals else value
        if name != "--ckpt_path" or path in _CHECKPOINT_WORDS:
            continue
        if not Path(path).is_file():
            raise DataNotFoundError(f"no checkpoint file {path}: check --ckpt_path")
        from rsmamba.models.checkpoints import read_checkpoint

        read_checkpoint(path)


def _check_run_folder(trainer: Any) -> None:
    """Refuse a checkpoint folder that holds the checkpoints of an earlier run.

    Raises:
        OutputExistsError: Names the folder.
    """
    folder = getattr(trainer.checkpoint_callback, "dirpath", None)
    if folder is None and trainer.log_dir is not None:
        folder = Path(trainer.log_dir) / "checkpoints"
    if folder is not None and any(Path(folder).glob("*.ckpt")):
        raise OutputExistsError(
            f"{folder} holds checkpoints of an earlier run: pass --overwrite to replace them, "
            "--ckpt_path to go on from one, or another trainer.logger.init_args.save_dir"
        )


def _cause(error: BaseException) -> RsmambaError | None:
    """The user's error inside a chain of exceptions, if there is one."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, RsmambaError):
            return link
        link = link.__cause__ or link.__context__
    return None


def _reason(error: BaseException) -> str:
    """What jsonargparse found wrong, without the list of types that it tried."""
    text = " ".join(str(error).split())
    found = re.search(r"Errors: - (.+?)(?: - Expected a <class 'NoneType'>| Given value)", text)
    return f"{found.group(1)}; `--help` lists the options" if found else text
