"""Questions of a benchmark and answers of a model: the records that an evaluation stores."""

from pydantic import Field

from vgpo.records import Record


class Answer(Record):
    """One generated response to one row.

    Attributes:
        row: Number of the row in its source.
        sample: Index among the responses to this row, from 0.
        completion: The response.
        truncated: Whether it was truncated at the token limit.
        oversized: Whether the prompt filled the model's context, so that it was not asked; it counts as wrong.
    """

    row: int = Field(ge=0)
    sample: int = Field(ge=0)
    completion: str
    truncated: bool
    oversized: bool = False


class Question(Record):
    """A row of a benchmark without its images, with everything that a scorer or a table needs.

    Attributes:
        row: Number of the row in its source.
        id: Its name in the source.
        problem: The question, with its options as lettered lines, before a prompt template.
        answer: The reference answer.
        options: Texts of the options by letter; empty for free-form answers, or if options are only in the image.
        precision: Decimal places that the benchmark rounds numbers to; None for none.
        category: Category by which accuracy is broken down; None for none.
        cluster: Equal for rows that are variants of one problem; None for an independent row.
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
