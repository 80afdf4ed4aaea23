"""Checkpoints that are PEFT adapters: find the base, and load both as one model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub.utils import HFValidationError, validate_repo_id
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import cached_file, find_adapter_config_file

from vgpo.checkpoints import strict_difference
from vgpo.places import TOY_MODEL
from vgpo.recipe.consistency import COMMIT
from vgpo.recipe.errors import RecipeError
from vgpo.toy import checkpoint_path

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
BASE = "base_model_name_or_path"
ADAPTER = "default"  # PEFT's name for a single adapter
# End of the path of the toy model, in any installation.
EMBEDDED = checkpoint_path().parts[-3:]


@dataclass(frozen=True)
class Source:
    """Source of a checkpoint: a folder, or a hub name with its revision."""

    name: str
    revision: str | None = None

    @property
    def is_folder(self) -> bool:
        return Path(self.name).is_dir()

    @property
    def adapter_config(self) -> str | None:
        """The path of its adapter_config.json; None if it is not an adapter or not reachable."""
        return find_adapter_config_file(self.name, revision=self.revision)

    def file(self, name: str) -> str | None:
        """The path of one of its files; None if it does not exist or is not reachable."""
        return cached_file(
            self.name,
            name,
            revision=self.revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )

    def has_any(self, files: Sequence[str]) -> bool:
        """Whether one of these files exists."""
        return any(self.file(name) is not None for name in files)


def with_bases(source: Source, *, trust_remote_code: bool) -> list[Source]:
    """A checkpoint and, for an adapter, its chain of bases.

    Raises:
        RecipeError: An adapter names no base, a missing one, or itself in a cycle; or the base is on the hub without a
        commit although its code may run.
    """
    chain = [source]
    while config := chain[-1].adapter_config:
        base = base_of(chain[-1], Path(config))
        if trust_remote_code and not base.is_folder and not COMMIT.fullmatch(base.revision or ""):
            refuse(
                chain[-1],
                f"and trust_remote_code would run whatever code its base {base.name} has when the run starts",
                f'Set "revision" in {CONFIG} to the 40 characters of a commit whose code you have read',
            )
        if base in chain:
            refuse(chain[-1], f"and part of a cycle: its base is {base.name}", f"Correct {BASE} in {CONFIG}")
        chain.append(base)
    return chain


def base_of(adapter: Source, config: Path) -> Source:
    """The base that an adapter's config file names.

    Raises:
        RecipeError: It names none, or a missing folder.
    """
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        refuse(adapter, f"whose {CONFIG} cannot be read ({error})", "Restore the file")
    name = values.get(BASE) if isinstance(values, dict) else None
    if not isinstance(name, str) or not name:
        refuse(adapter, f"whose {CONFIG} has {name!r} as {BASE}", "Name its base there: a folder or a hub name")
    path = Path(name)
    if path.is_dir() and name != TOY_MODEL:
        return Source(str(path.resolve()))
    if name == TOY_MODEL or path.parts[-3:] == EMBEDDED:
        return Source(str(checkpoint_path()))
    try:
        validate_repo_id(name)
    except HFValidationError:
        refuse(
            adapter,
            f"whose base {name!r} does not exist: {path.absolute()} is not a folder",
            f"Put the base there, or correct {BASE} in {CONFIG}: a folder, a hub name, or '{TOY_MODEL}' for the "
            "toy model",
        )
    revision = values.get("revision")
    return Source(name, revision if isinstance(revision, str) else None)


def refuse(adapter: Source, found: str, fix: str) -> NoReturn:
    raise RecipeError(f"model_name_or_path: {adapter.name!r} is an adapter, {found}. {fix}")


def merged(model: PreTrainedModel, adapter: Source) -> PreTrainedModel:
    """The model with an adapter merged into its weights, which keep their dtype and are trainable.

    It is named after the adapter, so that adapters trained on top of it record this adapter as their base.

    Args:
        model: the adapter's base, modified in place.
        adapter: source of the adapter.

    Raises:
        RecipeError: The adapter has no weights, or their names and shapes do not match its config and base; or its
        type cannot be merged.
    """
    if getattr(model, "is_quantized", False):
        refuse(
            adapter,
            "which cannot be merged into a quantized base without loss",
            "Load the base unquantized (remove load_in_4bit and load_in_8bit), or merge the adapter into unquantized "
            "weights with `vgpo merge` and name those",
        )
    plain = with_adapter(model, adapter).merge_and_unload()
    plain.requires_grad_(True)  # PEFT freezes the base
    plain.name_or_path = plain.config.name_or_path = absolute(adapter.name)
    return plain


def with_adapter(model: PreTrainedModel, adapter: Source) -> PeftModel:
    """The base with an unmerged adapter.

    Raises:
        RecipeError: As in `merged`.
    """
    if not adapter.has_any(WEIGHTS):
        refuse(adapter, f"and has no weights: neither {' nor '.join(WEIGHTS)} is there", "Restore the file")
    try:
        config = PeftConfig.from_pretrained(adapter.name, revision=adapter.revision)
        adapted = PeftModel(model, config, adapter_name=ADAPTER)
        if not isinstance(adapted.base_model, BaseTuner) or not hasattr(adapted.base_model, "merge_and_unload"):
            refuse(adapter, f"of type {config.peft_type}, which cannot be merged", "Use a LoRA adapter")
        keys = adapted.load_adapter(adapter.name, ADAPTER, torch_device="cpu", revision=adapter.revision)
    except RecipeError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        refuse_weights(adapter, model, " ".join(str(error).split()) or type(error).__name__)
    if keys.missing_keys or keys.unexpected_keys:
        difference = strict_difference(keys.missing_keys, keys.unexpected_keys)
        refuse_weights(adapter, model, str(difference))
    return adapted


def refuse_weights(adapter: Source, model: PreTrainedModel, reason: str) -> NoReturn:
    refuse(
        adapter,
        f"whose weights do not fit its base {model.name_or_path}: {reason}",
        f"Restore the adapter's files, or correct {BASE} in {CONFIG}",
    )


def absolute(name: str) -> str:
    """The absolute path of a folder; a hub name is unchanged."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def own_tokens(processor: Any, adapter: Source, load_tokenizer: Any) -> None:
    """Use the tokenizer and chat template saved with an adapter in its base's processor."""
    if adapter.file("tokenizer_config.json") is not None:
        processor.tokenizer = load_tokenizer(adapter)
        processor.chat_template = processor.tokenizer.chat_template or processor.chat_template
    if (template := adapter.file("chat_template.jinja")) is not None:
        processor.chat_template = Path(template).read_text(encoding="utf-8")
