"""The state of a shaping in a checkpoint of verl's, read and written without verl."""

from pathlib import Path

import pytest

from vgpo.checkpoints import CheckpointError
from vgpo.shaping import build_shaping
from vgpo.verl.shaping_state import load_shaping_state, save_shaping_state


def test_it_is_restored_to_the_last_bit(tmp_path: Path) -> None:
    state = {"correlation": {"all": 0.1 + 2**-40}}
    saved, loaded = build_shaping("adaptive", {}), build_shaping("adaptive", {})
    saved.load_state_dict(state)
    save_shaping_state(tmp_path, saved)
    load_shaping_state(tmp_path, loaded)
    assert loaded.state_dict() == state


def test_a_checkpoint_without_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks vgpo_shaping.json.*resume from the checkpoint before it"):
        load_shaping_state(tmp_path, build_shaping("adaptive", {}))


def test_a_shaping_without_a_state_has_no_file(tmp_path: Path) -> None:
    shaping = build_shaping("vgpo", {})
    save_shaping_state(tmp_path, shaping)
    load_shaping_state(tmp_path, shaping)
    assert not list(tmp_path.iterdir())
