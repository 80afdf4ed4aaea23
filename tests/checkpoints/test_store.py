"""There is always a usable checkpoint: kills and full disks at every operation, all kinds of damage, pruning, pins."""

import errno
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vgpo.checkpoints import CheckpointError, CheckpointStore, Found, store, strict_difference

FILES = ("model.safetensors", "nested/state.json")


def save(checkpoints: CheckpointStore, step: int, text: str = "old") -> Path:
    staging = checkpoints.begin(step)
    (staging / "nested").mkdir()
    for name in FILES:
        (staging / name).write_text(text)
    return checkpoints.commit(step)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def checkpoints(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=None)


def test_a_checkpoint_holds_its_files_and_a_manifest_of_them(checkpoints):
    path = save(checkpoints, 7, "x")
    assert path == checkpoints.folder / "checkpoint-7"
    # sha256 of the one byte "x"
    entry = {"size": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
    assert json.loads((path / "manifest.json").read_text()) == {
        "format": 2,
        "step": 7,
        "files": {"model.safetensors": entry, "nested/state.json": entry},
    }
    assert names(checkpoints.folder) == ["checkpoint-7"]
    assert checkpoints.newest_valid() == Found(path, 7, [])


def test_every_file_and_folder_is_synced_before_the_rename_and_the_rename_before_any_deletion(
    checkpoints, monkeypatch
):
    save(checkpoints, 1)
    events = []
    staging = checkpoints.begin(2)
    (staging / "nested").mkdir()
    (staging / "nested" / "state.json").write_text("new")
    fsync, rename, rmtree = os.fsync, Path.rename, shutil.rmtree

    def note_fsync(descriptor):
        events.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def note_rename(path, target):
        events.append(("rename", path.name, target.name))
        return rename(path, target)

    def note_rmtree(path):
        events.append(("rmtree", path.name))
        rmtree(path)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    monkeypatch.setattr(shutil, "rmtree", note_rmtree)
    CheckpointStore(checkpoints.folder, keep=1).commit(2)
    assert events == [
        ("fsync", "state.json"),
        ("fsync", "manifest.json"),
        ("fsync", "nested"),
        ("fsync", ".saving-checkpoint-2"),
        ("rename", ".saving-checkpoint-2", "checkpoint-2"),
        ("fsync", "checkpoints"),
        ("rename", "checkpoint-1", ".deleting-checkpoint-1"),
        ("rmtree", ".deleting-checkpoint-1"),
    ]


def first_save(checkpoints: CheckpointStore) -> int:
    checkpoints.folder.mkdir()
    return 1


def next_save(checkpoints: CheckpointStore) -> int:
    save(checkpoints, 1)
    return 2


def replacement(checkpoints: CheckpointStore) -> int:
    save(checkpoints, 2)
    return 2


def replacement_of_a_broken_one(checkpoints: CheckpointStore) -> int:
    save(checkpoints, 1)
    (save(checkpoints, 2) / "model.safetensors").write_text("cut")
    return 2


def pruning_with_a_pin(checkpoints: CheckpointStore) -> int:
    for step in (1, 2, 3):
        save(checkpoints, step)
    checkpoints.pin(1, "before the alarm")
    return 4


def leftovers_of_every_kind(checkpoints: CheckpointStore) -> int:
    """What kills leave in a replacement, in a save and in a deletion; the only good checkpoint is out of its place."""
    save(checkpoints, 2).rename(checkpoints.folder / ".replaced-checkpoint-2")
    for kind in ("saving", "deleting"):
        half = checkpoints.folder / f".{kind}-checkpoint-2" / "nested"
        half.mkdir(parents=True)
        (half / "state.json").write_text("half")
    return 2


SCENARIOS = [
    first_save,
    next_save,
    replacement,
    replacement_of_a_broken_one,
    pruning_with_a_pin,
    leftovers_of_every_kind,
]


def strike_everywhere(tmp_path: Path, prepare, fault: str) -> tuple[int, list[tuple[str, CheckpointStore]]]:
    """Return the step that is saved with keep=1, and outcome and store for a fault at each operation of that save."""
    step = prepare(CheckpointStore(tmp_path / "prepared", keep=None))
    script = Path(__file__).with_name("faults.py")
    arguments = [store.__file__, tmp_path / "prepared", tmp_path, fault, str(step), "1"]
    process = subprocess.run([sys.executable, "-IS", script, *arguments], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    outcomes = json.loads(process.stdout)
    return step, [(text, CheckpointStore(tmp_path / str(i), keep=1)) for i, text in enumerate(outcomes)]


def text_of(found: Found) -> str | None:
    """The contents of the files of a checkpoint; None where there is no checkpoint."""
    if found.path is None:
        return None
    (text,) = {(found.path / name).read_text() for name in FILES}
    return text


@pytest.mark.process
@pytest.mark.parametrize("prepare", SCENARIOS)
def test_a_kill_at_any_operation_leaves_the_old_or_the_new_checkpoint(tmp_path: Path, prepare):
    step, struck = strike_everywhere(tmp_path, prepare, "kill")
    assert {outcome for outcome, _ in struck} == {"killed"}
    texts = []
    for _, checkpoints in struck:
        found = checkpoints.newest_valid()
        texts.append(text_of(found))
        assert found.step == step or texts[-1] != "new"
        # And the next save works and leaves nothing behind.
        save(checkpoints, step + 1, "next")
        assert text_of(checkpoints.newest_valid(at=step + 1)) == "next"
        kept = sorted([*checkpoints.pins(), step + 1])
        assert sorted(checkpoints.steps()) == kept
        others = {"pinned.json", *(["unusable-checkpoint-2"] if prepare is replacement_of_a_broken_one else [])}
        assert set(names(checkpoints.folder)) - others == {f"checkpoint-{step}" for step in kept}
    old = None if prepare is first_save else "old"
    switch = texts.index("new")
    assert texts == [old] * switch + ["new"] * (len(texts) - switch)
    assert switch > 10


@pytest.mark.process
@pytest.mark.parametrize("prepare", SCENARIOS)
def test_a_disk_full_from_any_operation_on_leaves_older_checkpoints_and_no_unfinished_files(tmp_path: Path, prepare):
    step, struck = strike_everywhere(tmp_path, prepare, "full")
    messages = []
    for outcome, checkpoints in struck:
        found = checkpoints.newest_valid()
        assert not checkpoints.staging_path(step).exists()
        if outcome == "saved":
            assert text_of(found) == "new"
            continue
        messages.append(outcome)
        assert "No space left on device" in outcome
        assert f"newest usable one: {found.path or 'none'}." in outcome
        assert found.path is not None or prepare is first_save
        assert set(checkpoints.steps()) >= set(CheckpointStore(tmp_path / "prepared", keep=1).steps())
    assert len(messages) > 5


def test_a_save_that_was_never_searched_for_does_not_delete_the_only_good_checkpoint(checkpoints):
    leftovers_of_every_kind(checkpoints)
    staging = checkpoints.begin(3)
    assert names(checkpoints.folder) == [staging.name, "checkpoint-2"]
    assert text_of(checkpoints.newest_valid()) == "old"


def test_a_file_size_limit_in_the_manifest_is_reported_and_cleaned_up(checkpoints):
    old = save(checkpoints, 1)
    staging = checkpoints.begin(2)
    for number in range(50):  # a manifest of more than 4096 bytes
        (staging / f"{number}.json").write_text("{}")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match=f"File too large.* newest usable one: {old}"):
            checkpoints.commit(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(checkpoints.folder) == ["checkpoint-1"]


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if mount is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_file_system_is_freed_of_the_unfinished_save(small_disk: Path):
    checkpoints = CheckpointStore(small_disk / "checkpoints", keep=1)
    old = save(checkpoints, 1)
    staging = checkpoints.begin(2)
    with pytest.raises(OSError, match="No space left") as caught:
        (staging / "model.safetensors").write_bytes(bytes(1 << 17))
    error = checkpoints.give_up(2, caught.value)
    assert f"newest usable one: {old}" in str(error)
    assert names(checkpoints.folder) == ["checkpoint-1"]
    save(checkpoints, 3)
    assert checkpoints.newest_valid().step == 3


def truncate(path: Path) -> None:
    os.truncate(path / "model.safetensors", 2)


def flip_a_bit(path: Path) -> None:
    file = path / "nested" / "state.json"
    first, *rest = file.read_bytes()
    file.write_bytes(bytes([first ^ 1, *rest]))


def remove(path: Path) -> None:
    (path / "nested" / "state.json").unlink()


def add(path: Path) -> None:
    (path / "adapter_model.safetensors").write_text("")


def remove_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def cut_manifest(path: Path) -> None:
    os.truncate(path / "manifest.json", 20)


def binary_manifest(path: Path) -> None:
    (path / "manifest.json").write_bytes(b"\xff\xfe\x00")


def other_format(path: Path) -> None:
    (path / "manifest.json").write_text('{"format": 3, "step": 2, "files": {}}')


def earlier_format(path: Path) -> None:
    (path / "manifest.json").write_text('{"format": 1, "step": 2, "files": {}}')


def manifest_is_a_list(path: Path) -> None:
    (path / "manifest.json").write_text("[]")


def manifest_without_hashes(path: Path) -> None:
    (path / "manifest.json").write_text('{"format": 2, "step": 2, "files": {"model.safetensors": 3}}')


def manifest_of_another_step(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"step": 2', '"step": 3'))


def file_becomes_a_link(path: Path) -> None:
    file = path / "model.safetensors"
    file.rename(path.parent.parent / "elsewhere")
    file.symlink_to(path.parent.parent / "elsewhere")


def file_becomes_a_pipe(path: Path) -> None:
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")


DAMAGE = [
    (truncate, "model.safetensors has 2 bytes, expected 3"),
    (flip_a_bit, "nested/state.json does not hold the bytes that were saved (its sha256 differs)"),
    (remove, "files missing: nested/state.json"),
    (add, "files unexpected: adapter_model.safetensors"),
    (remove_manifest, "manifest.json is missing: the save did not finish, or another library wrote it"),
    (cut_manifest, "manifest.json is not valid JSON ("),
    (binary_manifest, "manifest.json is not valid JSON ("),
    (other_format, "manifest.json has format 3, expected 2"),
    (earlier_format, "was saved by vgpo 0.1, whose training state this version does not read: finish the run with"),
    (manifest_is_a_list, "manifest.json has format 'list', expected 2"),
    (manifest_without_hashes, "manifest.json lists no step, or no files with size and sha256"),
    (manifest_of_another_step, "manifest.json is of step 3, expected step 2"),
    (file_becomes_a_link, "model.safetensors is a link or a special file, expected a plain file"),
    (file_becomes_a_pipe, "model.safetensors is a link or a special file, expected a plain file"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_the_reason(checkpoints, damage, reason):
    old = save(checkpoints, 1)
    damage(save(checkpoints, 2))
    found = checkpoints.newest_valid()
    assert (found.path, found.step) == (old, 1)
    ((name, why),) = found.passed_over
    assert name == "checkpoint-2"
    assert why.startswith(reason)
    # The next saves of this step take its place, and what could not be used is kept.
    for _ in range(2):
        path = save(checkpoints, 2, "new")
        assert checkpoints.newest_valid() == Found(path, 2, [])
    assert names(checkpoints.folder) == ["checkpoint-1", "checkpoint-2", "unusable-checkpoint-2"]
    damage(path)
    save(checkpoints, 2)
    assert names(checkpoints.folder)[-2:] == ["unusable-checkpoint-2", "unusable-checkpoint-2-2"]


def test_a_file_that_cannot_be_read_is_a_reason(checkpoints, monkeypatch):
    path = save(checkpoints, 1)

    def refuse(file, *, sync=False):
        raise OSError(errno.EIO, "Input/output error", str(file))

    monkeypatch.setattr(store, "file_entry", refuse)
    assert checkpoints.verify(path) == f"{path / 'model.safetensors'} cannot be read: Input/output error"
    assert checkpoints.verify(path, contents=False) is None


def test_the_search_can_be_bounded(checkpoints):
    for step in (5, 10, 100):
        save(checkpoints, step)
    assert checkpoints.newest_valid().step == 100
    assert checkpoints.newest_valid(before=100).step == 10
    assert checkpoints.newest_valid(at=5).step == 5
    assert checkpoints.newest_valid(at=6) == Found(None, None, [("checkpoint-6", "not there")])
    assert checkpoints.newest_valid(before=5) == Found(None, None, [])


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path):
    assert CheckpointStore(tmp_path / "none", keep=1).newest_valid() == Found(None, None, [])


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_few_and_the_pinned_stay(tmp_path: Path, keep: int):
    checkpoints = CheckpointStore(tmp_path, keep=keep)
    save(checkpoints, 1)
    checkpoints.pin(1, "before the alarm")
    for step in range(2, 12):
        save(checkpoints, step)
    assert checkpoints.steps() == [*range(11, 11 - keep, -1), 1]
    assert checkpoints.pins() == {1: "before the alarm"}
    assert json.loads((tmp_path / "pinned.json").read_text()) == {"1": "before the alarm"}


def test_a_checkpoint_that_is_not_complete_neither_counts_as_kept_nor_is_deleted(tmp_path: Path):
    checkpoints = CheckpointStore(tmp_path, keep=2)
    for step, damage in enumerate((None, truncate, remove_manifest, None, None, add)):
        path = save(checkpoints, step)
        if damage is not None:
            damage(path)
    other_format(save(checkpoints, 6))
    save(checkpoints, 7)
    assert checkpoints.steps() == [7, 6, 5, 4, 2, 1]


SYSTEM_FILES = (
    ".DS_Store",
    "._model.safetensors",
    ".nfs000000000012ab",
    ".fuse_hidden0001",
    "Thumbs.db",
    "desktop.ini",
)


@pytest.mark.parametrize("name", SYSTEM_FILES)
def test_files_of_operating_systems_make_no_checkpoint_unusable(checkpoints, name):
    staging = checkpoints.begin(1)
    (staging / name).write_text("while it is written")
    (staging / "model.safetensors").write_text("w")
    path = checkpoints.commit(1)
    (path / name).unlink()
    assert checkpoints.verify(path) is None
    (path / name).write_text("later")
    assert checkpoints.verify(path) is None


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_empty(checkpoints, monkeypatch):
    save(checkpoints, 1)

    def refuse(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        with pytest.raises(CheckpointError, match=r"checkpoints cannot be listed \(Permission denied\)"):
            checkpoints.newest_valid()
    checkpoints.folder.rename(checkpoints.folder.with_name("elsewhere"))
    checkpoints.folder.symlink_to("a disk that is not mounted")
    with pytest.raises(CheckpointError, match=r"cannot be listed \(No such file.*the target of a link"):
        checkpoints.newest_valid()
    with pytest.raises(CheckpointError, match=r"checkpoint-2 could not be saved: .*File exists"):
        checkpoints.begin(2)


def test_checkpoints_of_a_future_that_was_taken_back_do_not_push_out_new_ones(tmp_path: Path):
    everything = CheckpointStore(tmp_path, keep=None)
    for step in (1, 5, 6):
        save(everything, step)
    everything.pin(6, "wanted")
    save(CheckpointStore(tmp_path, keep=2), 2)
    assert everything.steps() == [6, 2, 1]


@pytest.mark.parametrize("keep", [0, -1])
def test_keeping_none_is_refused(tmp_path: Path, keep: int):
    with pytest.raises(ValueError, match=f"keep is {keep}, expected at least 1"):
        CheckpointStore(tmp_path, keep=keep)


def test_only_a_checkpoint_that_is_there_can_be_pinned(checkpoints):
    save(checkpoints, 1)
    with pytest.raises(CheckpointError, match=r"checkpoint-2 does not exist; found \[1\]"):
        checkpoints.pin(2, "why not")
    assert checkpoints.pins() == {}


@pytest.mark.parametrize("text", ["[]", "{", '{"one": ""}'])
def test_nothing_is_deleted_when_pins_cannot_be_read(tmp_path: Path, text: str):
    checkpoints = CheckpointStore(tmp_path, keep=1)
    save(checkpoints, 1)
    (tmp_path / "pinned.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"pinned\.json: expected a JSON object"):
        save(checkpoints, 2)
    assert checkpoints.steps() == [2, 1]


def test_a_pin_on_a_full_disk_leaves_the_old_pins(checkpoints, monkeypatch):
    save(checkpoints, 1)
    checkpoints.pin(1, "first")

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(CheckpointError, match=r"could not be pinned: .*No space left"):
        checkpoints.pin(1, "second")
    assert checkpoints.pins() == {1: "first"}


def test_links_and_foreign_names_are_left_alone(tmp_path: Path):
    outside = save(CheckpointStore(tmp_path / "outside", keep=None), 9)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "checkpoint-9").symlink_to(outside)
    (folder / ".saving-checkpoint-9").symlink_to(outside)
    (folder / ".replaced-checkpoint-8").symlink_to(outside)
    foreign = [
        "checkpoint-007",
        "checkpoint-best",
        "checkpoint--1",
        "checkpoint-1.tmp",
        "xcheckpoint-1",
        "checkpoint-٣",
    ]
    for name in foreign:
        (folder / name).mkdir()
    (folder / "checkpoint-8").write_text("a file")
    before = names(folder)
    checkpoints = CheckpointStore(folder, keep=1)
    save(checkpoints, 1)
    save(checkpoints, 2)
    found = checkpoints.newest_valid()
    assert found.step == 2
    assert found.passed_over == [(f"checkpoint-{step}", "a link or a file, expected a folder") for step in (9, 8)]
    assert names(folder) == sorted([*before, "checkpoint-2"])
    assert checkpoints.verify(outside) is None
    for step in (8, 9):
        with pytest.raises(CheckpointError, match=f"checkpoint-{step} is a link or a file"):
            checkpoints.begin(step)


def test_a_link_among_the_files_of_a_save_is_refused(checkpoints):
    staging = checkpoints.begin(1)
    (staging / "model.safetensors").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link"):
        checkpoints.commit(1)
    assert checkpoints.steps() == []


def test_an_empty_save_is_refused(checkpoints):
    checkpoints.begin(1)
    with pytest.raises(CheckpointError, match="contains no file: nothing was written for step 1"):
        checkpoints.commit(1)


def test_a_commit_without_begin_says_so(checkpoints):
    save(checkpoints, 1)
    with pytest.raises(CheckpointError, match=r"checkpoint-2 could not be saved: .*No such file"):
        checkpoints.commit(2)
    assert checkpoints.newest_valid().step == 1


def test_what_cannot_be_deleted_is_warned_of_and_tried_again(tmp_path: Path, monkeypatch):
    checkpoints = CheckpointStore(tmp_path, keep=1)
    save(checkpoints, 1)

    def refuse(folder):
        raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.warns(RuntimeWarning, match=r"checkpoint-1 could not be deleted"):
            save(checkpoints, 2)
    assert names(tmp_path) == [".deleting-checkpoint-1", "checkpoint-2"]
    save(checkpoints, 3)
    assert names(tmp_path) == ["checkpoint-3"]


def test_names_that_differ_are_listed_in_part():
    assert strict_difference("ab", "ba") is None
    assert strict_difference("abc", "bd") == "missing: a, c; unexpected: d"
    many = [f"{a}{b}" for a, b in itertools.product("ab", "1234")]
    assert strict_difference(many, []) == "missing: a1, a2, a3, a4, b1 and 3 more"
