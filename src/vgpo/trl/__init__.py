"""The TRL host: GRPO with shaped advantages, whole groups, dynamic sampling, guards and alarms."""

from vgpo.trl.alarms import AlarmError
from vgpo.trl.config import VGPOConfig
from vgpo.trl.dynamic_sampling import DynamicSamplingError
from vgpo.trl.guard import NonFiniteError
from vgpo.trl.trainer import VGPOTrainer

__all__ = ["AlarmError", "DynamicSamplingError", "NonFiniteError", "VGPOConfig", "VGPOTrainer"]
