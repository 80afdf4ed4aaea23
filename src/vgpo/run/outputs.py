"""Check output paths of commands against files of runs."""

from pathlib import Path

from vgpo.run.storage import RunFolderError

OLD_INTERRUPTED = "broken_off.json"  # interrupted.json in versions before 0.2
OWN_FOLDERS = ("checkpoints", "images", "data")
# Of `vgpo train`, and of a study's run.
OWN_FILES = (
    "config.yaml", "environment.json", "code.diff", "metrics.jsonl", "rollouts.jsonl", "resumes.jsonl",
    "evaluation.json", "parity.json", "run_identity.json", "newest_checkpoint.json", "interrupted.json",
    OLD_INTERRUPTED, "finished.json", "rollouts_dropped.json", ".lock", "recipe.yaml", "probe.json",
    "usage.json", "done.json", "log.txt",
)  # fmt: skip


def check_not_of_a_run(path: Path) -> None:
    """Check that a command may write `path`: it is not a file of a run.

    Raises:
        RunFolderError: it belongs to a run folder, at any depth; names the folder.
    """
    real = path.resolve()
    for folder in real.parents:
        name = real.relative_to(folder).parts[0]
        if name in (*OWN_FILES, *OWN_FOLDERS) and is_run(folder):
            raise RunFolderError(
                f"{path} belongs to the run in {folder}, which would lose it or could no longer be resumed. Write "
                f"to another file, such as {folder / 'report.html'}, or move it away first."
            )


def is_run(folder: Path) -> bool:
    """Whether a folder contains the description or the metrics of a run."""
    described = (folder / "config.yaml").is_file() and (folder / "environment.json").is_file()
    return described or (folder / "metrics.jsonl").is_file()


def check_writable(out: Path) -> None:
    """Create the folder of `out` and open it, before a command starts computing; existing content is kept.

    Raises:
        RunFolderError: it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        is_new = not out.exists()
        out.open("a").close()
        if is_new:
            out.unlink()
    except OSError as error:
        raise RunFolderError(
            f"--out {out}: {error.strerror}; name a file in a folder that can be written to"
        ) from error
