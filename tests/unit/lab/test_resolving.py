from lab.resolving import has_address, marker, query


def test_question_is_in_the_form_of_rfc_1035() -> None:
    assert query("a.bc") == bytes.fromhex("0100 0001 0000 0000 0000 01 61 02 6263 00 0001 0001")


def test_only_an_answer_with_a_record_says_that_a_name_is_known() -> None:
    head = bytes.fromhex("abcd 8580 0001")
    assert has_address(head + bytes.fromhex("0001 0000 0000"))
    assert not has_address(head + bytes.fromhex("0000 0000 0000"))
    assert not has_address(bytes.fromhex("abcd 8583 0001 0000 0000 0000"))  # no such name
    assert not has_address(b"")


def test_generations_have_names_of_their_own() -> None:
    assert marker(1) != marker(11)
    assert all(len(label) < 64 for label in marker(10**9).split("."))
