"""Every route that makes work takes it off the quota, in the unit that docs/service.md says."""

import json

import pytest

from worldloom.pipeline.service.jobs import Jobs
from worldloom.pipeline.service.sources import Sources
from worldloom.pipeline.service.tenants import Tenants, add_token

NOBODY = "0" * 32  # a session that there is not; what is asked of it costs all the same
STEP = 9  # codes: 4 of clip, 1 of push, 4 of sound
SHARD = bytes(1_024)
ROUTES = {  # what is asked, and what it costs
    "tokenize": ("/v1/tokenize", {"json": {"tokenizer": "words", "input": "a red circle"}}, 12),
    "prepare": ("/v1/prepare", {"json": {"tokenizer": "words", "input": "a red circle"}}, 12),
    "detokenize a text": ("/v1/detokenize", {"json": {"tokenizer": "words", "codes": [[1, 2, 3], [4, 5]]}}, 5),
    "detokenize a clip": ("/v1/detokenize", {"json": {"tokenizer": "clip", "codes": [[0] * 20]}}, 5 * 16 * 16),
    "generate what is wanted": ("/v1/generate", {"json": {"want": ["clip", "push"]}}, 20 + 4),
    "generate what is not given": ("/v1/generate", {"json": {"given": {"words": "a", "sound": "AAAA"}}}, 20 + 4),
    "open a session": ("/v1/rollouts", {"json": {"given": 2}}, 2 * STEP),
    "act": (f"/v1/rollouts/{NOBODY}/act", {"json": {"action": 1, "steps": 3}}, 3 * STEP),
    "upload a batch": (
        "/v1/batches",
        {
            "data": {"job": json.dumps({"tokenizers": {"words": "words"}})},
            "files": [("shard", ("a.tar", SHARD)), ("shard", ("b.tar", SHARD))],
        },
        2 * len(SHARD),
    ),
}


def token_of(quota):
    token, line = add_token("ada", None, quota)
    return {"authorization": f"Bearer {token}"}, (*line.split()[:2], float(quota))


@pytest.fixture(scope="module")
def service(serve, clocked_root, tmp_path_factory):
    jobs = Jobs(tmp_path_factory.mktemp("jobs"), Sources({}), 3)
    jobs.start = lambda: None  # they are made, and not worked on
    with serve([str(clocked_root)], jobs=jobs) as service:
        yield service


@pytest.mark.parametrize("route", ROUTES)
def test_a_route_takes_what_it_costs_off_the_quota_and_says_when_to_come_again(service, route, monkeypatch):
    path, asked, cost = ROUTES[route]
    (enough, its), (short, other) = token_of(cost), token_of(cost - 1)
    monkeypatch.setattr(service.app.state.gate, "tenants", Tenants([its, other]))
    first, second, never = (service("POST", path, headers=headers, **asked) for headers in (enough, enough, short))
    assert first.status_code not in (413, 429), first.text
    assert (second.status_code, second.json()["error"]["code"]) == (429, "quota_exceeded")
    assert 0 < int(second.headers["retry-after"]) <= 60
    assert (never.status_code, never.json()["error"]["code"]) == (413, "too_costly")


def test_a_batch_that_is_sent_again_under_its_key_is_not_paid_for_again(service, monkeypatch):
    path, asked, cost = ROUTES["upload a batch"]
    headers, its = token_of(cost)
    monkeypatch.setattr(service.app.state.gate, "tenants", Tenants([its]))
    first, second = (service("POST", path, headers={**headers, "idempotency-key": "once"}, **asked) for _ in range(2))
    assert first.status_code == second.status_code == 202 and first.json() == second.json()
    other = service("POST", path, headers={**headers, "idempotency-key": "another"}, **asked)
    assert (other.status_code, other.json()["error"]["code"]) == (429, "quota_exceeded")
