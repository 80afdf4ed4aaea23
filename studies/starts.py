"""The starts of the study of adaptive shapings: `OMP_NUM_THREADS=1 python studies/starts.py FOLDER [NAME ...]`.

Writes FOLDER/toy-NAME for each start. The same number of threads gives the same weights.
"""

import argparse
from pathlib import Path

from vgpo.toy import TaskSettings, WarmstartSettings, warmstart

KINDS = ("count", "largest")
STARTS = {
    "forgetting": WarmstartSettings(
        task=TaskSettings(setting="forgetting", rows=4),
        naming=0.5, read_steps=600, read_accuracy=0.9, evaluate_every=50, num_questions=200,
    ),
    "mixed": WarmstartSettings(
        task=TaskSettings(setting="mixed", rows=4, kinds=KINDS),
        naming=0.5, read_steps=800, read_accuracy=0.85, evaluate_every=100, num_questions=200,
    ),
    "text": WarmstartSettings(
        task=TaskSettings(setting="text", rows=4, kinds=KINDS),
        naming=0.5, read_steps=600, read_accuracy=0.65, evaluate_every=50, num_questions=200,
    ),
    "misleading": WarmstartSettings(
        task=TaskSettings(setting="misleading", rows=4, kinds=KINDS),
        naming=0.5, read_steps=600, read_accuracy=0.65, evaluate_every=50, num_questions=200,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(STARTS), help=f"of {', '.join(STARTS)}; all by default")
    arguments = parser.parse_args()
    for name in arguments.names:
        log = warmstart(arguments.folder / f"toy-{name}", STARTS[name])
        print(name, log.records[-1]["accuracy"])


if __name__ == "__main__":
    main()
