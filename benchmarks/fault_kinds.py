"""The kinds of faults: each starts a run, lets a fault strike it, says what it did, and resumes."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from benchmarks import faulty_run
from benchmarks.fault_lab import STEPS, TIMED, LostError, Trial, expect, last_words, read_lines, text_of

from vgpo.metric_names import GRADER_TIMEOUTS, GUARD_SKIPPED_STEPS

DISK_BYTES = 256 << 20
FILLER = "filler"
FULL = ("No space left on device", "File too large")
FREE = re.compile(r"\(([0-9,]+) bytes were free on this disk\)")
BAD_VALUES = (
    ("learning_rate", "nan"), ("learning_rate", "0"), ("learning_rate", "1e30"), ("learning_rate", "-1e-6"),
    ("reward_weights", "nan"), ("reward_weights", "0"), ("max_grad_norm", "nan"), ("save_steps", "0"),
    ("temperature", "inf"), ("max_steps", "1e3"), ("max_steps", str(10**40)), ("seed", "-1"), ("beta", "-0.1"),
    ("adam_beta1", "1"), ("num_generations", "-8"), ("weight_decay", "inf"), ("logging_steps", "-1"),
    ("max_rollout_bytes", "0"), ("template", "x" * 5000), ("train_data", "x" * 5000),
)  # fmt: skip
LOGGING = {
    "lines of 3 steps, rollouts of 2": ("--logging_steps", "3", "--log_rollouts_steps", "2", "--save_steps", "3"),
    "a line an epoch": ("--logging_strategy", "epoch", "--logging_first_step", "true", "--save_steps", "1"),
    "no lines": ("--logging_strategy", "no", "--save_steps", "2"),
    "few rollouts kept": ("--max_rollout_bytes", "150000", "--log_rollouts_groups", "2", "--save_steps", "2"),
    "lines of 5 steps, a checkpoint an epoch": ("--logging_steps", "5", "--save_strategy", "epoch"),
}


def kill(trial: Trial) -> None:
    """At a random moment, from the first second to the writing of the final weights."""
    trial.strike(signal.SIGKILL, range(STEPS + 2)).should_end_with(-signal.SIGKILL)
    trial.resume()


def kill_in_save(trial: Trial) -> None:
    """Before a random change of the file system inside a save, up to the deletion of older checkpoints."""
    operations = json.loads(trial.lab.counts(trial.training_seed).read_text())
    save = trial.draw.randrange(1, STEPS + 1)
    operation = trial.draw.randrange(1, operations[save - 1] + 1)
    trial.said = f"SIGKILL in save {save}, before change {operation} of {operations[save - 1]}"
    trial.start(fault=partial(faulty_run.die_in_save, save, operation)).should_end_with(-signal.SIGKILL)
    newest = trial.store.newest_valid().step or 0
    expect(newest in (save - 1, save), f"the newest usable checkpoint is {newest}, expected {save - 1} or {save}")
    trial.resume()


def truncate(trial: Trial) -> None:
    """After a kill, a random file of the newest checkpoint is cut, deleted, or has one bit flipped.

    If it is the only one, the resume must refuse to start over, and so it must once that checkpoint is removed: only
    without the complete run folder it starts from step 0.
    """
    trial.strike(signal.SIGKILL, range(4, STEPS + 1)).should_end_with(-signal.SIGKILL)
    newest = trial.store.newest_valid().path
    if newest is None:
        raise LostError("no usable checkpoint after a kill")
    trial.said += f"; {newest.name}: {damage(newest, trial.draw)}"
    if trial.store.newest_valid().path is None:
        trial.must_refuse(f"  {newest.name}: ")
        shutil.rmtree(newest)
        trial.must_refuse(f"holds no checkpoint, although {newest.name} was saved")
        shutil.rmtree(trial.run)
        trial.resume()
        return
    trial.resume()
    expect(f"skipped: {newest.name}" in text_of(trial.logs / "resumed.txt"), "the damage was not noticed")


def full_disk(trial: Trial) -> None:
    """The disk fills up, but for a random rest that holds no checkpoint; then space is freed."""
    weights = trial.lab.clean(trial.training_seed) / "checkpoints" / "final" / "model.safetensors"
    line, free = trial.draw.randrange(1, STEPS), trial.draw.randrange(weights.stat().st_size)
    with on_small_disk(trial) as disk:
        launch = trial.start()
        launch.wait_for_lines(line)
        if disk:
            fill(disk, free)
        else:
            resource.prlimit(launch.pid, resource.RLIMIT_FSIZE, (free, free))
        trial.said = f"{'a tmpfs' if disk else 'files limited,'} with {free} bytes left after line {line}"
        launch.should_end_with(2)
        words = text_of(launch.log)
        # A writer in C++ does not say why, and then the number of free bytes has to.
        named = [int(number.replace(",", "")) <= free for number in FREE.findall(words)]
        expect("error: " in words and any([*named, *(reason in words for reason in FULL)]), last_words(launch.log))
        if disk:
            (disk / FILLER).unlink()
        trial.resume()


def hanging_grader(trial: Trial) -> None:
    """The check of one answer more, in a random batch, takes hours; the run goes on, and nothing is resumed."""
    batch = trial.draw.randrange(1, 5)
    trial.said = f"an answer whose check takes hours in batch {batch}"
    trial.may_differ = (*TIMED, GRADER_TIMEOUTS)
    trial.start(fault=partial(faulty_run.hang_grader, batch)).should_end_with(0)
    hung = [line.get(GRADER_TIMEOUTS, 0.0) for line in read_lines(trial.run / "metrics.jsonl")]
    expect(max(hung) > 0, "no check was timed out")


def nan_gradient(trial: Trial) -> None:
    """A NaN in the gradient of a random step, which is skipped and counted; the run is killed and resumed too."""
    step = trial.draw.randrange(STEPS)
    trial.planted = partial(faulty_run.plant_nan, step)
    trial.reference = trial.run.with_name(f"{trial.run.name}-clean")
    log = trial.logs / "clean.txt"
    trial.lab.launch(trial.reference, trial.training_seed, log, fault=trial.planted).should_end_with(0)
    skipped = max(line.get(GUARD_SKIPPED_STEPS, 0) for line in read_lines(trial.reference / "metrics.jsonl"))
    expect(skipped == 1, f"{skipped} steps were skipped, expected 1")
    trial.said = f"NaN in the gradient of step {step + 1}; "
    trial.strike(signal.SIGKILL, range(1, STEPS + 1)).should_end_with(-signal.SIGKILL)
    trial.resume()


def drop_worker(trial: Trial) -> None:
    """One of two processes is killed; the launch ends, and two go on."""
    trial.processes, rank = 2, trial.draw.randrange(2)
    trial.reference = trial.lab.clean(trial.training_seed, processes=2)
    line, seconds = trial.moment(range(1, STEPS))
    trial.said = f"SIGKILL to process {rank} of 2 {seconds:.2f} s after line {line}"
    launch = trial.start()
    launch.wait_for_lines(line, seconds)
    os.kill(int(text_of(trial.logs / f"worker-{rank}.pid")), signal.SIGKILL)
    launch.should_end_with(1)
    trial.resume()


def sigterm(trial: Trial) -> None:
    """At a random moment of training: the step is finished and saved, and the exit status is 143."""
    trial.strike(signal.SIGTERM, range(1, STEPS)).should_end_with(128 + signal.SIGTERM)
    found, last = trial.store.newest_valid().step, read_lines(trial.run / "metrics.jsonl")[-1]["step"]
    expect(found == last, f"the newest usable checkpoint is of step {found}, the last line of step {last}")
    trial.resume()


def power_cut(trial: Trial) -> None:
    """After a kill, a file of the run folder is missing, empty or full of zeros, as a power cut leaves it.

    What the run can write again must be named; anything else must be refused until it is restored.
    """
    trial.strike(signal.SIGKILL, range(2, STEPS + 1)).should_end_with(-signal.SIGKILL)
    begun = trial.store.newest_valid().path is not None
    image = trial.draw.choice(sorted((trial.run / "images").iterdir()))
    files = [path for path in sorted(trial.run.iterdir()) if path.is_file() and path.stat().st_size]
    path, way = trial.draw.choice([*files, image]), trial.draw.choice(("missing", "empty", "zeros"))
    content = path.read_bytes()
    path.unlink() if way == "missing" else path.write_bytes(b"" if way == "empty" else bytes(len(content)))
    trial.said += f"; {path.relative_to(trial.run)} {way}"
    if path.name in (("metrics.jsonl", "rollouts.jsonl") if begun else ("run_identity.json",)):
        trial.must_refuse(path.name)
        path.write_bytes(content)
    trial.resume()
    if path.name in ("config.yaml", "environment.json") or (path == image and way != "missing"):
        name = path.parent.name if path == image else path.name
        expect(f"repaired: {trial.run / name}: " in text_of(trial.logs / "resumed.txt"), "the damage was not named")


def second_trainer(trial: Trial) -> None:
    """The same command is started again while it runs; it is refused, and nothing is resumed."""
    line, seconds = trial.moment(range(1, STEPS - 2))
    trial.said = f"a second start {seconds:.2f} s after line {line}"
    launch = trial.start()
    launch.wait_for_lines(line, seconds)
    trial.must_refuse("is in use by another training process", changes_nothing=False)
    launch.should_end_with(0)


def misbehaving_reward(trial: Trial) -> None:
    """A reward exits, forks, changes the folder or loses the standard output, in a random batch."""
    deed, batch = trial.draw.choice(sorted(faulty_run.DEEDS)), trial.draw.randrange(1, 5)
    trial.said = f"{deed} in batch {batch}"
    launch = trial.start(fault=partial(faulty_run.misbehave, batch, deed))
    if deed not in faulty_run.ENDING_DEEDS:
        launch.should_end_with(0)
        return
    launch.should_end_with(2)
    expect("reward 'accuracy_reward'" in text_of(launch.log), f"the reward was not named: {last_words(launch.log)}")
    trial.resume()


def changed_run(trial: Trial) -> None:
    """After a kill, a resume with other settings or data is refused; the same data in another place is not."""
    trial.strike(signal.SIGKILL, range(2, STEPS + 1)).should_end_with(-signal.SIGKILL)
    name, words = trial.draw.choice(trial.lab.changes)
    trial.said += f"; {name} changed"
    trial.must_refuse(f"{name} was ", *words)
    trial.words = ["--train_data", str(trial.lab.moved_data)]
    trial.resume()


def lost_log(trial: Trial) -> None:
    """The standard output and error cannot be written any more, from the start or a random moment on."""
    seconds = trial.draw.choice((0.0, 2 + 6 * trial.draw.random()))
    trial.said = f"a full disk under the log after {seconds:.1f} s"
    trial.start(fault=partial(faulty_run.lose_log, seconds)).should_end_with(0)


def dying_grader(trial: Trial) -> None:
    """The grader's server, or a worker while it starts, is killed in a random batch; nothing is resumed."""
    part, batch = trial.draw.choice(("server", "worker")), trial.draw.randrange(1, 5)
    trial.said = f"SIGKILL to the grader's {part} in batch {batch}"
    trial.start(fault=partial(faulty_run.kill_grader, batch, part)).should_end_with(0)


def bad_value(trial: Trial) -> None:
    """After a kill, a resume with a value that makes no sense is refused in one line."""
    trial.strike(signal.SIGKILL, range(2, STEPS + 1)).should_end_with(-signal.SIGKILL)
    name, value = trial.draw.choice(BAD_VALUES)
    trial.said += f"; {name}: {value}"
    said = trial.must_refuse(name, f"--{name}={value}")
    expect(said.count("\n") == 1, f"more than one line: {said}")
    trial.resume()


def hostile_file(trial: Trial) -> None:
    """After a kill, a resume with an image that must not be read is refused, and does not hang."""
    trial.strike(signal.SIGKILL, range(2, STEPS + 1)).should_end_with(-signal.SIGKILL)
    name = trial.draw.choice(sorted(trial.lab.hostile_data))
    trial.said += f"; {name}"
    trial.must_refuse("row 0, field 'images'", "--train_data", str(trial.lab.hostile_data[name]))
    trial.resume()


def logging_settings(trial: Trial) -> None:
    """Killed after a random checkpoint, with lines and rollouts that do not keep step with checkpoints."""
    name = trial.draw.choice(sorted(LOGGING))
    trial.words = [*LOGGING[name]]
    trial.reference = trial.run.with_name(f"{trial.run.name}-clean")
    log = trial.logs / "clean.txt"
    trial.lab.launch(trial.reference, trial.training_seed, log, *trial.words).should_end_with(0)
    steps = trial.lab.steps_saved(trial.reference)
    saved, seconds = trial.draw.choice(steps), 0.5 * trial.draw.random()
    while not trial.killed_after_save(saved, seconds):  # on a fast machine it ends in that time
        expect(seconds > 0.001, "it had ended before")
        saved, seconds = min(steps), seconds / 3
    trial.said = f"{name}; SIGKILL {seconds:.2f} s after checkpoint-{saved}"
    trial.resume()


def unwritable_report(trial: Trial) -> None:
    """The report cannot be written; the run goes on and ends as one that is finished."""
    (trial.run / "report.html" / "in the way").mkdir(parents=True)
    trial.said = "a folder has the name of the report"
    trial.start().should_end_with(0)
    expect((trial.run / "finished.json").is_file(), "the run is not marked as finished")


def damage(checkpoint: Path, draw: random.Random) -> str:
    """Cut, delete or flip a bit of a random file; says which."""
    path = draw.choice(sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size))
    content = bytearray(path.read_bytes())
    place, way = draw.randrange(len(content)), draw.choice(("cut", "deleted", "flipped"))
    if way == "deleted":
        path.unlink()
        return f"{path.name} deleted"
    if way == "cut":
        path.write_bytes(content[:place])
        return f"{path.name} cut after {place} of {len(content)} bytes"
    content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f"{path.name} with a bit of byte {place} flipped"


@contextmanager
def on_small_disk(trial: Trial) -> Iterator[Path | None]:
    """The run's folder on a tmpfs, and a copy of it in its place afterwards; None where nobody may mount one."""
    place, disk = trial.run, trial.lab.folder / "disk"
    disk.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    trial.run = disk / place.name
    try:
        yield disk
    finally:
        shutil.copytree(trial.run, place)
        trial.run = place
        subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, free: int) -> None:
    """Fill a disk that is written to, but for so many bytes."""
    with (disk / FILLER).open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(1 << 20)):
                pass
        file.truncate(max(0, file.tell() - free))


KINDS: dict[str, Callable[[Trial], None]] = {
    kind.__name__: kind
    for kind in (
        kill, kill_in_save, truncate, full_disk, hanging_grader, nan_gradient, drop_worker, sigterm, power_cut,
        second_trainer, misbehaving_reward, changed_run, lost_log, dying_grader, bad_value, hostile_file,
        logging_settings, unwritable_report,
    )
}  # fmt: skip
