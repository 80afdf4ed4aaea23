"""The toy task as files that verl's own dataset and reward manager read."""

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from vgpo.toy import TaskSettings, write_datasets


def write_prompts(folder: Path, num_rows: int, settings: TaskSettings | None = None) -> str:
    """A parquet file with `num_rows` questions in the columns that verl's `RLHFDataset` expects; its path."""
    source, _ = write_datasets(folder, num_train=num_rows, num_test=1, settings=settings, progress=False)
    table = pq.read_table(source)
    rows = table.to_pylist()
    columns: dict[str, list[Any]] = {
        "data_source": ["toy"] * num_rows,
        "prompt": [[{"role": "user", "content": row["problem"]}] for row in rows],
        "reward_model": [{"style": "rule", "ground_truth": row["answer"]} for row in rows],
        "extra_info": [{"index": index} for index in range(num_rows)],
    }
    path = folder / "prompts.parquet"
    for name, values in columns.items():
        table = table.append_column(name, [values])
    pq.write_table(table, path)
    return str(path)


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
    """1 for the right number in the last box; the function that `reward.custom_reward_function` names."""
    boxes = re.findall(r"\\boxed\{(\d+)\}", solution_str)
    return float(bool(boxes) and boxes[-1] == ground_truth)
