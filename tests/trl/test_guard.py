"""A step with bad numbers leaves the weights alone; too many in a row end the run with the last good ones."""

import itertools
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from vgpo.checkpoints import CheckpointStore
from vgpo.training.collective import AccelerateCollective
from vgpo.training.finite_guard import full_tensor, non_finite_weight, way_back
from vgpo.trl import NonFiniteError, VGPOTrainer, monitored


class Poisoned(VGPOTrainer):
    """Spoils the loss or a gradient of chosen steps."""

    bad_steps: tuple = ()
    poison: str = "loss"

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        bad = self.state.global_step in self.bad_steps
        return loss * float("nan") if bad and self.poison == "loss" else loss

    def _get_grad_norm(self, model, grad_norm=None):
        if self.state.global_step in self.bad_steps and self.poison == "norm":
            grad_norm = torch.tensor(float("inf"))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        norm = super()._get_grad_norm(model, grad_norm)
        self.before = before
        return norm


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.train
@pytest.mark.parametrize("poison", ["loss", "norm"])
def test_a_bad_step_is_skipped_and_counted(make_trainer, poison, caplog):
    trainer = make_trainer(Poisoned, max_steps=3, weight_decay=0.1, logging_nan_inf_filter=False)
    trainer.bad_steps, trainer.poison = (1,), poison
    history = []
    step = trainer._get_grad_norm

    def record(model, grad_norm=None):
        history.append(weights(trainer))
        return step(model, grad_norm)

    trainer._get_grad_norm = record
    trainer.train()
    history.append(weights(trainer))
    changed = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in itertools.pairwise(history)]
    assert changed == [True, False, True]
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    lines = [line["guard/skipped_steps"] for line in trainer.state.log_history if "guard/skipped_steps" in line]
    assert lines == [0, 1, 1]
    assert "Step 2 skipped: its loss or gradient norm is not finite" in caplog.text


@pytest.mark.train
def test_too_many_in_a_row_stop_with_the_last_good_weights(make_trainer, tmp_path):
    trainer = make_trainer(Poisoned, max_steps=9, max_skipped_steps=2)
    trainer.bad_steps = (0, 2, 3, 4)
    with pytest.raises(NonFiniteError, match=r"2 steps in a row.*step 4\).*last_good.*learning_rate"):
        trainer.train()
    saved = load_file(tmp_path / "run" / "last_good" / "model.safetensors")
    assert saved
    assert all(tensor.isfinite().all() for tensor in saved.values())
    assert any(torch.equal(t, p) for t in saved.values() for p in trainer.before.values() if t.shape == p.shape)


@pytest.mark.train
def test_weights_that_cannot_be_saved_do_not_hide_why_the_run_ended(make_trainer, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    trainer = make_trainer(Poisoned, max_steps=9, max_skipped_steps=2)
    trainer.bad_steps = (0, 1)
    monkeypatch.setattr(trainer, "save_model", refuse)
    with pytest.raises(
        NonFiniteError, match=r"2 steps in a row.*could not be written to .*last_good .*No space"
    ) as raised:
        trainer.train()
    assert isinstance(raised.value.__cause__, OSError)


@pytest.mark.parametrize("name", ["complete_steps", "steps"])
def test_checkpoints_that_cannot_be_read_do_not_hide_an_error(tmp_path, monkeypatch, name):
    def refuse(*args, **kwargs):
        raise OSError(24, "Too many open files")

    store = CheckpointStore(tmp_path, keep=None)
    monkeypatch.setattr(CheckpointStore, name, refuse)
    assert "could not be read: [Errno 24] Too many open files" in way_back(store, 3)


@pytest.mark.train
def test_weights_that_a_finite_gradient_ruined_are_told_from_a_bug(make_trainer):
    with pytest.raises(NonFiniteError, match=r"not finite after step \d+.*no earlier checkpoint.*learning_rate"):
        make_trainer(max_steps=4, learning_rate=1e25, lr_scheduler_type="constant").train()


class Spiking(VGPOTrainer):
    """Takes one update, whose gradient is finite, with a learning rate of `spike`."""

    spike_step: int = 5
    spike: float = 1e30

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        if self.state.global_step == self.spike_step - 1:
            for group in self.optimizer.param_groups:
                group["lr"] = self.spike
        return norm


SAVING = {"save_strategy": "steps", "save_steps": 1}
SPIKE = {**SAVING, "num_iterations": 4, "max_steps": 12, "save_total_limit": 2}


WAY_BACK = r"Go back to .*checkpoint-4, the newest .* finite loss: move checkpoint-5 elsewhere, lower learning_rate"


@pytest.mark.train
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"save_total_limit": 1}, "probabilities are not finite after step 8"),
        ({"max_skipped_steps": 2}, r"2 steps in a row.*step 7\).*no loss computed with them was finite"),
        ({"max_steps": 7}, r"2 steps in a row.*step 7\).*no loss computed with them was finite"),
    ],
    ids=["next generation", "too many skipped", "skipped to the end"],
)
def test_the_checkpoint_before_a_ruinous_update_stays_and_is_named(make_trainer, settings, reason):
    trainer = make_trainer(Spiking, **{**SPIKE, **settings})
    with pytest.raises(NonFiniteError, match=f"{reason}.* {WAY_BACK}"):
        trainer.train()
    assert trainer.checkpoints.steps() == [5, 4]
    assert trainer.checkpoints.pins().keys() == {4}  # by the alarm of the skipped steps


@pytest.mark.train
def test_a_run_can_go_back_to_before_a_ruinous_update(make_trainer, tmp_path):
    settings = {**SPIKE, "max_steps": 6}
    trainer = make_trainer(Spiking, **settings, alarms="off")
    with pytest.raises(NonFiniteError, match=WAY_BACK):
        trainer.train()
    with pytest.raises(NonFiniteError, match=WAY_BACK):  # the same again, until it is moved
        make_trainer(**settings).train(resume_from_checkpoint=True)
    assert trainer.checkpoints.steps() == [5, 4]

    shutil.move(trainer.checkpoints.path(5), tmp_path / "elsewhere")
    resumed = make_trainer(**settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == settings["max_steps"]
    assert non_finite_weight(resumed.model, resumed.collective) is None


@pytest.mark.train
@pytest.mark.parametrize("spike", [float("inf"), float("nan")], ids=str)
def test_weights_that_are_not_finite_are_no_checkpoint(make_trainer, tmp_path, spike):
    trainer = make_trainer(Spiking, max_steps=4, save_total_limit=1, **SAVING)
    trainer.spike, trainer.spike_step = spike, 3
    first = next(name for name, weight in trainer.model.named_parameters() if weight.requires_grad)
    message = rf"After the update of step 3 .* NaN or an infinity, the first in {first}:.*Go back to .*checkpoint-2"
    with pytest.raises(NonFiniteError, match=message):
        trainer.train()
    assert trainer.checkpoints.steps() == [2, 1]
    assert not list(trainer.checkpoints.folder.glob(".saving*"))
    with pytest.raises(NonFiniteError, match=message):
        trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final").exists()


@pytest.mark.train
@pytest.mark.parametrize(("bad_steps", "saved"), [((1,), [4, 3]), ((1, 2), [4])], ids=str)
def test_a_save_after_a_skipped_step_waits_for_a_good_one(make_trainer, caplog, monkeypatch, bad_steps, saved):
    checks = []
    monkeypatch.setattr(monitored, "non_finite_weight", lambda *args: checks.append(args))
    poisoned = make_trainer(Poisoned, max_steps=4, save_strategy="steps", save_steps=2)
    poisoned.bad_steps = bad_steps
    poisoned.train()
    assert poisoned.checkpoints.steps() == saved
    assert "Step 2 was skipped, so it has no checkpoint" in caplog.text
    assert len(checks) == len(saved)  # and at no other step


@pytest.mark.train
def test_a_run_whose_last_step_was_skipped_has_no_final_weights(make_trainer, tmp_path):
    trainer = make_trainer(Poisoned, max_steps=2)
    trainer.bad_steps = (1,)
    with pytest.raises(NonFiniteError, match=r"1 steps in a row.*step 2\).*last_good"):
        trainer.train()
    assert (tmp_path / "run" / "last_good" / "model.safetensors").is_file()


def test_frozen_weights_are_not_read_and_shards_are(make_trainer):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in ("a", "b")})
        accelerator = make_trainer().accelerator
        model["a"].weight.requires_grad_(False).fill_(float("nan"))
        assert non_finite_weight(model, AccelerateCollective(accelerator)) is None
        bad = distribute_tensor(torch.tensor([[0.0, float("-inf")]]), init_device_mesh("cpu", (1,)))
        model["b"].weight = torch.nn.Parameter(bad)
        assert non_finite_weight(model, AccelerateCollective(accelerator)) == "b.weight"
    finally:
        torch.distributed.destroy_process_group()


def test_the_norm_of_a_sharded_model_is_read_whole():
    """FSDP2 gives a distributed tensor, which must not reach our collectives."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        norm = torch.distributed.tensor.distribute_tensor(torch.tensor([3.0, 4.0]), mesh).norm()
        assert type(full_tensor(norm)) is torch.Tensor
        assert float(full_tensor(norm)) == 5.0
    finally:
        torch.distributed.destroy_process_group()
