"""Reset a run folder to a checkpoint: find damaged files, and remove what was written later."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vgpo.run.environment import describe_environment
from vgpo.run.folder import SUMMARY, RunFolder, parse_metrics
from vgpo.run.records import FolderState, Resume
from vgpo.run.rollout_log import scan
from vgpo.run.storage import (
    RunFolderError,
    append_records,
    cut_file,
    keep_valid_lines,
    parser_of,
    read_bytes,
    reading,
)
from vgpo.run.suite import damaged_suite_files, drop_suite_files

PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
DESCRIPTION = ("environment.json", "code.diff", "config.yaml")


@dataclass(frozen=True)
class Damage:
    """Damage of a run folder, by a power cut or by hand.

    lost: unrecoverable damage; one sentence each, which begins with the file. repaired: such sentences by file name,
    for files that `resume_folder` and the run write again.
    """

    lost: list[str] = field(default_factory=list)
    repaired: dict[str, str] = field(default_factory=dict)


def folder_state(folder: RunFolder) -> FolderState:
    """The current state of a run folder, for a checkpoint."""
    metrics = read_bytes(folder.metrics_path) if folder.metrics_path.exists() else b""
    return FolderState(
        metrics_bytes=len(metrics),
        metrics_sha256=sha256(metrics),
        rollouts_written=folder.rollouts.written,
        rollouts={str(step): lines for step, lines in folder.rollouts.digests.items()},
        evaluation=folder.read_evaluation(),
    )


def examine(folder: RunFolder, step: int, state: FolderState) -> Damage:
    """Compare a run folder with its state when the checkpoint of a step was saved; nothing is changed."""
    found = (
        damage_of(lambda: metrics_damage(folder, step, state)),
        damage_of(lambda: rollouts_damage(folder, step, state)),
        unreadable(folder.read_resumes),
    )
    return Damage([reason for reason in found if reason], dict(repairable(folder, state)))


def repairable(folder: RunFolder, state: FolderState) -> Iterator[tuple[str, str]]:
    """Names and faults of files that can be written again."""
    reads: dict[Path, Callable[[], object]] = {
        folder.config_path: folder.read_config,
        folder.environment_path: folder.read_environment,
        folder.evaluation_path: folder.read_evaluation,
        folder.finished_path: folder.read_finished,
        folder.interrupted_path: folder.read_interrupted,
    }
    for path, read in reads.items():
        if path.exists() and (reason := unreadable(read)):
            yield path.name, reason
    expected = [folder.path / name for name in DESCRIPTION] + ([folder.evaluation_path] if state.evaluation else [])
    yield from ((path.name, f"{path}: missing") for path in expected if not path.exists())
    yield from ((path.name, f"{reason} It is left out.") for path, reason in damaged_suite_files(folder).items())
    if images := damaged_images(folder):
        found = f"{len(images)} damaged image(s), the first {images[0].name}; reports leave them out"
        yield folder.images_path.name, f"{folder.images_path}: {found}"


def metrics_damage(folder: RunFolder, step: int, state: FolderState) -> str | None:
    if has_metrics(folder, state):
        return None
    path, expected = folder.metrics_path, f"expected the {state.metrics_bytes} bytes that it had at step {step}"
    if not path.exists():
        return f"{path}: missing, {expected}"
    found = path.stat().st_size
    if found < state.metrics_bytes:
        return f"{path}: found {found} bytes, {expected}"
    return f"{path}: found different bytes (the sha256 differs), {expected}"


def has_metrics(folder: RunFolder, state: FolderState) -> bool:
    """Whether metrics.jsonl begins with its content in this state."""
    if not os.path.lexists(folder.metrics_path):
        return state.metrics_bytes == 0
    with reading(folder.metrics_path) as file:
        return sha256(file.read(state.metrics_bytes)) == state.metrics_sha256


def rollouts_damage(folder: RunFolder, step: int, state: FolderState) -> str | None:
    """What is missing from, or changed in, the rollouts up to a step."""
    path = folder.rollouts_path
    expected = {int(one): lines for one, lines in state.rollouts.items()}
    found, broken = scan(path)
    changed = [one for one in found if one <= step and found[one] != expected.get(one)]
    dropped = folder.rollouts.last_dropped
    missing = [one for one in sorted(expected) if one not in found and one > dropped]
    if changed:
        return broken or f"{path}: the rollouts of step {changed[0]} are not those that were written"
    if missing:
        return broken or f"{path}: the rollouts of step {missing[0]} are missing"
    return None


def damaged_images(folder: RunFolder) -> list[Path]:
    """Images without the first or last bytes of a PNG, such as empty or zeroed ones after a power cut."""
    return [path for path in sorted(folder.images_path.glob("*.png")) if path.is_file() and not is_complete_png(path)]


def is_complete_png(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(len(PNG_START))
        file.seek(max(0, path.stat().st_size - len(PNG_END)))
        return start == PNG_START and file.read() == PNG_END


def damage_of(examine_file: Callable[[], str | None]) -> str | None:
    """The result of a check of a file, or that it cannot be read."""
    try:
        return examine_file()
    except RunFolderError as error:
        return str(error)


def unreadable(read: Callable[[], object]) -> str | None:
    """Why a file cannot be read, None if it can."""
    try:
        read()
    except RunFolderError as error:
        return str(error)
    return None


def resume_folder(
    folder: RunFolder,
    step: int,
    state: FolderState | None = None,
    *,
    seed: int,
    command: Sequence[str],
    changes: Sequence[str] = (),
) -> None:
    """Reset a run folder to a checkpoint, and record it in resumes.jsonl.

    This removes metrics and rollouts of later steps, broken lines, the evaluation after training, the marks of a
    finished or interrupted run, and damaged images. Each file is replaced atomically: after a kill, call this again.

    Args:
        folder: of the run.
        step: the optimizer step of the checkpoint, at least 0.
        state: state of the folder when the checkpoint was saved. Default: everything not from a later step.
        seed, command: as in `RunFolder.create`.
        changes: changes since the start of the run, and damage; one text each.

    Raises:
        RunFolderError: there is no run in the folder, or writing failed.
    """
    if not folder.marks:
        raise RunFolderError(f"{folder.path} is not a run folder. Pass the folder written by `vgpo train`.")
    folder.finished_path.unlink(missing_ok=True)
    if state is not None and has_metrics(folder, state):
        cut_file(folder.metrics_path, state.metrics_bytes)
    else:
        keep_valid_lines(folder.metrics_path, parse_metrics, lambda line: line["step"] <= step and SUMMARY not in line)
    folder.rollouts.cut_back(step)
    for image in damaged_images(folder):
        image.unlink()
    drop_suite_files(folder, step)
    if state is not None:
        folder.rollouts.written = state.rollouts_written
    before = evaluation_before(folder, state)
    if before or folder.evaluation_path.exists():
        folder.write_evaluation(before)
    folder.interrupted_path.unlink(missing_ok=True)
    keep_valid_lines(folder.resumes_path, parser_of(Resume), lambda resume: True)
    resumed = {"step": step, "changes": list(changes), **describe_environment(seed, command)}
    append_records(folder.resumes_path, [resumed])


def evaluation_before(folder: RunFolder, state: FolderState | None) -> dict[str, Any]:
    """The evaluation before training: `{"before": {...}}`, or empty."""
    found = {} if unreadable(folder.read_evaluation) else folder.read_evaluation() or {}
    kept = state.evaluation if state and state.evaluation else {}
    return {name: scores for name, scores in {**kept, **found}.items() if name != "after"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
