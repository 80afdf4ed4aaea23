"""The page of a run in training: redrawn repeatedly, rarely enough not to slow training down."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from vgpo.report.data import collect
from vgpo.report.page import render
from vgpo.report.rollouts import RolloutSummary
from vgpo.run.folder import RunFolder
from vgpo.run.storage import write_file
from vgpo.run.tail import Tail

MIN_PAUSE = 30.0  # seconds between two drawings
MAX_SHARE = 0.01  # of the time, that drawing may take

logger = logging.getLogger(__name__)


class LiveReport:
    """report.html of a run in training. Each rollout is read once; a drawing that fails is a warning and ends nothing.

    Attributes:
        pause: seconds from one drawing to the next: at least 30, and 100 times what the last drawing took.
    """

    def __init__(self, folder: RunFolder, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self.clock = clock
        self.pause = MIN_PAUSE
        self._rollouts = Tail(folder.rollouts_path, folder.rollouts.parse)
        self._summary = RolloutSummary()
        self._failing = False
        self.start()

    def start(self) -> None:
        """Training begins: the first drawing is a pause away."""
        self._due = self.clock() + self.pause

    def keep_fresh(self) -> None:
        """Draw the page, if it is time to."""
        started = self.clock()
        if started < self._due:
            return
        self.draw(live=True)
        self.pause = max(MIN_PAUSE, (self.clock() - started) / MAX_SHARE)
        self._due = self.clock() + self.pause

    def draw(self, *, live: bool) -> None:
        """Draw the page now. live: whether it will be drawn again, which the page says."""
        try:
            self._draw(live)
        except Exception:
            if not self._failing:
                logger.warning("%s could not be drawn; training is unharmed.", self.folder.report_path, exc_info=True)
            self._failing = True
        else:
            self._failing = False

    def _draw(self, live: bool) -> None:
        for record in self._rollouts.read(self._forget):
            self._summary.add(record)
        data = collect([self.folder], [self._summary])
        if live:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            data["live"] = {"drawn": now, "every": round(self.pause)}
        write_file(self.folder.report_path, render(data).encode("utf-8"))

    def _forget(self) -> None:
        self._summary = RolloutSummary()
