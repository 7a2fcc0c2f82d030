"""Calls over Unix sockets: every answer reaches whoever asked, and a worker may come, end or die at any time."""

import asyncio
import os
import socket
import threading

import numpy as np
import pytest

from worldloom.pipeline.service import wire
from worldloom.pipeline.service.wire import Failed, Lost, Station, Wires, packed, unpacked

PATIENCE = 10.0


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(wire, "LOOK", 0.01)


def run(folder, work, lanes=2):
    """`work(wires)`, with wires that look for workers."""

    async def whole():
        wires = Wires(folder, lanes)
        await wires.look()
        try:
            async with asyncio.timeout(PATIENCE):
                return await work(wires)
        finally:
            await wires.close()

    return asyncio.run(whole())


async def free(wires):
    """A connection, once there is one."""
    while (found := wires.take()) is None:
        await asyncio.sleep(0.005)
    return found


def test_what_is_packed_comes_out_in_lists():
    arrays = np.arange(6, dtype="<u2").reshape(2, 3), np.zeros((0, 4), np.uint8), np.array(2.5)
    value = (None, "\N{SNOWMAN}", 7, b"", [arrays[0][:, ::-1], (b"\x00\xff", arrays[1])], arrays[2], True)
    framed = packed(value)
    head, rest = wire._LENGTHS.unpack(framed[:16])
    assert len(framed) == 16 + head + rest
    found = unpacked(framed[16 : 16 + head], bytearray(framed[16 + head :]))
    assert found[:4] == [None, "\N{SNOWMAN}", 7, b""] and found[6] is True and found[4][1][0] == b"\x00\xff"
    for got, expected in ((found[4][0], value[4][0]), (found[4][1][1], arrays[1]), (found[5], arrays[2])):
        assert got.dtype == expected.dtype and got.shape == expected.shape and np.array_equal(got, expected) and got.flags.writeable


def test_every_call_gets_its_own_answer_whatever_its_size(tmp_path):
    async def work(wires):
        async def ask(number):
            return await wires.call(await free(wires), (number, b"x" * (number * 99_999)))

        return await asyncio.gather(*map(ask, range(9)))

    station = Station(tmp_path, lambda asked: (asked[0], len(asked[1])))
    assert run(tmp_path, work) == [[number, number * 99_999] for number in range(9)]
    station.close(PATIENCE)


def test_as_many_calls_are_under_way_as_there_are_lanes_and_no_more(tmp_path):
    together = threading.Barrier(2)

    async def work(wires):
        first, second = await free(wires), await free(wires)
        assert wires.take() is None
        return await asyncio.gather(wires.call(first, 1), wires.call(second, 2))

    station = Station(tmp_path, lambda asked: (asked, together.wait(PATIENCE) is not None))
    assert run(tmp_path, work) == [[1, True], [2, True]]
    station.close(PATIENCE)


def test_calls_side_by_side_go_to_workers_that_have_the_fewest(tmp_path):
    together = threading.Barrier(2)
    stations = []
    for name in ("1", "2"):
        stations.append(Station(tmp_path, lambda asked, name=name: [name, together.wait(PATIENCE) is not None][0]))
        (tmp_path / f"{os.getpid()}.sock").rename(tmp_path / f"{name}.sock")
        stations[-1]._path = tmp_path / f"{name}.sock"

    async def work(wires):
        return await asyncio.gather(*[wires.call(await free(wires), None) for _ in range(2)])

    assert sorted(run(tmp_path, work)) == ["1", "2"]
    for station in stations:
        station.close(PATIENCE)


def test_looking_goes_on_where_it_failed_and_no_living_workers_name_is_removed(tmp_path, monkeypatch):
    station, failures = Station(tmp_path, lambda asked: asked), [OSError(24, "Too many open files")] * 3
    connect = wire._Wire.to

    async def to(path):
        if failures:
            raise failures.pop()
        return await connect(path)

    async def work(wires):
        return await wires.call(await free(wires), 7)

    monkeypatch.setattr(wire._Wire, "to", to)
    assert run(tmp_path, work) == 7 and not failures
    station.close(PATIENCE)


def test_a_worker_that_ends_answers_what_it_has_and_another_that_came_meanwhile_takes_over(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    def slowly(asked):
        begun.set()
        assert go_on.wait(PATIENCE)
        return asked, "old"

    old = Station(tmp_path, slowly)
    (tmp_path / f"{os.getpid()}.sock").rename(tmp_path / "1.sock")  # two stations of one process
    old._path = tmp_path / "1.sock"

    async def work(wires):
        under_way = asyncio.create_task(wires.call(await free(wires), 1))
        await asyncio.to_thread(begun.wait, PATIENCE)
        new = Station(tmp_path, lambda asked: (asked, "new"))
        ending = threading.Thread(target=old.close, args=(PATIENCE,))
        ending.start()
        while (tmp_path / "1.sock").exists() or wires.free < 2:
            await asyncio.sleep(0.005)
        answers = [await wires.call(await free(wires), number) for number in (2, 3, 4)]
        go_on.set()
        answers.append(await under_way)
        await asyncio.to_thread(ending.join, PATIENCE)
        new.close(PATIENCE)
        return answers

    assert run(tmp_path, work) == [[2, "new"], [3, "new"], [4, "new"], [1, "old"]]


def test_a_worker_that_dies_with_a_call_loses_it_and_says_so(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "1.sock"))
        listening.listen()

        def die():
            connection, _ = listening.accept()
            connection.recv(4)
            connection.close()

        dying = threading.Thread(target=die)
        dying.start()

        async def work(wires):
            with pytest.raises(Lost):
                await wires.call(await free(wires), "anything")

        run(tmp_path, work, lanes=1)
        dying.join(PATIENCE)


def test_a_name_that_a_killed_worker_left_is_removed(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "1.sock"))

    async def work(wires):
        return wires.take()

    assert run(tmp_path, work) is None and not list(tmp_path.iterdir())


def test_an_answer_that_nobody_waited_for_is_no_others_and_its_lane_comes_back(tmp_path):
    go_on = threading.Event()

    def answer(asked):
        assert asked != "slow" or go_on.wait(PATIENCE)
        return asked

    station = Station(tmp_path, answer)

    async def work(wires):
        slow = asyncio.create_task(wires.call(await free(wires), "slow"))
        await asyncio.sleep(0.05)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        go_on.set()
        answers = [await wires.call(await free(wires), number) for number in range(4)]
        while wires.free < 2:
            await asyncio.sleep(0.005)
        return answers

    assert run(tmp_path, work) == [0, 1, 2, 3]
    station.close(PATIENCE)


def test_a_call_that_the_worker_fails_at_says_so_and_the_next_is_answered(tmp_path):
    station = Station(tmp_path, lambda asked: 1 / asked)

    async def work(wires):
        with pytest.raises(Failed, match="ZeroDivisionError"):
            await wires.call(await free(wires), 0)
        return await wires.call(await free(wires), 2)

    assert run(tmp_path, work, lanes=1) == 0.5
    station.close(PATIENCE)
