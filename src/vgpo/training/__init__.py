"""Host-independent parts of training: signals, settings, dynamic sampling, alarms, records of rollouts.

No module here depends on a trainer. Processes exchange values only through `vgpo.training.collective`.
"""
