"""Read JSON-lines files while they are written."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic

from vgpo.run.storage import Parse, T


class Tail(Generic[T]):
    """Follows a JSON-lines file, yielding each appended record once.

    An unfinished last line is read once it is complete. If the last read line has moved (a resumed run has truncated
    the file, or its oldest records were dropped), the file is read from its beginning again.
    """

    def __init__(self, path: Path, parse: Parse[T]) -> None:
        self.path = path
        self.parse = parse
        self._end: int  # bytes read
        self._last: bytes  # the last line read
        self._number: int  # of that line
        self._forget()

    def read(self, restart: Callable[[], None]) -> Iterator[T]:
        """Yield the records that were not yet read, one at a time.

        Args:
            restart: called before the first record whenever the file is read from its beginning again.

        Raises:
            RunFolderError: `parse` raises it for a complete line, repeatedly until the line is fixed.
        """
        if not self.path.exists():
            if self._end:
                self._forget()
                restart()
            return
        with self.path.open("rb") as lines:
            lines.seek(self._end - len(self._last))
            if lines.read(len(self._last)) != self._last:
                self._forget()
                restart()
                lines.seek(0)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                record = self.parse(line, f"{self.path}, line {self._number + 1}")
                self._end, self._last, self._number = self._end + len(line), line, self._number + 1
                yield record

    def _forget(self) -> None:
        self._end, self._last, self._number = 0, b"", 0
