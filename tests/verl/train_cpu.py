"""`make verl-cpu`: the quickstart recipe on verl and this machine's CPU; an engine samples with transformers.

Words of the command line override fields of the recipe, as in `--max_steps 4`.
"""

import sys

from tests.verl.launch import run_on_cpu
from vgpo.verl.config import load_recipe
from vgpo.verl.main import train


def main() -> None:
    recipe = load_recipe("quickstart_vgpo", ["--host", "verl", "--run_dir", "runs/verl_cpu", *sys.argv[1:]])
    folder = train(recipe, command=sys.argv, launch=run_on_cpu)
    for when, scores in (folder.read_evaluation() or {}).items():
        right, asked = scores["num_correct"], scores["num_questions"]
        interval = f"{scores['low']:.1%} to {scores['high']:.1%}"
        sys.stdout.write(f"{when}: {scores['accuracy']:.1%} ({right} of {asked}, 95 % interval {interval})\n")


if __name__ == "__main__":
    main()
