"""Evaluation protocols: number of samples, temperature and scorer."""

import re
from dataclasses import dataclass

from vgpo.evaluation.errors import EvaluationError
from vgpo.evaluation.scorers import LENIENT, PAPO
from vgpo.text import did_you_mean

MAX_SAMPLES = 1024
_AVERAGED = re.compile(rf"({PAPO}|{LENIENT})-avg@([0-9]{{1,6}})")


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is evaluated. Scores of different protocols are not comparable.

    Attributes:
        name: Name on the command line, shown with every score.
        scorer: A key of `vgpo.evaluation.scorers.SCORERS`.
        samples: Responses to each question, k of avg@k; 1 for greedy decoding.
        temperature: 0 for greedy decoding. Above 0, top-p and top-k are off (PAPO-Eval's own code leaves top-k at 50;
        the papers do not mention top-k).
    """

    name: str
    scorer: str
    samples: int
    temperature: float


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("papo-greedy", PAPO, 1, 0.0),
        Protocol("lenient", LENIENT, 1, 0.0),
        Protocol("papo-avg@8", PAPO, 8, 1.0),
        Protocol("lenient-avg@8", LENIENT, 8, 1.0),
    )
}


def protocol_named(text: str) -> Protocol:
    """The protocol of this name: one of `PROTOCOLS`, or `papo-avg@K` or `lenient-avg@K` with another K.

    Raises:
        EvaluationError: An unknown name, or K below 2 or above `MAX_SAMPLES`.
    """
    if text in PROTOCOLS:
        return PROTOCOLS[text]
    averaged = _AVERAGED.fullmatch(text)
    if averaged is None:
        raise EvaluationError(
            f"there is no protocol {text!r}{did_you_mean(text, PROTOCOLS)}; the protocols are {[*PROTOCOLS]}, with "
            "any number of samples after avg@"
        )
    samples = int(averaged[2])
    if not 2 <= samples <= MAX_SAMPLES:
        raise EvaluationError(
            f"the protocol {text!r} has {samples} samples per question, expected 2 to {MAX_SAMPLES}; for one greedy "
            "answer name 'papo-greedy' or 'lenient'"
        )
    return Protocol(f"{averaged[1]}-avg@{samples}", averaged[1], samples, 1.0)
