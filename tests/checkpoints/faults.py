"""Save a checkpoint again and again, each time with a fault at a later file-system operation.

Run as a script without site-packages (so without torch); the fault strikes a fork. Arguments: store.py, prepared
folder, folder for the results, "kill" or "full", step, keep. A copy of the prepared folder per fault is left, and one
JSON line is printed: the outcome of each ("killed", "saved", or the message of the error).
"""

import errno
import importlib.util
import json
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path

CHANGES = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.fsync"}
NEED_SPACE = {"open", "os.mkdir", "os.fsync"}


def load_store(source):
    spec = importlib.util.spec_from_file_location("store", source)
    sys.modules["store"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inject(fault, number):
    """Arm the fault: a kill just before the operation of this number, or a disk that is full from there on.

    Return what tells how many operations there were.
    """
    count = 0

    def strike(event, arguments):
        nonlocal count
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event not in CHANGES or reads:
            return
        count += 1
        if fault == "kill" and count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "full" and count >= number and event in NEED_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fsync = os.fsync

    def audited_fsync(descriptor):
        strike("os.fsync", ())
        fsync(descriptor)

    os.fsync = audited_fsync
    sys.addaudithook(strike)
    return lambda: count


def save(module, folder, step, keep, fault, number, result):
    """Prepare, write and commit as a trainer does; the outcome goes to the pipe `result`."""
    store = module.CheckpointStore(folder, keep=keep)
    count = inject(fault, number)
    try:
        store.newest_valid()
        staging = store.begin(step)
        try:
            (staging / "nested").mkdir()
            for name in ("model.safetensors", "nested/state.json"):
                (staging / name).write_text("new")
        except OSError as error:
            raise store.give_up(step, error) from error
        store.commit(step)
        outcome = "saved" if count() >= number else "no fault"
    except module.CheckpointError as error:
        outcome = str(error)
    os.write(result, outcome.encode())


def strike_once(module, folder, step, keep, fault, number):
    receive, result = os.pipe()
    child = os.fork()
    if child == 0:
        save(module, folder, step, keep, fault, number, result)
        sys.exit()
    os.close(result)
    _, status = os.waitpid(child, 0)
    with os.fdopen(receive, "rb") as pipe:
        outcome = pipe.read().decode()
    if os.WIFSIGNALED(status):
        return "killed"
    if status != 0:
        sys.exit(f"a save with the fault {fault!r} at operation {number} raised what it should not")
    return outcome


def main(source, prepared, results, fault, step, keep):
    warnings.simplefilter("error")
    module = load_store(source)
    outcomes = []
    while True:
        folder = Path(results) / str(len(outcomes))
        shutil.copytree(prepared, folder, symlinks=True)
        outcome = strike_once(module, folder, int(step), int(keep), fault, len(outcomes) + 1)
        if outcome == "no fault":
            break
        outcomes.append(outcome)
    print(json.dumps(outcomes))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
