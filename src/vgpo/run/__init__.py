"""What a run leaves on disk: a folder that explains itself, written so that a full disk or a kill loses nothing."""

from vgpo.run.folder import RunFolder
from vgpo.run.storage import RunFolderError

__all__ = ["RunFolder", "RunFolderError"]
