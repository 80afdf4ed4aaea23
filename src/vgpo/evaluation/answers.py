"""What is asked in a benchmark and what a model answers: the records that an evaluation keeps."""

from pydantic import Field

from vgpo.records import Record


class Answer(Record):
    """One response to one row, as it was generated.

    Attributes:
        row: Number of the row in its source.
        sample: Which of the responses to this row, from 0.
        completion: The response.
        truncated: Whether it was cut at the token limit.
    """

    row: int = Field(ge=0)
    sample: int = Field(ge=0)
    completion: str
    truncated: bool


class Question(Record):
    """A row of a benchmark without its images, with all that a scorer or a table needs.

    Attributes:
        row: Number of the row in its source.
        id: Its name there.
        problem: The question, with its options as lettered lines, before a prompt template.
        answer: The reference answer.
        options: Texts of the options by letter; empty for a free answer, or where options are in the image alone.
        precision: Decimal places that the benchmark rounds numbers to; None for none.
        category: What accuracy is broken down by; None for none.
        cluster: Equal for rows that are variants of one problem; None for a row of its own.
    """

    row: int = Field(ge=0)
    id: str
    problem: str
    answer: str
    options: dict[str, str] = Field(default_factory=dict)
    precision: int | None = None
    category: str | None = None
    cluster: str | None = None


class GradedAnswer(Answer):
    """A response with its question and its verdict under the protocol of the evaluation.

    Attributes:
        question: What was asked.
        predicted: Content of the last box; None for a response without one.
        correct: The verdict.
    """

    question: Question
    predicted: str | None
    correct: bool
