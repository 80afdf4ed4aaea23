"""The state of a shaping in a verl checkpoint."""

from pathlib import Path

from vgpo.checkpoints import CheckpointError
from vgpo.run.storage import read_object, to_json, write_file
from vgpo.shaping import Shaping

FILE = "vgpo_shaping.json"


def save_shaping_state(state_folder: Path, shaping: Shaping) -> None:
    """Write the state of a shaping into a checkpoint's folder; nothing if it has none."""
    if state := shaping.state_dict():
        write_file(state_folder / FILE, to_json(state) + b"\n")


def load_shaping_state(state_folder: Path, shaping: Shaping) -> None:
    """Restore what `save_shaping_state` wrote.

    Raises:
        CheckpointError: the shaping has a state, and the checkpoint has none.
        RunFolderError: the file is damaged.
    """
    if not shaping.state_dict():
        return
    if not (state_folder / FILE).exists():
        raise CheckpointError(
            f"{state_folder} lacks {FILE}, the state of the shaping: the run was killed while it saved, or had "
            "another shaping. Remove this folder to resume from the checkpoint before it, or begin a new run."
        )
    shaping.load_state_dict(read_object(state_folder / FILE))
