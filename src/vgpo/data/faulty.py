"""Rows that cannot be used: one error that lists them, or a warning and a dataset without them."""

import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import datasets

from vgpo.data.errors import DataError
from vgpo.data.schema import MAX_FAULTS, ROW, listed, quantity, source_rows
from vgpo.settings_checks import DROP, ERROR, FAULTY_ROWS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """A fault of the row with this number in the source; None stands for the entire dataset."""

    row: int | None
    complaint: str

    def __str__(self) -> str:
        return self.complaint if self.row is None else f"row {self.row}, {self.complaint}"


def without_faulty(
    dataset: datasets.Dataset, faults: Iterable[Fault], faulty_rows: str, *, cannot: str
) -> datasets.Dataset:
    """`dataset` without its faulty rows if `faulty_rows` is "drop", after a warning that counts and names them.

    The remaining rows have their number in the source in the column `row`.

    Args:
        dataset: Rows with the columns of `load_dataset`.
        faults: In row order; read up to the eleventh if they are an error.
        faulty_rows: One of `FAULTY_ROWS`.
        cannot: The verb of the message, such as "used" in "cannot be used".

    Raises:
        DataError: There is a fault and `faulty_rows` is "error"; or the dataset itself or every row has one.
    """
    check_faulty_rows(faulty_rows)
    size = quantity(len(dataset), "row")
    found = list(faults if faulty_rows == DROP else itertools.islice(faults, MAX_FAULTS + 1))
    wrong = {fault.row for fault in found} - {None}
    is_whole = len(wrong) < len({fault.row for fault in found})
    if found and (faulty_rows == ERROR or is_whole or len(wrong) == len(dataset)):
        hint = "" if is_whole or faulty_rows == DROP else "\nOr set faulty_rows: drop to skip such rows"
        raise DataError(f"the dataset of {size} cannot be {cannot}:\n{listed(list(map(str, found)))}{hint}")
    if not found:
        return dataset
    faulty = listed(_first_of_each(found))
    logger.warning("Dropped %d of %s, which cannot be %s:\n%s", len(wrong), size, cannot, faulty)
    numbers = source_rows(dataset)
    if ROW not in dataset.column_names:
        dataset = dataset.add_column(ROW, numbers)
    return dataset.select([index for index, number in enumerate(numbers) if number not in wrong])


def check_faulty_rows(faulty_rows: str) -> None:
    """Raise DataError unless this is one of `FAULTY_ROWS`."""
    if faulty_rows not in FAULTY_ROWS:
        raise DataError(f"faulty_rows is {faulty_rows!r}, expected one of {list(FAULTY_ROWS)}")


def _first_of_each(faults: list[Fault]) -> list[str]:
    """One line per row."""
    return [str(fault) for fault in {fault.row: fault for fault in reversed(faults)}.values()][::-1]
