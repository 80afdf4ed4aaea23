"""Preflight checks of a run."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from packaging.version import Version
from peft import get_peft_model, get_peft_model_state_dict
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForImageTextToText, GenerationConfig, get_scheduler
from transformers.integrations import get_available_reporting_integrations

from vgpo.data import DataError
from vgpo.evaluation.leaks import describe_leaks
from vgpo.focus import banned_token_ids, visual_token_ids
from vgpo.policy.embeddings import untrained_rows
from vgpo.policy.parity import ParityError
from vgpo.policy.parts import count_parameters, freeze_parts
from vgpo.policy.probes import FAULTS as MODEL_FAULTS
from vgpo.policy.prompts import response_prefix
from vgpo.recipe.consistency import TRUNCATED_FIX, truncated_sampling_fault
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.loading import adapter_config, check_image_token, faults_of, source_of
from vgpo.recipe.memory import FLOAT32, GIB, in_words, optimizer_bytes
from vgpo.recipe.packages import missing_packages
from vgpo.recipe.parity import measure_parity
from vgpo.recipe.run_plan import RunPlan, check_launch
from vgpo.recipe.serving import server_settings, unsupported_vllm
from vgpo.recipe.setup import Setup
from vgpo.recipe.tested import TESTED
from vgpo.rewards import RewardError, load_reward
from vgpo.rewards.checked import check_reward_columns
from vgpo.rewards.functions import END_THINK, THINK
from vgpo.shared_prompt import why_not_shared
from vgpo.text import did_you_mean
from vgpo.vllm.prompts import EngineError
from vgpo.vllm.server import as_shell, server_faults

# The last ones are raised by models and processors for an unsupported config or image.
FAULTS = (RecipeError, DataError, RewardError, OSError, *MODEL_FAULTS)
COLOURS = {"pass": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


@dataclass(frozen=True)
class Finding:
    """The result of a check; `status` is pass, warn, fail or skip."""

    status: str
    found: str
    fix: str = ""


def versions(setup: Setup) -> Finding:
    installed = {name: Version(version(name)) for name in TESTED}
    older = [name for name in TESTED if installed[name] < TESTED[name].oldest]
    newer = [name for name in TESTED if TESTED[name].is_newer(installed[name])]
    if not older + newer:
        return Finding("pass", ", ".join(f"{name} {installed[name]}" for name in TESTED))
    found = [f"{name} {installed[name]}, expected {TESTED[name].oldest} or newer" for name in older]
    found += [f"{name} {installed[name]} is newer than {TESTED[name].newest}, the newest tested" for name in newer]
    bounds = " ".join(f"'{name}>={TESTED[name].oldest},<={TESTED[name].newest}'" for name in older + newer)
    return Finding("fail" if older else "warn", "; ".join(found), f"pip install {bounds}")


def device(setup: Setup) -> Finding:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding("pass", ", ".join(names))
    cores, memory = psutil.cpu_count(logical=False), psutil.virtual_memory().available / GIB
    found = f"no GPU; {cores} CPU cores, {memory:.1f} GiB of memory free"
    return Finding("pass" if setup.recipe.config.use_cpu else "warn", found, "set use_cpu: true if this is intended")


def launch(setup: Setup) -> Finding:
    check_launch(setup.recipe.run, setup.recipe.config.world_size)
    return Finding("pass", f"{setup.recipe.config.world_size} process(es)")


def generation(setup: Setup) -> Finding:
    config = setup.recipe.config
    if not config.use_vllm:
        return Finding("pass", "transformers")
    with suppress(RecipeError):  # unreadable checkpoints are reported by the processor check
        if is_adapter(setup):
            name = setup.recipe.model.model_name_or_path
            fix = f"`vgpo merge {name} FOLDER` and name FOLDER"
            return Finding("fail", f"vLLM cannot load the adapter {name!r}", fix)
    if unsupported := unsupported_vllm():
        return Finding("warn", unsupported, "pip install 'trl[vllm]'")
    return Finding("pass", f"vLLM, {config.vllm_mode}")


def importance_ratio(setup: Setup) -> Finding:
    """Check that the importance ratio, of the policy to vLLM, does not fall with the length of a response."""
    config = setup.recipe.config
    if not config.use_vllm:
        return Finding("pass", "1: transformers generates")
    fault = truncated_sampling_fault(
        top_p=config.top_p, top_k=config.top_k, min_p=config.min_p,
        correction=config.vllm_importance_sampling_correction, mode=config.vllm_importance_sampling_mode,
    )  # fmt: skip
    return Finding("warn", fault, TRUNCATED_FIX) if fault else Finding("pass", config.vllm_importance_sampling_mode)


def vllm_server(setup: Setup) -> Finding:
    """Check that the running server matches the recipe."""
    if not setup.recipe.config.use_vllm or setup.recipe.config.vllm_mode != "server":
        return Finding("pass", "none (use_vllm, vllm_mode)")
    settings = server_settings(setup)
    try:
        faults = server_faults(settings)
    except EngineError as error:
        return Finding("fail", str(error), as_shell(settings.command()))
    if faults:
        return Finding("fail", f"at {settings.url}: {'; '.join(faults)}", as_shell(settings.command()))
    return Finding("pass", f"{settings.model} at {settings.url}, in {settings.dtype}")


def is_adapter(setup: Setup) -> bool:
    """Whether the start model is the adapter of a run."""
    source = source_of(setup.recipe.model)
    with faults_of(repr(source.name)):
        return source.adapter_config is not None


def reference(setup: Setup) -> Finding:
    """The reference model, which TRL loads from the name of the policy's checkpoint, without support for adapters."""
    beta, model = setup.recipe.config.beta, setup.recipe.model
    if not beta:
        return Finding("pass", "none (beta: 0)")
    if model.use_peft:
        return Finding("pass", "the policy without its adapters")
    name = source_of(model).name
    if not is_adapter(setup):
        return Finding("pass", f"{name}, loaded a second time")
    found = f"beta {beta:g} needs a reference model, and TRL cannot load the adapter {name!r} as one"
    return Finding("fail", found, f"`vgpo merge {name} FOLDER` and name FOLDER, or set use_peft: true, or beta: 0")


def trackers(setup: Setup) -> Finding:
    requested = [name for name in setup.recipe.config.report_to if name not in ("none", "all")]
    missing = sorted(set(requested) - set(get_available_reporting_integrations()))
    if missing:
        return Finding("fail", f"report_to: {missing} not installed", f"pip install {' '.join(missing)}")
    return Finding("pass", ", ".join(requested) or "none but the run folder")


def packages(setup: Setup) -> Finding:
    """Packages that fields of the recipe need."""
    if missing := missing_packages(setup.recipe):
        found = "; ".join(f"{need.field} needs {need.module}, which is not installed" for need in missing)
        return Finding("fail", found, f"pip install {' '.join(sorted({repr(need.requirement) for need in missing}))}")
    return Finding("pass", "all packages that the recipe needs are installed")


def library_settings(setup: Setup) -> Finding:
    """Check mappings and texts that libraries only parse shortly before the first step."""
    config = setup.recipe.config
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    try:
        get_scheduler(
            config.lr_scheduler_type, optimizer, num_warmup_steps=1, num_training_steps=10,
            scheduler_specific_kwargs=dict(config.lr_scheduler_kwargs or {}),
        )  # fmt: skip
    except MODEL_FAULTS as error:
        what = f"lr_scheduler_type {config.lr_scheduler_type!s}, lr_scheduler_kwargs {config.lr_scheduler_kwargs}"
        return Finding("fail", f"{what}: {type(error).__name__}: {error}", "correct lr_scheduler_kwargs")
    known = vars(GenerationConfig())
    unknown = [name for name in config.generation_kwargs or {} if name not in known and not config.use_vllm]
    if unknown:
        hint = did_you_mean(unknown[0], known)
        return Finding("fail", f"generation_kwargs: unknown {unknown[0]!r}{hint}", "correct or remove it")
    if config.optim_args and any(pair.count("=") != 1 for pair in config.optim_args.split(",")):
        return Finding("fail", f"optim_args: {config.optim_args!r}", "write it as name=value,name=value")
    return Finding("pass", "schedule, generation and optimizer accept the settings of the recipe")


def processor(setup: Setup) -> Finding:
    side = setup.processor.tokenizer.padding_side
    return Finding("pass" if side == "left" else "fail", f"{type(setup.processor).__name__}, pads on the {side}")


def data(setup: Setup) -> Finding:
    return Finding("pass", f"{len(setup.prompts)} prompts from {setup.recipe.run.train_data}")


def held_out(setup: Setup) -> Finding:
    if setup.held_out is None:
        return Finding("pass", "none (eval_data)")
    return Finding("pass", f"{len(setup.held_out)} questions from {setup.recipe.run.eval_data}")


def suite(setup: Setup) -> Finding:
    """The benchmarks evaluated during training."""
    if not setup.tasks:
        return Finding("pass", "none (eval_suite)")
    counts = [f"{len(task.questions)} rows of {task.benchmark.title}" for task in setup.tasks]
    return Finding("pass", f"{', '.join(counts)}, graded by {setup.recipe.run.eval_suite_protocol}")


def leaks(setup: Setup) -> Finding:
    """Evaluation images in the training set; see `vgpo.evaluation.leaks`."""
    sets = setup.evaluation_sets
    found = [f"{name}: {describe_leaks(leaks, len(sets[name]))}" for name, leaks in setup.leaks.items()]
    if found:
        return Finding("warn", ". ".join(found), "remove these rows from train_data, or evaluate on other data")
    counts = [f"none of {len(rows)} questions of {name}" for name, rows in sets.items()]
    return Finding("pass", f"{' and '.join(counts)} in the training set" if sets else "nothing to evaluate on")


def arithmetic(setup: Setup) -> Finding:
    config = setup.recipe.config
    plan = RunPlan.of(config, len(setup.prompts), config.world_size)
    batch = plan.batch
    found = f"{batch.prompts} prompts x {batch.group_size} rollouts per generation, {plan.steps} optimizer steps"
    if not batch.groups_fit_micro_batch:
        return Finding(
            "warn", f"{found}; groups are split", "make per_device_train_batch_size a multiple of num_generations"
        )
    return Finding("pass", found)


def rewards(setup: Setup) -> Finding:
    names = setup.recipe.run.rewards
    check_reward_columns(map(load_reward, names), setup.prompts)
    return Finding("pass", f"{', '.join(names)}: all columns exist; `vgpo reward test` tests them")


def model(setup: Setup) -> Finding:
    check_image_token(setup.model, setup.processor)
    count = sum(parameter.numel() for parameter in setup.model.parameters())
    return Finding("pass", f"{type(setup.model).__name__}, {count / 1e6:.1f} M parameters in {setup.model.dtype}")


def memory(setup: Setup) -> Finding:
    if setup.recipe.model.use_peft:
        setup.model.requires_grad_(False)  # without adapters, which are comparatively small
    else:
        freeze_parts(setup.model, setup.recipe.config.freeze)
    needed = setup.memory
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
    found = f"{in_words(needed.total)} estimated for an update, {free / GIB:.1f} GiB free; generation comes on top"
    fix = "a smaller micro-batch or shorter responses, gradient_checkpointing, use_peft, more devices"
    cannot_fit = needed.total - needed.activations - needed.head > free
    return Finding("fail" if cannot_fit else "warn" if needed.total > free else "pass", found, fix)


def disk(setup: Setup) -> Finding:
    config = setup.recipe.config
    weights, trained = saved_bytes(setup)
    needed, what, fix = weights, "the trained model", "move run_dir"
    if config.save_strategy != "no":
        kept = 1 + max(config.save_total_limit or 1, 2)  # an old checkpoint is deleted after the next one is saved
        state = 0 if config.save_only_model else trained * optimizer_bytes(config) // FLOAT32
        needed, what, fix = kept * (weights + state), f"{kept} checkpoints", f"lower save_total_limit, or {fix}"
    place = Path(setup.recipe.run.run_dir).absolute()
    free = shutil.disk_usage(next(parent for parent in (place, *place.parents) if parent.exists())).free
    found = f"{in_words(needed)} for {what}, {free / GIB:.1f} GiB free"
    return Finding("pass" if needed < free else "fail", found, fix)


def saved_bytes(setup: Setup) -> tuple[int, int]:
    """Bytes of the saved weights, and of the trained ones among them."""
    recipe, model = setup.recipe, setup.model
    if not recipe.model.use_peft:
        freeze_parts(model, recipe.config.freeze)
        sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
        return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
    with torch.device("meta"):  # adding adapters would change the model itself
        bare = type(model)(model.config)
    adapted = get_peft_model(bare, adapter_config(recipe.model, bare, vision=recipe.run.lora_vision))
    adapters = FLOAT32 * sum(weight.numel() for weight in get_peft_model_state_dict(adapted).values())
    return adapters, adapters


def image(setup: Setup) -> Finding:
    inputs = setup.first_image
    ids = torch.tensor(visual_token_ids(setup.model.config))
    count = int(torch.isin(inputs["input_ids"], ids).sum())
    with torch.inference_mode():
        setup.model.eval()(**inputs.to(setup.model.device))  # raises if features do not match the tokens
    return Finding("pass", f"{inputs['input_ids'].shape[1]} tokens, {count} of them visual, each with its feature")


def banned(setup: Setup) -> Finding:
    ids = banned_token_ids(setup.model.config)
    names = setup.processor.tokenizer.convert_ids_to_tokens(ids)
    return Finding("pass" if ids else "fail", f"never generated: {', '.join(names)}")


def thought(setup: Setup) -> Finding:
    """Check how prompt and tokenizer treat the thinking tags, if the recipe requires them."""
    prefix = response_prefix(setup.processor, setup.recipe.config.chat_template_kwargs or {})
    if not setup.recipe.wants_thought:
        return Finding("pass", f"the chat template begins responses with {prefix!r}" if prefix else "not required")
    if END_THINK in prefix:
        return Finding(
            "warn",
            f"the recipe requires a thought, but the chat template begins responses with an empty one, {prefix!r}",
            "set chat_template_kwargs: {enable_thinking: true}, or the equivalent switch of this template",
        )
    tokenizer = setup.processor.tokenizer
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[tag] for tag in (THINK, END_THINK) if tag in vocabulary]
    weight = setup.model.get_input_embeddings().weight
    unused = range(len(tokenizer), len(weight))
    untrained = untrained_rows(weight, ids, [*tokenizer.added_tokens_decoder, *unused])
    if untrained:
        return Finding(
            "warn",
            f"{' and '.join(tokenizer.convert_ids_to_tokens(untrained))} are tokens whose embeddings look untrained",
            "train them first (SFT on responses with a thought), or remove them from the tokenizer, which "
            "then writes the tags in ordinary tokens",
        )
    how = f"begun by the chat template with {prefix!r}" if prefix else "written by the model"
    return Finding("pass", f"{how}, its tags {'tokens of their own' if ids else 'in ordinary tokens'}")


def trainable(setup: Setup) -> Finding:
    frozen = setup.recipe.config.freeze or []
    if setup.recipe.model.use_peft:
        return Finding("pass", "adapters only (use_peft); the table at the start of the run counts them")
    freeze_parts(setup.model, frozen)
    parts = [
        f"{part.replace('_', ' ')} {count.trainable / 1e6:.2f} M"
        for part, count in count_parameters(setup.model).items()
        if count.all
    ]
    return Finding("pass", ", ".join(parts))


def shared(setup: Setup) -> Finding:
    reason = why_not_shared(setup.model, measured=setup.recipe.config.parity != "off")
    switch = setup.recipe.config.share_prompt
    if reason is None or switch == "off":
        return Finding("pass", f"share_prompt: {switch}")
    return Finding("fail" if switch == "on" else "warn", f"share_prompt: {switch}, but {reason}")


def parity(setup: Setup) -> Finding:
    """Check that training computes what the model computes; see `vgpo.policy.parity`."""
    if setup.recipe.config.parity == "off":
        return Finding("warn", "parity: off; training is not compared with the model itself")
    try:
        measured = measure_parity(setup)
    except ParityError as error:
        return Finding("fail", str(error))
    reported = [f"{gap.name}: {gap.result}" for gap in measured.gaps if not gap.passes]
    if measured.own_head:
        reported.append("log-probabilities come from the model's own logits, which takes more memory")
    largest = max((gap.largest for gap in measured.gaps if gap.largest == gap.largest), default=0.0)
    found = f"{len(measured.gaps)} comparisons, largest difference {largest:.1e} in {measured.dtype}"
    return Finding("warn" if reported else "pass", "; ".join([found, *reported]))


def round_trip(setup: Setup) -> Finding:
    """Save, load strictly, compare every weight."""
    with tempfile.TemporaryDirectory(dir=setup.folder) as folder:
        setup.model.save_pretrained(folder)
        again, report = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=setup.model.dtype, output_loading_info=True
        )
    lost = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    weights = again.state_dict()
    changed = [
        name for name, weight in setup.model.state_dict().items() if not torch.equal(weight.cpu(), weights[name])
    ]
    if lost or changed:
        return Finding(
            "fail",
            f"not loaded as saved: {[*lost, *changed][:5]}",
            "use a version of transformers that loads them correctly",
        )
    return Finding("pass", f"{len(weights)} tensors equal after saving and loading")


class Check(NamedTuple):
    """A check, and the checks that it depends on."""

    look: Callable[[Setup], Finding]
    needs: tuple[str, ...] = ()


CHECKS = {
    "versions": Check(versions),
    "device": Check(device),
    "processes": Check(launch),
    "generation": Check(generation),
    "importance ratio": Check(importance_ratio),
    "reference model": Check(reference),
    "trackers": Check(trackers),
    "packages": Check(packages),
    "library settings": Check(library_settings),
    "processor": Check(processor),
    "vLLM server": Check(vllm_server, ("processor",)),
    "data": Check(data, ("processor",)),
    "held-out data": Check(held_out, ("processor",)),
    "benchmarks": Check(suite, ("processor",)),
    "evaluation images": Check(leaks, ("data", "held-out data", "benchmarks")),
    "batches": Check(arithmetic, ("data",)),
    "rewards": Check(rewards, ("data",)),
    "model": Check(model, ("processor",)),
    "memory": Check(memory, ("data", "model")),
    "disk": Check(disk, ("model",)),
    "image tokens": Check(image, ("data", "model")),
    "banned tokens": Check(banned, ("model",)),
    "thought": Check(thought, ("model",)),
    "trained parts": Check(trainable, ("model",)),
    "shared prompts": Check(shared, ("model",)),
    "parity": Check(parity, ("data", "model", "image tokens")),
    "save and load": Check(round_trip, ("model",)),
}
# Cheap checks, and those that the start of a run needs anyway.
BEFORE_LOADING = (
    "versions",
    "generation",
    "importance ratio",
    "reference model",
    "trackers",
    "packages",
    "library settings",
)
WITH_DATA = ("evaluation images",)
WITH_MODEL = ("memory", "disk")


def examine_all(
    names: Iterable[str], setup: Setup, announce: Callable[[str], None] = lambda name: None
) -> dict[str, Finding]:
    """Run these checks in order and return their findings; `announce` is called with each name before it runs."""
    findings: dict[str, Finding] = {}
    for name in names:
        announce(name)
        findings[name] = examine(name, setup, findings)
    return findings


def examine(name: str, setup: Setup, before: Mapping[str, Finding]) -> Finding:
    """The finding of one check, given those of `before`; an error that the user can fix becomes a finding."""
    check = CHECKS[name]
    missing = [need for need in check.needs if need in before and before[need].status in ("fail", "skip")]
    if missing:
        return Finding("skip", f"needs {missing[0]}")
    try:
        return check.look(setup)
    except (RecipeError, DataError, RewardError, OSError, ValueError) as error:
        return Finding("fail", str(error))
    except FAULTS as error:
        return Finding("fail", f"{type(error).__name__}: {error}".splitlines()[0])


def raise_failed_checks(setup: Setup, names: Sequence[str], console: Console) -> None:
    """Run the checks for the start of a run, and print warnings.

    Raises:
        RecipeError: Some checks fail.
    """
    findings = examine_all(names, setup)
    if faults := failures(findings):
        raise RecipeError("\n".join(faults))
    amiss = {name: finding for name, finding in findings.items() if finding.status == "warn"}
    if amiss:
        console.print(findings_table(amiss))


def failures(findings: Mapping[str, Finding]) -> list[str]:
    """A message with the fix for each failed check."""
    return [
        f"{name}: {'. '.join(filter(None, (finding.found, finding.fix)))}"
        for name, finding in findings.items()
        if finding.status == "fail"
    ]


def findings_table(findings: dict[str, Finding]) -> Table:
    """A line per check, followed by the fix."""
    lines = Table.grid(padding=(0, 2))
    for name, finding in findings.items():
        lines.add_row(Text(finding.status, style=COLOURS[finding.status]), name, Text(finding.found))
        if finding.fix and finding.status in ("warn", "fail"):
            lines.add_row("", "", Text(f"fix: {finding.fix}"))
    return lines
