"""The factor on losses: what it does at an overflow, in good times, in a checkpoint, and to a gradient."""

import pytest

from mcn.loss_scale import GROWTH, START, LossScale


def overflowing_above(limit: float, scale: LossScale, tries: list[float]) -> float:
    tries.append(scale.value)
    if scale.value > limit:
        raise FloatingPointError("the gradient is inf")
    return scale.value


def test_an_overflow_halves_it_until_the_step_is_finite() -> None:
    scale, tries = LossScale(on=True), []  # type: ignore[var-annotated]
    assert scale.carried(lambda: overflowing_above(START / 8, scale, tries)) == START / 8
    assert tries == [START, START / 2, START / 4, START / 8]


def test_it_doubles_after_many_good_steps() -> None:
    scale = LossScale(on=True)
    for _ in range(GROWTH - 1):
        scale.carried(lambda: None)
    assert scale.value == START
    scale.carried(lambda: None)
    assert scale.value == 2 * START


def test_what_is_not_finite_at_a_factor_of_one_is_not_finite() -> None:
    for on, tries in ((True, 17), (False, 1)):
        scale, seen = LossScale(on=on), []  # type: ignore[var-annotated]
        with pytest.raises(FloatingPointError, match="inf"):
            scale.carried(lambda scale=scale, seen=seen: overflowing_above(0, scale, seen))  # type: ignore[misc]
        assert len(seen) == tries


def test_off_it_stays_one() -> None:
    scale = LossScale(on=False)
    for _ in range(GROWTH):
        scale.carried(lambda: None)
    scale.load({"value": 8.0, "good": 3})
    assert scale.value == 1
    assert scale.state() == {}


def test_a_checkpoint_takes_it_along() -> None:
    scale, other = LossScale(on=True), LossScale(on=True)
    scale.carried(lambda: overflowing_above(START / 2, scale, []))
    other.load(scale.state())
    assert (other.value, other.good) == (START / 2, 1)
    other.load({})  # of a run that had none
    assert other.value == START
