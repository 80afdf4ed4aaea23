"""Reference answers come out of whatever a dataset wraps them in."""

import time

import pytest

from vgpo.references import num_options, unwrapped

WRAPPED = {
    "3": [
        "3", " 3\n", r"\boxed{3}", "<answer>3</answer>", "<answer> 3 </answer>",
        "<think>I count.</think><answer>3</answer>",
        "<think>a <answer>7</answer></think>\n<answer>3</answer>", "1 + 2 = 3\n#### 3", "####3",
        r"<think>x</think> The sum is \boxed{3}.", "The answer is 3.",
        "So the answer is 3", "answer: 3", "Final answer: 3",
        "We add.\nThe correct answer is: 3.", "<think>x</think>3",
        r"<answer>\boxed{3}</answer>",
    ],
    r"\frac{1}{2}": [r"\boxed{\frac{1}{2}}", r"<answer>\frac{1}{2}</answer>", r"The answer is \frac{1}{2}."],
    "A": ["A", "The answer is A.", "We see that it is wide. The answer is A"],
    "answers vary": ["answers vary"],
    r"\boxed{1}, \boxed{2}": [r"\boxed{1}, \boxed{2}"],
    "The answer": ["The answer"],
    "<answer>": ["<answer>"],
    "a #### b\nc": ["a #### b\nc"],
    "<think>": ["<think>"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("reference", "answer"), [(text, answer) for answer, texts in WRAPPED.items() for text in texts]
)
def test_the_answer_comes_out_of_its_wrapping(reference: str, answer: str) -> None:
    assert unwrapped(reference) == answer
    assert unwrapped(answer) == answer


@pytest.mark.parametrize("text", ["<answer>", "####", "\n", "answer is ", ". ", "<think>", r"\boxed{", "{"])
def test_it_takes_linear_time(text: str) -> None:
    start = time.perf_counter()
    unwrapped(text * (1_000_000 // len(text)))
    assert time.perf_counter() - start < 1


OPTIONS = "Which is it?\nA. one\nB. two\nC. three\nD. four"


@pytest.mark.parametrize(
    ("problem", "reference", "number"),
    [
        (OPTIONS, "B", 4),
        (OPTIONS, r"\boxed{D}", 4),
        (OPTIONS, "<answer>(A)</answer>", 4),
        ("Yes or no? (A) yes (B) no", "B", 2),
        (OPTIONS, "E", 0),  # no option
        (OPTIONS, "A, C", 0),  # several right ones
        (OPTIONS, "two", 0),
        (OPTIONS, 2, 0),
        (OPTIONS, None, 0),
        ("What is A?", "A", 0),
    ],
)
def test_options_are_counted_where_the_answer_is_one(problem: str, reference: object, number: int) -> None:
    assert num_options(problem, reference) == number
