from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from judged_world import TableEncoder
from matplotlib.axes import Axes
from scipy.optimize import brentq
from scipy.stats import norm

from neuroprobe.concepts import text_vectors
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.reports import JudgmentReport, average, plot_quantities, plot_shares, quantity, share
from neuroprobe.statistics import auroc_interval, bootstrap


def test_a_share_by_hand() -> None:
    # Wilson by hand for 8 of 10: (0.8 + z2/20 +- z sqrt(.016 + z2/400)) / (1 + z2/10) with z = 1.959964
    row = share("top_1", [True] * 8 + [False] * 2, level=0.95)
    assert (row["value"], row["n"]) == (0.8, 10)
    np.testing.assert_allclose([row["low"], row["high"]], [0.490162, 0.943318], atol=1e-5)
    assert math.isnan(share("nothing", [], level=0.95)["value"])


def test_a_mean_leaves_out_nan_and_counts_what_is_left() -> None:
    row = average("m", [1.0, math.nan, 3.0], level=0.95, seed=0)
    assert (row["value"], row["n"], row["low"], row["high"]) == (2.0, 2, 1.0, 3.0)
    assert average("m", [math.nan], level=0.95, seed=0)["n"] == 0


def test_bootstrap_against_a_loop() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    draws = np.random.default_rng(3).integers(40, size=(1999, 40))
    means = sorted(np.mean([values[i] for i in rows]) for rows in draws)
    found = bootstrap(values, seed=3, n_resamples=1999)
    np.testing.assert_allclose(found, (means[49], means[1949]))  # 2.5 % of 1999 is 49.975, the fiftieth; 97.5 % the 1950th
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    found = [bootstrap(generator.exponential(size=60), level=0.9, seed=i, n_resamples=400) for i in range(300)]
    assert 0.84 < np.mean([low <= 1 <= high for low, high in found]) < 0.95


def test_bootstrap_with_infinite_values_and_of_one() -> None:
    low, high = bootstrap([1.0, 2.0, math.inf], statistic=np.median, seed=0)
    assert (low, high) == (1.0, math.inf)
    assert all(math.isnan(end) for end in bootstrap([1.0]))


def test_many_values_are_drawn_in_parts_and_the_parts_together_are_all() -> None:
    values = np.random.default_rng(0).normal(size=50_000)
    low, high = bootstrap(values, n_resamples=200, seed=0)
    assert low < values.mean() < high
    np.testing.assert_allclose(high - low, 2 * 1.96 / math.sqrt(50_000), rtol=0.25)


def _slow_interval(auc: float, m: int, n: int) -> tuple[float, float]:
    def off(theta: float) -> float:
        star = (m + n) / 2 - 1
        variance = theta * (1 - theta) * (1 + star * (1 - theta) / (2 - theta) + star * theta / (1 + theta)) / (m * n)
        return (theta - auc) ** 2 - norm.ppf(0.975) ** 2 * variance

    return (0.0 if auc == 0 else brentq(off, 0, auc), 1.0 if auc == 1 else brentq(off, auc, 1))


@pytest.mark.parametrize(("auc", "m", "n"), [(0.7, 12, 30), (0.999, 5, 200), (0.05, 40, 3), (0.5, 2, 2)])
def test_the_interval_of_an_area_solves_newcombes_equation(auc: float, m: int, n: int) -> None:
    np.testing.assert_allclose(auroc_interval(auc, m, n), _slow_interval(auc, m, n), atol=1e-9)


def test_the_interval_of_a_perfect_area_has_a_width_and_ends_at_one() -> None:
    low, high = auroc_interval([1.0, 0.0, math.nan], 10, 20)
    assert high[0] == 1
    assert 0.8 < low[0] < 1
    np.testing.assert_allclose([low[1], high[1]], [0, 1 - low[0]], atol=1e-12)
    assert math.isnan(low[2])
    assert math.isnan(high[2])


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_the_interval_of_an_area_covers_the_truth(shift: float) -> None:
    generator, true = np.random.default_rng(5), norm.cdf(shift / math.sqrt(2))
    positive, negative = generator.normal(shift, size=(600, 15)), generator.normal(size=(600, 40))
    areas = (positive[:, :, None] > negative[:, None, :]).mean(axis=(1, 2))
    low, high = auroc_interval(areas, 15, 40)
    assert ((low <= true) & (true <= high)).mean() > 0.93


def report(**values: float) -> JudgmentReport:
    rows = [quantity(name, value, interval=(value / 2, value * 2), n=3) for name, value in values.items()]
    return JudgmentReport(pd.DataFrame({"x": [1, 2]}), {"seed": 0}, overall=rows)


def test_overall_survives_saving_and_its_json_is_json(tmp_path: Path) -> None:
    made = report(mean=0.5, undefined=math.nan, beyond=math.inf)
    made.save(tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    pd.testing.assert_frame_equal(JudgmentReport.load(tmp_path).overall, made.overall)
    assert made.overall["value"].tolist()[0] == 0.5
    assert math.isnan(made.value("undefined"))
    assert made.value("beyond") == math.inf


def test_a_summary_states_what_is_known() -> None:
    assert report(mean=0.5, undefined=math.nan).summary() == "2 rows; mean 0.5 [0.25, 1]"
    with pytest.raises(UnknownNameError, match="Did you mean 'mean'"):
        report(mean=0.5).value("meen")


def test_text_vectors_are_of_length_one_and_each_text_is_embedded_once() -> None:
    encoder = TableEncoder({"red": [3.0, 4.0], "blue": [0.0, 2.0]})
    vectors = text_vectors(encoder, ["red", "", "blue", "red"])
    assert {name: vector.tolist() for name, vector in vectors.items()} == {"red": pytest.approx([0.6, 0.8]), "blue": [0, 1]}
    assert encoder.asked == [["red", "blue"]]
    assert text_vectors(encoder, [""]) == {}


def test_an_encoder_that_is_none_or_gives_no_vectors_is_refused() -> None:
    with pytest.raises(InputError, match="encode_texts"):
        text_vectors("ViT-B/16", ["red"])  # type: ignore[arg-type]
    for vectors in ({"red": [0.0, 0.0]}, {"red": [math.nan, 1.0]}):
        with pytest.raises(InputError, match="not zero"):
            text_vectors(TableEncoder(vectors), ["red"])

    class Short:
        def encode_texts(self, texts: list[str]) -> np.ndarray:
            return np.ones((1, 2))

    with pytest.raises(InputError, match=r"\[2, d\]"):
        text_vectors(Short(), ["red", "blue"])


def test_figures_show_what_they_are_given() -> None:
    hostile = "$x$\n" + "y" * 100
    rows = [
        quantity("share", 0.5, interval=(0.4, 0.6), n=3),
        quantity("rank", 40, n=2),
        quantity("none", math.nan, n=0),
        quantity(hostile, 1, n=1),
    ]
    ax = plot_quantities(pd.DataFrame(rows))
    assert [tick.get_text() for tick in ax.get_yticklabels()][:2] == ["share", "rank"]
    assert [text.get_text() for text in ax.texts] == ["0.5", "40", "1"]
    shares = plot_shares(pd.DataFrame({"same": [0.25, 1.0], "other": [0.75, 0.0]}, index=["fc", hostile]))
    assert [bar.get_width() for bar in shares.patches] == [0.25, 1.0, 0.75, 0.0]
    assert [bar.get_x() for bar in shares.patches] == [0, 0, 0.25, 1]
    for drawn in (ax, shares, plot_quantities(pd.DataFrame(rows[2:3]))):
        assert isinstance(drawn, Axes)
        drawn.figure.savefig("/dev/null", format="png")
