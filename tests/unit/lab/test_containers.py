from lab.containers import last_sentence


def test_reason_of_a_program_that_could_not_be_started_is_the_launchers_last_line(tmp_path):
    log = tmp_path / "c.log"
    assert last_sentence(log) == ""
    log.write_text("x\n" * 5000 + "culvert lab: no-such-program: not found\n")
    assert last_sentence(log) == "no-such-program: not found"


def test_programs_own_last_words_are_not_taken_for_it(tmp_path):
    log = tmp_path / "c.log"
    log.write_text("culvert lab: earlier\nit ended by itself\n")
    assert last_sentence(log) == ""
