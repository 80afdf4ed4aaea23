"""The components of a run, each loaded on first use."""

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from vgpo.data import DataError
from vgpo.data.fingerprint import fingerprint
from vgpo.evaluation.benchmark_rows import source_of
from vgpo.evaluation.leaks import Leak, find_leaks
from vgpo.evaluation.tasks import Task, load_task
from vgpo.policy.prompts import row_with_images_in_prompt
from vgpo.recipe.loading import forbidden_tokens, load_model, load_processor, load_prompts, refuse_unsuitable
from vgpo.recipe.memory import MemoryEstimate, memory_estimate, shards_of
from vgpo.recipe.recipe import Recipe
from vgpo.recipe.suite_settings import asked_benchmarks, suite_sources
from vgpo.shared_prompt import why_not_shared
from vgpo.training.strata import find_strata


@dataclass
class Setup:
    """Processor, prompts and model of a recipe.

    Every image is decoded once, so that none can crash a training; unchanged datasets are not checked again.

    Args:
        recipe: a checked recipe.
        folder: folder for the datasets of the toy task.
        trusted: fingerprints of datasets with checked images, by field name, such as `train_data`.
        checks_images: whether this process checks images; one process is enough.

    Raises, on access to a component:
        RecipeError: The checkpoint cannot be loaded.
        DataError: A row that cannot be trained on.
    """

    recipe: Recipe
    folder: Path
    trusted: Mapping[str, Any] = field(default_factory=dict)
    checks_images: bool = True
    _fingerprints: dict[str, str] = field(default_factory=dict)

    @cached_property
    def processor(self) -> ProcessorMixin:
        run, trust = self.recipe.run, self.recipe.config.trust_remote_code
        refuse_unsuitable(self.recipe.model, trust_remote_code=trust)
        return load_processor(
            self.recipe.model, trust_remote_code=trust, min_pixels=run.min_pixels, max_pixels=run.max_pixels
        )

    @cached_property
    def model(self) -> PreTrainedModel:
        return load_model(self.recipe.model, trust_remote_code=self.recipe.config.trust_remote_code)

    @cached_property
    def prompts(self) -> Dataset:
        """The training set without prompts that are too long.

        Raises:
            DataError: a row or column that cannot be trained on, or invalid strata; names it.
        """
        run = self.recipe.run
        prompts = self._read("train_data", max_prompt_length=run.max_prompt_length)
        if column := self.recipe.config.build_shaping().stratum_column:
            try:
                find_strata(prompts, column)
            except ValueError as error:
                raise DataError(f"{run.train_data}: {error}") from error
        return prompts

    @cached_property
    def held_out(self) -> Dataset | None:
        """The first `eval_limit` questions of the held-out set, if any."""
        run = self.recipe.run
        return self._read("eval_data", limit=run.eval_limit) if run.eval_data else None

    @cached_property
    def tasks(self) -> list[Task]:
        """The benchmarks of the run."""
        run, config = self.recipe.run, self.recipe.config
        sources, trust = suite_sources(run.eval_suite_data), config.trust_remote_code
        benchmarks = asked_benchmarks(run.eval_suite, sources)
        if not benchmarks:
            return []
        forbidden = forbidden_tokens(self.recipe.model, self.processor, trust_remote_code=trust)
        return [
            load_task(
                benchmark,
                source_of(benchmark, sources),
                template=run.template,
                limit=run.eval_suite_limit,
                forbidden=forbidden,
            )
            for benchmark in benchmarks
        ]

    @property
    def evaluation_sets(self) -> dict[str, Dataset]:
        """All evaluation sets of the run, by display name."""
        held_out = {} if self.held_out is None else {"eval_data": self.held_out}
        return {**held_out, **{f"eval_suite {task.benchmark.name}": task.prompts for task in self.tasks}}

    @cached_property
    def leaks(self) -> dict[str, list[Leak]]:
        """The questions of each evaluation set whose images are in the training set; only sets with such questions."""
        return find_leaks(self.prompts, self.evaluation_sets)

    def read_set(self, source: str) -> Dataset:
        """Another set of held-out questions, read and checked like `eval_data`.

        Raises:
            DataError: A row cannot be used; names it.
        """
        return self._read("eval_data", source=source)

    def fingerprint(self, name: str) -> str | None:
        """Fingerprint of the dataset of a field; None if there is none."""
        prompts = self.prompts if name == "train_data" else self.held_out
        if prompts is not None and name not in self._fingerprints:
            self._fingerprints[name] = fingerprint(prompts)
        return self._fingerprints.get(name)

    @cached_property
    def first_image(self) -> BatchFeature:
        """The first prompt with an image, encoded for the model."""
        row = next((row for row in self.prompts if row["images"]), None)
        if row is None:
            raise DataError("no row of the training set has an image; VGPO shapes rows with images only")
        return self.processor.apply_chat_template(
            row_with_images_in_prompt(row)["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt", **(self.recipe.config.chat_template_kwargs or {}),
        )  # fmt: skip

    @property
    def memory(self) -> MemoryEstimate:
        """Memory estimate of an update for the current model, with frozen parts and adapters."""
        config = self.recipe.config
        return memory_estimate(
            self.model,
            config,
            prompt_tokens=self.recipe.run.max_prompt_length or self.first_image["input_ids"].shape[1],
            shares_prompts=config.share_prompt != "off"
            and why_not_shared(self.model, measured=config.parity != "off") is None,
            shards=shards_of(config),
        )

    def _read(self, name: str, *, source: str | None = None, **options: Any) -> Dataset:
        config, reading = self.recipe.config, self.recipe.run.reading(name)
        load = functools.partial(
            load_prompts,
            source or vars(self.recipe.run)[name],
            self.recipe.run.template,
            toy_folder=self.folder,
            reading=reading,
            forbidden=forbidden_tokens(self.recipe.model, self.processor, trust_remote_code=config.trust_remote_code),
            processor=self.processor,
            chat_template_kwargs=config.chat_template_kwargs,
            **options,
        )
        if reading.faulty_rows == "drop":
            return load()  # in each process: which rows are left depends on all images
        if not self.checks_images:
            return load(max_images=0)
        if self.trusted.get(name) and source is None:
            with contextlib.suppress(DataError):  # the check below names the row
                prompts = load(max_images=0)
                self._fingerprints[name] = fingerprint(prompts)
                if self._fingerprints[name] == self.trusted[name]:
                    return prompts
        return load()
