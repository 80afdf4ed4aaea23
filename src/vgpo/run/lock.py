"""The lock of a run folder: one trainer at a time, and a trainer that is killed gives it back."""

import fcntl
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vgpo.run.storage import RunFolderError

logger = logging.getLogger(__name__)

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder inside the block; the folder is created if it is missing.

    It is a record lock of POSIX: it belongs to this process and not to its children, so it ends with this process in
    any way, even if a child that was forked from it lives on. It holds between machines that share the folder too,
    where their file system has locks; where it has none, a warning says so.

    Raises:
        RunFolderError: another process holds it, or the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+b", buffering=0)
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be written: {error.strerror}. Choose another run_dir, or correct its permissions."
        ) from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise RunFolderError(
                f"{folder} is in use by another training process ({_holder(folder / LOCK)}). Nothing was changed. "
                "Wait until it ends or stop it, or choose another run_dir."
            ) from error
        except OSError as error:
            logger.warning("%s cannot be locked (%s): do not start two runs in it.", folder, error.strerror)
        os.ftruncate(file.fileno(), 0)
        file.write(json.dumps({"process": os.getpid(), "machine": platform.node()}).encode())
        yield


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        return f"process {int(holder['process'])} on {holder['machine']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "which has not written its process number yet"
