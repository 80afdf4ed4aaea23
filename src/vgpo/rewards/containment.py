"""Contain user code in the trainer's process: it cannot end the process with status 0, nor change its environment.

This is not a sandbox. Threads that outlive a call, `ctypes` and signals sent by the code are not contained.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TextIO

_ENDINGS = ("_exit", "execv", "execve")  # the other `exec` functions call these
_REAL: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in _ENDINGS}
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

_lock = threading.Lock()
_active: list[int] = []
"""The process of each active block; async rewards overlap."""


class StoppedBySignal(SystemExit):
    """Raised by the trainer's signal handler to end the process: a block lets it pass."""


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Undo the block's changes to the process at its end, and prevent it from ending the process.

    `os._exit` and `os.exec*` raise SystemExit in this process and work normally in its children. A forked child ends
    with status 1 when it would leave the block. Working folder, standard streams and their descriptors, and handlers
    of signals are restored. Seeds and the environment are not: a reward may draw random numbers.
    """
    owner = os.getpid()
    with contextlib.ExitStack() as restored:
        restored.enter_context(_endings_refused(owner))
        restored.enter_context(_streams_kept())
        restored.enter_context(_descriptors_kept())
        restored.enter_context(_handlers_kept())
        restored.enter_context(_folder_kept())
        try:
            yield
        finally:
            if os.getpid() != owner:
                _REAL["_exit"](1)


@contextlib.contextmanager
def _endings_refused(owner: int) -> Iterator[None]:
    with _lock:
        _active.append(owner)
        for name in _ENDINGS:
            setattr(os, name, _REFUSING[name])
    try:
        yield
    finally:
        with _lock:
            _active.remove(owner)
            if not _active:
                for name, real in _REAL.items():
                    setattr(os, name, real)


def _refusing(name: str) -> Callable[..., Any]:
    """Replacement of `os.NAME` during a block; code that imported it calls the real one afterwards."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if os.getpid() in _active:
            raise SystemExit(f"os.{name} was called")
        return _REAL[name](*args, **kwargs)

    return refuse


_REFUSING = {name: _refusing(name) for name in _ENDINGS}


@contextlib.contextmanager
def _streams_kept() -> Iterator[None]:
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    try:
        yield
    finally:
        for name, stream in before.items():
            if _is_usable(stream):
                setattr(sys, name, stream)


def _is_usable(stream: TextIO | None) -> bool:
    """Whether a stream can still be printed to; one that was detached raises."""
    try:
        return stream is None or not stream.closed
    except ValueError:
        return False


@contextlib.contextmanager
def _descriptors_kept() -> Iterator[None]:
    """Restore descriptors: otherwise the next opened file would get the number of a closed one, and the output."""
    kept: dict[int, int] = {}
    for number in range(3):
        with contextlib.suppress(OSError):  # closed already
            kept[number] = os.dup(number)
    try:
        yield
    finally:
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Only the main thread can change handlers."""
    handlers: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if handler is not None:  # of a library in C, which Python cannot set
                handlers[number] = handler
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@contextlib.contextmanager
def _folder_kept() -> Iterator[None]:
    try:
        folder = os.open(".", os.O_RDONLY)
    except OSError:  # it may be deleted or unreadable
        yield
        return
    try:
        yield
    finally:
        os.fchdir(folder)
        os.close(folder)
