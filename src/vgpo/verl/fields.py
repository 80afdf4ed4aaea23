"""Mapping of recipe fields to verl 0.9.1: the table for the documentation page and for rejecting fields.

Every field is in exactly one of four: vgpo reads it (`Ours`), keys of verl's configuration are made of it (`Mapped`),
it has no effect (`Unused`), or it is an error unless it has its default value (`Refused`).
"""

from dataclasses import dataclass
from typing import Any

from vgpo.recipe.files import REFUSED_KEYS

DATA, TRAINER, ALGORITHM, MODEL = "data", "trainer", "algorithm", "actor_rollout_ref.model"
ACTOR, REF, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.ref", "actor_rollout_ref.rollout"


@dataclass(frozen=True)
class Ours:
    """vgpo reads the field on verl too; `note` says what is different there."""

    note: str = ""


@dataclass(frozen=True)
class Mapped:
    """Keys of verl are made of the field, some of them of several fields; `note` says what is different."""

    keys: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Unused:
    """The field says how TRL runs, not what is learned: it is accepted, so that one file is for both hosts."""

    why: str


@dataclass(frozen=True)
class Refused:
    """Any value but the default, and those of `accepts`, is an error; `why` says what to do instead."""

    why: str
    accepts: tuple[Any, ...] = ()


Field = Ours | Mapped | Unused | Refused

OURS = Ours()
TRL_ONLY = Unused("only TRL's loop uses it")
OWN_LOGS = Unused("verl logs every generation, and vgpo writes a line of metrics.jsonl for it")
LOADER = Unused("verl's data loader has its own value; nothing else depends on it")
DDP = Unused("FSDP shards the model; DDP is not used")
GENERATION_UPDATES = "counted in updates, as on TRL; it must be a whole number of generations"


def of_verl(key: str) -> Refused:
    return Refused(f"verl has its own key for it: set `{key}` in the mapping `verl`")


REMOVE = "remove it, or train with host: trl"


def no_way(why: str, instead: str = REMOVE) -> Refused:
    return Refused(f"{why}; {instead}")


# Of `RunArguments`.
RUN: dict[str, Field] = {
    "train_data": Mapped((f"{DATA}.train_files",), "vgpo reads the set with its own readers"),
    "host": OURS,
    "verl": Ours("applied last"),
    "run_dir": Mapped(
        (f"{TRAINER}.default_local_dir",),
        "verl's state is in checkpoints/verl, weights in checkpoints/checkpoint-UPDATE",
    ),
    "resume": Mapped((f"{TRAINER}.resume_mode",), "from the newest checkpoint that verl finished"),
    "allow_changes": OURS,
    "eval_data": Mapped(
        (f"{DATA}.val_files", f"{DATA}.val_batch_size", f"{TRAINER}.test_freq"), "greedy, after the last generation"
    ),
    **dict.fromkeys(("train_format", "eval_format", "columns", "eval_columns", "faulty_rows", "template"), OURS),
    "max_prompt_length": Mapped(
        (f"{DATA}.max_prompt_length",),
        "longer prompts are left out, as on TRL. verl needs a number: without one it is vllm_max_model_length minus "
        "max_completion_length, or 4096",
    ),
    "eval_limit": Mapped((f"{DATA}.val_max_samples",)),
    **dict.fromkeys(
        ("eval_suite", "eval_suite_data", "eval_suite_limit", "eval_suite_steps", "eval_suite_protocol"),
        no_way("benchmarks are not run inside a run on verl", "run `vgpo eval --suite` on its checkpoints"),
    ),
    "evaluate_before": Mapped((f"{TRAINER}.val_before_train",)),
    "rewards": Ours("each under its own name in verl's reward_extra_info"),
    **dict.fromkeys(("min_pixels", "max_pixels"), Mapped((f"{DATA}.mm_processor_kwargs",), "both or none")),
    "num_processes": Mapped(
        (f"{TRAINER}.nnodes", f"{TRAINER}.n_gpus_per_node"),
        "all GPUs, 8 on a machine; other machines through these keys in the mapping `verl`",
    ),
    "vllm_server_devices": no_way("verl starts vLLM on the GPUs of the training"),
    "max_rollout_bytes": OURS,
    "lora_vision": Mapped((f"{MODEL}.exclude_modules",)),
}

# Of `MethodArguments`.
METHOD: dict[str, Field] = {
    **dict.fromkeys(
        (
            "shaping", "strength", "tail_ratio", "gate_ratio", "schedule", "exponent", "step", "intra", "inter",
            "rollout_score", "focus_state", "preset", "shaping_options", "measure_focus", "filter_reward", "alarms",
            "alarm_lines", "alarm_entropy", "alarm_zero_reward_std", "alarm_truncation", "alarm_length_growth",
            "alarm_kl", "alarm_log_prob_gap", "alarm_importance_ratio", "log_rollouts_groups",
        ),
        OURS,
    ),
    "log_rollouts_steps": Ours("counted in updates; the next generation is written"),
    "share_prompt": Refused("verl's engine computes every prompt with each rollout; remove it", accepts=("off",)),
    "parity": Refused(
        "verl compares sampled and scored log-probabilities in each generation, and nothing before the first; "
        "remove it",
        accepts=("off",),
    ),
    "vllm_dtype": Mapped((f"{ROLLOUT}.dtype",)),
    "freeze": no_way(
        "verl's FSDP engine trains every parameter; its key actor.freeze_vision_tower is read by no engine of 0.9.1"
    ),
    "shuffle_groups": Mapped((f"{ACTOR}.shuffle",), "verl shuffles rollouts among updates, not complete groups"),
    "dynamic_sampling": Mapped(
        (f"{ALGORITHM}.filter_groups.enable", f"{ALGORITHM}.filter_groups.metric"), "by the accuracy reward"
    ),
    **dict.fromkeys(
        ("accuracy_low", "accuracy_high"),
        Refused(
            "verl drops the groups whose rollouts all have the same accuracy, which the default limits do for "
            "accuracies of 0 and 1; remove it"
        ),
    ),
    "max_sampling_rounds": Refused("verl draws prompt by prompt until the batch is full, without rounds; remove it"),
    "alarm_sampling_rounds": Refused("verl draws prompt by prompt, without rounds; remove it", accepts=(0,)),
    "max_skipped_steps": Refused(
        "verl skips an update whose gradient is not finite and continues; remove it, and look at grad_norm"
    ),
    "alarm_skipped_steps": Refused("verl does not count skipped updates; remove it", accepts=(0,)),
}  # fmt: skip

# Of TRL's `ModelConfig`, and where the model comes from.
POLICY: dict[str, Field] = {
    "model_name_or_path": Mapped((f"{MODEL}.path",), "'toy' is the packaged toy model"),
    "model_revision": Refused(
        "verl loads the newest revision of a name on the hub; download the revision and name its folder"
    ),
    "dtype": Mapped((f"{ACTOR}.fsdp_config.model_dtype", f"{REF}.fsdp_config.model_dtype"), "'auto' is refused"),
    "attn_implementation": Mapped(
        (f"{MODEL}.override_config.attn_implementation",), "verl's default is flash_attention_2, also without a value"
    ),
    "trust_remote_code": Mapped((f"{MODEL}.trust_remote_code", f"{DATA}.trust_remote_code"), "for a folder only"),
    "use_peft": Mapped((f"{MODEL}.lora_rank", f"{ACTOR}.checkpoint.save_contents")),
    "lora_r": Mapped((f"{MODEL}.lora_rank",)),
    "lora_alpha": Mapped((f"{MODEL}.lora_alpha",)),
    "lora_dropout": Mapped((f"{MODEL}.lora_rank",), "must be 0: verl's adapters have no dropout"),
    "lora_target_modules": Mapped((f"{MODEL}.target_modules",)),
    "lora_target_parameters": Mapped((f"{MODEL}.target_parameters",)),
    **dict.fromkeys(("lora_modules_to_save", "use_rslora", "use_dora"), no_way("verl's adapters are plain LoRA")),
    "lora_task_type": no_way("verl's adapters are of the type CAUSAL_LM"),
    **dict.fromkeys(
        ("load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
        no_way("verl's FSDP engine loads no quantized weights"),
    ),
    "model_init_kwargs": Refused(REFUSED_KEYS["model_init_kwargs"]),
    "disable_dropout": no_way("verl leaves dropout as the checkpoint's config has it"),
    "router_aux_loss_coef": no_way("verl's loss has no term for balanced experts"),
    "cast_lm_head_to_fp32": no_way("verl computes logits in the dtype of the forward pass"),
    "use_liger_kernel": of_verl(f"{MODEL}.use_liger"),
    "liger_kernel_config": of_verl(f"{MODEL}.use_liger"),
}

BATCHES: dict[str, Field] = {
    "per_device_train_batch_size": Mapped(
        (
            f"{ACTOR}.ppo_micro_batch_size_per_gpu", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu",
            f"{REF}.log_prob_micro_batch_size_per_gpu", f"{DATA}.train_batch_size", f"{ACTOR}.ppo_mini_batch_size",
        ),
        "the micro-batches have no effect where `verl` sets actor.use_dynamic_bsz and a token budget",
    ),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "steps_per_generation", "generation_batch_size"),
        Mapped((f"{DATA}.train_batch_size", f"{ACTOR}.ppo_mini_batch_size"), "in prompts there, in rollouts here"),
    ),
    "num_generations": Mapped((f"{ROLLOUT}.n",)),
    "num_iterations": Mapped((f"{ACTOR}.ppo_epochs",)),
    "num_train_epochs": Mapped((f"{TRAINER}.total_epochs",), "a whole number"),
    "max_steps": Mapped((f"{TRAINER}.total_training_steps", f"{TRAINER}.total_epochs"), GENERATION_UPDATES),
    "shuffle_dataset": Mapped((f"{DATA}.shuffle",)),
    "seed": Mapped(
        (
            f"{DATA}.seed", f"{ACTOR}.data_loader_seed", f"{ACTOR}.fsdp_config.seed", f"{REF}.fsdp_config.seed",
            f"{ROLLOUT}.seed",
        ),
        "other random numbers than on TRL: prompts come in another order",
    ),
    "data_seed": Refused("verl has one seed for the order of prompts: set seed"),
    "full_determinism": of_verl(f"{ACTOR}.fsdp_config.full_determinism"),
    "auto_find_batch_size": no_way("a generation must hold complete groups"),
    "average_tokens_across_devices": Unused("verl divides by the tokens of an update over all GPUs, always"),
    "train_sampling_strategy": no_way("verl draws prompts at random, or in order with shuffle_dataset: false"),
    "length_column_name": TRL_ONLY,
    "ignore_data_skip": no_way("verl resumes its data loader where it was"),
}  # fmt: skip

GENERATION: dict[str, Field] = {
    "max_completion_length": Mapped((f"{DATA}.max_response_length", f"{ACTOR}.loss_scale_factor")),
    "temperature": Mapped((f"{ROLLOUT}.temperature",)),
    "top_p": Mapped((f"{ROLLOUT}.top_p",)),
    "top_k": Mapped((f"{ROLLOUT}.top_k",), "0, all tokens, is -1 there"),
    "chat_template_kwargs": Mapped((f"{DATA}.apply_chat_template_kwargs",)),
    "mask_truncated_completions": OURS,
    "min_p": no_way("verl's agent loop passes temperature, top_p and top_k to the engine, nothing else"),
    "repetition_penalty": no_way("verl's agent loop samples with a repetition penalty of 1"),
    "generation_kwargs": no_way("verl's agent loop passes temperature, top_p and top_k to the engine, nothing else"),
    "cache_implementation": no_way("an engine generates, not transformers"),
    "num_generations_eval": no_way("evaluation is greedy, with one answer for each question"),
    "max_tool_calling_iterations": no_way("vgpo's agent loop has one turn"),
    "use_vllm": Unused("an engine always generates: vLLM, or the one of verl's key rollout.name"),
    "vllm_mode": no_way("verl starts vLLM on the GPUs of the training"),
    "vllm_model_impl": Mapped((f"{ROLLOUT}.engine_kwargs.vllm.model_impl",)),
    "vllm_enable_sleep_mode": Unused("verl's vLLM always sleeps during an update (rollout.free_cache_engine)"),
    "vllm_structured_outputs_regex": no_way("verl's agent loop passes no grammar to the engine"),
    **dict.fromkeys(
        (
            "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port",
        ),
        no_way("verl starts vLLM on the GPUs of the training"),
    ),
    "vllm_gpu_memory_utilization": Mapped((f"{ROLLOUT}.gpu_memory_utilization",)),
    "vllm_max_model_length": Mapped(
        (f"{ROLLOUT}.max_model_len",), "without it the longest prompt and response together"
    ),
    "vllm_tensor_parallel_size": Mapped((f"{ROLLOUT}.tensor_model_parallel_size",)),
    **dict.fromkeys(
        (
            "use_transformers_continuous_batching", "transformers_continuous_batching_config",
            "use_transformers_paged",
        ),
        no_way("an engine generates, not transformers"),
    ),
    "ds3_gather_for_generation": TRL_ONLY,
    "use_cache": TRL_ONLY,
    "pad_to_multiple_of": of_verl(f"{ACTOR}.pad_to_length"),
}  # fmt: skip

CORRECTION = (f"{ALGORITHM}.rollout_correction.rollout_is", f"{ALGORITHM}.rollout_correction.rollout_is_threshold")
# The losses that both hosts have: `agg_loss` of verl with the same sums and divisors as `_compute_loss` of TRL.
AGGREGATION = {"dapo": "token-mean", "grpo": "seq-mean-token-mean", "dr_grpo": "seq-mean-token-sum-norm"}
LOSS: dict[str, Field] = {
    "loss_type": Mapped(
        (f"{ACTOR}.loss_agg_mode", f"{ACTOR}.loss_scale_factor"),
        "dapo is token-mean, grpo seq-mean-token-mean, dr_grpo seq-mean-token-sum-norm, each with TRL's divisor over "
        "an update; dapo divides by the update's own tokens, TRL by its share of the generation's. Others are refused",
    ),
    "scale_rewards": Mapped(
        (f"{ALGORITHM}.norm_adv_by_std_in_grpo",),
        "the same standard deviation (n - 1), with 1e-6 added to it where TRL adds 1e-4; batch is refused",
    ),
    "multi_objective_aggregation": no_way("verl normalises the sum of the rewards"),
    "epsilon": Mapped((f"{ACTOR}.clip_ratio_low", f"{ACTOR}.clip_ratio")),
    "epsilon_high": Mapped((f"{ACTOR}.clip_ratio_high",)),
    "delta": Mapped(
        (f"{ACTOR}.clip_ratio_c",), "verl clips at 3 by default, TRL does not: without delta the bound is 1e9"
    ),
    "beta": Mapped(
        (f"{ACTOR}.use_kl_loss", f"{ACTOR}.kl_loss_coef", f"{ACTOR}.kl_loss_type"),
        "the same estimator (k3), which verl cuts off at 10 nats",
    ),
    "use_bias_correction_kl": Mapped(
        (f"{ACTOR}.use_kl_loss",), "must be false with beta: verl does not multiply the divergence by the ratio"
    ),
    "importance_sampling_level": Mapped(
        (f"{ACTOR}.policy_loss.loss_mode",),
        "sequence is gspo, the same gradient where all tokens of a rollout have one advantage: with shaping none only",
    ),
    "entropy_coef": Mapped(
        (f"{ACTOR}.entropy_coeff",), "with loss_type dapo only; verl takes the mean over an update, TRL over each pass"
    ),
    **dict.fromkeys(
        (
            "vllm_importance_sampling_correction", "vllm_importance_sampling_mode",
            "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min",
        ),
        Mapped(CORRECTION, "always, since an engine always generates; log ratios are cut off at 20"),
    ),
    "vllm_importance_sampling_cap": Refused("it is the old name of vllm_importance_sampling_clip_max; set that"),
    "reward_weights": OURS,
    "off_policy_mask_threshold": of_verl(f"{ALGORITHM}.rollout_correction.rollout_rs"),
    "top_entropy_quantile": no_way("verl's loss counts every token"),
    **dict.fromkeys(
        ("use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
        no_way("verl's entropy coefficient is constant", "set entropy_coef"),
    ),
    **dict.fromkeys(
        ("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
        no_way("verl's reference model stays the initial model"),
    ),
    **dict.fromkeys(
        ("sapo_temperature_neg", "sapo_temperature_pos"), no_way("loss_type sapo is not mapped to verl's")
    ),
    **dict.fromkeys(
        ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), no_way("verl has no loss vespo")
    ),
    "label_smoothing_factor": no_way("the loss does not use labels"),
}  # fmt: skip

OPTIM = f"{ACTOR}.optim"
MIXED = (f"{ACTOR}.fsdp_config.mixed_precision", f"{REF}.fsdp_config.mixed_precision")
OPTIMIZER: dict[str, Field] = {
    "learning_rate": Mapped((f"{OPTIM}.lr",)),
    "lr_scheduler_type": Mapped(
        (f"{OPTIM}.lr_scheduler_type",),
        "constant, constant_with_warmup or cosine. verl changes the rate after a generation, not after an update",
    ),
    "lr_scheduler_kwargs": of_verl(f"{OPTIM}.min_lr_ratio"),
    "warmup_steps": Mapped((f"{OPTIM}.lr_warmup_steps", f"{OPTIM}.lr_warmup_steps_ratio"), GENERATION_UPDATES),
    "optim": Mapped((f"{OPTIM}.optimizer",), "AdamW of PyTorch; for others verl's keys optim.optimizer(_impl)"),
    "optim_args": of_verl(f"{OPTIM}.override_optimizer_config"),
    "optim_target_modules": no_way("verl's optimizer gets every parameter"),
    "weight_decay": Mapped((f"{OPTIM}.weight_decay",), "of all weights; TRL leaves out biases and norms"),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Mapped((f"{OPTIM}.betas",))),
    "adam_epsilon": Mapped((f"{OPTIM}.override_optimizer_config",)),
    "max_grad_norm": Mapped((f"{OPTIM}.clip_grad", f"{ACTOR}.grad_clip"), "0, no clipping, is 1e30 there"),
    **dict.fromkeys(("bf16", "fp16"), Mapped(MIXED, "gradients are summed over GPUs in float32")),
    "gradient_checkpointing": Mapped((f"{MODEL}.enable_gradient_checkpointing",)),
    "activation_checkpointing": Mapped((f"{MODEL}.enable_gradient_checkpointing",)),
    **dict.fromkeys(
        ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        Refused("verl checkpoints with use_reentrant: false; remove it", accepts=({"use_reentrant": False},)),
    ),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), no_way("the engine evaluates", "set vllm_dtype")),
    "tf32": no_way("verl does not set it", "set NVIDIA_TF32_OVERRIDE on every machine"),
    **dict.fromkeys(
        ("torch_compile", "torch_compile_backend", "torch_compile_mode"), of_verl(f"{ACTOR}.use_torch_compile")
    ),
    "neftune_noise_alpha": no_way("verl adds no noise to embeddings"),
    "torch_empty_cache_steps": Unused("verl empties the cache before it generates"),
}

CHECKPOINTS: dict[str, Field] = {
    "save_strategy": Mapped((f"{TRAINER}.save_freq",), "no or steps; the last generation is always saved"),
    "save_steps": Mapped((f"{TRAINER}.save_freq",), GENERATION_UPDATES),
    "save_total_limit": Mapped((f"{TRAINER}.max_actor_ckpt_to_keep",)),
    "save_only_model": no_way(
        "verl saves what a resume needs", "remove it; checkpoint-UPDATE contains only the weights"
    ),
    "save_on_each_node": no_way("the run folder must be on a file system that all machines share"),
    "enable_jit_checkpoint": no_way("verl saves between generations"),
    "restore_callback_states_from_checkpoint": no_way("transformers callbacks are not used"),
    **dict.fromkeys(
        (
            "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push",
            "hub_revision",
        ),
        no_way("nothing is uploaded during a run", "use `vgpo export` and `hf upload` afterwards"),
    ),
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        no_way("no evaluation chooses among checkpoints", "compare them with `vgpo eval`"),
    ),
    "resume_from_checkpoint": Refused(REFUSED_KEYS["resume_from_checkpoint"]),
    "output_dir": Refused(REFUSED_KEYS["output_dir"]),
    "eval_strategy": Refused(REFUSED_KEYS["eval_strategy"]),
}  # fmt: skip

LOGGING: dict[str, Field] = {
    "report_to": Mapped((f"{TRAINER}.logger",), "wandb, tensorboard, mlflow, swanlab, trackio or clearml"),
    "run_name": Mapped((f"{TRAINER}.experiment_name",)),
    "project": Mapped((f"{TRAINER}.project_name",)),
    **dict.fromkeys(
        (
            "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter",
            "log_level", "log_level_replica", "disable_tqdm", "skip_memory_metrics", "log_multimodal",
            "num_completions_to_print", "log_unique_prompts",
        ),
        OWN_LOGS,
    ),
    **dict.fromkeys(
        ("log_completions", "log_completions_hub_repo"),
        no_way("verl prints no completions", "set log_rollouts_steps and look at `vgpo report`"),
    ),
    "include_num_input_tokens_seen": Refused(
        "verl counts tokens in perf/total_num_tokens; remove it", accepts=(False,)
    ),
    **dict.fromkeys(
        ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        no_way("verl passes nothing but project and run name to trackio"),
    ),
    **dict.fromkeys(("per_device_eval_batch_size", "eval_accumulation_steps"), Unused("the engine makes the batches")),
    **dict.fromkeys(
        (
            "eval_steps", "eval_delay", "eval_on_start", "prediction_loss_only", "eval_do_concat_batches",
            "eval_use_gather_object", "include_for_metrics", "batch_eval_metrics", "do_train", "do_eval",
            "do_predict",
        ),
        no_way("evaluation is greedy and runs before and after the training", "set eval_data"),
    ),
}  # fmt: skip

MACHINES: dict[str, Field] = {
    "use_cpu": no_way("verl 0.9.1 has no CPU platform"),
    **dict.fromkeys(("fsdp", "fsdp_config"), of_verl(f"{ACTOR}.fsdp_config")),
    "deepspeed": no_way("verl shards with FSDP", "remove it; sharding is on by default"),
    **dict.fromkeys(("accelerator_config", "parallelism_config"), no_way("accelerate does not start the processes")),
    "dataloader_num_workers": Mapped((f"{DATA}.dataloader_num_workers",)),
    **dict.fromkeys(
        (
            "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
            "dataloader_multiprocessing_context", "dataloader_in_order", "dataloader_drop_last",
            "remove_unused_columns", "label_names",
        ),
        LOADER,
    ),
    **dict.fromkeys(
        (
            "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph",
            "ddp_backend",
        ),
        DDP,
    ),
    "ddp_timeout": Unused("verl has actor_rollout_ref.nccl_timeout"),
    "local_rank": TRL_ONLY,
    "debug": TRL_ONLY,
}  # fmt: skip

# By what they are about, in the order of the page.
SECTIONS: dict[str, dict[str, Field]] = {
    "Data, rewards, run folder": RUN,
    "Method": METHOD,
    "Model": POLICY,
    "Batches and length of the training": BATCHES,
    "Generation": GENERATION,
    "Loss": LOSS,
    "Optimizer and precision": OPTIMIZER,
    "Checkpoints": CHECKPOINTS,
    "Logging and evaluation": LOGGING,
    "Machines": MACHINES,
}
FIELDS: dict[str, Field] = {name: field for section in SECTIONS.values() for name, field in section.items()}
