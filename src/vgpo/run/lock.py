"""Lock the folder of a run or an evaluation: one process writes at a time, and a killed one releases the lock."""

import fcntl
import io
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vgpo.run.storage import RunFolderError

logger = logging.getLogger(__name__)

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder inside the block. A folder that is empty before and after is removed.

    It is a POSIX record lock: it belongs to this process and not to its children, so it is released when this process
    ends, even if a forked child is still alive. It also works between machines that share the folder if their file
    system supports locks; otherwise a warning is logged.

    Raises:
        RunFolderError: another process holds it, or the folder cannot be created.
    """
    path = folder / LOCK
    try:
        file = _acquire(path)
    except OSError as error:
        raise RunFolderError(
            f"{error.filename} cannot be written: {error.strerror}. Correct that, or choose another folder."
        ) from error
    with file:
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "machine": platform.node()}).encode())
        # Not "was created here": of two concurrent processes, one may create it and the other hold the lock.
        was_empty = list(folder.iterdir()) == [path]
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
                if was_empty:
                    folder.rmdir()  # fails if there is anything in it, including the lock of the next process


def _acquire(path: Path) -> io.FileIO:
    """The lock file, once the lock is held."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = io.FileIO(path, "a+")
        except FileNotFoundError:  # the previous holder has removed the folder
            continue
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise RunFolderError(
                f"another process of vgpo ({_holder(path)}) is writing to {path.parent}. Nothing was changed. Wait "
                "until it ends or stop it, or choose another folder."
            ) from error
        except OSError as error:
            logger.warning(
                "%s cannot be locked (%s): do not write to it from two processes.", path.parent, error.strerror
            )
        if _is_at(file, path):
            return file
        file.close()  # the previous holder has removed it in the meantime


def _is_at(file: io.FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        return f"process {int(holder['process'])} on {holder['machine']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "which has not written its process number yet"
