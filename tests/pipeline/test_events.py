import json
import threading
from datetime import datetime

from worldloom.pipeline.events import Events, read_events


def test_events_read_back_in_order_with_their_facts(tmp_path):
    events = Events(tmp_path / "events.jsonl", "run-1", "shapes")
    events.write("START", "data", outputs={"data": "f00d"}, reason="never run")
    events.write("FAIL", "data", inputs={"raw": "beef"}, message="größer")
    first, second = read_events(tmp_path / "events.jsonl")
    assert first["job"] == {"namespace": "shapes", "name": "data"}
    assert first["outputs"] == [{"name": "data", "fingerprint": "f00d"}]
    assert first["facts"] == {"reason": "never run"}
    assert (second["eventType"], second["run"], second["facts"]) == ("FAIL", {"runId": "run-1"}, {"message": "größer"})
    assert datetime.fromisoformat(first["eventTime"]).utcoffset().total_seconds() == 0


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    events = Events(tmp_path / "events.jsonl", "run-1", "shapes")
    events.write("START", "data")
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"eventType": "COMP')
    assert [event["eventType"] for event in read_events(tmp_path / "events.jsonl")] == ["START"]


def test_no_file_is_no_events(tmp_path):
    assert list(read_events(tmp_path / "events.jsonl")) == []


def test_threads_write_whole_lines(tmp_path):
    events = Events(tmp_path / "events.jsonl", "run-1", "shapes")
    threads = [threading.Thread(target=lambda: [events.write("OTHER", "x" * 500) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert len(lines) == 80
    assert all(json.loads(line)["job"]["name"] == "x" * 500 for line in lines)
