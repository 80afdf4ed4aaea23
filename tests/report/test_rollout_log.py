"""A log that stays below its limit, holds nothing in memory, and is cut back when a run is resumed."""

import contextlib
import errno
import gc
import json
import os
import random
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from tests.report.run_records import LINE_0_1, evaluation, fill, handed_over, rollout
from vgpo.report import report_data
from vgpo.run import RunFolder, RunFolderError, examine, folder_state, resume_folder, storage
from vgpo.run.records import FolderState
from vgpo.run.storage import append_records

LIMIT = 40_000


def noise(seed: int, side: int = 20) -> Image.Image:
    """An image that no format makes smaller, and that differs from that of every other seed."""
    return Image.frombytes("L", (side, side), bytes((seed * 7919 + 31 * i * i) % 256 for i in range(side * side)))


def num_bytes(folder: RunFolder) -> int:
    return sum(path.stat().st_size for path in [folder.rollouts_path, *folder.images_path.iterdir()])


def bounded(make_run, limit: int = LIMIT) -> RunFolder:
    return RunFolder(make_run().path, max_rollout_bytes=limit)


def test_the_oldest_rollouts_go_and_their_pictures_with_them(make_run):
    folder = bounded(make_run)
    for step in range(1, 101):
        folder.write_rollouts(*handed_over([rollout(step, images=[noise(step)])]))
        assert num_bytes(folder) <= LIMIT
    records = list(folder.read_rollouts())
    steps = [record.step for record in records]
    assert steps == list(range(steps[0], 101))
    assert len(steps) > 10
    assert num_bytes(folder) > LIMIT / 4
    assert {name for record in records for name in record.media} == {
        f"images/{path.name}" for path in folder.images_path.iterdir()
    }


def test_a_picture_that_a_kept_record_names_stays(make_run):
    folder = bounded(make_run, 10_000)
    for step in range(1, 101):
        folder.write_rollouts(*handed_over([rollout(step, images=[noise(0)])]))
        assert [f"images/{path.name}" for path in folder.images_path.iterdir()] == next(folder.read_rollouts()).media


def test_the_newest_record_stays_however_large(make_run):
    folder = bounded(make_run)
    folder.write_rollouts(*handed_over([rollout(1, images=[])]))
    folder.write_rollouts(*handed_over([rollout(2, images=[], completion="x" * 2 * LIMIT)]))
    assert [record.step for record in folder.read_rollouts()] == [2]


def test_what_earlier_processes_wrote_is_counted(make_run):
    path = make_run().path
    for step in range(1, 101):
        RunFolder(path, max_rollout_bytes=LIMIT).write_rollouts(*handed_over([rollout(step, images=[noise(step)])]))
    assert num_bytes(RunFolder(path)) <= LIMIT


def test_a_rotation_that_is_killed_loses_nothing(make_run, monkeypatch: pytest.MonkeyPatch):
    folder = bounded(make_run)
    folder.write_rollouts(*handed_over([rollout(step, images=[noise(step)]) for step in range(1, 20)]))
    before = {path: path.read_bytes() for path in [folder.rollouts_path, *folder.images_path.iterdir()]}

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killing:
        killing.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.rollouts.cut_back(3)
    assert all(path.read_bytes() == content for path, content in before.items())
    with monkeypatch.context() as killing:
        killing.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.rollouts.cut_back(3)
    records = list(folder.read_rollouts())
    assert [record.step for record in records] == [1, 2, 3]
    assert all((folder.path / name).is_file() for record in records for name in record.media)


def test_a_full_disk_in_the_midst_of_a_rotation_leaves_the_log(make_run, monkeypatch: pytest.MonkeyPatch):
    folder = bounded(make_run)
    folder.write_rollouts(*handed_over([rollout(step, images=[]) for step in range(1, 20)]))
    before = folder.rollouts_path.read_bytes()
    whole = storage.write_all

    def write_all(path: Path, data: bytes, append: bool = False) -> None:
        whole(path, data[:500], append)
        if len(data) > 500:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "write_all", write_all)
    with pytest.raises(RunFolderError, match=r"rollouts\.jsonl could not be written: No space left"):
        folder.rollouts.cut_back(10)
    assert folder.rollouts_path.read_bytes() == before
    assert not list(folder.path.glob(".*.partial"))


def test_resuming_cuts_back_to_the_checkpoint(make_run):
    path = fill(make_run(), 6).path
    RunFolder(path).write_evaluation({"before": evaluation(0.4, 0.3, 0.5), "after": evaluation(0.6, 0.5, 0.7)})
    folder = RunFolder.open(path)
    resume_folder(folder, 4, seed=3, command=["vgpo", "train"], changes=["rewards: a -> b"])

    assert [line["step"] for line in folder.read_metrics()] == [1, 2, 3, 4]
    assert sorted({record.step for record in folder.read_rollouts()}) == [1, 2, 3, 4]
    assert len(list(folder.images_path.iterdir())) == 4
    assert list(folder.read_evaluation()) == ["before"]
    [resumed] = folder.read_resumes()
    assert (resumed.step, resumed.changes, resumed.command) == (4, ["rewards: a -> b"], ["vgpo", "train"])
    assert resumed.started.endswith("+00:00")
    assert resumed.versions == folder.read_environment().versions

    fill(folder, 2)
    resume_folder(RunFolder(path), 1, seed=3, command=[])
    assert [line["step"] for line in folder.read_metrics()] == [1, 1]
    assert report_data([path])["runs"][0]["resumed_from"] == [4, 1]


def test_a_run_resumed_from_its_end_is_left_as_it_was(make_run):
    folder = fill(make_run(), 3)
    files = [folder.metrics_path, folder.rollouts_path]
    before = [(file.stat().st_ino, file.read_bytes()) for file in files]
    resume_folder(folder, 3, seed=0, command=[])
    assert [(file.stat().st_ino, file.read_bytes()) for file in files] == before
    assert folder.read_evaluation() is None


def test_the_line_that_summed_up_a_training_goes(make_run):
    folder = fill(make_run(), 3)
    before = folder.read_metrics()
    folder.log_metrics({"step": 3, "train_runtime": 1.0, "train_loss": 0.5})
    resume_folder(folder, 3, seed=0, command=[])
    assert folder.read_metrics() == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts.jsonl"])
def test_an_unfinished_line_goes_too(make_run, name: str):
    folder = fill(make_run(), 2)
    whole = (folder.path / name).read_bytes()
    with (folder.path / name).open("ab") as file:
        file.write(b'{"step": 2, "imag')
    resume_folder(folder, 2, seed=0, command=[])
    assert (folder.path / name).read_bytes() == whole


def test_a_folder_without_a_run_is_not_resumed(tmp_path: Path):
    with pytest.raises(RunFolderError, match="is not a run folder"):
        resume_folder(RunFolder(tmp_path), 1, seed=0, command=[])


@pytest.mark.parametrize("limit", [2_000, 6_000, 20_000, 10**6])
@pytest.mark.parametrize("seed", range(6))
def test_a_resumed_run_keeps_the_records_of_a_run_that_was_never_stopped(make_run, limit: int, seed: int):
    """Killed anywhere, taken back to any earlier step, at any limit; images come again."""
    draw = random.Random(seed)
    steps = [
        handed_over([rollout(step, images=[noise(draw.randrange(4))], completion="x" * draw.randrange(900))] * 2)
        for step in range(1, 31)
    ]
    whole = RunFolder(make_run("whole").path, max_rollout_bytes=limit)
    states = {0: FolderState()}
    for step, handed in enumerate(steps, start=1):
        whole.write_rollouts(*handed)
        states[step] = folder_state(whole)

    killed = RunFolder(make_run("killed").path, max_rollout_bytes=limit)
    last = draw.randrange(2, 31)
    for handed in steps[:last]:
        killed.write_rollouts(*handed)
    resumed = RunFolder(killed.path, max_rollout_bytes=limit)
    step = draw.randrange(last)
    assert examine(resumed, step, states[step]).lost == []
    resume_folder(resumed, step, states[step], seed=0, command=[])
    for handed in steps[step:]:
        resumed.write_rollouts(*handed)
    assert resumed.rollouts_path.read_bytes() == whole.rollouts_path.read_bytes()
    assert {path.name for path in resumed.images_path.iterdir()} == {path.name for path in whole.images_path.iterdir()}
    assert num_bytes(whole) <= limit or len(list(whole.read_rollouts())) == 2


def test_a_note_of_dropped_rollouts_that_is_damaged_makes_them_lost_and_ends_nothing(make_run):
    folder = bounded(make_run, 10_000)
    states = {}
    for step in range(1, 31):
        folder.write_rollouts(*handed_over([rollout(step, images=[noise(step)], completion="x" * 500)]))
        states[step] = folder_state(folder)
    assert folder.rollouts.last_dropped > 2
    assert examine(folder, 2, states[2]).lost == []
    (folder.path / "rollouts_dropped.json").write_bytes(b"")
    assert "the rollouts of step 1 are missing" in examine(folder, 2, states[2]).lost[0]
    resume_folder(folder, 2, states[2], seed=0, command=[])
    assert list(folder.read_rollouts()) == []


@pytest.mark.parametrize("stage", range(5))
def test_a_resume_that_is_killed_is_resumed_again(make_run, monkeypatch: pytest.MonkeyPatch, stage: int):
    """Killed before each of the calls that change the folder: what is left is resumed to the same files."""
    folder = fill(make_run(), 4)
    folder.write_evaluation({"before": evaluation(0.4, 0.3, 0.5), "after": evaluation(0.6, 0.5, 0.7)})
    calls = iter(range(100))

    def dying(function):
        def call(*arguments, **options):
            if next(calls) == stage:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as killing:
        for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "truncate")):
            killing.setattr(owner, name, dying(getattr(owner, name)))
        with contextlib.suppress(KeyboardInterrupt):
            resume_folder(folder, 2, seed=0, command=[])
            pytest.fail("there are fewer stages")
    resume_folder(folder, 2, seed=0, command=[])
    assert [line["step"] for line in folder.read_metrics()] == [1, 2]
    assert [record.step for record in folder.read_rollouts()] == [1, 1, 1, 2, 2, 2]
    assert len(list(folder.images_path.iterdir())) == 2
    assert report_data([folder.path])["runs"][0]["num_rollouts"] == 6
    assert list(folder.read_evaluation()) == ["before"]
    assert len(folder.read_resumes()) == 1


def test_the_folder_holds_nothing_of_past_steps_in_memory(make_run):
    folder = RunFolder(make_run().path, max_rollout_bytes=200_000)
    held = []
    tracemalloc.start()
    try:
        for step in range(1, 501):
            folder.log_metrics({"step": step, "loss": 1 / step})
            folder.write_rollouts(*handed_over([rollout(step, images=[noise(step)], completion="x" * 1000)] * 2))
            if step in (100, 500):
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[1] - held[0] < 100_000, f"{held[1] - held[0]} bytes more after 400 steps"
    assert json.loads(folder.metrics_path.read_bytes().splitlines()[-1])["step"] == 500


@pytest.mark.parametrize(
    ("config", "correct"),
    [({"filter_reward": "format_reward"}, True), ({"filter_reward": None}, False), ({"accuracy_reward": "a"}, None)],
)
def test_lines_of_version_0_1_are_read_with_the_accuracy_reward_of_their_run(make_run, config: dict, correct: bool):
    folder = make_run(**config)
    rewards = {"format_reward": 1.0, "accuracy_reward": 0.0}
    folder.rollouts_path.write_text(
        "".join(json.dumps({**LINE_0_1, "step": step, "rewards": rewards}) + "\n" for step in (1, 2))
    )
    assert [record.correct for record in folder.read_rollouts()] == [correct] * 2


def test_a_log_of_version_0_1_is_cut_back_and_continued(make_run):
    folder = make_run()
    for step in (1, 2):
        noise(step).save(folder.images_path / f"{step}.png")
        append_records(folder.rollouts_path, [{**LINE_0_1, "step": step, "images": [f"images/{step}.png"]}])
    folder.rollouts.cut_back(1)
    folder.write_rollouts(*handed_over([rollout(2)]))
    records = list(folder.read_rollouts())
    assert [record.step for record in records] == [1, 2]
    assert {folder.path / name for record in records for name in record.media} == set(folder.images_path.iterdir())


def test_a_broken_picture_counts_as_gone(make_run):
    folder = make_run()
    folder.write_rollouts(*handed_over([rollout(1, 0), rollout(2, 1), rollout(3, 2)]))
    pictures = sorted(folder.images_path.iterdir())
    pictures[0].write_bytes(b"")
    pictures[1].write_bytes(pictures[1].read_bytes()[:40])
    images = report_data([folder.path])["images"]
    assert {name for name, image in images.items() if image is None} == {picture.stem for picture in pictures[:2]}
