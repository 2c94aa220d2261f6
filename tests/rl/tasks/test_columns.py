import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.tasks.columns import describe_columns, reach

PARTS = st.text("ab.", min_size=1, max_size=3)


def test_a_dot_reaches_into_structs_and_lists():
    row = {"reward_model": {"ground_truth": "42"}, "a": {"b": [7, {"c": 8}]}}
    assert reach(row, "reward_model.ground_truth") == "42"
    assert reach(row, "a.b.0") == 7
    assert reach(row, "a.b.1.c") == 8
    assert reach(row, "a.b.2") is None
    assert reach(row, "gone.b") is None
    assert reach({"a": None}, "a.b") is None


def test_a_column_whose_own_name_has_a_dot_comes_first():
    row = {"a": {"b": 1, "c": 3}, "a.b": 2, "a.b.c": {"d": 4}}
    assert reach(row, "a.b") == 2
    assert reach(row, "a.c") == 3
    assert reach(row, "a.b.c.d") == 4


@given(row=st.dictionaries(PARTS, st.integers(), min_size=1), data=st.data())
def test_a_column_is_always_reached_by_its_own_name(row, data):
    name = data.draw(st.sampled_from(sorted(row)))
    assert reach(row, name) == row[name]
    if "" not in name.split("."):
        assert reach({"outer": row}, f"outer.{name}") == row[name]


@pytest.mark.parametrize(
    ("name", "reason"), [("a.b", "not a position"), ("c.b", "reaches into a int")]
)
def test_what_has_no_fields_is_named(name, reason):
    with pytest.raises(LookupError, match=reason):
        reach({"a": [1], "c": 1}, name)


def test_columns_are_described_with_the_fields_of_structs():
    assert describe_columns([{"a": {"b": 1}}, {"c": 1}]) == "a, a.b, c"
    assert describe_columns([{f"c{i}": i for i in range(33)}]).endswith("c29 and 3 more")
