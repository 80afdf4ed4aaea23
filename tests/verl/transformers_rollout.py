"""A rollout engine for verl's hybrid mode on a CPU: transformers samples from the actor's current weights.

As with vLLM, each replica is one server, a Ray actor, and each worker holds an adapter that hands it the weights. The
server parks requests while it sleeps: verl puts it to sleep once a batch is sampled, and wakes it with new weights.
Import this module before verl. Name the engine with `actor_rollout_ref.rollout.name=transformers`.
"""

import tests.verl.cpu_platform  # isort: skip  # noqa: F401 - before verl

import asyncio
import os
from collections.abc import Iterable
from typing import Any

import ray
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForImageTextToText
from verl.models.transformers import monkey_patch
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import HFModelConfig, RolloutConfig
from verl.workers.rollout.base import _ROLLOUT_REGISTRY, BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

from tests.verl.sampling import Request, respond

NAME = "transformers"
# Requests of a batch arrive one by one. Once none has come for this long, all that wait are sampled together.
QUIET_SECONDS = 0.03


class TransformersServer:
    """One replica: samples responses to the requests of agent loops. A Ray actor.

    `rollout.custom.failing_request` numbers a request, from 0, that fails: for tests of its group.
    """

    def __init__(self, config: RolloutConfig, model_config: Any, replica_rank: int) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.model_config: HFModelConfig = omega_conf_to_dataclass(model_config, dataclass_type=HFModelConfig)
        attention = self.model_config.override_config.get("attn_implementation", "sdpa")
        self.model = AutoModelForImageTextToText.from_pretrained(
            self.model_config.local_path, dtype=torch.float32, attn_implementation=attention
        ).eval()
        self.seed = config.seed + replica_rank
        self.global_steps: int | None = None
        self._num_requests = 0
        self._waiting: list[tuple[Request, asyncio.Future]] = []
        self._sampling: asyncio.Task | None = None
        self._awake, self._resumed = asyncio.Event(), asyncio.Event()
        self._resumed.set()
        if not config.free_cache_engine:
            self._awake.set()

    async def generate(
        self,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        request_id: str,
        image_data: list[Any] | None = None,
        video_data: list[Any] | None = None,
        audio_data: list[Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        priority: int = 0,
    ) -> TokenOutput:
        """A response to a prompt, as verl's other servers give it."""
        number, self._num_requests = self._num_requests, self._num_requests + 1
        if number == (self.config.custom or {}).get("failing_request"):
            raise RuntimeError(f"Request {number} fails, as rollout.custom.failing_request says.")
        if video_data or audio_data:
            raise ValueError(f"Request {request_id} has videos or audio, expected images alone.")
        sampling = dict(sampling_params)
        num_tokens = self._max_tokens(len(prompt_ids), sampling)
        request = Request(list(prompt_ids), image_data or [], mm_processor_kwargs or {}, sampling, num_tokens)
        await self._awake.wait()
        await self._resumed.wait()
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._sampling is None:
            self._sampling = asyncio.create_task(self._sample())
        response = await future
        return TokenOutput(
            token_ids=response.token_ids,
            log_probs=response.log_probs if sampling.get("logprobs") else None,
            stop_reason="completed",
            extra_fields={"global_steps": self.global_steps},
        )

    def _max_tokens(self, prompt_length: int, sampling: dict[str, Any]) -> int:
        """How long a response may be, by the rules of verl's vLLM server; its names leave `sampling`."""
        config = self.config
        whole = config.max_model_len or config.prompt_length + config.response_length
        if prompt_length >= whole:
            raise ValueError(f"A prompt has {prompt_length} tokens, expected fewer than max_model_len, {whole}.")
        default = min(config.response_length, config.prompt_length + config.response_length - prompt_length)
        wanted = sampling.pop("max_tokens", sampling.pop("max_new_tokens", default))
        return max(1, min(wanted, whole - prompt_length))

    async def _sample(self) -> None:
        """Serve all that wait, and what arrives meanwhile, in batches."""
        while self._waiting:
            await self._quiet()
            batch, self._waiting = self._waiting, []
            requests, futures = zip(*batch, strict=True)
            try:
                responses = await asyncio.to_thread(respond, self.model, self.model_config.processor, requests)
            except Exception as error:  # noqa: BLE001  (it is the requesters')
                for future in futures:
                    future.set_exception(error)
                continue
            for future, response in zip(futures, responses, strict=True):
                future.set_result(response)
        self._sampling = None

    async def _quiet(self) -> None:
        num_before = 0
        while num_before != len(self._waiting):
            num_before = len(self._waiting)
            await asyncio.sleep(QUIET_SECONDS)

    async def _drained(self) -> None:
        if self._sampling is not None:
            await self._sampling

    async def load_weights(self, weights: dict[str, Tensor], global_steps: int | None) -> None:
        """Replace all weights; `global_steps` is their version, and seeds what is sampled from them."""
        await self._drained()
        self.model.load_state_dict(weights)
        if global_steps is not None:
            self.global_steps = global_steps
        torch.manual_seed(1_000_003 * self.seed + (self.global_steps or 0))

    async def wake_up(self, tags: list[str] | None = None) -> None:
        """Serve requests again. verl asks for the weights' memory first: they are still the old ones then."""
        if tags is None or "kv_cache" in tags:
            self._awake.set()

    async def sleep(self) -> None:
        """Finish what is being sampled and park what comes."""
        if self.config.free_cache_engine:
            self._awake.clear()
            await self._drained()

    async def abort_all_requests(self, reject_request: bool = False) -> dict[str, Any]:
        """Park what comes until `resume_generation`. Responses are short: those that have begun are finished."""
        self._resumed.clear()
        await self._drained()
        return {"aborted_count": 0, "request_ids": []}

    async def resume_generation(self) -> None:
        """Serve requests again after `abort_all_requests`."""
        self._resumed.set()

    async def clear_kv_cache(self) -> None:
        """No cache outlives a batch."""

    release_kv_cache = resume_kv_cache = stop_profile = clear_kv_cache

    async def start_profile(self, **kwargs: Any) -> None:
        """Nothing is profiled."""


class ServerAdapter(BaseRollout):
    """The server as each worker sees it. The first worker of a replica talks to it."""

    def __init__(
        self, config: RolloutConfig, model_config: HFModelConfig, device_mesh: DeviceMesh, replica_rank: int = -1
    ) -> None:
        super().__init__(config, model_config, device_mesh)
        rank = int(os.environ["RANK"])
        num_workers = workers_of_replica(self.config)
        self.replica_rank = rank // num_workers if replica_rank == -1 else replica_rank
        self.is_leader_rank = rank % num_workers == 0

    @property
    def _server(self) -> Any:
        return ray.get_actor(server_name(self.replica_rank))  # started after the workers

    async def resume(self, tags: list[str]) -> None:
        if self.is_leader_rank:
            await self._server.wake_up.remote(tags=tags)

    async def release(self) -> None:
        if self.is_leader_rank:
            await self._server.sleep.remote()

    async def update_weights(
        self,
        weights: Iterable[tuple[str, Tensor]],
        wire_format: str = "named_tensors",
        global_steps: int | None = None,
        peft_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if wire_format != "named_tensors" or peft_config is not None:
            raise NotImplementedError(
                f"Weights come as {wire_format!r} with {'an adapter' if peft_config else 'no adapter'}, expected full "
                "tensors: leave checkpoint_engine.backend=naive, and merge LoRA (model.lora.merge=True)."
            )
        full = {name: tensor.detach() for name, tensor in weights}  # by all workers: each gathers its shards
        if self.is_leader_rank:
            await self._server.load_weights.remote(full, global_steps)


class TransformersReplica(RolloutReplica):
    """Starts a server for each replica."""

    async def launch_servers(self) -> None:
        name = server_name(self.replica_rank)
        options = {"name": name, "num_cpus": 0, "max_concurrency": self.max_concurrency}
        server = ray.remote(TransformersServer).options(**options)
        handle = server.remote(self.config, self.model_config, self.replica_rank)
        self.servers, self._server_handle, self._server_address = [handle], handle, name


def workers_of_replica(config: RolloutConfig) -> int:
    """How many workers share a server."""
    return config.tensor_model_parallel_size * config.data_parallel_size * config.pipeline_model_parallel_size


def server_name(replica_rank: int) -> str:
    """A server's name in Ray."""
    return f"{NAME}_server_{replica_rank}"


# verl's engine imports a class that the TRL which vgpo needs no longer has.
monkey_patch.is_trl_available = lambda: False
_ROLLOUT_REGISTRY[(NAME, "async")] = f"{__name__}.ServerAdapter"
RolloutReplicaRegistry.register(NAME, lambda: TransformersReplica)
