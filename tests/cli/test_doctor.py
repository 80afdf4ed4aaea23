"""`vgpo doctor` finds what would break a run, and names the cure."""

import shutil
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console
from typer.testing import CliRunner

from vgpo.cli import app
from vgpo.policy.parts import count_parameters, lora_targets
from vgpo.recipe import checks as doctor
from vgpo.recipe import packages
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.files import recipe_folder
from vgpo.recipe.recipe import load_recipe
from vgpo.recipe.setup import Setup
from vgpo.recipe.tested import TESTED
from vgpo.recipe.train import train
from vgpo.toy import write_datasets
from vgpo.toy.model import build_model, build_processor
from vgpo.verl.recipe import load_recipe as load_verl_recipe

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    return write_datasets(tmp_path_factory.mktemp("data"), num_train=160, num_test=1)[0]


def examined(tmp_path, train_file, *words, checks=tuple(doctor.CHECKS)):
    words = ["--train_data", str(train_file), "--run_dir", str(tmp_path / "run"), "--use_cpu", "true", *words]
    setup = Setup(load_recipe("quickstart_vgpo", words), tmp_path)
    findings = {}
    for name in checks:
        findings[name] = doctor.examine(name, setup, findings)
    return findings


def test_the_embedded_recipe_is_healthy(tmp_path, train_file):
    words = ["doctor", "quickstart_vgpo", "--train_data", str(train_file), "--run_dir", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*words, "--use_cpu", "true"])
    assert result.exit_code == 0, result.output
    statuses = [line.split()[0] for line in result.output.splitlines() if line[:4] in doctor.COLOURS]
    assert statuses == ["pass"] * len(doctor.CHECKS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", ["geometry", "vista"])
def test_sets_in_the_form_of_geometry3k_and_mathvista_are_healthy(tmp_path, form, request):
    findings = examined(tmp_path, request.getfixturevalue(form), "--gradient_accumulation_steps", "1")
    assert {finding.status for finding in findings.values()} == {"pass"}, findings
    assert findings["image tokens"].found.endswith("each with its feature")


def test_a_missing_set_fails_once_and_what_needs_it_is_skipped(tmp_path, train_file):
    findings = examined(tmp_path, tmp_path / "nowhere.parquet")
    assert findings["data"].status == "fail"
    assert "nowhere.parquet" in findings["data"].found
    assert {name for name, finding in findings.items() if finding.status == "skip"} == {
        "evaluation images", "batches", "rewards", "memory", "image tokens", "parity",
    }  # fmt: skip
    assert findings["batches"].found == "needs data"


def test_a_broken_held_out_set_fails(tmp_path, train_file):
    (tmp_path / "broken.parquet").write_text("no parquet")
    checks = ["processor", "data", "held-out data"]
    findings = examined(tmp_path, train_file, "--eval_data", str(tmp_path / "broken.parquet"), checks=checks)
    assert [findings[name].status for name in checks] == ["pass", "pass", "fail"]
    assert "broken.parquet" in findings["held-out data"].found
    finding = examined(tmp_path, train_file, "--eval_data", str(train_file), "--eval_limit", "7", checks=checks)
    assert finding["held-out data"].found == f"7 questions from {train_file}"


def test_a_missing_model_leaves_the_other_checks_running(tmp_path, train_file):
    findings = examined(tmp_path, train_file, "--model_name_or_path", str(tmp_path / "none"))
    assert findings["processor"].status == "fail"
    assert findings["versions"].status == findings["trackers"].status == "pass"
    assert {findings[name].status for name in ("model", "memory", "data")} == {"skip"}


def test_a_vllm_server_that_is_not_there_is_named_with_its_command(tmp_path, train_file):
    words = ["--use_vllm", "true", "--vllm_mode", "server", "--vllm_server_port", "9", "--max_pixels", "20000"]
    finding = examined(tmp_path, train_file, *words, checks=["processor", "vLLM server"])["vLLM server"]
    assert finding.status == "fail"
    assert "No vLLM server answers at http://127.0.0.1:9" in finding.found
    assert """--mm-processor-kwargs '{"size": {"shortest_edge": 784, "longest_edge": 20000}}'""" in finding.fix
    assert finding.fix.startswith("VLLM_SERVER_DEV_MODE=1 vllm serve /")
    assert examined(tmp_path, train_file, checks=["vLLM server"])["vLLM server"].status == "pass"


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--top_p", "0.99"], "top_p 0.99"),
        (["--top_k", "50"], "top_k 50"),
        (["--min_p", "0.1", "--vllm_importance_sampling_mode", "sequence_truncate"], "min_p 0.1"),
        (["--top_p", "0.9", "--top_k", "20"], "top_p 0.9, top_k 20"),
    ],
)
def test_truncated_sampling_with_ratios_of_complete_responses_is_a_warning(tmp_path, train_file, words, kept):
    words = ["--use_vllm", "true", *words]
    (finding,) = examined(tmp_path, train_file, *words, checks=["importance ratio"]).values()
    assert finding.status == "warn"
    assert finding.found.startswith(f"with {kept} the importance ratio of a complete response")
    assert "vllm_importance_sampling_mode: token_truncate" in finding.fix


@pytest.mark.parametrize(
    "words",
    [
        ["--use_vllm", "true"],
        ["--use_vllm", "false", "--top_p", "0.99"],
        ["--use_vllm", "true", "--top_k", "-1"],
        ["--use_vllm", "true", "--top_p", "0.99", "--vllm_importance_sampling_mode", "token_mask"],
        ["--use_vllm", "true", "--top_p", "0.99", "--vllm_importance_sampling_correction", "false"],
    ],
)
def test_other_importance_ratios_are_no_reason_to_warn(tmp_path, train_file, words):
    assert examined(tmp_path, train_file, *words, checks=["importance ratio"])["importance ratio"].status == "pass"


@pytest.mark.parametrize("path", sorted(recipe_folder().glob("*qwen*.yaml")), ids=lambda path: path.stem)
def test_no_shipped_recipe_has_ratios_that_fall_with_the_length(path, caplog):
    if path.stem.startswith("verl_"):
        load_verl_recipe(path)
        assert "importance ratio" not in caplog.text
    else:
        setup = Setup(load_recipe(path, ["--use_cpu", "true"]), path.parent)
        assert doctor.examine("importance ratio", setup, {}).status == "pass"


def test_the_end_is_an_error_where_a_check_fails(tmp_path, train_file):
    words = ["doctor", "quickstart_vgpo", "--train_data", str(tmp_path / "nowhere.parquet")]
    assert CliRunner().invoke(app, words).exit_code == 1


FREE = namedtuple("FREE", "free")


SAVING = ("--save_strategy", "steps", "--save_total_limit", "2")


def test_a_full_disk_is_seen(tmp_path, train_file, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: FREE(2**20))
    finding = examined(tmp_path, train_file, *SAVING, checks=["disk"])["disk"]
    assert (finding.status, "save_total_limit" in finding.fix) == ("fail", True)
    finding = examined(tmp_path, train_file, "--save_strategy", "no", checks=["disk"])["disk"]
    assert (finding.status, finding.fix) == ("fail", "move run_dir")


@pytest.mark.parametrize(
    ("words", "weights", "copies"),
    [
        (["--save_strategy", "no"], "all", 1),  # the trained model at the end
        (SAVING, "all", 3 * 3),  # weights and two moments, in two checkpoints and the one that is being written
        ([*SAVING, "--save_only_model", "true"], "all", 3),
        ([*SAVING, "--optim", "sgd"], "all", 3),
        ([*SAVING, "--use_peft", "true"], "adapters", 3 * 3),
        (["--save_strategy", "no", "--use_peft", "true"], "adapters", 1),
        (["--save_strategy", "no", "--use_peft", "true", "--lora_vision", "true"], "adapters in vision", 1),
    ],
)
def test_the_disk_needs_what_is_saved(tmp_path, train_file, monkeypatch, words, weights, copies):
    setup = Setup(load_recipe("quickstart_vgpo", ["--train_data", str(train_file), *words]), tmp_path)
    model = setup.model
    sizes = {"all": sum(p.numel() for p in model.parameters())}
    for name, vision in (("adapters", False), ("adapters in vision", True)):
        layers = [model.get_submodule(target) for target in lora_targets(model, vision=vision)]
        sizes[name] = sum(setup.recipe.model.lora_r * (layer.in_features + layer.out_features) for layer in layers)
    needed = 4 * copies * sizes[weights]
    for free, status in ((needed + 1, "pass"), (needed, "fail")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: FREE(free))
        assert doctor.disk(setup).status == status
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_what_is_frozen_has_no_moments_on_the_disk(tmp_path, train_file):
    words = ["--train_data", str(train_file), "--freeze", "language_model"]
    setup = Setup(load_recipe("quickstart_vgpo", words), tmp_path)
    weights, trained = doctor.saved_bytes(setup)
    assert weights == 4 * sum(p.numel() for p in setup.model.parameters())
    assert 0 < trained == 4 * sum(count.trainable for count in count_parameters(setup.model).values()) < weights


def test_a_run_of_adapters_begins_where_all_weights_would_not_fit(tmp_path, train_file, monkeypatch):
    setup = Setup(load_recipe("quickstart_vgpo", ["--train_data", str(train_file), "--use_peft", "true"]), tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: FREE(4 * setup.model.num_parameters()))
    doctor.raise_failed_checks(setup, ["disk"], Console())


def test_too_little_memory_is_seen(tmp_path, train_file, monkeypatch):
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: namedtuple("M", "available")(2**20))
    assert examined(tmp_path, train_file, checks=["memory"])["memory"].status == "fail"


def test_wrong_versions_are_named(tmp_path, train_file, monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "0.1")
    finding = examined(tmp_path, train_file, checks=["versions"])["versions"]
    assert finding.status == "fail"
    assert "trl 0.1, expected 1.16.0 or newer" in finding.found
    assert "'trl>=1.16.0,<=" in finding.fix


def test_a_version_newer_than_the_tested_ones_is_a_warning(tmp_path, train_file, monkeypatch):
    newest = {name: str(versions.newest) for name, versions in TESTED.items()}
    for torch_version, status in (("2.14.1", "pass"), ("2.14.9+cpu", "pass"), ("2.15.0", "warn"), ("3.0", "warn")):
        monkeypatch.setattr(doctor, "version", {**newest, "torch": torch_version}.__getitem__)
        finding = examined(tmp_path, train_file, checks=["versions"])["versions"]
        assert finding.status == status
    assert finding.found == "torch 3.0 is newer than 2.14.1, the newest tested"
    assert finding.fix == "pip install 'torch>=2.8.0,<=2.14.1'"


def test_bounds_of_the_package_are_those_of_the_tested_versions():
    declared = [Requirement(line) for line in PROJECT["dependencies"]]
    bounds = {need.name: need.specifier for need in declared if need.name in TESTED}
    assert bounds == {name: SpecifierSet(versions.bounds) for name, versions in TESTED.items()}
    unlisted = {need.name for need in declared if "<" in str(need.specifier)} - set(TESTED)
    assert not unlisted, "give the tested versions of these in src/vgpo/recipe/tested.py"


@pytest.mark.parametrize(
    ("words", "found", "fix"),
    [
        ("--use_vllm true", "use_vllm needs vllm", "trl[vllm]"),
        ("--optim paged_adamw_8bit", "optim needs bitsandbytes", "trl[quantization]"),
        ("--load_in_4bit true --use_peft true", "load_in_4bit needs bitsandbytes", "trl[quantization]"),
        ("--use_liger_kernel true", "use_liger_kernel needs liger_kernel", "trl[liger]"),
        ("--attn_implementation flash_attention_2", "attn_implementation needs flash_attn", "flash-attn"),
        ("--rewards accuracy_math_verify", "rewards needs math_verify", "vgpo[math-verify]"),
        (
            "--eval_suite mmk12 --eval_suite_protocol lenient",
            "eval_suite_protocol needs math_verify",
            "vgpo[math-verify]",
        ),
    ],
)
def test_a_package_that_is_not_installed_is_named_before_anything_is_loaded(
    tmp_path, train_file, monkeypatch, words, found, fix
):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    finding = examined(tmp_path, train_file, *words.split(), checks=["packages"])["packages"]
    assert (finding.status, finding.found) == ("fail", f"{found}, which is not installed")
    assert finding.fix == f"pip install '{fix}'"
    with pytest.raises(RecipeError, match=f"packages: {found}.*pip install"):
        train(load_recipe("quickstart_vgpo", ["--run_dir", str(tmp_path / "new"), *words.split()]), command=["vgpo"])
    assert not (tmp_path / "new").exists()


def test_packages_that_are_installed_pass(tmp_path, train_file, monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: name)
    assert examined(tmp_path, train_file, "--use_vllm", "true", checks=["packages"])["packages"].status == "pass"


def test_a_tracker_that_is_not_installed_is_named(tmp_path, train_file, monkeypatch):
    monkeypatch.setattr(doctor, "get_available_reporting_integrations", lambda: ["tensorboard"])
    finding = examined(tmp_path, train_file, "--report_to", "wandb", checks=["trackers"])["trackers"]
    assert (finding.status, finding.fix) == ("fail", "pip install wandb")


@pytest.mark.parametrize("fault", ["zero", "mean", "copy"])
def test_tags_of_a_thought_that_nobody_trained_are_warned_of(tmp_path, train_file, monkeypatch, fault):
    words = ["--train_data", str(train_file), "--run_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    setup = Setup(load_recipe("quickstart_vgpo", [*words, "--template", "think_boxed"]), tmp_path)
    assert doctor.examine("thought", setup, {}) == doctor.Finding(
        "pass", "written by the model, its tags tokens of their own"
    )
    weight = setup.model.get_input_embeddings().weight.data
    token, end = setup.processor.tokenizer.convert_tokens_to_ids(["</think>", "<|im_end|>"])
    weight[token] = {"zero": 1e-3 * weight[token], "mean": weight.mean(0), "copy": weight[end]}[fault]
    found = doctor.examine("thought", setup, {})
    assert (found.status, found.found) == ("warn", "</think> are tokens whose embeddings look untrained")


def test_a_thought_that_the_chat_template_empties_is_warned_of(tmp_path, train_file):
    words = ["--train_data", str(train_file), "--run_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    setup = Setup(load_recipe("quickstart_vgpo", [*words, "--template", "think_boxed"]), tmp_path)
    opened = "<|im_start|>assistant\n"
    template = setup.processor.chat_template
    for prefix, status in (("<think>\n", "pass"), ("<think>\n\n</think>\n\n", "warn")):
        setup.processor.chat_template = template.replace(opened, opened + prefix)
        found = doctor.examine("thought", setup, {})
        assert (found.status, repr(prefix) in found.found) == (status, True)


def test_groups_that_are_cut_are_warned_of(tmp_path, train_file):
    words = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "4"]
    finding = examined(tmp_path, train_file, *words, checks=["batches"])["batches"]
    assert finding.status == "warn"


def test_weights_that_change_on_the_way_are_seen(tmp_path, train_file, monkeypatch):
    load = doctor.AutoModelForImageTextToText.from_pretrained

    def loses_a_weight(*args, **kwargs):
        model, report = load(*args, **kwargs)
        with torch.no_grad():
            next(model.parameters()).zero_()
        return model, report

    monkeypatch.setattr(doctor.AutoModelForImageTextToText, "from_pretrained", loses_a_weight)
    setup = Setup(load_recipe("quickstart_vgpo", ["--train_data", str(train_file)]), tmp_path)
    setup.model = build_model(build_processor().tokenizer, seed=1)
    assert doctor.examine("save and load", setup, {}).status == "fail"


def test_a_run_that_cannot_end_well_does_not_begin(tmp_path, train_file, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: FREE(2**20))
    words = ["--train_data", str(train_file), "--run_dir", str(tmp_path / "run")]
    with pytest.raises(RecipeError, match=r"disk: .* (G|M)iB for the trained model, 0\.0 GiB free\. move run_dir"):
        train(load_recipe("quickstart_vgpo", words), command=["vgpo"])
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_start_of_a_run_names_wrong_versions(tmp_path, train_file, monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "0.1")
    words = ["--train_data", str(train_file), "--run_dir", str(tmp_path / "run")]
    with pytest.raises(RecipeError, match=r"versions: .*torch 0\.1, expected"):
        train(load_recipe("quickstart_vgpo", words), command=["vgpo"])


def test_evaluation_images_in_the_training_set_are_counted_and_named(tmp_path, train_file):
    checks = ["processor", "data", "held-out data", "evaluation images"]
    words = ["--eval_data", str(train_file), "--eval_limit", "7"]
    finding = examined(tmp_path, train_file, *words, checks=checks)["evaluation images"]
    assert finding.status == "warn"
    assert finding.found.startswith("eval_data: 7 of 7 questions have an image of the training set: question '0'")
    assert "in training row '0'; question '1'" in finding.found
    assert finding.fix == "remove these rows from train_data, or evaluate on other data"
    finding = examined(tmp_path, train_file, "--eval_limit", "7", checks=checks)["evaluation images"]
    assert (finding.status, finding.found) == ("pass", "none of 7 questions of eval_data in the training set")
