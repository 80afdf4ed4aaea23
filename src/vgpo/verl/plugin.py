"""Registers the trainers of vgpo where verl is imported: `VERL_USE_EXTERNAL_MODULES=vgpo.verl.plugin`.

For runs that `python -m verl.trainer.main_ppo` starts. `python -m vgpo.verl` needs no plug-in.
"""

from vgpo.verl.trainer import VGPOTrainerColocateAsync, VGPOTrainerSync

__all__ = ["VGPOTrainerColocateAsync", "VGPOTrainerSync"]
