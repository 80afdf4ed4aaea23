"""The TRL host: GRPO with shaped advantages, complete groups, dynamic sampling, guards and alarms."""

from vgpo.training.alarms import AlarmError
from vgpo.training.dynamic_sampling import DynamicSamplingError
from vgpo.training.finite_guard import NonFiniteError
from vgpo.trl.config import VGPOConfig
from vgpo.trl.trainer import VGPOTrainer

__all__ = ["AlarmError", "DynamicSamplingError", "NonFiniteError", "VGPOConfig", "VGPOTrainer"]
