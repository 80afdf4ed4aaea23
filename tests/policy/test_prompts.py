"""Messages get their images as TRL gives them, and otherwise an error that says what does not fit."""

import pytest
from PIL import Image
from trl.data_utils import prepare_multimodal_messages

from vgpo.policy.prompts import messages_with_images, row_with_images_in_prompt

ONE, TWO = Image.new("RGB", (2, 2)), Image.new("RGB", (4, 4), "white")
PLACE, TEXT = {"type": "image"}, {"type": "text", "text": "?"}


@pytest.mark.parametrize(
    ("messages", "images"),
    [
        ([{"role": "user", "content": "?"}], []),
        ([{"role": "user", "content": "?"}], [ONE, TWO]),
        ([{"role": "system", "content": "s"}, {"role": "user", "content": "?"}], [ONE]),
        ([{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], [ONE]),
        ([{"role": "user", "content": [PLACE, TEXT, PLACE]}], [ONE, TWO]),
        ([{"role": "user", "content": [PLACE]}, {"role": "user", "content": [PLACE, TEXT]}], [ONE, TWO]),
        ([{"role": "user", "content": [{"type": "image", "image": TWO}, PLACE]}], [ONE]),
        ([{"role": "user", "content": [TEXT]}], []),
        ([{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": []}], [ONE]),
    ],
)
def test_images_go_where_trl_puts_them(messages, images):
    before = repr(messages)
    assert messages_with_images(messages, images) == prepare_multimodal_messages(messages, images=images)
    assert repr(messages) == before


def test_images_without_a_place_go_before_the_users_first_text():
    found = messages_with_images([{"role": "user", "content": [TEXT]}], [ONE])
    assert found == [{"role": "user", "content": [{**PLACE, "image": ONE}, TEXT]}]


@pytest.mark.parametrize(("num_places", "images"), [(1, [ONE, TWO]), (2, [ONE]), (1, [])])
def test_other_numbers_of_images_and_places_are_an_error(num_places, images):
    message = rf"{num_places} image block\(s\) and {len(images)} image\(s\)"
    with pytest.raises(ValueError, match=message):
        messages_with_images([{"role": "user", "content": [PLACE] * num_places}], images)


def test_a_row_with_images_needs_messages():
    with pytest.raises(ValueError, match=r"1 image\(s\), but its prompt is str, expected a list of messages"):
        row_with_images_in_prompt({"prompt": "What?", "images": [ONE]})
    assert row_with_images_in_prompt({"prompt": "What?", "image": None}) == {"prompt": "What?"}
