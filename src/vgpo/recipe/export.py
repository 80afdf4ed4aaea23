"""Export plain checkpoints from runs and adapters: weights, config and processor, without trainer state."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from vgpo.checkpoints import MANIFEST, CheckpointError, CheckpointStore, strict_difference, weight_hash
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.identity import processor_identity
from vgpo.recipe.loading import PlainCheckpoint, faults_of, load_model, load_processor, source_of
from vgpo.run import RunFolder, RunFolderError
from vgpo.run.outputs import is_run
from vgpo.run.storage import bring_to_disk

ERRORS = (RecipeError, RunFolderError, CheckpointError)
WHICH = ("final", "last", "best")
NUM_LINES = 10  # number of metrics.jsonl lines up to a checkpoint's step that are averaged to rank it
SHOWN = 5


@dataclass(frozen=True)
class Chosen:
    """A checkpoint to export, and a message about the choice."""

    checkpoint: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Written:
    """A plain checkpoint that was written and verified; `str()` describes it.

    num_bytes: size of all its files.
    """

    out: Path
    source: str
    what: str
    num_files: int
    num_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.source} to {self.out}: {self.what}; {self.num_files} files, {self.num_bytes / 1e6:,.1f} MB, "
            "loaded back and equal to the last bit"
        )


def choose(source: str, which: str | None) -> Chosen:
    """The checkpoint of a run selected by `which`; any source other than a run folder is a checkpoint itself.

    Args:
        source: a run folder, a checkpoint folder, or a hub name.
        which: final, last or best; None is final. For run folders only.

    Raises:
        RecipeError: An invalid value, or `which` for something that is not a run.
        RunFolderError: The run has no such checkpoint, or the checkpoint is damaged.
    """
    if which not in (None, *WHICH):
        raise RecipeError(f"--which {which}: expected one of {', '.join(WHICH)}")
    if not is_run(Path(source)):
        if which is not None:
            raise RecipeError(
                f"--which {which} chooses among the checkpoints of a run, but {source} is not a run folder"
            )
        return Chosen(intact(Path(source), "Take another checkpoint"))
    folder = RunFolder(Path(source))
    return {"final": final_of, "last": last_of, "best": best_of}[which or "final"](folder)


def final_of(folder: RunFolder) -> Chosen:
    """The final weights, verified.

    Raises:
        RunFolderError: They are missing or damaged.
    """
    path = folder.final_path
    if not path.is_dir():
        raise RunFolderError(
            f"{path} does not exist: the run has not finished. `--which last` takes its newest intact checkpoint"
        )
    return Chosen(intact(path, "`--which last` takes the newest intact checkpoint"))


def intact(path: Path, fix: str) -> str:
    """A checkpoint whose files match its manifest, if it has one.

    Raises:
        RunFolderError: They do not match.
    """
    damage = CheckpointStore.verify(path, more=True) if (path / MANIFEST).exists() else None
    if damage is not None:
        raise RunFolderError(f"{path} is damaged: {damage}. {fix}")
    return str(path)


def last_of(folder: RunFolder) -> Chosen:
    """The newest intact checkpoint, and a note on each skipped newer one.

    Raises:
        RunFolderError: There is none.
    """
    found = CheckpointStore(folder.checkpoints_path, keep=None).newest_valid()
    notes = [f"skipped: {name}: {reason}" for name, reason in found.passed_over]
    if found.path is None:
        raise no_checkpoint(folder, notes)
    return Chosen(str(found.path), notes)


def best_of(folder: RunFolder) -> Chosen:
    """The intact checkpoint with the highest mean rollout accuracy up to its step; the later one of equals.

    The mean is over the last `NUM_LINES` lines of metrics.jsonl up to the step. Runs without an accuracy reward are
    ranked by reward.

    Raises:
        RunFolderError: There is no intact checkpoint, or no metric of one was logged.
    """
    store = CheckpointStore(folder.checkpoints_path, keep=None)
    damage = {step: store.verify(store.path(step)) for step in store.steps()}
    notes = [f"skipped: {store.path(step).name}: {reason}" for step, reason in damage.items() if reason]
    steps = [step for step, reason in damage.items() if reason is None]
    if not steps:
        raise no_checkpoint(folder, notes)
    accuracy = folder.read_config().get("accuracy_reward")
    metric = "reward" if accuracy is None else f"rewards/{accuracy}/mean"
    lines = [(line["step"], line[metric]) for line in folder.read_metrics() if line.get(metric) is not None]
    means = {
        step: fmean(values)
        for step in sorted(steps, reverse=True)
        if (values := [value for logged, value in lines if logged <= step][-NUM_LINES:])
    }
    if not means:
        raise RunFolderError(
            f"{folder.metrics_path} has no {metric!r} up to step {max(steps)}, so the best checkpoint is unknown. "
            "`--which last` takes the newest"
        )
    best = max(means, key=means.__getitem__)  # the first of equal ones is the newest
    listed = ", ".join(f"{mean:.3f} at step {step}" for step, mean in means.items())
    return Chosen(str(store.path(best)), [*notes, f"{metric}, mean of up to {NUM_LINES} logged lines: {listed}"])


def no_checkpoint(folder: RunFolder, notes: Sequence[str]) -> RunFolderError:
    listed = "".join(f"\n  {note}" for note in notes)
    return RunFolderError(
        f"{folder.checkpoints_path} contains no intact checkpoint; `--which final` takes the final weights{listed}"
    )


def refuse_full_weights(checkpoint: str) -> None:
    """Check that a checkpoint is an adapter.

    Raises:
        RecipeError: It is not.
    """
    with faults_of(repr(checkpoint)):
        is_adapter = source_of(PlainCheckpoint(checkpoint)).adapter_config is not None
    if not is_adapter:
        raise RecipeError(
            f"{checkpoint} is not an adapter: it has no adapter_config.json. Name the folder that has one, such as "
            "RUN/checkpoints/final; `vgpo export` writes full weights"
        )


def write_plain(checkpoint: str, out: Path, *, dtype: str = "auto") -> Written:
    """Write a checkpoint in transformers' format, with an adapter merged into its base.

    It is written next to `out` under a temporary name, loaded back, compared, and then renamed.

    Args:
        checkpoint: a folder or a hub name.
        out: a folder that does not exist or is empty.
        dtype: dtype of the weights; auto keeps that of the checkpoint.

    Raises:
        RecipeError: `out` exists, the checkpoint cannot be loaded, writing failed, or the written checkpoint differs
        from the loaded one. Nothing is left at `out`.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise RecipeError(f"{out} already exists; name a new or an empty folder")
    place = out.absolute()
    source = PlainCheckpoint(checkpoint, dtype)
    processor = load_processor(source, trust_remote_code=False, min_pixels=None, max_pixels=None)
    model = load_model(source, trust_remote_code=False)
    number = sum(weight.numel() for weight in model.parameters())
    what = f"{type(model).__name__}, {number / 1e6:,.1f} M parameters in {str(model.dtype).removeprefix('torch.')}"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as scratch:
            folder = Path(scratch) / place.name
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            weights, identity = digests(model), processor_identity(processor)
            del model  # free memory before the written one is loaded
            check_written(folder, weights, identity)
            files = [file for file in folder.rglob("*") if file.is_file()]
            num_bytes = sum(file.stat().st_size for file in files)
            for file in (*files, folder):
                bring_to_disk(file)
            folder.rename(place)
            bring_to_disk(place.parent)
    except RecipeError:
        raise
    except (OSError, SafetensorError, ValueError) as error:
        raise RecipeError(f"{out} could not be written: {error}. Correct that, or name another folder") from error
    return Written(out, checkpoint, what, len(files), num_bytes)


def digests(model: PreTrainedModel) -> dict[str, str]:
    """A hash of each tensor of a model: name, dtype, shape and bytes."""
    return {name: weight_hash([(name, tensor)]) for name, tensor in model.state_dict().items()}


def check_written(folder: Path, weights: dict[str, str], identity: dict[str, Any]) -> None:
    """Load the written checkpoint, and compare all tensors and settings.

    Raises:
        RecipeError: A tensor or a setting of the processor differs; names some.
    """
    source = PlainCheckpoint(str(folder))
    found = digests(load_model(source, trust_remote_code=False))
    processor = load_processor(source, trust_remote_code=False, min_pixels=None, max_pixels=None)
    settings = processor_identity(processor)
    difference = strict_difference(weights, found)
    changed = [name for name in weights if name in found and weights[name] != found[name]]
    changed += [name for name in identity if settings.get(name) != identity[name]]
    if difference or changed:
        what = difference or f"{', '.join(changed[:SHOWN])} changed"
        raise RecipeError(
            f"the written checkpoint does not load unchanged: {what}. Use a version of transformers that loads it"
        )
