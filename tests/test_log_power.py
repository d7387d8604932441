"What the release experiment's page counts: who is found, source by source, and what a log accuses."

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from trainprove_nb.evidence.rates import proportion_interval
from trainprove_nb.report.log_power import (
    accused,
    accused_by_logs,
    found_by_source,
    power,
    power_alt,
    power_figure,
)
from trainprove_nb.report.results import read_results, shipped_results


def rows_of(kind, access, p, source="s", account=0, rho=1.0):
    return dict(kind=kind, access=access, p=p, source=source, account=account, rho=rho)


TABLE = pd.DataFrame(
    [
        *[
            rows_of("infringing", "a", p, source)
            for source, p in (("s", 0.001), ("s", 0.2), ("t", 0.01))
        ],
        rows_of("infringing", "a", 0.5, rho=0.1),
        *[rows_of("disjoint data", "a", p, account=k) for k, p in enumerate((0.04, 0.3, 0.9))],
        *[rows_of("same data", "a", p, account=k) for k, p in enumerate((0.005, 0.6, 0.05))],
    ]
)


def test_infringers_are_counted_by_source():
    found = found_by_source(TABLE, "a")
    assert found.loc["s", 1.0] == "1 of 2" and found.loc["t", 1.0] == "1 of 1"
    assert found.loc["s", 0.1] == "0 of 1" and found.loc["t", 0.1] == ""
    assert accused(TABLE).loc["same data", "a"] == "2 of 3"


def test_a_log_is_counted_once_however_many_innocents_stand_before_it():
    "By hand: logs accuse 1, 0 and .5 of their innocents at .05, .5, 0 and 0 at .01."
    rates = accused_by_logs(TABLE).loc["a"]
    for level, shares in ((0.05, (1, 0, 0.5)), (0.01, (0.5, 0, 0))):
        low, high = stats.t.interval(0.95, 2, np.mean(shares), stats.sem(shares))
        assert rates[level].value == pytest.approx(np.mean(shares)) and rates[level].n == (3,)
        assert (rates[level].low, rates[level].high) == pytest.approx((max(low, 0), min(high, 1)))


def test_no_log_accuses_anybody():
    rate = accused_by_logs(TABLE.assign(p=0.5), (0.05,)).loc["a", 0.05]
    assert (rate.low, rate.high) == pytest.approx(proportion_interval(0, 3))


def test_the_figure_has_a_line_an_access_and_its_text_every_number():
    table = read_results(shipped_results("release"), "release")[1][""]
    rates = power(table)
    (ax,) = power_figure(table).axes
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert set(shown) == {access for access in rates.index if "pixels" not in access}
    lines = dict(zip(shown, [box.lines[0].get_ydata() for box in ax.containers], strict=True))
    for access, drawn in lines.items():
        wanted = [rates.loc[access, rho].value for rho in sorted(rates.columns)]
        assert np.array_equal(drawn, wanted, equal_nan=True)
        for value in set(wanted) - {np.nan}:
            assert np.isnan(value) or f"{value:.2f} at" in power_alt(table)


def test_what_the_page_of_classifiers_says_of_who_gets_away():
    rates = power(
        read_results(shipped_results("release_classifiers"), "release_classifiers")[1][""]
    )
    found = rates.map(lambda rate: rate.value)
    assert found[0.3].max() <= 2 / 3 + 1e-9  # "a third or more are missed"
    assert found.loc[[access for access in found.index if "label" in access], 0.3].max() <= 0.25
    assert found.loc[["one label", "one label, calibrated"], 1.0].max() < 1
