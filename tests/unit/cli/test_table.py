from cli.table import merged, some, table


def test_columns_are_as_wide_as_their_widest_cell_and_never_empty():
    assert table(("A", "LONG"), [("xyz", ""), (1, None)]) == ["A    LONG", "xyz  -", "1    -"]


def test_rows_of_several_nodes_are_one_with_those_that_have_it():
    rows = merged({"a": [("x",), ("y",)], "b": [("x",)]})
    assert rows == [("x", "all"), ("y", "a")]


def test_of_a_single_node_its_name_is_shown():
    assert merged({"a": [("x",)]}) == [("x", "a")]


def test_a_long_list_stays_readable():
    assert some([str(number) for number in range(8)]) == "0, 1, 2, 3, 4 and 3 more"
    assert some(["a", "b"]) == "a, b"
