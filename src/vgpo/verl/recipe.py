"""Recipes for verl, read without TRL and without verl."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from vgpo.data import template_text
from vgpo.places import TOY_MODEL
from vgpo.recipe.consistency import (
    DOWNLOAD,
    TRUNCATED_FIX,
    check_adapters,
    check_model_name,
    check_num_weights,
    check_remote_code,
    truncated_sampling_fault,
)
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.files import blame, find_recipe, option_names, read_fields
from vgpo.recipe.loading import PlainCheckpoint
from vgpo.recipe.parsing import field_names, one_line, parse_fields
from vgpo.recipe.run_arguments import RunArguments
from vgpo.recipe.values import shown
from vgpo.run.storage import plain
from vgpo.settings_checks import reject_unused
from vgpo.training.accuracy import accuracy_reward_name
from vgpo.training.batch_plan import BatchPlan
from vgpo.training.method import MethodArguments
from vgpo.verl.arguments import OtherArguments, VerlArguments, read_json
from vgpo.verl.fields import FIELDS, Refused
from vgpo.verl.names import SIGNALS

logger = logging.getLogger(__name__)

RECIPE_PARTS = (RunArguments, MethodArguments, VerlArguments, OtherArguments)


@dataclass(frozen=True)
class VerlRecipe:
    """A checked recipe for verl.

    other: fields without effect here, and those that must have their default value.
    where: where the recipe comes from, for messages.
    """

    run: RunArguments
    method: MethodArguments
    arguments: VerlArguments
    other: OtherArguments
    where: str

    @property
    def wants_thought(self) -> bool:
        """Whether responses must begin with a thought between tags."""
        return "format" in self.run.rewards or "<think>" in template_text(self.run.template)

    @property
    def accuracy_reward(self) -> str:
        """The reward that measures accuracy, and by which dynamic sampling filters.

        Raises:
            ValueError: `filter_reward` is not one of the rewards.
        """
        return accuracy_reward_name(self.run.reward_names, self.method.filter_reward)

    @property
    def chat_template_kwargs(self) -> dict[str, Any]:
        """Arguments of the chat template."""
        kwargs = self.arguments.chat_template_kwargs
        assert not isinstance(kwargs, str), "a text was read as JSON"
        return dict(kwargs or {})

    @property
    def num_processes(self) -> int:
        """GPUs of the run, on all machines."""
        return self.run.num_processes or 1

    @cached_property
    def plan(self) -> BatchPlan:
        """Sizes of a generation and its updates, over all GPUs; prompts and updates are whole numbers.

        Raises:
            RecipeError: They are not.
        """
        return batch_plan(self)

    @property
    def generations(self) -> int | None:
        """Generations that `max_steps` updates need; None where `num_train_epochs` says how long the run is.

        Raises:
            RecipeError: `max_steps` is not a whole number of generations.
        """
        return self.in_generations("max_steps") if self.arguments.max_steps > 0 else None

    @property
    def checkpoint(self) -> PlainCheckpoint:
        """The model, as `vgpo.recipe.loading` takes it."""
        arguments = self.arguments
        return PlainCheckpoint(
            model_name_or_path=arguments.model_name_or_path,
            dtype=arguments.dtype,
            model_revision=arguments.model_revision,
            attn_implementation=arguments.attn_implementation,
        )

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that count on verl, in plain containers; `recipe_from` makes the same recipe of them again."""
        parts = (self.run, self.method, self.arguments)
        values = {f.name: getattr(part, f.name) for part in parts for f in dataclasses.fields(part)}
        return dict(plain(values))

    def in_generations(self, field: str) -> int:
        """A field that counts updates, as the number of generations that verl counts.

        Raises:
            RecipeError: It is not a whole number of them.
        """
        updates, value = int(self.plan.updates), getattr(self.arguments, field)
        if value != int(value) or value % updates:
            self.refuse(
                field,
                f"a multiple of {updates}, the updates of a generation (steps_per_generation x num_iterations / "
                "gradient_accumulation_steps): verl counts generations",
            )
        return int(value) // updates

    def refuse(self, field: str, expected: str) -> NoReturn:
        """Raise a `RecipeError` that names a field, its value, and what is expected in its place."""
        parts = (self.run, self.method, self.arguments, self.other)
        value = next(getattr(part, field) for part in parts if hasattr(part, field))
        raise RecipeError(f"{self.where}: {field} is {shown(value)}, expected {expected}")


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> VerlRecipe:
    """Read a recipe and the command line that overrides it, as `vgpo.recipe.recipe.load_recipe` does for TRL.

    Args:
        source: Path of a YAML file, or the name of a recipe that comes with the package.
        overrides: Command-line words such as `["--learning_rate", "1e-6"]`.

    Raises:
        RecipeError: Missing file, no mapping, unknown or refused field, or a value that does not fit.
    """
    path = find_recipe(source)
    return recipe_from(read_fields(path, field_names(RECIPE_PARTS)), overrides, where=str(path), name=path.stem)


def recipe_from(
    values: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str, name: str = "run"
) -> VerlRecipe:
    """A recipe of fields and values, and a command line that overrides them.

    Args:
        values: Fields of the recipe.
        overrides: As in `load_recipe`.
        where: Where the values come from, for messages.
        name: Of the folder below `runs` that is the default of `run_dir`.

    Raises:
        RecipeError: An unknown or refused field, or a value that does not fit.
    """
    run, method, arguments, other = parse_fields(RECIPE_PARTS, values, overrides, where=where)
    recipe = VerlRecipe(run, method, arguments, other, where)
    with blame(where, values, option_names(overrides, field_names(RECIPE_PARTS))):
        check_consistency(recipe)
    # Absolute, so that no later change of the working directory moves files.
    run.run_dir = str(Path(run.run_dir or Path("runs") / name).expanduser().absolute())
    return recipe


def check_consistency(recipe: VerlRecipe) -> None:
    """Whether the fields of a recipe fit together, and verl has something for each.

    Raises:
        RecipeError: Some do not; names them.
    """
    run, arguments, where = recipe.run, recipe.arguments, recipe.where
    check_model_name(arguments.model_name_or_path, where=where)
    check_num_weights(run.rewards, arguments.reward_weights, where=where)
    check_adapters(lora_vision=run.lora_vision, freeze=recipe.method.freeze, use_peft=arguments.use_peft, where=where)
    if run.host != "verl":
        recipe.refuse("host", "verl")
    fault = truncated_sampling_fault(
        top_p=arguments.top_p, top_k=arguments.top_k,  # verl has no min_p
        correction=arguments.vllm_importance_sampling_correction, mode=arguments.vllm_importance_sampling_mode,
    )  # fmt: skip
    if fault:
        logger.warning("%s: %s; %s.", where, fault, TRUNCATED_FIX)
    try:
        read_json(run, ("verl",))
        read_json(recipe.method, ("shaping_options",))
        recipe.method.check_method()
        if arguments.beta == 0:
            reject_unused(recipe.method, ["alarm_kl"], without="a reference model", fix="beta above 0")
        _ = recipe.accuracy_reward
    except ValueError as error:
        raise RecipeError(f"{where}: {one_line(error)}") from error
    check_shaping(recipe)
    check_refused(recipe)
    check_checkpoint(recipe)
    _ = recipe.plan


def check_shaping(recipe: VerlRecipe) -> None:
    """Whether verl's passes compute what the shaping needs.

    Raises:
        RecipeError: They do not; names the shaping and what is missing.
    """
    shaping = recipe.method.build_shaping()
    if shaping.blind_rollouts:
        recipe.refuse(
            "shaping_options",
            "no blind_gate: verl's trainer samples no rollouts without the images. Set blind_gate to false, or train "
            "it with host: trl",
        )
    missing = sorted(shaping.signals - SIGNALS)
    if missing:
        recipe.refuse(
            "shaping",
            "one of vgpo, adaptive (without strata and blind gate), entropy, kl_perception and "
            f"none: verl's passes do not compute {', '.join(missing)}. Train it with host: trl",
        )


def check_refused(recipe: VerlRecipe) -> None:
    """Whether fields without an equivalent in verl have their default values.

    Raises:
        RecipeError: One has another value; says what to do.
    """
    for part in (recipe.run, recipe.method, recipe.other):
        for field in dataclasses.fields(part):
            kind, value = FIELDS[field.name], getattr(part, field.name)
            default = field.default if field.default_factory is MISSING else field.default_factory()
            if isinstance(kind, Refused) and value != default and value not in kind.accepts:
                raise RecipeError(
                    f"{recipe.where}: {field.name} ({shown(value)}) cannot be set with host: verl: {kind.why}"
                )


def check_checkpoint(recipe: VerlRecipe) -> None:
    """Whether the revision of a model, and its code, are those that verl loads: it takes no revision.

    Raises:
        RecipeError: They need not be.
    """
    arguments = recipe.arguments
    name, revision = str(arguments.model_name_or_path), arguments.model_revision
    if name != TOY_MODEL and not Path(name).is_dir() and (revision != "main" or arguments.trust_remote_code):
        field = "model_revision" if revision != "main" else "trust_remote_code"
        recipe.refuse(
            field,
            f"the default for a name on the hub, of which verl loads the newest revision; "
            f"{DOWNLOAD.format(name=name)}",
        )
    check_remote_code(name, revision, trust_remote_code=arguments.trust_remote_code, where=recipe.where)


def batch_plan(recipe: VerlRecipe) -> BatchPlan:
    """The batches of a recipe, as TRL makes them of the same fields.

    Raises:
        RecipeError: A generation is not a whole number of prompts or updates.
    """
    arguments = recipe.arguments
    if arguments.num_generations is None:
        recipe.refuse("num_generations", "a number of 2 or more")
    micro_batch, steps = arguments.per_device_train_batch_size, arguments.steps_per_generation
    if arguments.generation_batch_size is not None:
        steps, rest = divmod(arguments.generation_batch_size, micro_batch * recipe.num_processes)
        if rest or not steps:
            recipe.refuse(
                "generation_batch_size",
                f"a multiple of per_device_train_batch_size x num_processes = {micro_batch * recipe.num_processes}",
            )
    plan = BatchPlan(
        micro_batch=micro_batch,
        group_size=arguments.num_generations,
        steps_per_generation=steps or arguments.gradient_accumulation_steps,
        num_iterations=arguments.num_iterations,
        accumulation=arguments.gradient_accumulation_steps,
        num_processes=recipe.num_processes,
    )
    check_plan(plan, where=recipe.where)
    return plan


def check_plan(plan: BatchPlan, *, where: str) -> None:
    """Whether verl, which counts prompts and cuts a generation into equal updates, has such batches.

    Raises:
        RecipeError: It does not; says which number would fit.
    """
    if plan.rollouts % plan.group_size:
        raise RecipeError(
            f"{where}: a generation of {plan.rollouts} rollouts (per_device_train_batch_size {plan.micro_batch} x "
            f"steps_per_generation {plan.steps_per_generation} x num_processes {plan.num_processes}) is not a whole "
            f"number of groups of num_generations={plan.group_size}; make per_device_train_batch_size a multiple of it"
        )
    if plan.steps_per_generation % plan.accumulation:
        raise RecipeError(
            f"{where}: steps_per_generation ({plan.steps_per_generation}) is not a multiple of "
            f"gradient_accumulation_steps ({plan.accumulation}), and verl cuts a generation into whole updates; "
            "make it one"
        )
    if plan.rollouts_per_update % plan.group_size:
        raise RecipeError(
            f"{where}: an update of {plan.rollouts_per_update} rollouts (per_device_train_batch_size "
            f"{plan.micro_batch} x gradient_accumulation_steps {plan.accumulation} x num_processes "
            f"{plan.num_processes}) is not a whole number of groups of num_generations={plan.group_size}, and verl "
            "counts prompts; make per_device_train_batch_size a multiple of num_generations"
        )
