"""A step with bad numbers leaves the weights alone; too many in a row end the run with the last good ones."""

import itertools

import pytest
import torch
from safetensors.torch import load_file

from vgpo.trl import NonFiniteError, VGPOTrainer
from vgpo.trl.guard import whole


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
def test_weights_that_a_finite_gradient_ruined_are_told_from_a_bug(make_trainer):
    with pytest.raises(NonFiniteError, match=r"not finite after step \d+.*last checkpoint.*learning_rate"):
        make_trainer(max_steps=4, learning_rate=1e25, lr_scheduler_type="constant").train()


def test_the_norm_of_a_sharded_model_is_read_whole():
    """FSDP2 gives a distributed tensor, which no collective of ours may see."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        norm = torch.distributed.tensor.distribute_tensor(torch.tensor([3.0, 4.0]), mesh).norm()
        assert type(whole(norm)) is torch.Tensor
        assert float(whole(norm)) == 5.0
    finally:
        torch.distributed.destroy_process_group()
