"""What is kept under an Idempotency-Key, and for how long; what is done under one is done once, whoever waits for it."""

import asyncio

import pytest

from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.guard import EFFECTS
from worldloom.pipeline.service.replays import MOST, SECONDS, Answer, Replays


class Work:
    """Counts how often it is done; its answer has as many bytes as are asked for."""

    def __init__(self, size=3, status=200):
        self.size, self.status, self.done = size, status, 0

    async def __call__(self):
        self.done += 1
        await asyncio.sleep(0)
        return Answer(self.status, [], bytes(self.size))


async def once(replays, key, work, digest=b"d", tenant="ada"):
    """The answer, and whether it was made now."""
    made, first = replays.once(tenant, key, digest, work)
    answer = await made
    await asyncio.sleep(0)  # what comes of its end
    return answer, first


def keys_and_bytes(replays, tenant):
    """What is kept of a tenant."""
    kept = replays._kept[tenant]
    return list(kept.entries), kept.bytes


def test_an_answer_is_made_once_for_each_tenant_and_another_request_under_its_key_is_a_conflict():
    async def run():
        replays, work = Replays(), Work()
        assert [await once(replays, "k", work) for _ in range(3)] == [(Answer(200, [], bytes(3)), first) for first in (True, False, False)]
        await once(replays, "k", work, tenant="bob")
        assert work.done == 2
        with pytest.raises(ServiceError, match="idempotency_conflict"):
            replays.once("ada", "k", b"other", work)

    asyncio.run(run())


def test_whoever_leaves_does_not_stop_what_the_others_wait_for():
    async def run():
        replays, work = Replays(), Work()
        made, _ = replays.once("ada", "k", b"d", work)
        leaving = asyncio.create_task(asyncio.wait({made}))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await once(replays, "k", work) == (Answer(200, [], bytes(3)), False) and work.done == 1

    asyncio.run(run())


@pytest.mark.parametrize("status", [400, 404, 413, 415, 422, 429, 503])
def test_a_refusal_is_not_kept_since_nothing_was_done(status):
    async def run():
        replays, work = Replays(), Work(status=status)
        assert [first for _, first in [await once(replays, "k", work) for _ in range(2)]] == [True, True] and work.done == 2

    asyncio.run(run())


def test_what_has_expired_goes_though_nobody_asks_for_it_again():
    async def run():
        now = [0.0]
        replays = Replays(now=lambda: now[0])
        for number in range(5):
            await once(replays, f"k{number}", Work())
            await once(replays, f"k{number}", Work(), tenant="bob")
        now[0] = SECONDS + 1
        await once(replays, "other", Work())
        assert keys_and_bytes(replays, "bob") == ([], 0)
        assert keys_and_bytes(replays, "ada") == (["other"], 3)

    asyncio.run(run())


def test_keys_and_bytes_are_bounded_and_what_lost_its_answer_is_not_done_again():
    async def run():
        replays, works = Replays(most_answer=40, most_bytes=100), [Work(40) for _ in range(5)]
        for number, work in enumerate(works):
            await once(replays, f"k{number}", work)
        assert replays._kept["ada"].bytes == 80
        for number, work in enumerate(works[:3]):
            with pytest.raises(ServiceError, match="answer_gone") as refused:
                replays.once("ada", f"k{number}", b"d", work)
            assert refused.value.status == 410 and work.done == 1
        assert [(await once(replays, f"k{number}", works[number]))[1] for number in (3, 4)] == [False, False]
        large = Work(41)
        assert (await once(replays, "large", large))[0].body == bytes(41), "whoever asked first has it"
        with pytest.raises(ServiceError, match="answers of up to 40 bytes are kept"):
            replays.once("ada", "large", b"d", large)
        for number in range(MOST + 10):
            await once(replays, f"more{number}", Work())
        assert len(replays._kept["ada"].entries) <= MOST + 1

    asyncio.run(run())


def test_a_tenants_keys_and_answers_make_room_for_its_own_alone():
    async def run():
        replays, work = Replays(most_bytes=100), Work(40)
        await once(replays, "k", work, tenant="bob")
        for number in range(MOST + 10):
            await once(replays, f"k{number}", Work(40))
        assert await once(replays, "k", work, tenant="bob") == (Answer(200, [], bytes(40)), False) and work.done == 1
        again = Work(40)
        assert (await once(replays, "k0", again))[1], "its own oldest key made room"

    asyncio.run(run())


def test_ten_keys_a_second_are_kept_for_as_long_as_a_key_is():
    async def run():
        now = [0.0]
        replays, works = Replays(now=lambda: now[0]), [Work() for _ in range(round(10 * SECONDS))]
        for number, work in enumerate(works):
            now[0] = number / 10
            await once(replays, f"k{number}", work)
        for number, work in enumerate(works):
            assert not (await once(replays, f"k{number}", work))[1] and work.done == 1

    asyncio.run(run())


def test_what_is_still_done_is_not_forgotten_and_what_takes_too_long_is_not_done_again(monkeypatch):
    monkeypatch.setattr("worldloom.pipeline.service.replays.MOST", 3)
    monkeypatch.setattr("worldloom.pipeline.service.replays.SECONDS", 0.05)

    async def endless():
        await asyncio.sleep(60)

    async def run():
        replays = Replays()
        made, _ = replays.once("ada", "long", b"d", endless)
        for number in range(9):
            await once(replays, f"k{number}", Work())
        assert replays.once("ada", "long", b"d", endless) == (made, False)
        with pytest.raises(TimeoutError):
            await made
        with pytest.raises(ServiceError, match="answer_gone"):
            replays.once("ada", "long", b"d", endless)

    asyncio.run(run())


def test_every_route_says_whether_it_may_answer_with_a_conflict_or_that_an_answer_is_gone(tiny):
    declared = {
        path: {status for status in ("409", "410") if status in methods["post"]["responses"]}
        for path, methods in tiny.app.openapi()["paths"].items()
        if "post" in methods
    }
    conflict = {"/v1/batches": {"409"}}  # a batch's key is its folder, and its answer never gone
    assert declared == {path: {"409", "410"} if EFFECTS.fullmatch(path) else conflict.get(path, set()) for path in declared}
    files = [methods["get"] for path, methods in tiny.app.openapi()["paths"].items() if path.startswith("/v1/batches/{id}/files")]
    assert len(files) == 2 and all("409" in about["responses"] for about in files), "there is no result yet"


def test_every_route_that_is_asked_by_post_is_known_to_have_an_effect_or_none(tiny):
    posts = [path for path, methods in tiny.app.openapi()["paths"].items() if "post" in methods]
    assert {path for path in posts if EFFECTS.fullmatch(path)} == {
        "/v1/rollouts",
        "/v1/rollouts/{id}/act",
        "/v1/batches/{id}/cancel",
        "/v1/batches/{id}/resume",
    }
    others = {path for path in posts if not EFFECTS.fullmatch(path)}
    assert others == {f"/v1/{name}" for name in ("tokenize", "detokenize", "generate", "embed", "search", "prepare", "batches")}
