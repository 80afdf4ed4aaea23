"""Strata of a dataset: found in a column or in what `vgpo.data` keeps of it, or refused."""

import pytest
import torch
from datasets import Dataset, IterableDataset

from vgpo.data import to_prompts
from vgpo.data.readers import to_canonical
from vgpo.training.strata import MAX_STRATA, find_strata

ROWS = {"problem": ["a", "b", "c", "d"], "answer": ["1"] * 4, "images": [[]] * 4, "level": [3, 10, 3, 2]}


def test_strata_are_sorted_as_text_and_looked_up_by_row():
    strata = find_strata(Dataset.from_dict(ROWS), "level")
    assert strata.names == ("10", "2", "3")
    assert strata.of_rows(torch.tensor([3, 3, 1, 0])).tolist() == [1, 1, 0, 2]


def test_order_and_choice_of_rows_count():
    strata = find_strata(Dataset.from_dict(ROWS).select([1, 0]), "level")
    assert strata.names == ("10", "3")
    assert strata.numbers.tolist() == [0, 1]


def test_a_column_that_no_format_knows_survives_as_meta():
    prompts = to_prompts(to_canonical(Dataset.from_dict(ROWS)))
    assert "level" not in prompts.column_names
    assert find_strata(prompts, "level").names == ("10", "2", "3")


def test_nothing_is_decoded():
    def fail(batch):
        raise AssertionError("a row was read")

    assert find_strata(Dataset.from_dict(ROWS).with_transform(fail), "level").names == ("10", "2", "3")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            Dataset.from_dict(ROWS),
            r"stratum_column='levle' is not a column of the dataset.*mean 'level'.*\['problem', 'ans",
        ),
        (IterableDataset.from_generator(lambda: iter(())), "which a IterableDataset does not have. Use a map-style"),
        (Dataset.from_dict({"levle": ["a", None]}), "row 1 has no value, expected one in every row"),
        (Dataset.from_dict({"levle": list(range(MAX_STRATA + 1))}), "has 33 different values, expected at most 32"),
    ],
    ids=["unknown", "iterable", "empty", "many"],
)
def test_what_is_refused(dataset, message):
    with pytest.raises(ValueError, match=message):
        find_strata(dataset, "levle")
