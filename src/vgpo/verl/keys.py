"""Keys of verl's configuration that the fields of a recipe make; `vgpo.verl.fields` says which field makes which."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.trainer_utils import SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from vgpo.places import TOY_MODEL
from vgpo.toy import checkpoint_path
from vgpo.verl.fields import ACTOR, AGGREGATION, ALGORITHM, DATA, MODEL, OPTIM, REF, ROLLOUT, TRAINER
from vgpo.verl.recipe import VerlRecipe

Keys = dict[str, Any]

GPUS_OF_A_MACHINE = 8
PROMPT_LENGTH = 4096  # tokens, where a recipe has no limit
LAST_STEP_ONLY = 2**31  # verl saves and evaluates every N generations and after the last, but never for -1
NO_CLIPPING = 1e30  # of a gradient's norm
NO_BOUND = 1e9  # of a ratio: verl cuts off log ratios at 20, and exp(20) is 5e8
SMALLEST_RATIO = 1e-9
STATE = ["model", "optimizer", "extra"]  # of a checkpoint of verl, what a resume needs
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # as verl writes them
LOGGERS = ("wandb", "tensorboard", "mlflow", "swanlab", "trackio", "clearml")
# Modules of vision towers and projectors in the families of docs/families.md, for PEFT to leave out.
VISION_LAYERS = (
    r".*(^|\.)(visual|vision|vision_\w+|vision_tower|image_encoder|vit|multi_modal_projector|mm_projector|projector"
    r"|connector|aligner|merger|embed_vision|image_newline)\..*"
)


def verl_keys(recipe: VerlRecipe) -> Keys:
    """Every key of verl that the fields of a recipe make, by its dotted name.

    Raises:
        RecipeError: A value without an equivalent in verl.
    """
    return {key: value for make in SOURCES for key, value in make(recipe).items()}


def data_keys(recipe: VerlRecipe) -> Keys:
    run, arguments = recipe.run, recipe.arguments
    return {
        # `vgpo.verl.dataset` takes the name of the field, and reads the set as the recipe says.
        f"{DATA}.train_files": "train_data",
        f"{DATA}.val_files": "eval_data",
        # Without a held-out set the validation set is empty, of which verl would make batches of 0 rows.
        f"{DATA}.val_batch_size": None if run.eval_data else 1,
        f"{DATA}.val_max_samples": -1 if run.eval_limit is None else run.eval_limit,
        f"{DATA}.max_prompt_length": prompt_length(recipe),
        f"{DATA}.max_response_length": response_length(recipe),
        f"{DATA}.mm_processor_kwargs": pixel_limits(recipe),
        f"{DATA}.apply_chat_template_kwargs": arguments.chat_template_kwargs or {},
        f"{DATA}.shuffle": bool(arguments.shuffle_dataset),
        f"{DATA}.seed": arguments.seed,
        f"{DATA}.trust_remote_code": arguments.trust_remote_code,
        f"{DATA}.dataloader_num_workers": arguments.dataloader_num_workers,
    }


def pixel_limits(recipe: VerlRecipe) -> Keys:
    """What the processor of a Qwen-VL model is called with: of transformers 5.10 it ignores one without the other."""
    low, high = recipe.run.min_pixels, recipe.run.max_pixels
    if (low is None) != (high is None):
        missing, given = ("min_pixels", "max_pixels") if low is None else ("max_pixels", "min_pixels")
        recipe.refuse(
            missing, f"a number of pixels as well as {given}: verl's processor ignores one without the other"
        )
    return {} if low is None else {"min_pixels": low, "max_pixels": high}


def response_length(recipe: VerlRecipe) -> int:
    length = recipe.arguments.max_completion_length
    if length is None:
        recipe.refuse("max_completion_length", "a number of tokens: verl makes room for it")
    return length


def prompt_length(recipe: VerlRecipe) -> int:
    """Tokens for which verl makes room; an agent loop stops at a longer prompt."""
    longest, room = recipe.run.max_prompt_length, recipe.arguments.vllm_max_model_length
    if longest is not None:
        return longest
    if room is None:
        return PROMPT_LENGTH
    if room <= response_length(recipe):
        recipe.refuse("vllm_max_model_length", "more than max_completion_length, so that a prompt has room")
    return room - response_length(recipe)


def trainer_keys(recipe: VerlRecipe) -> Keys:
    run, arguments = recipe.run, recipe.arguments
    nodes, gpus = machines(recipe)
    return {
        f"{TRAINER}.nnodes": nodes,
        f"{TRAINER}.n_gpus_per_node": gpus,
        f"{TRAINER}.total_training_steps": recipe.generations,
        # Enough epochs for all generations, of which the dataset gives one at least.
        f"{TRAINER}.total_epochs": recipe.generations or whole_epochs(recipe),
        f"{TRAINER}.save_freq": save_frequency(recipe),
        f"{TRAINER}.max_actor_ckpt_to_keep": arguments.save_total_limit,
        f"{TRAINER}.default_local_dir": str(Path(run.run_dir) / "checkpoints" / "verl"),
        f"{TRAINER}.resume_mode": "auto" if run.resume else "disable",
        f"{TRAINER}.val_before_train": run.eval_data is not None and run.evaluate_before,
        f"{TRAINER}.test_freq": -1 if run.eval_data is None else LAST_STEP_ONLY,
        f"{TRAINER}.logger": loggers(recipe),
        f"{TRAINER}.project_name": arguments.project,
        f"{TRAINER}.experiment_name": arguments.run_name or Path(run.run_dir).name,
    }


def machines(recipe: VerlRecipe) -> tuple[int, int]:
    """Machines, and GPUs of each."""
    gpus = recipe.num_processes
    if gpus <= GPUS_OF_A_MACHINE:
        return 1, gpus
    if gpus % GPUS_OF_A_MACHINE:
        recipe.refuse(
            "num_processes", f"at most {GPUS_OF_A_MACHINE} or a multiple of it: whole machines of that many GPUs"
        )
    return gpus // GPUS_OF_A_MACHINE, GPUS_OF_A_MACHINE


def whole_epochs(recipe: VerlRecipe) -> int:
    epochs = recipe.arguments.num_train_epochs
    if epochs != int(epochs):
        recipe.refuse("num_train_epochs", "a whole number of epochs on verl; or set max_steps")
    return int(epochs)


def save_frequency(recipe: VerlRecipe) -> int:
    """Generations from one checkpoint to the next; the last generation has one in any case."""
    strategy = recipe.arguments.save_strategy
    if strategy == SaveStrategy.NO:
        return LAST_STEP_ONLY
    if strategy != SaveStrategy.STEPS:
        recipe.refuse("save_strategy", "'steps' or 'no'")
    return recipe.in_generations("save_steps")


def loggers(recipe: VerlRecipe) -> list[str]:
    """Trackers of the run, by the names of verl; verl prints each generation too."""
    given = recipe.arguments.report_to
    names = [given] if isinstance(given, str) else list(given or ())
    requested = [name for name in names if name != "none"]
    if not set(requested) <= set(LOGGERS):
        recipe.refuse("report_to", f"'none' or some of {list(LOGGERS)}, which verl writes to")
    return ["console", *requested]


def model_keys(recipe: VerlRecipe) -> Keys:
    arguments = recipe.arguments
    name, attention = str(arguments.model_name_or_path), arguments.attn_implementation
    if arguments.dtype not in DTYPES:
        recipe.refuse("dtype", f"one of {list(DTYPES)}: verl does not look into a checkpoint for it")
    dtype = DTYPES[str(arguments.dtype)]
    return {
        f"{MODEL}.path": str(checkpoint_path()) if name == TOY_MODEL else name,
        f"{MODEL}.trust_remote_code": arguments.trust_remote_code,
        f"{MODEL}.enable_gradient_checkpointing": arguments.checkpoints_activations,
        **({f"{MODEL}.override_config.attn_implementation": attention} if attention else {}),
        f"{ACTOR}.fsdp_config.model_dtype": dtype,
        f"{REF}.fsdp_config.model_dtype": dtype,
        **adapter_keys(recipe),
    }


def adapter_keys(recipe: VerlRecipe) -> Keys:
    arguments = recipe.arguments
    if not arguments.use_peft:
        # The weights as transformers reads them too, of which the run folder's checkpoints are made.
        return {f"{MODEL}.lora_rank": 0, f"{ACTOR}.checkpoint.save_contents": [*STATE, "hf_model"]}
    if arguments.lora_dropout:
        recipe.refuse("lora_dropout", "0 on verl, whose adapters have no dropout (the default of TRL is 0.05)")
    names, parameters = arguments.lora_target_modules, arguments.lora_target_parameters
    return {
        f"{MODEL}.lora_rank": arguments.lora_r,
        # The engine of vgpo writes the adapters; verl cannot write the weights of such a model.
        f"{ACTOR}.checkpoint.save_contents": STATE,
        f"{MODEL}.lora_alpha": arguments.lora_alpha,
        f"{MODEL}.target_modules": "all-linear" if names is None or names == ["all-linear"] else names,
        f"{MODEL}.target_parameters": parameters,
        f"{MODEL}.exclude_modules": None if recipe.run.lora_vision else VISION_LAYERS,
    }


def batch_keys(recipe: VerlRecipe) -> Keys:
    plan, arguments = recipe.plan, recipe.arguments
    return {
        f"{DATA}.train_batch_size": plan.prompts,
        f"{ROLLOUT}.n": plan.group_size,
        f"{ACTOR}.ppo_mini_batch_size": plan.rollouts_per_update // plan.group_size,
        f"{ACTOR}.ppo_epochs": plan.num_iterations,
        f"{ACTOR}.ppo_micro_batch_size_per_gpu": plan.micro_batch,
        f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": plan.micro_batch,
        f"{REF}.log_prob_micro_batch_size_per_gpu": plan.micro_batch,
        f"{ACTOR}.shuffle": recipe.method.shuffle_groups,
        f"{ACTOR}.data_loader_seed": arguments.seed,
        f"{ACTOR}.fsdp_config.seed": arguments.seed,
        f"{REF}.fsdp_config.seed": arguments.seed,
        f"{ROLLOUT}.seed": arguments.seed,
    }


def loss_keys(recipe: VerlRecipe) -> Keys:
    arguments = recipe.arguments
    if arguments.loss_type not in AGGREGATION:
        recipe.refuse("loss_type", f"one of {list(AGGREGATION)}; of the others verl has no equal")
    if arguments.scale_rewards not in ("group", "none"):
        recipe.refuse("scale_rewards", "'group' or 'none': verl normalises rewards within a group")
    if arguments.beta and arguments.use_bias_correction_kl:
        recipe.refuse("use_bias_correction_kl", "false with beta: verl does not multiply the divergence by the ratio")
    if arguments.entropy_coef and arguments.loss_type != "dapo":
        recipe.refuse("entropy_coef", "0 with this loss_type: verl averages entropy as it does the loss; or dapo")
    upper = arguments.epsilon if arguments.epsilon_high is None else arguments.epsilon_high
    return {
        f"{ALGORITHM}.norm_adv_by_std_in_grpo": arguments.scale_rewards == "group",
        f"{ALGORITHM}.filter_groups.enable": recipe.method.dynamic_sampling,
        f"{ALGORITHM}.filter_groups.metric": recipe.accuracy_reward,
        f"{ACTOR}.loss_agg_mode": AGGREGATION[arguments.loss_type],
        f"{ACTOR}.loss_scale_factor": response_length(recipe) if arguments.loss_type == "dr_grpo" else None,
        f"{ACTOR}.policy_loss.loss_mode": loss_mode(recipe),
        f"{ACTOR}.clip_ratio": arguments.epsilon,
        f"{ACTOR}.clip_ratio_low": arguments.epsilon,
        f"{ACTOR}.clip_ratio_high": upper,
        f"{ACTOR}.clip_ratio_c": ratio_bound(recipe, upper),
        f"{ACTOR}.entropy_coeff": arguments.entropy_coef,
        f"{ACTOR}.use_kl_loss": arguments.beta != 0,
        f"{ACTOR}.kl_loss_coef": arguments.beta,
        f"{ACTOR}.kl_loss_type": "low_var_kl",
    }


def loss_mode(recipe: VerlRecipe) -> str:
    """verl's name of the policy loss."""
    if recipe.arguments.importance_sampling_level == "token":
        return "vanilla"
    if recipe.method.shaping != "none" or recipe.arguments.delta is not None:
        recipe.refuse(
            "importance_sampling_level",
            "'token' with a shaping or with delta: verl's loss of sequences (gspo) has the gradient of TRL's where "
            "all tokens of a rollout have one advantage, and no delta",
        )
    return "gspo"


def ratio_bound(recipe: VerlRecipe, epsilon_high: float) -> float:
    """Where a ratio is cut off whatever its advantage; verl does so at 3 by default."""
    delta = recipe.arguments.delta
    if delta is None:
        return NO_BOUND
    if delta < 1 + epsilon_high:
        recipe.refuse("delta", f"at least 1 + epsilon_high = {1 + epsilon_high:g}: verl cuts off negative ones only")
    return delta


def correction_keys(recipe: VerlRecipe) -> Keys:
    """The correction of a policy that samples otherwise than it scores, as TRL has it."""
    arguments, key = recipe.arguments, f"{ALGORITHM}.rollout_correction"
    if not arguments.vllm_importance_sampling_correction:
        return {f"{key}.rollout_is": None}
    level, kind = arguments.vllm_importance_sampling_mode.split("_")
    low, high = arguments.vllm_importance_sampling_clip_min, arguments.vllm_importance_sampling_clip_max
    high = NO_BOUND if high is None else high
    if kind == "truncate" and low is not None:
        recipe.refuse("vllm_importance_sampling_clip_min", "none with a mode that truncates: verl has an upper bound")
    bounds = f"{SMALLEST_RATIO if low is None else low!r}_{high!r}"
    return {f"{key}.rollout_is": level, f"{key}.rollout_is_threshold": high if kind == "truncate" else bounds}


def optimizer_keys(recipe: VerlRecipe) -> Keys:
    arguments = recipe.arguments
    if arguments.optim not in (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED):
        recipe.refuse(
            "optim",
            f"'adamw_torch' or 'adamw_torch_fused'; of verl's own set {OPTIM}.optimizer and .optimizer_impl in `verl`",
        )
    clip = arguments.max_grad_norm or NO_CLIPPING
    return {
        f"{OPTIM}.optimizer": "AdamW",
        f"{OPTIM}.lr": arguments.learning_rate,
        f"{OPTIM}.weight_decay": arguments.weight_decay,
        f"{OPTIM}.betas": [arguments.adam_beta1, arguments.adam_beta2],
        f"{OPTIM}.override_optimizer_config": {"eps": arguments.adam_epsilon},
        f"{OPTIM}.clip_grad": clip,
        f"{ACTOR}.grad_clip": clip,
        **schedule_keys(recipe),
        **precision_keys(recipe),
    }


def schedule_keys(recipe: VerlRecipe) -> Keys:
    """verl counts generations here: all updates of one have the same learning rate."""
    kind, warmup = recipe.arguments.lr_scheduler_type, recipe.arguments.warmup_steps
    if kind not in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP, SchedulerType.COSINE):
        recipe.refuse("lr_scheduler_type", "'constant', 'constant_with_warmup' or 'cosine' (the default is TRL's)")
    is_share = 0 < warmup < 1
    if kind == SchedulerType.CONSTANT:
        warmup, is_share = 0, False  # as on TRL, whose constant rate has no warmup
    return {
        f"{OPTIM}.lr_scheduler_type": "cosine" if kind == SchedulerType.COSINE else "constant",
        f"{OPTIM}.lr_warmup_steps": -1 if is_share or not warmup else recipe.in_generations("warmup_steps"),
        f"{OPTIM}.lr_warmup_steps_ratio": warmup if is_share else 0.0,
    }


def precision_keys(recipe: VerlRecipe) -> Keys:
    arguments = recipe.arguments
    name = "float16" if arguments.fp16 else "bfloat16" if arguments.computes_bf16 else str(arguments.dtype)
    mixed = {"param_dtype": DTYPES[name], "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    return {
        f"{ACTOR}.fsdp_config.mixed_precision": mixed,
        f"{REF}.fsdp_config.mixed_precision": mixed,
        f"{ROLLOUT}.dtype": name if recipe.method.vllm_dtype == "auto" else recipe.method.vllm_dtype,
    }


def rollout_keys(recipe: VerlRecipe) -> Keys:
    arguments = recipe.arguments
    implementation = arguments.vllm_model_impl
    other = {f"{ROLLOUT}.engine_kwargs.vllm.model_impl": implementation} if implementation != "vllm" else {}
    return {
        f"{ROLLOUT}.temperature": arguments.temperature,
        f"{ROLLOUT}.top_p": arguments.top_p,
        f"{ROLLOUT}.top_k": arguments.top_k or -1,
        f"{ROLLOUT}.gpu_memory_utilization": arguments.vllm_gpu_memory_utilization,
        f"{ROLLOUT}.tensor_model_parallel_size": arguments.vllm_tensor_parallel_size,
        # Without a number vLLM would make room for the longest row that the model can read.
        f"{ROLLOUT}.max_model_len": arguments.vllm_max_model_length or prompt_length(recipe) + response_length(recipe),
        **other,
    }


SOURCES: tuple[Callable[[VerlRecipe], Keys], ...] = (
    data_keys, trainer_keys, model_keys, batch_keys, loss_keys, correction_keys, optimizer_keys, rollout_keys,
)  # fmt: skip
