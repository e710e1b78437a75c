"""List the shipped imagery."""

import argparse

HELP = "List the imagery that comes with rsmamba, with source and licence."


def configure(parser: argparse.ArgumentParser) -> None:
    """This verb has no options."""


def run(args: argparse.Namespace) -> int:
    """Print one block per sample."""
    import rsmamba.samples

    for sample in rsmamba.samples.list():
        print(f"sample:{sample.name}  ({sample.bytes / 1e6:.1f} MB)  {sample.description}")
        print(f"    source   {sample.source}\n    licence  {sample.licence}")
        if sample.attribution:
            print(f"    credit   {sample.attribution}")
        print(f"    folder   {sample.path}")
    return 0
