"""Which reward is the accuracy of a rollout."""

from collections.abc import Sequence


def accuracy_reward_name(reward_names: Sequence[str], filter_reward: str | None = None) -> str:
    """The reward function that measures accuracy.

    It is `filter_reward` if that is set, else the first with "accuracy" in its name, else the first. Dynamic sampling
    filters by it, and `RolloutRecord.correct`, training accuracy and focus curves are those of this reward.

    Raises:
        ValueError: `filter_reward` is not one of the reward functions.
    """
    if filter_reward is None:
        return next((name for name in reward_names if "accuracy" in name), reward_names[0])
    if filter_reward not in reward_names:
        raise ValueError(f"filter_reward={filter_reward!r} is not one of the reward functions {list(reward_names)}.")
    return filter_reward
