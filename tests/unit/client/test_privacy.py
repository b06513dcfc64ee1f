"""The privacy budget: what is planned, what is spent, and when a site stops."""

import math
import warnings
from pathlib import Path

import pytest
import torch
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.utils import get_noise_multiplier
from torch import nn

import client.privacy
from client.ledger import Ledger, history
from client.privacy import PrivateRound, check_private, plan_noise, spent_epsilon
from popmi_core.config import LocalConfig, PrivacyConfig
from popmi_core.errors import PrivacyError
from popmi_core.learning.norms import set_training_mode

LOCAL = LocalConfig(epochs=2, batch_size=32)
IMAGES = 300
STEPS, RATE = 20, 1 / 10


def make_round(folder: Path, server_round: int, *, run: str = "run-1", rounds: int = 4, epsilon: float = 8.0):
    return PrivateRound(
        config=PrivacyConfig(target_epsilon=epsilon, target_delta=1e-4),
        ledger=Ledger(folder / "ledger.json", site="msk"),
        run=run,
        server_round=server_round,
        rounds=rounds,
    )


def charge(folder: Path, server_round: int, **changes):
    return make_round(folder, server_round, **changes).charge(IMAGES, LOCAL)


def by_opacus(spent: list[tuple[float, float, int]], delta: float = 1e-4) -> float:
    """Opacus' accountant, told of one step at a time as its privacy engine does."""
    accountant = RDPAccountant()
    for noise, rate, steps in spent:
        for _ in range(steps):
            accountant.step(noise_multiplier=noise, sample_rate=rate)
    return accountant.get_epsilon(delta)


def test_the_rounds_of_a_study_together_spend_the_target_and_not_more(tmp_path):
    charges = [charge(tmp_path, number) for number in range(1, 5)]
    assert len({one.noise_multiplier for one in charges}) == 1
    assert all((one.steps, one.sample_rate) == (STEPS, RATE) for one in charges)
    epsilons = [one.epsilon for one in charges]
    assert epsilons == sorted(epsilons)
    # Noise is planned to a ten-thousandth, from the safe side.
    assert 8.0 * (1 - 1e-3) < epsilons[-1] <= 8.0


def test_the_spent_epsilon_is_what_opacus_computes_by_itself(tmp_path):
    for number in (1, 2, 3):
        one = charge(tmp_path, number)
        spent = [(one.noise_multiplier, RATE, STEPS)] * number
        # The same sum of floats in another order.
        assert one.epsilon == pytest.approx(by_opacus(spent), rel=1e-9)


def test_the_tighter_accountant_of_opacus_confirms_the_bound(tmp_path):
    one = charge(tmp_path, 1)
    accountant = PRVAccountant()
    accountant.history = [(one.noise_multiplier, RATE, 4 * STEPS)]
    # PRV's own upper estimate; Renyi accounting is looser, so the promise of 8 has room.
    assert accountant.get_epsilon(1e-4, eps_error=0.05) < 8.0


@pytest.mark.parametrize("target", [0.5, 2.0, 8.0])
def test_the_planned_noise_agrees_with_opacus(target):
    ours = plan_noise([], target_epsilon=target, target_delta=1e-5, sample_rate=0.05, steps=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = get_noise_multiplier(
            target_epsilon=target, target_delta=1e-5, sample_rate=0.05, steps=200, epsilon_tolerance=1e-4
        )
    # Theirs stops 1e-4 short of epsilon, ours a ten-thousandth above the least noise.
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_one_round_more_than_planned_is_refused_and_costs_nothing(tmp_path):
    for number in range(1, 5):
        charge(tmp_path, number)
    with pytest.raises(PrivacyError, match=r"site msk, round 5: budget spent: epsilon 8 of 8 is used"):
        charge(tmp_path, 5)
    assert len(Ledger(tmp_path / "ledger.json", site="msk").entries()) == 4


def test_a_second_run_goes_on_spending_where_the_first_ended(tmp_path):
    first = charge(tmp_path, 1)
    charges = [charge(tmp_path, number, run="run-2") for number in range(1, 5)]
    assert charges[0].noise_multiplier > first.noise_multiplier
    assert charges[-1].epsilon <= 8.0
    spent = [(first.noise_multiplier, RATE, STEPS)] + [(charges[0].noise_multiplier, RATE, STEPS)] * 4
    assert charges[-1].epsilon == pytest.approx(by_opacus(spent), rel=1e-9)


def test_a_second_run_after_a_spent_budget_is_refused(tmp_path):
    for number in range(1, 5):
        charge(tmp_path, number)
    with pytest.raises(PrivacyError, match=r"budget spent: .* less than 1% is left for 4 more rounds"):
        charge(tmp_path, 1, run="run-2")


def test_a_budget_that_no_useful_noise_can_meet_is_refused(tmp_path):
    with pytest.raises(PrivacyError, match="4 more rounds would need more noise than 1000"):
        charge(tmp_path, 1, epsilon=0.001)


def test_a_larger_target_lets_a_site_go_on_with_everything_still_counted(tmp_path):
    for number in range(1, 5):
        last = charge(tmp_path, number)
    more = charge(tmp_path, 1, run="run-2", epsilon=12.0)
    spent = [(last.noise_multiplier, RATE, STEPS)] * 4 + [(more.noise_multiplier, RATE, STEPS)]
    assert more.epsilon == pytest.approx(by_opacus(spent), rel=1e-9)
    assert last.epsilon < more.epsilon <= 12.0


def test_more_rounds_than_first_planned_get_more_noise_and_stay_within_the_target(tmp_path):
    early = [charge(tmp_path, number) for number in (1, 2)]
    late = [charge(tmp_path, number, rounds=8) for number in range(3, 9)]
    assert late[0].noise_multiplier > early[0].noise_multiplier
    assert len({one.noise_multiplier for one in late}) == 1
    assert 8.0 * (1 - 1e-3) < late[-1].epsilon <= 8.0


def test_a_site_that_joins_late_plans_for_the_rounds_that_are_left(tmp_path):
    assert charge(tmp_path / "late", 3).noise_multiplier < charge(tmp_path / "early", 1).noise_multiplier
    assert 8.0 * (1 - 1e-3) < charge(tmp_path / "late", 4).epsilon <= 8.0


def test_a_round_repeated_after_a_crash_is_paid_for_twice(tmp_path):
    charge(tmp_path, 1)
    charge(tmp_path, 2)  # the site dies here: paid for, no reply
    charges = [charge(tmp_path, number) for number in (2, 3, 4)]
    entries = Ledger(tmp_path / "ledger.json", site="msk").entries()
    assert [entry.server_round for entry in entries] == [1, 2, 2, 3, 4]
    assert charges[-1].epsilon == pytest.approx(by_opacus(history(entries)), rel=1e-9)
    assert charges[-1].epsilon <= 8.0


def test_a_round_that_was_missed_is_not_charged(tmp_path):
    charge(tmp_path, 1)
    last = charge(tmp_path, 4)
    assert last.epsilon == pytest.approx(by_opacus([(last.noise_multiplier, RATE, STEPS)] * 2), rel=1e-9)


def test_a_delta_of_one_over_n_is_refused(tmp_path):
    with pytest.raises(PrivacyError, match=r"target_delta is 0.0001, expected less than 1/n = 0.0001 for 10000 images"):
        make_round(tmp_path, 1).charge(10_000, LOCAL)
    assert not (tmp_path / "ledger.json").exists()


def test_a_damaged_ledger_allows_no_round(tmp_path):
    charge(tmp_path, 1)
    (tmp_path / "ledger.json").write_text("{")
    with pytest.raises(PrivacyError, match="damaged"):
        charge(tmp_path, 2)


def test_the_entry_is_on_the_disk_before_the_charge_is_given(tmp_path, monkeypatch):
    def fail(self, entry) -> None:
        raise PrivacyError("disk")

    monkeypatch.setattr(client.privacy.Ledger, "append", fail)
    with pytest.raises(PrivacyError, match="disk"):
        charge(tmp_path, 1)


def test_nothing_spent_is_epsilon_zero():
    assert spent_epsilon([], 1e-5) == 0


def test_less_noise_or_more_steps_always_cost_more():
    costs = [spent_epsilon([(noise, 0.1, 50)], 1e-5) for noise in (4.0, 2.0, 1.0, 0.5)]
    assert costs == sorted(costs)
    assert spent_epsilon([(1.0, 0.1, 51)], 1e-5) > spent_epsilon([(1.0, 0.1, 50)], 1e-5)
    assert math.isfinite(costs[-1])


class Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.head = nn.Linear(4, 2)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.BatchNorm1d(4), nn.InstanceNorm2d(4, track_running_stats=True)])
def test_a_norm_that_mixes_images_is_refused_with_the_remedy(norm):
    model = Block(norm).train()
    with pytest.raises(
        PrivacyError, match=rf"'norm' is a {type(norm).__name__}.*popmi_vit_nano, or train adapters only"
    ):
        check_private(model, LOCAL)


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)])
def test_a_norm_within_one_image_is_allowed(norm):
    check_private(Block(norm).train(), LOCAL)


def test_a_frozen_batch_norm_is_allowed():
    model = Block(nn.BatchNorm2d(4))
    model.norm.requires_grad_(False)
    set_training_mode(model)
    check_private(model, LOCAL)
    assert torch.equal(model.norm.running_mean, torch.zeros(4))


@pytest.mark.parametrize(
    ("objective", "why"),
    [
        ("calibrated", "class frequencies, which the noise does not cover"),
        ("control_variates", "a control variate may"),
    ],
)
def test_an_objective_that_uses_images_beside_the_gradient_is_refused(objective, why):
    with pytest.raises(PrivacyError, match=why):
        check_private(nn.Linear(2, 2), LocalConfig(objective=objective))
