"""What lies under a path, looked at before it is opened: a pipe or a device would never end."""

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
    """The path with `~` as the home folder. DataError for the `~user` of a user that does not exist."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise DataError(f"{str(name)[:100]!r}: {error}; write the whole path") from error


def status_of(path: Path) -> os.stat_result | None:
    """What the system says about the target of `path`, links followed; None if there is none.

    Raises:
        DataError: The path is too long, holds a NUL, runs in a circle of links, or may not be looked at.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(
            f"cannot look at {str(path)[:200]!r} ({error.strerror}); correct the path or its permissions"
        ) from error
    except ValueError as error:
        raise DataError(f"{str(path)[:200]!r} is no path ({error}); correct it") from error


def check_regular(path: Path, status: os.stat_result) -> None:
    """Raise DataError unless this is the status of a regular file."""
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise DataError(f"{path} is {kind}, expected a regular file; name a file, or copy its content into one")


def is_folder(path: Path) -> bool:
    """Whether a folder, or a link to one, is there. DataError as of `status_of`."""
    status = status_of(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def check_files(files: list[Path]) -> None:
    """`check_regular` for files of a folder. DataError for a link to nothing, too."""
    for file in files:
        status = status_of(file)
        if status is None:
            raise DataError(f"{file} is a link to a file that does not exist; restore the file, or remove the link")
        check_regular(file, status)
