"""A law that is there is found, and foretells what it was not shown."""

from __future__ import annotations

import numpy as np
import pytest

from bench.scaling import fit, learn, measure, sized
from tests.bench.samples import chain, info_of, settings_of


@pytest.mark.parametrize(("floor", "scale", "power"), [(4.0, 1000.0, 0.5), (2.0, 50.0, 0.2), (0.5, 10.0, 1.0)])
def test_a_law_is_found_from_five_sizes(floor: float, scale: float, power: float) -> None:
    sizes = [2e3, 5e3, 1e4, 3e4, 1e5]
    law = fit(sizes, [floor + (scale / size) ** power for size in sizes])
    assert law.at(1e6) == pytest.approx(floor + (scale / 1e6) ** power, rel=0.01)


def test_noise_of_a_hundredth_keeps_what_is_foretold_within_a_few() -> None:
    rng, sizes = np.random.default_rng(0), [2e3, 5e3, 1e4, 3e4, 1e5]
    law = fit(sizes, [(3 + (1e3 / size) ** 0.3) * (1 + 0.01 * rng.normal()) for size in sizes])
    assert law.at(1e6) == pytest.approx(3 + (1e3 / 1e6) ** 0.3, rel=0.05)


def test_a_loss_that_does_not_fall_is_foretold_to_stay() -> None:
    assert fit([1e3, 2e3, 4e3], [3.0, 3.5, 4.0]).at(8e3) == 3.5


def test_a_wider_model_has_more_weights_and_learns_the_same_choices() -> None:
    actions = chain(num=300)
    small, large = (learn(settings_of(actions), actions, width) for width in (8, 16))
    assert large[0] > 2 * small[0]
    assert len(small[1]) == len(large[1])
    assert sized(info_of(actions).model, 16).qk_width == 8


def test_the_report_foretells_a_size_and_a_share_of_the_data_that_were_held_back() -> None:
    actions = chain(num=400)
    rows = measure(settings_of(actions), actions, widths=(4, 8, 16), held_back=24)
    assert [row["name"] for row in rows[-2:]] == ["foretold over size", "foretold over data"]
    assert all(np.isfinite(row["value"]) and row["measured"] > 0 for row in rows[-2:])
