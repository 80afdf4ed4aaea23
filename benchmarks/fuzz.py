r"""Fuzz the grader, answer extraction, and both pages with the checks that the tests make of known nasty texts.

    python -m benchmarks.fuzz --minutes 10 [--target extraction|verdict|grader|report|page|all] [--corpus FOLDER]

Run it from the repository's folder; needs atheris (`pip install atheris`). Symbolic checks run in the grader's
killable worker and nowhere else. A finding is printed once for each place it is raised at, its text is kept beside
FOLDER, in `findings`, and the fuzzing goes on; the exit status is 1 if there was one. The last line is JSON:
executions, seconds, and the findings by their place.
"""

import argparse
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import atheris

with atheris.instrument_imports(include=["vgpo.rewards", "vgpo.report", "vgpo.text", "vgpo.pages", "vgpo.data"]):
    from tests.hostile import checks
    from vgpo.report import report_data
    from vgpo.rewards import Grader
    from vgpo.run import RunFolder

from tests.hostile.escapes import DELETE, KILL, POISON
from tests.hostile.texts import NASTY

SEPARATOR = "\x1f"  # between an answer and its gold
MAX_SECONDS = 2.0  # of this process's own time for one text, far above what any takes
WORKER_SECONDS = 1.0
TARGETS = ("extraction", "verdict", "grader", "report", "page")


def targets(folder: Path, grader: Grader) -> dict[str, Callable[[str], None]]:
    run = RunFolder.create(folder / "run", {"model": "fuzz"}, seed=0, command=["fuzz"])
    checks.write_rollouts(run, "plain")
    data = report_data([run.path])

    def grade(text: str) -> None:
        response, _, gold = text.partition(SEPARATOR)
        crashes = grader.statistics.crashes
        checks.check_grade(grader, f"\\boxed{{{response}}}", gold if gold.strip() else "1.5")
        assert grader.statistics.crashes == crashes, "the answer ended the grader's worker"

    def verdict(text: str) -> None:
        answer, _, gold = text.partition(SEPARATOR)
        checks.check_verdict(answer, gold)

    def extraction(text: str) -> None:
        checks.check_extraction(text)
        checks.check_visible(text)

    def report(text: str) -> None:
        checks.check_run_folder(run, text)
        checks.check_settings(data, text)

    def page(text: str) -> None:
        checks.check_data_page(folder / "check.html", text)

    return dict(zip(TARGETS, (extraction, verdict, grade, report, page), strict=True))


class Findings:
    """Runs a target on the bytes of the fuzzer and keeps what it finds; after `seconds`, ends the process."""

    def __init__(self, targets: list[Callable[[str], None]], folder: Path, grader: Grader, seconds: float) -> None:
        self.targets = targets
        self.folder = folder
        self.grader = grader
        self.seconds = seconds
        self.places: Counter[str] = Counter()
        self.executions: Counter[str] = Counter()
        self.started = time.monotonic()

    def run(self, data: bytes) -> None:
        if time.monotonic() - self.started > self.seconds:
            self.finish()
        if not data:
            return
        target = self.targets[data[0] % len(self.targets)]
        text = data[1:].decode("utf-8", errors="surrogateescape")
        self.executions[target.__name__] += 1
        start = time.process_time()
        try:
            target(text)
            assert time.process_time() - start < MAX_SECONDS, "took too long"
        except Exception as error:  # noqa: BLE001 - a finding, whatever it is
            self.keep(error, text)

    def keep(self, error: Exception, text: str) -> None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
        self.places[place] += 1
        if self.places[place] > 1:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        data = text.encode("utf-8", errors="surrogatepass")
        (self.folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        print(f"FINDING {place}: {error!s:.300}\n  text: {ascii(text)[:400]}", flush=True)

    def finish(self) -> NoReturn:
        """Print the summary and leave: the fuzzer itself would end the process without Python's leave."""
        self.grader.close()
        seconds = round(time.monotonic() - self.started)
        print(json.dumps({"executions": self.executions, "seconds": seconds, "findings": self.places}), flush=True)
        os._exit(1 if self.places else 0)


def write_corpus(folder: Path, num_targets: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate([*NASTY.values(), DELETE, KILL, POISON]):
        for target in range(num_targets):
            data = bytes([target]) + text.encode("utf-8", errors="surrogatepass")
            (folder / f"nasty-{number}-{target}").write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--target", choices=["all", *TARGETS], default="all")
    parser.add_argument("--corpus", type=Path, help="kept between runs; a temporary one if left out")
    arguments = parser.parse_args()
    logging.getLogger("vgpo").setLevel(logging.CRITICAL)  # a warning a time-out would fill the screen

    scratch = Path(tempfile.mkdtemp(prefix="vgpo-fuzz-"))
    corpus = arguments.corpus or scratch / "corpus"
    grader = Grader(timeout=WORKER_SECONDS, num_workers=1)
    known = targets(scratch, grader)
    chosen = [known[name] for name in ([arguments.target] if arguments.target != "all" else TARGETS)]
    write_corpus(corpus, len(chosen))
    findings = Findings(chosen, corpus.parent / "findings", grader, 60 * arguments.minutes)
    atheris.Setup([sys.argv[0], "-max_len=4000", "-timeout=60", "-verbosity=0", str(corpus)], findings.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
