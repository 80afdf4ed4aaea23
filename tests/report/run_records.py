"""Records as a trainer and an evaluation hand them over."""

from PIL import Image

from vgpo.run import RunFolder

ATTACKS = [
    "</script><script>document.title = 'broken'</script>",
    "<!--<script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "\u2028\u2029 & &lt; ]]> {{ 7 * 7 }}",
    "\x00\x07\x1b[2J\x7f\x85\u202eright to left",
    "\ud800",
]


def rollout(step: int = 1, group: int = 0, reward: float = 1.0, **changes) -> dict:
    """A rollout record as the trainer hands it over, of four tokens."""
    record = {
        "step": step,
        "group": group,
        "row": 7,
        "problem": "<image>How many 7s are in the picture?",
        "answer": "2",
        "images": [Image.new("RGB", (20, 10), (step % 256, 0, 0))],
        "completion": "two: 2.",
        "tokens": ["two", ":", " 2", "."],
        "focus": [0.5, 0.25, 0.75, 0.5],
        "gate": [False, False, True, False],
        "token_factor": [1.0, 0.5, 1.5, 1.0],
        "rollout_factor": 1.1,
        "advantage": 0.7,
        "rewards": {"accuracy_reward": reward},
    }
    return {**record, **changes}


def evaluation(accuracy: float, low: float, high: float) -> dict:
    counts = {"num_questions": 400, "num_correct": round(400 * accuracy)}
    return {"accuracy": accuracy, "low": low, "high": high, "answers": [{"row": 0}], **counts}


def fill(folder: RunFolder, num_steps: int = 4, **metrics: float) -> RunFolder:
    for step in range(1, num_steps + 1):
        line = {"reward": step / 10, "rewards/accuracy_reward/mean": step / 10, "entropy": 1 / step, **metrics}
        folder.log_metrics({"step": step, "epoch": 0.1 * step, "time": step, **line})
        folder.write_rollouts([rollout(step, 2 * step, reward) for reward in (1.0, 1.0, 0.0)])
    return folder


def hostile_run(make_run, name: str = "run") -> RunFolder:
    folder = make_run(name, model_name_or_path=ATTACKS[0] + "\ud800", other=ATTACKS[2])
    for number, attack in enumerate(ATTACKS):
        texts = {"problem": attack, "answer": attack, "tokens": [attack, *ATTACKS], "completion": attack}
        per_token = {"focus": [0.5] * 7, "gate": [True] * 7, "token_factor": [1.0] * 7}
        folder.write_rollouts([rollout(1, number, **texts, **per_token, rewards={attack: 1.0})])
    return folder
