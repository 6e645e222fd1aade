import os

from ztunnel.telemetry.line_writer import LineWriter


def test_lines_arrive_in_order_before_close_returns() -> None:
    reader, writer = os.pipe()
    log = LineWriter(writer)
    for number in range(100):
        log.write(f"line {number}\n")
    log.close(5)
    os.close(writer)
    with os.fdopen(reader) as out:
        assert out.read() == "".join(f"line {number}\n" for number in range(100))
    assert log.lost == 0


def test_a_reader_that_stalls_costs_lines_and_not_the_caller() -> None:
    reader, writer = os.pipe()
    log = LineWriter(writer, most_waiting_bytes=1 << 20)
    line = "x" * 999 + "\n"
    for _ in range(5000):
        log.write(line)  # five times the bound, and nobody reads
    assert 3900 <= log.lost <= 4000
    log.close(0.05)
    assert log.write("after the end\n") == 14
    os.close(reader)
    log.close(5)
    assert 4900 <= log.lost <= 5001, "what waited for the reader is lost with it; the pipe itself holds 64 KiB"
    os.close(writer)


def test_a_full_disk_is_counted() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    log = LineWriter(full)
    log.write("one\ntwo\n")
    log.close(5)
    assert log.lost == 2
    os.close(full)
