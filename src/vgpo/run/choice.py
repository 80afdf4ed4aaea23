"""What a folder that a command is given stands for: a checkpoint, a run and the checkpoint of it, or several runs."""

from collections.abc import Iterator
from pathlib import Path

from vgpo.places import TOY_MODEL, checkpoint_fault, is_folder
from vgpo.run.folder import RunFolder
from vgpo.run.outputs import OWN_FOLDERS, is_run
from vgpo.run.storage import RunFolderError

MAX_DEPTH = 4  # of a run below the folder of a study: runs/SETTING/METHOD/seed-N
NUM_SHOWN = 20  # runs in a message


def newest_checkpoint(folder: Path) -> tuple[int, float] | None:
    """Step and time of the newest checkpoint with a manifest, which is what is written last into one."""
    manifests = [
        (path.parent.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*/manifest.json")
    ]
    complete = [(int(step), path) for step, path in manifests if step.isdecimal()]
    if not complete:
        return None
    step, path = max(complete)
    try:
        return step, path.stat().st_mtime
    except FileNotFoundError:  # deleted in between; the next call finds the one that took its place
        return None


def checkpoint_of(source: str) -> tuple[str, str | None]:
    """The checkpoint that a command's argument stands for, and for a run folder a note of which that is.

    A run folder stands for its final weights, or else for its newest checkpoint.

    Raises:
        RunFolderError: The folder is not there, holds several runs, or a run without a checkpoint.
    """
    folder = Path(source)
    if source == TOY_MODEL or not is_folder(source):
        if source != TOY_MODEL and (fault := checkpoint_fault(source)):
            raise RunFolderError(fault)
        return source, None
    run = folder.parent if folder.name == "checkpoints" and is_run(folder.parent) else folder
    if not is_run(run):
        if not any(folder.glob("*config.json")) and (runs := list(runs_below(folder))):
            run = only_run(folder, runs)
        else:
            return source, None
    chosen = final_or_newest(RunFolder(run))
    kind = "final weights" if chosen.name == "final" else "newest checkpoint; there are no final weights"
    return str(chosen), f"checkpoint: {chosen} ({kind})"


def final_or_newest(run: RunFolder) -> Path:
    """The final weights of a run, or else its newest checkpoint.

    Raises:
        RunFolderError: It has neither.
    """
    if run.final_path.is_dir():
        return run.final_path
    newest = newest_checkpoint(run.checkpoints_path)
    if newest is None:
        raise RunFolderError(f"{run.path} is a run without a checkpoint; name a checkpoint folder or another run")
    return run.checkpoints_path / f"checkpoint-{newest[0]}"


def runs_below(folder: Path, depth: int = MAX_DEPTH) -> Iterator[Path]:
    """The run folders in a folder that is not a run itself, such as that of a quickstart or of a study, in order."""
    for place in sorted(folder.iterdir()) if depth else ():
        if place.name.startswith(".") or place.name in OWN_FOLDERS or not place.is_dir():
            continue
        if is_run(place):
            yield place
        else:
            yield from runs_below(place, depth - 1)


def only_run(folder: Path, runs: list[Path]) -> Path:
    """The run in a folder that holds one.

    Raises:
        RunFolderError: It holds several; lists them.
    """
    if len(runs) == 1:
        return runs[0]
    listed = [f"  {run}" for run in runs[:NUM_SHOWN]]
    listed += [f"  and {len(runs) - NUM_SHOWN} more"] if len(runs) > NUM_SHOWN else []
    raise RunFolderError("\n".join([f"{folder} holds {len(runs)} runs; name one of them:", *listed]))


def run_in(folder: Path) -> Path:
    """The run folder that a folder stands for: itself, or the only one in it.

    Raises:
        RunFolderError: It holds several.
    """
    if is_run(folder) or not folder.is_dir():
        return folder
    runs = list(runs_below(folder))
    return only_run(folder, runs) if runs else folder
