"""What every host of the method needs to train: signals, settings, dynamic sampling, alarms, records of rollouts.

No module here knows a trainer. Processes exchange numbers through `vgpo.training.collective` only.
"""
