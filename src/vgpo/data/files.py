"""Check what a path is before opening it: reading a pipe or a device would never end."""

import os
import stat
from pathlib import Path

from vgpo.data.errors import DataError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def expanded(name: str | Path) -> Path:
    """The path with `~` expanded. DataError for `~user` of a user that does not exist."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise DataError(f"{str(name)[:100]!r}: {error}; write the full path") from error


def status_of(path: Path) -> os.stat_result | None:
    """Status of the target of `path`, links followed; None if it does not exist.

    Raises:
        DataError: The path is too long, contains a NUL, is a cycle of links, or is not accessible.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(
            f"cannot access {str(path)[:200]!r} ({error.strerror}); correct the path or its permissions"
        ) from error
    except ValueError as error:
        raise DataError(f"{str(path)[:200]!r} is not a path ({error}); correct it") from error


def check_regular(path: Path, status: os.stat_result) -> None:
    """Raise DataError unless this is the status of a regular file."""
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")
        raise DataError(f"{path} is {kind}, expected a regular file; name a file, or copy its content into one")


def is_folder(path: Path) -> bool:
    """Whether a folder, or a link to one, exists. DataError: see `status_of`."""
    status = status_of(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def check_files(files: list[Path]) -> None:
    """`check_regular` for files of a folder. Also a DataError for a broken link."""
    for file in files:
        status = status_of(file)
        if status is None:
            raise DataError(f"{file} is a link to a file that does not exist; restore the file, or remove the link")
        check_regular(file, status)
