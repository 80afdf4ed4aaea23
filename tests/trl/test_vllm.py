"""vLLM in the training processes is refused for images, before it is started or at the first of them."""

from types import SimpleNamespace

import pytest
from datasets import Dataset

from tests.trl.tiny import rows_with_pictures
from vgpo.data.media_columns import stores_images
from vgpo.trl import VGPOConfig, VGPOTrainer
from vgpo.trl.vllm import refuse_colocate

REFUSED = r"vllm_mode='colocate' \(TRL's default\) cannot take images.*use_vllm=False.*vllm_mode='server'"
TEXT = Dataset.from_list([{"prompt": [{"role": "user", "content": "What"}], "images": [], "answer": "1"}] * 2)


def config(tmp_path, **settings):
    return VGPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], **settings)


def test_the_trainer_refuses_images_before_it_starts_vllm(make_trainer):
    with pytest.raises(ValueError, match=REFUSED):
        make_trainer(use_vllm=True)


@pytest.mark.parametrize("settings", [{"use_vllm": True, "vllm_mode": "server"}, {"use_vllm": False}], ids=str)
def test_a_server_and_transformers_are_not_refused(tmp_path, settings):
    refuse_colocate(config(tmp_path, **settings))


def test_images_are_found_where_they_are_stored():
    assert stores_images(rows_with_pictures())
    assert stores_images(rows_with_pictures().with_transform(dict))
    assert not stores_images(TEXT)
    assert not stores_images(TEXT.with_transform(dict))
    assert not stores_images(rows_with_pictures().to_iterable_dataset())


def test_images_that_are_not_known_before_are_refused_when_they_are_read(tmp_path):
    trainer = SimpleNamespace(args=config(tmp_path, use_vllm=True))
    with pytest.raises(ValueError, match=REFUSED):
        VGPOTrainer._generate_single_turn(trainer, [[1], [2]], [None, ["image"]], {}, 4)
