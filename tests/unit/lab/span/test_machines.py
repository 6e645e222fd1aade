import asyncio

import pytest

from lab.span.machines import InvalidReport, Machines

MESH = {"asked": True, "state": "captured", "reason": ""}
ROW = {"status": {"phase": "Running", "conditions": [], "containerStatuses": []}, "why": "", "mesh": MESH}


def report(seen, *uids):
    return {"seen": seen, "pods": dict.fromkeys(uids, ROW), "components": {}}


@pytest.fixture
def machine():
    machine = Machines().of("node-b")
    machine.join("one", "192.0.2.2")
    return machine


async def ends(machine, uid, *steps):
    """Whether confirm_gone has ended after each step."""
    task = asyncio.get_running_loop().create_task(machine.confirm_gone(uid), name="gone")
    seen = []
    for step in steps:
        await asyncio.sleep(0)
        step()
        for _ in range(3):
            await asyncio.sleep(0)
        seen.append(task.done())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return seen


def test_pod_is_gone_when_a_report_on_a_later_update_lacks_it(machine):
    before = machine.number_update()
    steps = (
        lambda: machine.take_report(report(before)),  # sent before it knew of the pod: it may be starting it
        machine.number_update,
        lambda: machine.take_report(report(before + 1, "u")),
        lambda: machine.take_report(report(before + 1)),
    )
    assert asyncio.run(ends(machine, "u", *steps)) == [False, False, False, True]
    assert machine.due.is_set()


def test_machine_that_is_away_confirms_nothing_until_it_is_back(machine):
    number = machine.number_update() + 1
    steps = (
        machine.leave,
        lambda: machine.take_report(report(number)),
        lambda: machine.join("two", "192.0.2.2"),
    )
    assert asyncio.run(ends(machine, "u", *steps))[:2] == [False, False]


def test_end_of_the_lab_waits_for_nobody(machine):
    assert asyncio.run(ends(machine, "u", machine.leave, machine.close)) == [False, True]


def test_who_joins_anew_has_said_nothing_yet(machine):
    machine.take_report(report(1, "u"))
    machine.leave()
    assert "u" in machine.rows
    machine.join("one", "192.0.2.3")
    assert machine.rows == {}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {**report(1), "seen": "1"},
        {**report(1), "pods": []},
        {**report(1), "pods": {"u": None}},
        {**report(1), "pods": {"u": {**ROW, "why": None}}},
        {**report(1), "pods": {"u": {**ROW, "mesh": {}}}},
        {**report(1), "pods": {"u": {**ROW, "status": {"phase": "Running"}}}},
        {**report(1), "pods": {"u": {**ROW, "status": {**ROW["status"], "conditions": [{}]}}}},
        {**report(1), "pods": {"u": {**ROW, "status": {**ROW["status"], "containerStatuses": [{}]}}}},
    ],
)
def test_malformed_report_changes_nothing(machine, body):
    machine.take_report(report(1, "u"))
    with pytest.raises(InvalidReport):
        machine.take_report(body)
    assert machine.rows == {"u": ROW}


def test_every_news_is_heard_with_its_node():
    machines, heard = Machines(), []
    machines.changed = heard.append
    machines.of("node-b").join("one", "192.0.2.2")
    machines.of("node-c").leave()
    assert heard == ["node-b", "node-c"]
