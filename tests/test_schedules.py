import math

import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.training.config import ScheduleConfig
from kinemesh.training.ema import WeightAverage, ema_decay_at
from kinemesh.training.schedules import lr_factor, run_fraction, steps_per_epoch


def factors(schedule, steps):
    return [lr_factor(schedule, s, steps, run_fraction(s, steps)) for s in range(steps)]


def test_warm_up_grows_linearly_to_the_peak():
    values = factors(ScheduleConfig(kind="constant", warmup_steps=4), 8)
    assert values == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_cosine_hits_its_landmarks():
    schedule = ScheduleConfig(warmup_steps=10, final_lr_ratio=0.1)
    assert lr_factor(schedule, 10, 110, 10 / 110) == pytest.approx(1.0)
    assert lr_factor(schedule, 60, 110, 60 / 110) == pytest.approx(0.55)  # halfway: mean of ends
    assert lr_factor(schedule, 110, 110, 1.0) == pytest.approx(0.1)
    after_warmup = factors(schedule, 110)[10:]
    assert after_warmup == sorted(after_warmup, reverse=True)


def test_steps_drop_at_fractions_and_at_step_numbers():
    schedule = ScheduleConfig(kind="step", step_at=(0.5, 8.0), factor=0.1)
    assert factors(schedule, 10) == pytest.approx([1] * 5 + [0.1] * 3 + [0.01] * 2)


@pytest.mark.parametrize(
    ("samples", "batch_size", "processes", "updates"),
    [
        (475_920, 30, 8, 1983),  # METRO's log: about 476 thousand samples
        (476_159, 30, 8, 1983),  # the rest of the division does not count
        (130_240, 32, 8, 508),
        (22_735, 20, 8, 142),
        (8, 8, 1, 1),
    ],
)
def test_an_epoch_has_as_many_updates_as_published(samples, batch_size, processes, updates):
    assert steps_per_epoch(samples, batch_size, processes) == updates


def test_a_data_set_smaller_than_a_batch_is_refused():
    with pytest.raises(InputError, match=r"15 samples.* 8 on each of 2 processes"):
        steps_per_epoch(15, 8, 2)


@pytest.mark.parametrize(
    ("epochs", "updates", "runs"),
    [
        # 200 epochs of 1983 updates: one drop before the last update of epoch 100, one for the last
        (200, 1983, [(198_299, 1e-4), (198_300, 1e-5), (396_599, 1e-5), (396_600, 1e-6)]),
        (200, 508, [(1, 1e-4), (50_799, 1e-4), (50_800, 1e-5), (101_599, 1e-5), (101_600, 1e-6)]),
        # an odd number of epochs: the drop is at the first whole epoch after the half
        (5, 142, [(425, 1e-4), (426, 1e-5), (709, 1e-5), (710, 1e-6)]),
        (1, 10, [(9, 1e-4), (10, 1e-6)]),
    ],
)
def test_published_learning_rates(epochs, updates, runs):
    """Iterations count from 1, and the rate of each is set before its update."""
    schedule = ScheduleConfig(kind="epochs", epochs=epochs, steps_per_epoch=updates)
    steps = epochs * updates
    for iteration, rate in runs:
        done = iteration - 1
        factor = lr_factor(schedule, done, steps, run_fraction(done, steps))
        assert 1e-4 * factor == pytest.approx(rate, rel=1e-12)


def test_every_epoch_follows_the_published_formula():
    epochs, updates = 7, 3
    schedule = ScheduleConfig(kind="epochs", epochs=epochs, steps_per_epoch=updates)
    found = factors(schedule, epochs * updates)
    for done, factor in enumerate(found):
        epoch = (done + 1) // updates
        assert factor == 0.1 ** math.floor(epoch / (epochs / 2))
    assert len(set(found)) == 3


def test_a_time_limit_moves_the_epochs_on():
    schedule = ScheduleConfig(kind="epochs", epochs=10, steps_per_epoch=10)
    fraction = run_fraction(3, 100, seconds=36, time_limit_minutes=1)
    assert lr_factor(schedule, 3, 100, fraction) == pytest.approx(0.1)


def test_warm_up_longer_than_the_run_is_harmless():
    values = factors(ScheduleConfig(warmup_steps=100), 10)
    assert values == pytest.approx([(s + 1) / 100 for s in range(10)])


def test_larger_of_step_and_time_fraction_counts():
    assert run_fraction(10, 100) == 0.1
    assert run_fraction(10, 100, seconds=30, time_limit_minutes=1) == 0.5
    assert run_fraction(80, 100, seconds=30, time_limit_minutes=1) == 0.8
    assert run_fraction(1, 100, seconds=3600, time_limit_minutes=1) == 1.0


def test_time_anneals_the_cosine_to_its_end():
    fraction = run_fraction(20, 10**6, seconds=60, time_limit_minutes=1)
    assert lr_factor(ScheduleConfig(), 20, 10**6, fraction) == pytest.approx(0, abs=1e-12)


def test_ema_decay_warms_up():
    assert ema_decay_at(0.999, 0) == 0.1
    assert ema_decay_at(0.999, 90) == 0.91
    assert ema_decay_at(0.999, 10**6) == 0.999


def test_ema_equals_its_slow_twin():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).double()
    average = WeightAverage(model, 0.9)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for update in range(12):
        model(torch.randn(5, 3, dtype=torch.float64))  # moves the batch statistics
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(model, update)
        decay = min(0.9, (1 + update) / (10 + update))
        for name, value in model.state_dict().items():
            mixed = decay * expected[name] + (1 - decay) * value
            expected[name] = mixed if value.is_floating_point() else value.clone()
    for name, value in average.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)
    assert int(average.model[1].num_batches_tracked) == 12
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert math.isfinite(float(average.model[0].weight.sum()))
