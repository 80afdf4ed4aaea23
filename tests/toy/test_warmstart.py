import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from vgpo.toy import TaskSettings, WarmstartSettings, warmstart

SHORT = WarmstartSettings(
    task=TaskSettings(rows=1, columns=2, digits=(0, 1), kinds=("largest",)),
    see_steps=4,
    read_steps=6,
    forget_steps=2,
    evaluate_every=3,
    num_questions=20,
    read_accuracy=1.0,
)


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("short") / "checkpoint"
    return out, warmstart(out, SHORT)


@pytest.mark.train
def test_short_warmstart_lowers_the_loss_and_saves_a_loadable_checkpoint(short_run):
    out, log = short_run
    losses = [record["loss"] for record in log.records if record["stage"] == "read"]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert json.loads((out / "warmstart.json").read_text())["records"] == log.records
    AutoModelForImageTextToText.from_pretrained(out)
    AutoProcessor.from_pretrained(out)
    assert [path.name for path in out.parent.iterdir()] == ["checkpoint"]


@pytest.mark.train
def test_same_seed_same_weights_and_other_seed_others(short_run, tmp_path):
    out, _ = short_run
    weights = load_file(out / "model.safetensors")
    warmstart(tmp_path / "same", SHORT)
    same = load_file(tmp_path / "same" / "model.safetensors")
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    warmstart(tmp_path / "other", WarmstartSettings(**{**vars(SHORT), "seed": 1}))
    other = load_file(tmp_path / "other" / "model.safetensors")
    assert not all(torch.equal(weights[name], other[name]) for name in weights)


@pytest.mark.train
def test_warmstart_stops_at_the_accuracy(tmp_path):
    log = warmstart(tmp_path / "out", WarmstartSettings(**{**vars(SHORT), "read_accuracy": 0.0}))
    assert [record["step"] for record in log.records if record["stage"] == "read"] == [3]


def test_folder_that_is_no_checkpoint_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="is not a checkpoint of a warm start"):
        warmstart(tmp_path, SHORT)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"see_steps": 0}, "see_steps is 0; expected at least 1"),
        ({"num_questions": 0}, "num_questions is 0; expected at least 1"),
        ({"forget": 1.5}, "forget is 1.5; expected 0 to 1"),
        ({"read_accuracy": -0.1}, "read_accuracy is -0.1; expected 0 to 1"),
    ],
)
def test_warmstart_settings_reject(values, message):
    with pytest.raises(ValueError, match=message):
        WarmstartSettings(**values)
