"""Files of one request: a folder of its own under DATA_DIR/uploads, gone when the request is.

A locked file in each folder tells that its process lives, whatever became of its number; `sweep` removes the folders of
those that do not. The upload of a background run outlives its request and its process: its folder is named like the
run, and `sweep` leaves it alone.
"""

import asyncio
import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from domain.audio import AudioUpload
from domain.errors import TooLarge, Unavailable

_BLOCK = 1 << 20
_LOCK = "lock"
UPLOAD = "upload"  # the file's name in its folder
_DAY = 86_400.0
#: Of a folder that belongs to a background run; `mkdtemp` makes no such name.
RUN_FOLDER = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Spool:
    """The folder of one request, mode 0700, with the file that is being sent; both are removed at exit, always.

    Attributes:
        folder: where further files of this request may be put.
        size: bytes written so far.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._parent = folder
        self._limit = limit_bytes
        self._held = bytearray()
        self._file: BinaryIO | None = None
        self._lock: BinaryIO | None = None
        self.folder = folder
        self.size = 0

    @property
    def path(self) -> Path:
        """The file that is written."""
        return self.folder / UPLOAD

    async def __aenter__(self) -> Self:
        """
        Raises:
            Unavailable: the folder cannot be made.
        """
        opening = asyncio.ensure_future(asyncio.to_thread(_on_disk, self._open))
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait({opening})
            self._remove()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Cancelled here, the thread still does its work.
        await asyncio.shield(asyncio.to_thread(self._remove))

    async def write(self, chunk: bytes) -> None:
        """Append to the file; it reaches the disk in blocks.

        Raises:
            TooLarge: that is more than the limit.
            Unavailable: the disk is full.
        """
        self.size += len(chunk)
        if self.size > self._limit:
            raise TooLarge(f"The file is larger than {self._limit / 1e6:g} MB.", code="file_too_large", param="file")
        self._held += chunk
        if len(self._held) >= _BLOCK:
            await self._flush()

    async def upload(self, name: str) -> AudioUpload:
        """What was written, as a whole file.

        Raises:
            Unavailable: the disk is full.
        """
        await self._flush()
        return AudioUpload(self.path, name, self.size)

    async def hand_over(self, name: str) -> None:
        """Put what was written in a folder `name` (mode 0700) beside this one; it stays until somebody removes it.

        Raises:
            Unavailable: the disk is full, or there is such a folder.
        """
        await self._flush()
        target = self._parent / name
        await asyncio.to_thread(_on_disk, lambda: self._move(target))

    def _move(self, target: Path) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())  # who has been told that it is taken may rely on it
        target.mkdir(mode=0o700)
        self.path.rename(target / UPLOAD)

    async def _flush(self) -> None:
        block, self._held = self._held, bytearray()
        if block:
            await asyncio.to_thread(_on_disk, lambda: self._append(block))

    def _append(self, block: bytearray) -> None:
        if self._file is not None:
            self._file.write(block)
            self._file.flush()

    def _open(self) -> None:
        self._parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(dir=self._parent))
        self._lock = (self.folder / _LOCK).open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._file = self.path.open("wb")

    def _remove(self) -> None:
        for file in (self._file, self._lock):
            if file is not None:
                with suppress(OSError):  # what it could not write before, it cannot now
                    file.close()
        if self.folder != self._parent:
            remove_folder(self.folder)


def sweep(folder: Path, *, older_than: float = _DAY) -> int:
    """Remove what dead processes left in `folder` more than a day ago; how many requests that were. It blocks."""
    removed = 0
    with suppress(FileNotFoundError):
        for left in folder.iterdir():
            with suppress(OSError):
                if RUN_FOLDER.fullmatch(left.name):
                    continue
                if left.is_dir() and time.time() - left.stat().st_mtime > older_than and _is_free(left):
                    remove_folder(left)
                    removed += 1
    return removed


def _is_free(left: Path) -> bool:
    """Does nobody hold its lock (any more)?"""
    try:
        with (left / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def remove_folder(folder: Path) -> None:
    """Remove it and all that is in it, if it is there. It blocks."""
    # A thread that was stopped may make a file while we remove: then once more.
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return


def _on_disk(work: Callable[[], None]) -> None:
    try:
        work()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Unavailable(
                "There is no room for the file now; try again.", code="storage_full", retry_after=60
            ) from error
        raise Unavailable("The file cannot be kept now; try again.", code="storage_failed") from error
