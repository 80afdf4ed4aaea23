"""Find the accuracy reward of a run from its folder."""

from collections.abc import Mapping, Sequence
from typing import Any

from vgpo.run.storage import RunFolderError
from vgpo.training.accuracy import accuracy_reward_name


def accuracy_reward_of(config: Mapping[str, Any], reward_names: Sequence[str]) -> str | None:
    """The accuracy reward of a run: `accuracy_reward` of its settings, else what `accuracy_reward_name` makes of them.

    Args:
        config: settings of the run, of config.yaml; those of vgpo 0.1 do not name the reward.
        reward_names: its reward functions, in order; None is returned where there is none.

    Raises:
        RunFolderError: the settings name a filter reward that the run does not have.
    """
    if config.get("accuracy_reward") is not None:
        return config["accuracy_reward"]
    try:
        return accuracy_reward_name(reward_names, config.get("filter_reward")) if reward_names else None
    except ValueError as error:
        raise RunFolderError(f"config.yaml: {error} Restore it.") from error
