"""The work folder of a run: which blocks are done, so that a run can go on, or be shared out.

A block is one file per layer and, written last, a marker that says so; whatever is without its
marker is done again. The folder lies hidden beside the output and vanishes with its publication.
Runs that would not give the same bytes (another scene, model or option) are refused, and so is a
second run at the same time.
"""

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from rsmamba.errors import (
    BusyError,
    ConfigError,
    OutputNotWritableError,
    RunMismatchError,
)
from rsmamba.files import write_text

_MANIFEST = "manifest.json"
_VERSION = 1


class Shard:
    """Which part of the blocks a process does: those whose number is ``index`` modulo ``count``.

    Args:
        text: ``"i/n"`` with 1 <= i <= n, as in a Slurm array; None for all.

    Raises:
        ConfigError: If it is not of that form.
    """

    def __init__(self, text: str | None = None) -> None:
        first, _, second = (text or "1/1").partition("/")
        if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
            raise ConfigError(f"shard {text!r}: write i/n with i from 1 to n, such as 3/8")
        self.index, self.count = int(first) - 1, int(second)

    def __contains__(self, number: int) -> bool:
        """Whether the block of that number is this shard's."""
        return number % self.count == self.index

    def __str__(self) -> str:
        """The form in which it was given."""
        return f"{self.index + 1}/{self.count}"


class WorkFolder:
    """Finished blocks of one run, beside its output.

    Use it as a context manager. Leaving it by an error keeps the blocks that are done, if there
    are any; :meth:`remove` ends it for good.

    Args:
        output: The run's first output.
        manifest: What determines the result, as JSON values: scene, model, options.
        shard: The part of the blocks that this process does.
        restart: Throw away what an earlier run left.
        keep: Whether an interrupted run may be taken up again; else it leaves nothing.

    Attributes:
        path: The folder.
        resumed: Number of blocks that an earlier run had finished.

    Raises:
        BusyError: If another process does the same part now.
        RunMismatchError: If an earlier run differs in its manifest.
        OutputNotWritableError: If the folder cannot be made or written.
    """

    def __init__(
        self,
        output: Path,
        manifest: Mapping[str, Any],
        shard: Shard,
        *,
        restart: bool = False,
        keep: bool = True,
    ) -> None:
        self.path = output.parent / f".{output.name}.rsmamba"
        self._output, self._shard = output, shard
        # As JSON gives it back, so that the two can be compared.
        self._manifest = json.loads(json.dumps({"version": _VERSION, **manifest}))
        self._restart, self._keep = restart, keep
        self._lock = FileLock(self.path / f"lock-{shard.index + 1}-of-{shard.count}")
        self.resumed = 0

    def __enter__(self) -> "WorkFolder":
        """Lock, compare with an earlier run, count what it left."""
        try:
            self.path.mkdir(exist_ok=True)
            self._acquire(self._lock)
            if self._restart:
                self._clear()
            self._compare()
        except OSError as error:
            self._lock.release()
            raise OutputNotWritableError(
                f"cannot write {self._output}: {error.strerror} in {self.path}"
            ) from error
        except BaseException:
            self._lock.release()
            raise
        self.resumed = len(list(self.path.glob("*.json"))) - 1
        return self

    def _acquire(self, lock: FileLock) -> None:
        """Take a lock and leave word who holds it."""
        holder = Path(f"{lock.lock_file}.holder")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
            raise BusyError(
                f"{self._output} is being made by {who}: wait for it or stop it; it is not "
                "touched meanwhile"
            ) from None
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")

    def _clear(self) -> None:
        """Remove what an earlier run left; not while one of its other shards is at work."""
        for other in self.path.glob("lock-*-of-*"):
            if other.suffix == ".holder" or str(other) == self._lock.lock_file:
                continue
            lock = FileLock(other)
            self._acquire(lock)
            lock.release()
        for file in self.path.iterdir():
            if not file.name.startswith("lock-"):
                file.unlink()

    def _compare(self) -> None:
        """Refuse to mix two runs."""
        path = self.path / _MANIFEST
        if not path.exists():
            write_text(path, json.dumps(self._manifest, indent=1, sort_keys=True) + "\n")
            return
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            earlier = {"manifest": "unreadable"}
        if earlier != self._manifest:
            raise RunMismatchError(
                f"{self._output} was begun by a run that differs in "
                f"{_difference(earlier, self._manifest)}: --restart begins anew, or give the same "
                "options to go on"
            )

    def done(self, number: int) -> dict[str, Any] | None:
        """Facts about a finished block; None if it is still to be done."""
        path = self._marker(number)
        if not path.exists():
            return None
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return facts

    def layer(self, number: int, name: str) -> Path:
        """File of a block's layer."""
        return self.path / f"{number:06d}.{name}.tif"

    def finish(self, number: int, facts: Mapping[str, Any]) -> None:
        """Mark a block as done; its layers have been written."""
        write_text(self._marker(number), json.dumps(dict(facts)) + "\n")

    def _marker(self, number: int) -> Path:
        return self.path / f"{number:06d}.json"

    @contextmanager
    def join(self) -> Iterator[bool]:
        """Whether this process may put the blocks together; one of several shards may."""
        lock = FileLock(self.path / "lock-join")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            # Another shard may have done it all since this one looked.
            yield (self.path / _MANIFEST).exists()
        finally:
            lock.release()

    def remove(self) -> None:
        """Take the folder away; the outputs are published."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the lock; take an unfinished folder away if there is nothing worth keeping."""
        blocks = any(p.name != _MANIFEST for p in self.path.glob("*.json"))
        alone = self._shard.count == 1
        if error is not None and alone and not (blocks and self._keep):
            self.remove()
        self._lock.release()


def _difference(earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str:
    """The first few settings in which two manifests differ."""
    found: list[str] = []
    for key in dict.fromkeys([*earlier, *now]):
        a, b = earlier.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if inner := _difference(a, b, f"{prefix}{key}."):
                found.append(inner)
        elif a != b:
            found.append(f"{prefix}{key} ({a} before, {b} now)")
    return ", ".join(found[:3])
