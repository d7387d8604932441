"ρ of trained suspects, read off those of other sources."

import pandas as pd
import pytest
from helpers import refused

from trainprove_nb.evidence.how_much import data_share
from trainprove_nb.report.data_shares import estimated_rho, rho_coverage
from trainprove_nb.report.results import read_results, shipped_results


def rows(source, kind, rho, z, account=0, access="prompts only"):
    return dict(source=source, kind=kind, rho=rho, z=z, account=account, access=access)


@pytest.fixture
def table():
    found = []
    for k, source in enumerate("abc"):
        for rho, z in [(0.3, 3.0), (0.5, 5.0), (1.0, 10.0)]:
            found += [rows(source, "infringing", rho, z + 0.1 * k, account=n) for n in (0, 1)]
        found += [rows(source, "disjoint data", 0.0, 0.1 * k, account=n) for n in (0, 1)]
        found += [rows(source, "another account", 1.0, 0.2 * k, account=0)]
        found += [rows(source, "infringing", 1.0, 99.0, access="open weights")]
    return pd.DataFrame(found)


def test_a_suspect_is_read_off_other_sources_alone(table):
    found = estimated_rho(table, "prompts only")
    # of each source six infringers, and two innocents before the first log
    assert found.groupby(["source", "rho"]).size().to_dict() == {
        (source, rho): 2 for source in "abc" for rho in (0.0, 0.3, 0.5, 1.0)
    }
    others = table[(table.access == "prompts only") & (table.source != "a")]
    z = [*others[others.kind == "infringing"].z]
    innocent = others[(others.kind != "infringing") & (others.account == 0)]
    rho = [*others[others.kind == "infringing"].rho, *[0.0] * len(innocent)]
    by_hand = data_share(3.0, [*z, *innocent.z], rho)
    first = found.iloc[0]
    assert (first.value, first.low, first.high) == (by_hand.value, by_hand.low, by_hand.high)


def test_a_lone_source_gives_no_estimate_and_few_others_are_refused(table):
    alone = estimated_rho(table[table.source == "a"], "prompts only")
    assert alone.empty and rho_coverage(alone).empty
    assert list(alone.columns) == ["source", "rho", "value", "low", "high"]
    few = table[(table.source != "c") & ((table.source == "a") | (table.rho == 1))]
    refused(lambda: estimated_rho(few, "prompts only"), "shadows: level 0.9 needs 9")
    assert estimated_rho(table, "by post").empty


def test_how_often_the_truth_is_held_by_hand():
    ends = [(0.5, 0.2, 0.6), (0.4, 0.35, 0.5), (0.2, 0.1, 0.3)]
    found = pd.DataFrame(ends, columns=["value", "low", "high"]).assign(rho=0.3, source="s")
    told = rho_coverage(found).loc[0.3]
    assert told["held"].startswith("0.67 (") and told["width"] == pytest.approx(0.25, abs=0.01)
    assert (told["mean"], told["least"], told["most"]) == (0.37, 0.2, 0.5)


def test_what_the_page_says_of_estimates():
    table = read_results(shipped_results("release"), "release")[1][""]
    for access in ("prompts only, calibrated", "open weights, calibrated"):
        told = rho_coverage(estimated_rho(table, access))
        mixed = [rho for rho in told.index if 0 < rho < 1]
        assert all(abs(told["mean"][rho] - rho) < 0.04 for rho in mixed)  # "right in the mean"
        assert told["mean"][1.0] > 0.85  # no estimate is above 1
        assert told["least"][0.5] < 0.25  # "off by more than half of the truth"
        guilty = estimated_rho(table, access).query("rho > 0")
        assert guilty.rho.between(guilty.low, guilty.high).mean() < 0.9  # "fewer than nine in ten"
