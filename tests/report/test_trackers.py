"""Rollouts and images in trackers: TensorBoard for real, the others by stand-ins that take what these take."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import transformers
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from transformers.integrations import SwanLabCallback, TensorBoardCallback, TrackioCallback, WandbCallback

from tests.report.run_records import ATTACKS, handed_over, rollout
from vgpo.recipe.trackers import EVENTS, TrackedRollouts, forgive_trackers
from vgpo.rewards.containment import StoppedBySignal
from vgpo.training.records import Images, RolloutRecord, code_block


def group() -> tuple[list[RolloutRecord], dict[str, Image.Image]]:
    """Two rollouts about one image, and one without any."""
    image = Image.new("RGB", (20, 10), (255, 0, 0))
    pictured = rollout(step=5, images=[image])
    return handed_over([pictured, pictured, rollout(step=5, images=[], focus=None)])


def ignore(records: Sequence[RolloutRecord], images: Images) -> None:
    """A run folder that nobody looks at."""


def stand_in(kind: type) -> Any:
    """A callback of this kind, made without its package."""
    return object.__new__(kind)


@pytest.fixture
def tensorboard(tmp_path: Path) -> Any:
    writer = SummaryWriter(str(tmp_path))
    yield TensorBoardCallback(writer)
    writer.close()


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def texts(found: EventAccumulator) -> dict[str, str]:
    tags = [tag for tag in found.Tags()["tensors"] if tag.startswith("rollouts/")]
    return {tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags}


def page_of(text: str) -> str:
    """What TensorBoard makes of a text."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "html5lib's sanitizer is deprecated", DeprecationWarning)
        return import_module("tensorboard.plugin_util").markdown_to_safe_html(text)


def test_the_run_folder_has_its_records_first_and_unchanged() -> None:
    written: list[Any] = []
    records, images = group()
    TrackedRollouts(lambda *given: written.extend(given), [])(records, images)
    assert written[0] is records
    assert written[1] is images


def test_tensorboard_has_a_text_for_each_rollout_and_each_image_once(tmp_path: Path, tensorboard: Any) -> None:
    TrackedRollouts(ignore, [tensorboard])(*group())
    tensorboard.tb_writer.flush()
    found = events(tmp_path)
    shown = texts(found)
    assert list(shown) == [f"rollouts/{number}/text_summary" for number in range(3)]
    assert "completion: two: 2." in shown["rollouts/0/text_summary"]
    assert "reward/accuracy_reward: 1.0" in shown["rollouts/0/text_summary"]
    assert "mean focus: 0.5" in shown["rollouts/0/text_summary"]
    assert [text.splitlines()[-1].strip() for text in shown.values()] == [
        "images: 0",
        "images: 0",
        "images: none",
    ]
    assert found.Tags()["images"] == ["rollouts/image 0"]
    (image,) = found.Images("rollouts/image 0")
    assert (image.step, image.width, image.height) == (5, 20, 10)


@pytest.mark.parametrize(
    "attack", [*ATTACKS, "\n```\n# title\n[a](javascript:x)", "\n\n# title\n\n- a", "a\r# title\r\n- b"]
)
def test_hostile_text_is_shown_by_tensorboard_as_text(attack: str, tmp_path: Path, tensorboard: Any) -> None:
    texts_of_others = {"problem": attack, "answer": attack, "completion": attack, "rewards": {attack: 1.0}}
    TrackedRollouts(ignore, [tensorboard])(*handed_over([rollout(**texts_of_others)]))
    tensorboard.tb_writer.flush()
    (text,) = texts(events(tmp_path)).values()
    page = page_of(text)
    assert page.startswith("<pre><code>")
    assert page.rstrip().endswith("</code></pre>")
    inside = page.removeprefix("<pre><code>").rstrip().removesuffix("</code></pre>")
    assert "<" not in inside


def test_an_empty_line_stays_in_the_code_block() -> None:
    assert page_of(code_block("a\n\n# b")) == "<pre><code>a\n\n# b\n</code></pre>"


@pytest.mark.parametrize(("name", "kind"), [("wandb", WandbCallback), ("trackio", TrackioCallback)])
def test_trackers_with_tables_have_a_row_for_each_rollout(
    name: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, Any]] = []
    module = ModuleType(name)
    module.__dict__.update(
        Image=lambda image: image.size,
        Table=lambda columns, data: dict(zip(columns, zip(*data, strict=True), strict=True)),
        log=logged.append,
    )
    monkeypatch.setitem(sys.modules, name, module)
    TrackedRollouts(ignore, [stand_in(kind)])(*group())
    (entry,) = logged
    assert entry["train/global_step"] == 5
    table = entry["rollouts"]
    assert table["images"] == ([(20, 10)], [(20, 10)], [])
    assert table["completion"] == ("two: 2.",) * 3
    assert table["mean focus"] == (0.5, 0.5, None)
    assert table["reward/accuracy_reward"] == (1.0,) * 3


def test_swanlab_has_texts_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[dict[str, Any], int]] = []
    module = ModuleType("swanlab")
    module.__dict__.update(
        Text=lambda text: text,
        Image=lambda image, caption: SimpleNamespace(size=image.size, caption=caption),
        log=lambda media, step: logged.append((media, step)),
    )
    monkeypatch.setitem(sys.modules, "swanlab", module)
    TrackedRollouts(ignore, [stand_in(SwanLabCallback)])(*group())
    ((media, step),) = logged
    assert step == 5
    assert len(media["rollouts"]) == 3
    assert [image.caption for image in media["images"]] == ["image 0"]


class Failing(WandbCallback):
    """A tracker that fails at each event that is called with an error."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_train_begin(self, error: BaseException | None = None, **kwargs: Any) -> None:
        self.log(error)

    def on_log(self, error: BaseException | None = None, **kwargs: Any) -> str:
        return self.log(error)

    def log(self, error: BaseException | None) -> str:
        self.calls.append(type(error).__name__)
        if error is not None:
            raise error
        return "control"


FULL = OSError(28, "No space left on device")


def test_a_tracker_that_fails_is_a_warning_once_for_each_kind_of_error(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Failing()
    forgive_trackers([tracker])
    for error in (FULL, FULL, ConnectionError("no network"), SystemExit(0), FULL):
        assert tracker.on_log(error) is None
    assert tracker.on_log() == "control"
    assert tracker.calls == ["OSError", "OSError", "ConnectionError", "SystemExit", "OSError", "NoneType"]
    assert [record.getMessage() for record in caplog.records] == [
        f"Failing failed: {what}. Training continues; the run folder has all metrics. "
        "More errors of this kind are not reported."
        for what in ("OSError: [Errno 28] No space left on device", "ConnectionError: no network", "SystemExit: 0")
    ]


def test_a_tracker_that_cannot_be_started_is_not_called_again(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Failing()
    forgive_trackers([tracker])
    tracker.on_train_begin(FULL)
    tracker.on_log(FULL)
    assert tracker.calls == ["OSError"]
    assert caplog.text.count("It gets no metrics") == 1


def test_a_signal_ends_the_run_inside_a_tracker_too() -> None:
    tracker = Failing()
    forgive_trackers([tracker])
    with pytest.raises(StoppedBySignal):
        tracker.on_log(StoppedBySignal(143))


def test_trackers_stay_the_callbacks_that_they_are() -> None:
    tracker, other = Failing(), transformers.PrinterCallback()
    forgive_trackers(callbacks := [tracker, other])
    assert callbacks == [tracker, other]
    assert isinstance(tracker, WandbCallback)
    assert not vars(other)
    assert set(vars(tracker)) == {"calls", *EVENTS}
    assert {"on_train_begin", "on_log", "on_save", "on_train_end"} < set(EVENTS)


def test_rollouts_that_a_tracker_refuses_are_a_warning_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class FullWriter:
        def add_text(self, *args: Any) -> None:
            raise FULL

    written: list[Any] = []
    tracked = TrackedRollouts(lambda *given: written.append(given), [TensorBoardCallback(FullWriter())])
    tracked(*group())
    tracked(*group())
    assert len(written) == 2
    assert caplog.text.count("TensorBoardCallback (rollouts) failed: OSError: [Errno 28]") == 1
