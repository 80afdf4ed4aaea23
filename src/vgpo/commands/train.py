"""`vgpo train`: one run from a recipe to a report, on the host that the recipe names."""

from vgpo.hosts import errors_of_host as errors
from vgpo.hosts import train_on_host as run

__all__ = ["errors", "run"]
