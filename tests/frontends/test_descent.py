from __future__ import annotations

import math
from dataclasses import replace

import pytest

from frontends import zoo
from frontends.descent import DescentRecipe, Schedule, default_recipe, descent_recipe
from hwmodel.errors import CompileError

RECIPE = DescentRecipe(epochs=2, batch=4, learning_rate=0.8)


def test_cosine_goes_from_the_full_rate_to_zero() -> None:
    rates = [RECIPE.rate(step, 8) for step in range(8)]
    assert rates[0] == 0.8
    assert rates[4] == pytest.approx(0.4, rel=1e-15)  # half way: (1 + cos(pi / 2)) / 2
    assert rates == sorted(rates, reverse=True)
    assert RECIPE.rate(8, 8) == 0.0


def test_constant_rate() -> None:
    recipe = replace(RECIPE, schedule=Schedule.CONSTANT)
    assert {recipe.rate(step, 8) for step in range(8)} == {0.8}


def test_warmup_rises_by_equal_parts_and_reaches_the_schedule() -> None:
    recipe = replace(RECIPE, schedule=Schedule.CONSTANT, warmup=0.375)  # 3 steps of 8
    assert [recipe.rate(step, 8) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8], rel=1e-15)
    cosine = replace(RECIPE, warmup=0.375)
    assert cosine.rate(3, 8) == RECIPE.rate(3, 8)


@pytest.mark.parametrize("name", zoo.names())
def test_zoo_recipes_fold_what_the_accelerator_cannot_train(name: str) -> None:
    recipe = descent_recipe(name)
    recipe.verify()
    assert recipe.fold_batch_norm == zoo.entry(name).batch_norm
    assert math.log2(recipe.loss_scale) % 1 == 0  # dividing it out again is exact


def test_any_other_network_keeps_its_batch_norms() -> None:
    default_recipe().verify()
    assert not default_recipe().fold_batch_norm


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 0}, "--epochs: error: is 0, must be at least 1"),
        ({"batch": -2}, "--batch: error: is -2, must be at least 1"),
        ({"learning_rate": 0.0}, "--lr: error: is 0, must be positive and finite"),
        ({"learning_rate": math.nan}, "--lr: error: is nan, must be positive and finite"),
        ({"loss_scale": math.inf}, "--loss-scale: error: is inf, must be positive and finite"),
        ({"loss_scale": -1.0}, "--loss-scale: error: is -1, must be positive and finite"),
        ({"momentum": 1.0}, "--momentum: error: is 1, must be at least 0 and below 1"),
        ({"weight_decay": -0.1}, "--weight-decay: error: is -0.1, must be at least 0 and finite"),
    ],
)
def test_numbers_out_of_range(changed: dict[str, float], message: str) -> None:
    with pytest.raises(CompileError) as caught:
        replace(RECIPE, **changed).verify()  # type: ignore[arg-type]
    assert str(caught.value) == message
