"""The program of the symbolic worker: `python -m vgpo.rewards.worker SOCKET SECONDS BYTES [math-verify]`.

Receives JSON pairs [answer, gold] over the inherited socket and replies b"1" or b"0". mathruler evaluates
parts of the answer as Python, so it is imported nowhere else, and this process can write no file.
"""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from mathruler.grader import grade_answer

from vgpo.rewards.answers import is_words


def main() -> None:
    descriptor, seconds, num_bytes = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    is_right = with_second_opinion() if sys.argv[4:] else grade_answer
    with Connection(descriptor) as connection:
        _restrict(num_bytes)
        connection.send_bytes(b"ready")
        while True:
            try:
                answer, gold = json.loads(connection.recv_bytes())
            except (EOFError, ConnectionResetError):  # the trainer has gone
                return
            _grant_processor_time(seconds)
            connection.send_bytes(b"1" if is_right(answer, gold) else b"0")


def with_second_opinion() -> Callable[[str, str], bool]:
    """mathruler's verdict or, where it says no and both sides are mathematics, that of math-verify."""
    from math_verify import parse, verify  # type: ignore[import-untyped,import-not-found,unused-ignore]

    def boxed(text: str) -> list[object]:
        # Bare LaTeX would be read up to its first number; time is limited from outside, for alarms miss long sums.
        return parse(rf"\boxed{{{text}}}", parsing_timeout=None)

    def is_right(answer: str, gold: str) -> bool:
        if grade_answer(answer, gold):
            return True
        # In words it multiplies letters: "felt" would be "left".
        return not is_words(answer) and not is_words(gold) and verify(boxed(gold), boxed(answer), timeout_seconds=None)

    return is_right


def _restrict(num_bytes: int) -> None:
    """Limit the address space, forbid writing files, and silence what the answers make Python print."""
    if sys.platform.startswith("linux"):  # macOS refuses to set this limit
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.dup2(null, sys.stderr.fileno())


def _grant_processor_time(seconds: float) -> None:
    """Let the kernel end this process if it computes on after its owner has died."""
    limit = math.ceil(time.process_time() + seconds) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


if __name__ == "__main__":
    main()
