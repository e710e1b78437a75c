"""Turn a published weights file into safetensors."""

import argparse
from pathlib import Path

HELP = (
    "Turn a weights file as the authors of RoMA or Spatial-Mamba published it into safetensors "
    "under rsmamba's names, with a ModelSpec: architecture, bands, mean and deviation, licence and "
    "the hash of the original. Nothing in the file is executed. The result appears complete or not "
    "at all."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument(
        "input", metavar="IN", help="published file (.pth), or hf-hub:OWNER/NAME@COMMIT:FILE"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="file to write (.safetensors)")
    parser.add_argument(
        "--source",
        choices=("roma", "roma-pretrain", "spatial-mamba"),
        help="what the file is (default: found from the names of its tensors)",
    )
    parser.add_argument(
        "--key",
        choices=("model", "model_ema", "state_dict"),
        help="which weights of the file to take (default: model, or else state_dict)",
    )
    parser.add_argument("--licence", metavar="TEXT", help="licence of the weights, to be recorded")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace) -> int:
    """Convert; print what was written and what was left out."""
    from rsmamba.models.checkpoints import convert_file

    report = convert_file(
        args.input,
        args.out,
        source=args.source,
        key=args.key,
        licence=args.licence,
        overwrite=args.overwrite,
    )
    print(report)
    return 0
