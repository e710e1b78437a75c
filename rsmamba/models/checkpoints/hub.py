"""Weights on the Hugging Face hub, by an id that names one revision."""

import os
import re
from pathlib import Path

from rsmamba.errors import CheckpointError, ConfigError, one_line

#: timm's prefix of a hub id.
PREFIX = "hf-hub:"
DEFAULT_FILE = "model.safetensors"
_ID = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:]*))?(?::(?P<file>.+))?", flags=re.ASCII
)


def locate(path_or_id: str | os.PathLike[str]) -> Path:
    """Path of a weights file; one on the hub is downloaded first, unless it is in the cache.

    Args:
        path_or_id: A path, or ``hf-hub:OWNER/NAME@REVISION[:FILE]`` with the full hash of a commit
            (40 hexadecimal digits) as revision; the file is ``model.safetensors`` by default.

    Raises:
        ConfigError: If the id is malformed.
        CheckpointError: If its revision is not the hash of a commit, or the file cannot be
            fetched; then the message says where to put it.
    """
    text = os.fspath(path_or_id)
    if not text.startswith(PREFIX):
        return Path(text)
    match = _ID.fullmatch(text.removeprefix(PREFIX))
    if match is None:
        raise ConfigError(f"{text}: write a hub id as {PREFIX}OWNER/NAME@REVISION[:FILE]")
    repo, revision, file = match["repo"], match["revision"], match["file"] or DEFAULT_FILE
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        given = f"{revision!r} is a branch, a tag or a part of a hash" if revision else "none given"
        raise CheckpointError(
            f"{text}: pin the revision ({given}), because files behind a name can change: "
            f"{PREFIX}{repo}@COMMIT:{file} with the full hash of a commit, 40 digits"
        )
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise ConfigError(f"{text}: {file!r} is no file of a repository")
    return _fetch(repo, revision, file)


def _fetch(repo: str, revision: str, file: str) -> Path:
    """Download one file, or find it in the hub's cache."""
    from huggingface_hub import constants, hf_hub_download

    try:
        return Path(hf_hub_download(repo, file, revision=revision))
    # Whatever goes wrong between here and the hub, the remedy is the same.
    except Exception as error:
        folder = "models--" + repo.replace("/", "--")
        place = Path(constants.HF_HUB_CACHE) / folder / "snapshots" / revision / file
        raise CheckpointError(
            f"cannot fetch {file} of {repo} at {revision} ({one_line(error)}): put that file at "
            f"{place}, or anywhere else and give its path instead of the id"
        ) from error
