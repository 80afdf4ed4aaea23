"""Checkpoints that are adapters: the base with the adapter merged, and never the base alone."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, PreTrainedModel
from trl import ModelConfig

from vgpo.policy.blank_media import blank_prompt
from vgpo.recipe.adapters import Source, with_bases
from vgpo.recipe.checks import examine
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.export import write_plain
from vgpo.recipe.loading import (
    PlainCheckpoint,
    adapter_config,
    forbidden_tokens,
    load_model,
    load_processor,
    quiet_libraries,
)
from vgpo.recipe.recipe import load_recipe
from vgpo.recipe.setup import Setup
from vgpo.study.checks import input_digests
from vgpo.toy import checkpoint_path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LORA = ModelConfig(model_name_or_path="toy", use_peft=True, lora_r=4)


def model_of(checkpoint: Any) -> PreTrainedModel:
    return load_model(PlainCheckpoint(str(checkpoint)), trust_remote_code=False)


def processor_of(checkpoint: Any) -> Any:
    return load_processor(PlainCheckpoint(str(checkpoint)), trust_remote_code=False, min_pixels=None, max_pixels=None)


def adapted(model: PreTrainedModel, seed: int) -> PeftModel:
    """A model with an adapter that changes every layer of its decoder."""
    torch.manual_seed(seed)
    found = get_peft_model(model, adapter_config(LORA, model, vision=False))
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.03)
    return found.eval()


def logits(model: Any) -> torch.Tensor:
    inputs = processor_of("toy").apply_chat_template(
        blank_prompt(), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        return model(**inputs).logits


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """An adapter of the toy model with its processor, and its logits before it was saved."""
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    model = adapted(model_of("toy"), seed=1)
    model.save_pretrained(folder)
    processor_of("toy").save_pretrained(folder)
    return folder, logits(model)


@pytest.fixture
def adapter(made: tuple[Path, torch.Tensor], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made[0], tmp_path / "adapter"))


def set_config(adapter: Path, **values: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(adapter: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    change(weights)
    save_file(weights, adapter / "adapter_model.safetensors")


def refused(checkpoint: Path, *words: str) -> str:
    """The message with which a checkpoint is refused; no word of it may be missing."""
    with pytest.raises(RecipeError) as error:
        model_of(checkpoint)
    for word in words:
        assert word in str(error.value)
    return str(error.value)


def test_an_adapter_is_its_base_with_the_adapter_merged(made: tuple[Path, torch.Tensor]) -> None:
    folder, expected = made
    model = model_of(folder)
    assert type(model) is type(model_of("toy"))
    assert (logits(model) - expected).abs().max() < 1e-5
    assert (logits(model_of("toy")) - expected).abs().max() > 0.1
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert model.name_or_path == model.config.name_or_path == str(folder)


def test_an_adapter_on_an_adapter_has_both(made: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    first = made[0]
    second = adapted(model_of(first), seed=2)
    quiet_libraries()
    second.save_pretrained(tmp_path / "second")
    assert json.loads((tmp_path / "second" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        first
    )
    assert (logits(model_of(tmp_path / "second")) - logits(second)).abs().max() < 1e-5
    chain = with_bases(Source(str(tmp_path / "second")), trust_remote_code=False)
    assert [source.name for source in chain] == [str(tmp_path / "second"), str(first), str(checkpoint_path())]
    # The second has no processor: that of the first is next, and has a limit of its own.
    processor = processor_of(first)
    assert processor_of(tmp_path / "second").image_processor.size == processor.image_processor.size


def test_processor_and_chat_template_are_the_adapters_own_where_they_are_saved(adapter: Path) -> None:
    processor = processor_of("toy")
    processor.image_processor.size["longest_edge"] = 28 * 28 * 9
    processor.chat_template = f"{processor.chat_template}{{# own #}}"
    processor.save_pretrained(adapter)
    assert processor_of(adapter).image_processor.size["longest_edge"] == 28 * 28 * 9
    assert processor_of(adapter).chat_template.endswith("{# own #}")
    (adapter / "processor_config.json").unlink()  # tokenizer and template stay
    assert processor_of(adapter).image_processor.size == processor_of("toy").image_processor.size
    assert processor_of(adapter).chat_template.endswith("{# own #}")
    tokenizer = adapter / "tokenizer_config.json"  # where earlier versions keep the template
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"chat_template": "older"}))
    (adapter / "chat_template.jinja").unlink()
    assert processor_of(adapter).chat_template == "older"
    for file in adapter.glob("*"):
        if not file.name.startswith("adapter_"):
            file.unlink()
    assert processor_of(adapter).chat_template == processor_of("toy").chat_template
    model = PlainCheckpoint(str(adapter))
    tokens = forbidden_tokens(model, processor, trust_remote_code=False)
    assert tokens == forbidden_tokens(LORA, processor, trust_remote_code=False)


def test_an_adapter_without_weights_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    refused(adapter, "is an adapter", "has no weights: neither adapter_model.safetensors nor", "Restore the file")


@pytest.mark.parametrize("cut", [0, 100, 10_000])
def test_damaged_weights_of_an_adapter_are_refused(adapter: Path, cut: int) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    refused(adapter, f"whose weights do not fit its base {checkpoint_path()}: ", "Restore the adapter's files")


def test_weights_that_the_base_has_no_place_for_are_refused(adapter: Path) -> None:
    change_weights(adapter, lambda weights: weights.update(other_layer=torch.ones(1)))
    refused(adapter, "unexpected: other_layer")


def test_weights_that_are_missing_are_refused(adapter: Path) -> None:
    change_weights(adapter, lambda weights: weights.pop(sorted(weights)[3]))
    refused(adapter, "whose weights do not fit its base", "missing: base_model.model.")


def test_weights_of_another_shape_are_refused(adapter: Path) -> None:
    set_config(adapter, r=2)
    refused(adapter, "whose weights do not fit its base", "size mismatch for base_model.model.")


def test_layers_that_the_base_does_not_have_are_refused(adapter: Path) -> None:
    set_config(adapter, target_modules=["no_such_layer"])
    refused(adapter, "whose weights do not fit its base", "no_such_layer")


def test_a_kind_without_a_merged_form_is_refused(adapter: Path) -> None:
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2, base_model_name_or_path="toy",
        num_layers=1, num_attention_heads=1, token_dim=8, num_transformer_submodules=1,
    )  # fmt: skip
    config.save_pretrained(adapter)
    refused(adapter, "PROMPT_TUNING", "which cannot be merged")


def test_a_quantized_base_is_refused(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreTrainedModel, "is_quantized", True, raising=False)
    refused(adapter, "cannot be merged into a quantized base", "remove load_in_4bit")


@pytest.mark.parametrize(
    "base", ["toy", "/opt/venv/lib/python3.12/site-packages/vgpo/toy/checkpoint"], ids=["name", "other installation"]
)
def test_the_embedded_base_is_found_wherever_the_package_is(
    adapter: Path, base: str, made: tuple[Path, torch.Tensor]
) -> None:
    set_config(adapter, base_model_name_or_path=base)
    assert (logits(model_of(adapter)) - made[1]).abs().max() < 1e-5


def test_a_base_that_was_moved_is_named_with_the_place_where_it_was_looked_for(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fix = "correct base_model_name_or_path in adapter_config.json"
    for base in ("/no/such/base", "./base", "models/old/base"):
        set_config(adapter, base_model_name_or_path=base)
        place = Path(base) if base.startswith("/") else tmp_path / base
        refused(
            adapter,
            f"whose base {base!r} does not exist: {place} is not a folder",
            fix,
            "'toy' for the toy model",
        )
    set_config(adapter, base_model_name_or_path="models/base")
    looked = f"the base 'models/base' of the adapter {str(adapter)!r} (looked for in the folder {tmp_path}/models/base"
    refused(adapter, looked, "and on the hub) cannot be loaded")


@pytest.mark.parametrize("base", [None, "", 3])
def test_an_adapter_without_a_base_is_refused(adapter: Path, base: Any) -> None:
    set_config(adapter, base_model_name_or_path=base)
    refused(adapter, f"whose adapter_config.json has {base!r} as base_model_name_or_path")


@pytest.mark.parametrize("text", ["{broken", "[]", "\xff"])
def test_a_broken_adapter_config_is_refused(adapter: Path, text: str) -> None:
    (adapter / "adapter_config.json").write_bytes(text.encode("latin-1"))
    refused(adapter, "adapter_config.json")


def test_adapters_whose_bases_form_a_cycle_are_refused(adapter: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    set_config(adapter, base_model_name_or_path=str(other))
    set_config(other, base_model_name_or_path=str(adapter))
    refused(adapter, "part of a cycle")
    set_config(adapter, base_model_name_or_path=str(adapter))
    refused(adapter, "part of a cycle")


def test_a_base_in_a_relative_folder_is_recorded_with_its_full_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(checkpoint_path(), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    adapted(model_of("base"), seed=1).save_pretrained("adapter")
    monkeypatch.chdir("/")
    assert model_of(tmp_path / "adapter").name_or_path == str(tmp_path / "adapter")


@pytest.mark.parametrize(("revision", "recorded"), [("main", None), (COMMIT, COMMIT)])
def test_an_adapter_records_the_revision_of_a_base_on_the_hub(revision: str, recorded: str | None) -> None:
    model = model_of("toy")
    recipe = ModelConfig(use_peft=True, model_revision=revision)
    assert adapter_config(recipe, model, vision=False).revision is None  # of a folder
    model.name_or_path = "org/model"
    assert adapter_config(recipe, model, vision=False).revision == recorded


def test_the_base_has_the_revision_that_the_adapter_records(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def from_pretrained(name: str, **options: Any) -> None:
        asked.append((name, options["revision"]))
        raise OSError("not there")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", from_pretrained)
    for revision in (COMMIT, None):
        set_config(adapter, base_model_name_or_path="org/model", revision=revision)
        refused(adapter, "the base 'org/model' of the adapter")
    assert asked == [("org/model", COMMIT), ("org/model", "main")]


def test_code_of_a_base_on_the_hub_runs_at_one_commit_only(adapter: Path) -> None:
    set_config(adapter, base_model_name_or_path="org/model", revision="main")
    with pytest.raises(RecipeError, match=r"would run whatever code its base org/model has .* Set \"revision\" in"):
        load_model(PlainCheckpoint(str(adapter)), trust_remote_code=True)
    set_config(adapter, revision=COMMIT)
    with pytest.raises(RecipeError, match="the base 'org/model' of the adapter"):
        load_model(PlainCheckpoint(str(adapter)), trust_remote_code=True)


def test_code_of_another_repository_is_refused_in_the_base_too(adapter: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(checkpoint_path(), tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "org/code--own.Config"}}))
    set_config(adapter, base_model_name_or_path=str(base))
    with pytest.raises(RecipeError, match=r"takes own.Config from another repository, 'org/code'"):
        load_model(PlainCheckpoint(str(adapter)), trust_remote_code=True)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--beta", "0.1"], "fail"),
        (["--beta", "0.1", "--use_peft", "true"], "pass"),
        (["--beta", "0"], "pass"),
        (["--beta", "0.1", "--model_name_or_path", "toy"], "pass"),
    ],
)
def test_a_reference_model_cannot_be_an_adapter(adapter: Path, tmp_path: Path, words: list[str], status: str) -> None:
    recipe = load_recipe("quickstart_vgpo", ["--model_name_or_path", str(adapter), "--use_cpu", "true", *words])
    finding = examine("reference model", Setup(recipe, tmp_path), {})
    assert finding.status == status
    if status == "fail":
        assert f"TRL cannot load the adapter {str(adapter)!r}" in finding.found
        assert f"`vgpo merge {adapter} FOLDER`" in finding.fix


def test_a_study_sees_that_the_base_of_its_start_changed(adapter: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(checkpoint_path(), tmp_path / "base"))
    set_config(adapter, base_model_name_or_path=str(base))
    recipe = load_recipe("quickstart_vgpo", ["--model_name_or_path", str(adapter), "--use_cpu", "true"])
    before = input_digests(recipe)
    (base / "model.safetensors").write_bytes(b"other")
    after = input_digests(recipe)
    assert [name for name in before if before[name] != after[name]] == ["model_name_or_path, base 1"]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_what_is_written_loads_without_peft_and_is_what_was_merged(
    made: tuple[Path, torch.Tensor], tmp_path: Path, dtype: str
) -> None:
    folder, expected = made
    written = write_plain(str(folder), tmp_path / "new" / "out", dtype=dtype)
    found = AutoModelForImageTextToText.from_pretrained(written.out)
    assert found.dtype is (torch.float32 if dtype == "auto" else torch.bfloat16)
    if dtype == "auto":
        assert (logits(found) - expected).abs().max() < 1e-5
    assert [path.name for path in written.out.parent.iterdir()] == ["out"]
    names = {path.name for path in written.out.iterdir()}
    assert names == {
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "processor_config.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert written.num_files == 7
    assert written.num_bytes == sum(path.stat().st_size for path in written.out.iterdir())
    texts = [path.read_text() for path in written.out.glob("*.json")]
    assert not [text for text in texts if str(folder) in text or str(checkpoint_path()) in text]


def test_a_folder_that_is_taken_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for taken in (tmp_path, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(RecipeError, match=re.escape(f"{taken} already exists; name a new")):
            write_plain("toy", taken)
    assert write_plain("toy", tmp_path / "empty").num_files == 7


def test_weights_that_do_not_load_as_they_were_written_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = PreTrainedModel.save_pretrained

    def save_other(model: PreTrainedModel, folder: Path) -> None:
        save(model, folder)
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"] += 1
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_other)
    with pytest.raises(RecipeError, match=r"does not load unchanged: model\.language_model\.norm\.weight changed"):
        write_plain("toy", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(model: PreTrainedModel, folder: Path) -> None:
        folder.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    with pytest.raises(RecipeError, match=r"out could not be written: .*No space left"):
        write_plain("toy", tmp_path / "out")
    assert not list(tmp_path.iterdir())
