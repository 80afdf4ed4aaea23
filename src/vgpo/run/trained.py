"""The run that a checkpoint belongs to, and the settings it was trained with."""

from pathlib import Path
from typing import Any

from vgpo.run.folder import RunFolder

# For a checkpoint without a run.
DEFAULTS = {"template": "plain", "max_completion_length": 2048, "chat_template_kwargs": None}


def trained_settings(checkpoint: Path) -> dict[str, Any]:
    """Template, response length and arguments of the chat template that a checkpoint was trained with."""
    found = config_of_checkpoint(checkpoint)
    return {name: found.get(name, default) for name, default in DEFAULTS.items()}


def config_of_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """`config.yaml` of the run of a checkpoint, RUN/checkpoints/CHECKPOINT; empty if it has no run.

    Raises:
        RunFolderError: the file is broken.
    """
    run = run_of_checkpoint(checkpoint)
    return RunFolder(run).read_config() if run else {}


def run_of_checkpoint(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint belongs to, also through links; None if there is none."""
    # `checkpoints` may be a link to another disk, and the checkpoint a link to one of a run.
    runs = [place.parent.parent for place in (checkpoint.absolute(), checkpoint.resolve())]
    return next((run for run in runs if checkpoint.is_dir() and (run / "config.yaml").is_file()), None)
