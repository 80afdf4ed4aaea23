"""The run folder on disk, written so that a full disk or a kill loses nothing."""

from vgpo.run.folder import RunFolder
from vgpo.run.lock import locked
from vgpo.run.resuming import Damage, examine, folder_state, resume_folder
from vgpo.run.storage import RunFolderError

__all__ = ["Damage", "RunFolder", "RunFolderError", "examine", "folder_state", "locked", "resume_folder"]
