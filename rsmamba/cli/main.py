"""Entry point: find the verb, run it, turn a user's mistake into one line and exit status 2."""

import argparse
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

from rsmamba import __version__
from rsmamba.errors import ConfigError, RsmambaError

#: Verb -> (module, what it does). Modules load only when their verb is used.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("rsmamba.cli.demo", "pretrain, probe, fine-tune and map on the shipped samples"),
    "fit": ("rsmamba.cli.train", "train what a recipe describes"),
    "validate": ("rsmamba.cli.train", "score a checkpoint on the validation split"),
    "test": ("rsmamba.cli.train", "score a checkpoint on the test split"),
    "predict": ("rsmamba.cli.train", "run a checkpoint over the predict split"),
    "map": ("rsmamba.cli.map", "apply a checkpoint to a scene and write a GeoTIFF"),
    "vectorize": ("rsmamba.cli.vectorize", "turn a class map into polygons"),
    "evaluate": ("rsmamba.cli.evaluate", "compare a class map with the truth"),
    "embed": ("rsmamba.cli.embed", "turn a scene into a table of patch embeddings"),
    "convert": ("rsmamba.cli.convert", "turn a published weights file into safetensors"),
    "stats": ("rsmamba.cli.stats", "measure mean and deviation of the bands of images"),
    "models": ("rsmamba.cli.models", "list the backbones with parameters and multiply-adds"),
    "recipes": ("rsmamba.cli.recipes", "list the recipes that come with rsmamba"),
    "samples": ("rsmamba.cli.samples", "list the imagery that comes with rsmamba"),
    "doctor": ("rsmamba.cli.doctor", "show versions, device, operator backends and GDAL drivers"),
}

#: These parse their own arguments with Lightning's command line.
_LIGHTNING = frozenset({"fit", "validate", "test", "predict"})


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line like every other error."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{message}; `{self.prog} --help` explains the options")


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items())
    return (
        "usage: rsmamba VERB [options]\n\n"
        "State-space backbones for geospatial analysis: train, probe, map.\n\n"
        f"verbs:\n{verbs}\n\n"
        "`rsmamba VERB --help` explains a verb. New here? `rsmamba demo` makes a map in minutes."
    )


def _fail(message: object) -> int:
    """Print one line on standard error; the status of a user's mistake is 2."""
    print(f"rsmamba: error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


def _mistakes() -> tuple[type[Exception], ...]:
    """Errors that are the user's to mend, also of the operators, which know none of ours."""
    kernels = sys.modules.get("rsmamba_kernels")
    return (RsmambaError,) if kernels is None else (RsmambaError, kernels.BackendError)


def run(argv: Sequence[str]) -> int:
    """Run one verb.

    Args:
        argv: Arguments after the program's name.

    Returns:
        Exit status: 0 done, 1 done in part, 2 the user's mistake, 130 interrupted.
    """
    if not argv or argv[0] in {"-h", "--help", "help"}:
        print(_overview())
        return 0
    if argv[0] in {"-V", "--version"}:
        print(f"rsmamba {__version__}")
        return 0
    verb, rest = argv[0], list(argv[1:])
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean `rsmamba {near[0]}`?" if near else "`rsmamba --help` lists the verbs"
        return _fail(f"unknown verb {verb!r}: {hint}")
    try:
        module = import_module(VERBS[verb][0])
        if verb in _LIGHTNING:
            return int(module.run(verb, rest))
        parser = _Parser(prog=f"rsmamba {verb}", description=module.HELP)
        module.configure(parser)
        return int(module.run(parser.parse_args(rest)))
    except _mistakes() as error:
        return _fail(error)
    except KeyboardInterrupt:
        print("rsmamba: interrupted; outputs that were not finished are not there", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `rsmamba recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}; check the path and its permissions")


def main() -> None:
    """Console script."""
    sys.exit(run(sys.argv[1:]))
