"""Entry point `verl.plugins`: registers the trainers of vgpo for runs that `python -m verl.trainer.main_ppo` starts.

verl loads its plug-ins in every process, and its trainers import much. So the trainers of vgpo are imported after
verl's own, where these are imported. `python -m vgpo.verl` needs no plug-in.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

TRAINERS = "verl.trainer.ppo.v1"
OURS = "vgpo.verl.trainer"


class AfterTrainers(MetaPathFinder, Loader):
    """Imports the trainers of vgpo after verl's, whose import registers them."""

    loader: Loader

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module of verl's trainers with this loader; None for any other module."""
        if name != TRAINERS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        importlib.import_module(OURS)


def register() -> None:
    """Register the trainers now if verl's are imported, else once they are; twice is as good as once."""
    if TRAINERS in sys.modules:
        importlib.import_module(OURS)
    elif not any(isinstance(finder, AfterTrainers) for finder in sys.meta_path):
        sys.meta_path.insert(0, AfterTrainers())


register()
