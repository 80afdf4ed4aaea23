"""Trainers that take turns in one process, and what is measured of each from outside: time by phase, memory, images.

All train at once, each in a thread of its own, and one at a time runs a round, so that whatever else the machine does
hits all of them. A round is one generation with the optimizer steps that use it.
"""

import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback
from trl import GRPOTrainer

WARM_UP = 1  # round of each trainer that is not counted
# A method of a trainer and the phase that its time belongs to, without what other methods take inside of it.
PHASE_OF = {
    "training_step": "gradient",
    "_prepare_inputs": "other",
    "_generate_single_turn": "generation",
    "_get_per_token_logps_and_entropies": "scoring",  # without a gradient; with one, it is a part of "gradient"
}
PHASES = ("generation", "scoring", "gradient", "other")  # other: images, rewards, optimizer, logging, reading rows

Clock = Callable[[], float]


def clock_of(device: str, *, cpu_time: bool) -> Clock:
    """Seconds of the wall with all work on the device done, or of this process's threads on the CPU."""
    if device == "cuda":
        return _synchronised
    return time.process_time if cpu_time else time.perf_counter


def _synchronised() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


class Stopwatch:
    """Seconds by phase. A phase that begins inside of another one interrupts it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.start()

    def start(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.current, self.since = "other", self.clock()

    def stop(self) -> dict[str, float]:
        """Seconds of each phase since `start`."""
        self._switch("other")
        return self.seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before = self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, name: str) -> str:
        """Begin a phase; returns the one that was."""
        before, now = self.current, self.clock()
        self.seconds[before] += now - self.since
        self.current, self.since = name, now
        return before


def watch(trainer: GRPOTrainer, stopwatch: Stopwatch) -> None:
    """Time the methods of `PHASE_OF`, whatever class the trainer has."""
    for method, phase in PHASE_OF.items():
        setattr(trainer, method, timed(getattr(trainer, method), phase, stopwatch))


def timed(function: Callable[..., Any], phase: str, stopwatch: Stopwatch) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if phase == "scoring" and torch.is_grad_enabled():
            return function(*args, **kwargs)
        with stopwatch.phase(phase):
            return function(*args, **kwargs)

    return run


class MemoryMeter:
    """Peak bytes of tensors that are allocated between `start` and `stop`."""

    def __init__(self, device: str) -> None:
        self.device = device

    def start(self) -> None:
        if self.device == "cuda":
            self.before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            return
        self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
        self.profiler.start()

    def stop(self) -> int:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() - self.before
        self.profiler.stop()
        events = [event for event in self.profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
        return max(itertools.accumulate(changes))


@dataclass
class Contender:
    """A trainer and what was measured of it, round by round.

    Args:
        updates: optimizer steps of a round.
        clock: what time is.
    """

    name: str
    trainer: GRPOTrainer
    updates: int
    clock: Clock
    rounds: list[dict[str, float]] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    peak_bytes: int = 0

    def __post_init__(self) -> None:
        self.stopwatch = Stopwatch(self.clock)
        self.encoded = 0  # images of the current round that the vision tower has encoded
        watch(self.trainer, self.stopwatch)
        self.trainer.model.get_encoder(modality="image").register_forward_pre_hook(
            self._count_images, with_kwargs=True
        )

    def _count_images(self, tower: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.encoded += len(kwargs["grid_thw"])

    def start_round(self) -> None:
        self.encoded = 0
        self.stopwatch.start()

    def end_round(self) -> None:
        self.rounds.append(self.stopwatch.stop())
        self.images.append(self.encoded)

    @property
    def seconds(self) -> dict[str, list[float]]:
        """Of each phase, of an optimizer step without its generation, "update", and of a whole one, "step".

        A value for each counted round: neither those to warm up nor the last one, which is for memory.
        """
        counted = self.rounds[WARM_UP:-1]
        phases = {phase: [seconds[phase] / self.updates for seconds in counted] for phase in PHASES}
        steps = [sum(seconds.values()) / self.updates for seconds in counted]
        updates = [step - generation for step, generation in zip(steps, phases["generation"], strict=True)]
        return {**phases, "update": updates, "step": steps}


class Ring:
    """Passes the turn round the contenders, from the first one on when all are there.

    Until then they prepare themselves, and draw from the random numbers that they share.
    """

    def __init__(self, size: int) -> None:
        self.gates = [threading.Semaphore(0) for _ in range(size)]
        self.missing = set(range(size))
        self.lock = threading.Lock()
        self.failure: BaseException | None = None

    def wait(self, place: int) -> None:
        with self.lock:
            if self.missing == {place}:
                self.gates[0].release()
            self.missing.discard(place)
        self.gates[place].acquire()
        if self.failure is not None:
            raise RuntimeError("Another trainer failed.") from self.failure

    def pass_on(self, place: int) -> None:
        self.gates[(place + 1) % len(self.gates)].release()

    def fail(self, failure: BaseException) -> None:
        """Wake all who wait: a turn would never come."""
        self.failure = self.failure or failure
        for gate in self.gates:
            gate.release()


class Turns(TrainerCallback):
    """Lets one trainer run a round while the others wait. A turn lasts from one round's begin to the next one's:
    rollouts, updates, logging, and the reading of the next rows. The last one is for memory."""

    def __init__(
        self, contender: Contender, ring: Ring, place: int, seed: int, device: str, progress: Callable[[str], None]
    ) -> None:
        self.contender, self.ring, self.place, self.seed, self.progress = contender, ring, place, seed, progress
        self.meter = MemoryMeter(device)
        self.began = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.contender.updates == 0:
            self._end_turn()
            self.ring.wait(self.place)
            self._begin_turn(state)
        torch.manual_seed(self.seed + state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            self.contender.peak_bytes = self.meter.stop()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end_turn()

    def _begin_turn(self, state: Any) -> None:
        number, total = (steps // self.contender.updates for steps in (state.global_step, state.max_steps))
        self.progress(f"round {number + 1} of {total}, {self.contender.name}")
        if number + 1 == total:
            self.contender.trainer._buffered_inputs = None  # to be freed before, not during the round
            self.meter.start()
        self.began = True
        self.contender.start_round()

    def _end_turn(self) -> None:
        if self.began:
            self.contender.end_round()
            self.ring.pass_on(self.place)


def take_turns(contenders: Sequence[Contender], seed: int, device: str, progress: Callable[[str], None]) -> None:
    """Train all contenders, one round of each at a time."""
    ring = Ring(len(contenders))
    threads = []
    for place, contender in enumerate(contenders):
        contender.trainer.add_callback(Turns(contender, ring, place, seed, device, progress))
        threads.append(threading.Thread(target=train, args=(contender.trainer, ring)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    if ring.failure is not None:
        raise ring.failure


def train(trainer: GRPOTrainer, ring: Ring) -> None:
    try:
        trainer.train()
    except BaseException as failure:  # noqa: BLE001 - it is raised again where all threads have ended
        ring.fail(failure)
