"""What both clients can ask beside tokens, against the application: sessions, and the end of a job."""

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from worldloom.pipeline.client import AsyncClient, Client, ServiceFailure
from worldloom.pipeline.service.jobs import Jobs
from worldloom.pipeline.service.sources import Sources

BLUE = np.full((16, 16, 3), (0, 0, 255), np.uint8)


def picture():
    written = io.BytesIO()
    Image.fromarray(BLUE).save(written, "PNG")
    return written.getvalue()


class Awaited:
    """An AsyncClient of the application, asked as a Client is."""

    def __init__(self, service):
        self.service = service
        self.client = AsyncClient("http://localhost", transport=httpx.ASGITransport(service.app))

    def __getattr__(self, name):
        return lambda *given, **named: self.service.run(getattr(self.client, name)(*given, **named))


@pytest.fixture(params=[False, True], ids=["waiting", "awaited"])
def client_of(request, listening):
    """Calls what is given with a client of a service."""

    def call(service, work):
        if request.param:
            client = Awaited(service)
            work(client)
            client.close()
        else:
            with listening(service) as address, Client(address) as client:
                work(client)

    return call


def test_a_session_is_opened_goes_on_and_is_closed(client_of, clocked):
    def work(client):
        opened = client.open_rollout({"clip": picture()}, {"words": "a"}, seed=4)
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(opened["first"]["values"]["clip"]["content"]))))
        assert (shown == BLUE).all() and opened["first"]["step"] == 0
        steps = client.act(opened["id"], "left") + client.act(opened["id"], 2, steps=2) + client.act(opened["id"])
        assert [step["step"] for step in steps] == [1, 2, 3, 4]
        left = opened["actions"]["names"].index("left")
        assert [step["numbers"]["push"] for step in steps[:3]] == [[left], [2], [2]]
        client.close_rollout(opened["id"])
        with pytest.raises(ServiceFailure, match="there is no such session"):
            client.act(opened["id"], 0)

    client_of(clocked, work)


def test_a_job_is_cancelled(client_of, serve, tiny_root, tmp_path):
    jobs = Jobs(tmp_path, Sources({"run": tiny_root / "artifacts"}), 3)
    jobs.start = lambda: None  # they are made, and not worked on

    def work(client):
        name = client.batch({"words": "words"}, "run/data/0123456789abcdef")["id"]
        assert client.cancel(name)["state"] == client.wait_for(name)["state"] == "cancelled"

    with serve([str(tiny_root)], jobs=jobs) as service:
        client_of(service, work)
