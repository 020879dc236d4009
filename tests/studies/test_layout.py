"""What the tables show: bad entries are refused, particles have one name."""

from __future__ import annotations

import pytest

from calosim.studies.layout import Table
from calosim.studies.plan import load_plan


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"metric": []}, "unknown entries metric of table"),
        ({"reference": "x"}, "names x"),
        ({"metrics": ["x"]}, "unknown metric 'x'"),
        ({"ensemble": {"default": "a"}}, "expected table.ensemble with default, members"),
        ({"ensemble": {"default": "a", "members": ["y"]}}, "names y"),
    ],
)
def test_a_bad_table_is_refused(make_plan, table, message):
    with pytest.raises(ValueError, match=message):
        Table.of(load_plan(make_plan(trainings={"a": {}}, table=table)))


def test_columns_have_one_name_each(make_plan):
    table = Table.of(load_plan(make_plan(table={"particles": ["all", "sigma_plus", 3122]})))
    assert table.columns == {"all": "all", "sigma+": "Σ⁺ sigma+", "lambda": "Λ lambda"}
