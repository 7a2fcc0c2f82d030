"""The command line, in this process where that is possible and as a program where starting, signals or imports count."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from worldloom.pipeline import cli
from worldloom.pipeline.cli import exit_code, main

PIPELINE = """\
name: small
root: {root}
streams:
  caption: {{kind: text}}
  frame: {{kind: image, size: 16}}
stages:
  data: {{run: make_shapes, samples: 5, validation: 2, held_out: 1, shard_size: 2}}
  words: {{run: train_text_tokenizer, data: data, stream: caption, vocab_size: 300}}
profiles:
  here: {{executor: inline}}
  wide: {{executor: inline, train: {{workers: 3}}}}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(PIPELINE.format(root=tmp_path / "out"))
    return path


@pytest.fixture
def call(capsys):
    """Calls the command line; gives exit code, stdout and stderr."""

    def called(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return ended.value.code, *capsys.readouterr()

    return called


def worldloom(*arguments, **options):
    command = [sys.executable, "-m", "worldloom.pipeline", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_a_pipeline_is_planned_run_shown_and_then_done(file, call, tmp_path):
    code, out, _ = call("plan", file)
    assert code == 0
    assert "data   make_shapes           will run  never run" in out
    assert "2 of 2 stages to run" in out

    code, out, err = call("run", file)
    assert (code, err) == (0, "")
    assert "data: started (never run)" in out and "words: done in" in out
    report = next(line for line in out.splitlines() if "report: " in line).partition("report: ")[2]
    assert report.startswith(str(tmp_path / "out" / "runs")) and os.path.isfile(report)

    code, out, _ = call("run", file)
    assert (code, out.splitlines()[:2]) == (0, ["data: done before", "words: done before"])
    assert "nothing to run" in call("plan", file)[1]

    for run in (file, tmp_path / "out", tmp_path / "out" / "runs" / "latest"):
        code, out, _ = call("show", run, "--output", "json")
        told = json.loads(out)
        assert code == 0 and told["complete"] is True
        assert told["stages"].keys() == {"data", "words"}
        assert all(isinstance(value, int | float) for value in told["figures"].values())
        assert call("status", run)[1].count("done") == 2
    assert call("verify", file)[0] == 0

    code, out, _ = call("plan", file, "words.vocab_size=310", "--output", "json")
    assert [(stage["state"], stage["reason"]) for stage in json.loads(out)["stages"]] == [
        ("done", ""),
        ("will run", "words.vocab_size 300 -> 310"),
    ]


def test_a_run_tells_programs_in_json_lines(file, call):
    code, out, _ = call("run", file, "--only", "data", "--output", "json")
    events = [json.loads(line)["event"] for line in out.splitlines()]
    assert code == 0
    assert (events[0], events[-1]) == ("started", "ended")
    assert "finished" in events


def test_verify_finds_a_flipped_byte(file, call, tmp_path):
    call("run", file, "--only", "data")
    shard = next((tmp_path / "out").glob("artifacts/data/*/data/train/shard-000000.tar"))
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)
    code, out, _ = call("verify", file)
    assert code == 1
    assert "shard-000000.tar" in out


def wrong(file, change):
    file.write_text(file.read_text().replace(*change))
    return ["plan", file]


WRONG = {
    "no such command": lambda file: ["paln", file],
    "no such option": lambda file: ["plan", file, "--forse", "data"],
    "no file": lambda file: ["plan"],
    "missing file": lambda file: ["plan", file.parent / "q.yaml"],
    "a folder": lambda file: ["plan", file.parent],
    "unknown setting": lambda file: wrong(file, ("samples", "sampels")),
    "wrong type": lambda file: wrong(file, ("samples: 5", "samples: five")),
    "not YAML": lambda file: wrong(file, ("{kind: text}", "{kind: text")),
    "empty": lambda file: wrong(file, (file.read_text(), "")),
    "no text": lambda file: (file.write_bytes(b"\xff\x00"), ["plan", file])[1],
    "dangling name": lambda file: wrong(file, ("data: data", "data: dta")),
    "cycle": lambda file: ["plan", file, "words.data=words"],
    "wrong override": lambda file: ["run", file, "wrods.vocab_size=300"],
    "unknown stage": lambda file: ["run", file, "--only", "wrods"],
    "missing input": lambda file: ["run", file, "--only", "words"],
    "unknown profile": lambda file: ["run", file, "--profile", "her"],
    "unknown executor": lambda file: ["run", file, "--executor", "slurm"],
    "missing pictures": lambda file: ["run", file, "data={run: import_folder, path: /nowhere/at/all}"],
    "no pictures": lambda file: ["run", file, f"data={{run: import_folder, path: {file.parent}}}"],
    "no run": lambda file: ["show", file.parent],
    "nothing there": lambda file: ["status", file.parent / "gone"],
    "no world": lambda file: ["sample", file, "--caption", "x"],
    "file in the way": lambda file: ["init", file],
    "root is a file": lambda file: ["run", file, f"root={file}"],
}


@pytest.mark.parametrize("case", WRONG)
def test_what_the_user_got_wrong_is_one_line_and_exit_code_2(case, file, call):
    code, out, err = call(*WRONG[case](file))
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")


def test_more_workers_than_a_process_can_be_are_refused_before_the_start(file, call, tmp_path):
    text = file.read_text().replace("words: {", "codes: {run: train_tokenizer, data: data, stream: frame}\n  words: {")
    file.write_text(text)
    code, _, err = call("run", file, "--profile", "wide")
    assert code == 2 and len(err.splitlines()) == 1
    assert "train.workers" in err
    assert not (tmp_path / "out" / "artifacts").exists()


def test_validate_lists_everything_that_is_wrong(file, call):
    assert call("validate", file) == (0, f"{file} is valid: 2 stages\n", "")
    code, _, err = call("validate", file, "data.sampels=1", "words.vocab_size=x")
    assert code == 2 and len(err.splitlines()) == 2
    code, out, _ = call("validate", file, "data.sampels=1", "--output", "json")
    assert code == 2
    assert json.loads(out)["problems"] == ["override data.sampels=1: data.sampels: there is no such setting; did you mean samples?"]


@pytest.mark.parametrize("template", ["shapes", "folder"])
def test_init_writes_a_file_that_is_valid(template, tmp_path, call):
    file = tmp_path / "new" / "my.yaml"
    code, out, _ = call("init", file, "--template", template)
    assert code == 0 and str(file) in out
    assert call("validate", file)[0] == 0


def test_doctor_and_schema_answer(call, tmp_path):
    code, out, _ = call("doctor", tmp_path, "--output", "json")
    assert code == 0
    assert {"what", "verdict", "detail"} == json.loads(out)[0].keys()
    assert json.loads(call("schema")[1])["title"] == "worldloom pipeline"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("bad\n value"), 2, "error: bad value\n"),
        (FileNotFoundError(2, "No such file or directory", "/x"), 2, "error: /x: No such file or directory\n"),
        (PermissionError(13, "Permission denied", "/x"), 2, "error: /x: Permission denied\n"),
        (FileNotFoundError("x is not there"), 2, "error: x is not there\n"),
        (OSError(28, "No space left on device", "/x"), 1, "error: the disk is full: /x could not be written; free some room"),
        (KeyboardInterrupt(), 3, "interrupted\n"),
    ],
)
def test_errors_that_people_can_mend_are_one_line(error, code, said, capsys):
    def command():
        raise error

    assert exit_code(command) == code
    assert capsys.readouterr().err.startswith(said)


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 / 0)


def test_quick_commands_import_nothing_heavy(file):
    program = (
        "import sys; from worldloom.pipeline.cli import exit_code, app\n"
        f"for command in (['--help'], ['plan', {str(file)!r}], ['status', {str(file)!r}], ['validate', {str(file)!r}], ['doctor']):\n"
        "    assert exit_code(lambda: app(command, standalone_mode=False)) == 0\n"
        "heavy = {'torch', 'ray', 'deepspeed', 'transformers', 'webdataset', 'sentencepiece', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_running_a_finished_pipeline_again_imports_nothing_heavy(file):
    assert worldloom("run", file).returncode == 0
    program = (
        "import sys; from worldloom.pipeline.cli import exit_code, app\n"
        f"assert exit_code(lambda: app(['run', {str(file)!r}, '--executor', 'ray'], standalone_mode=False)) == 0\n"
        "assert not {'torch', 'ray', 'deepspeed', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["data: done before", "words: done before"]


def test_a_signal_leaves_a_run_that_goes_on(file, tmp_path):
    many = "data.samples=200"
    command = [sys.executable, "-m", "worldloom.pipeline", "run", str(file), many, "--only", "data"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out").glob("artifacts/data/*/staging/commits/train/*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 3, out
    assert "interrupted; the same command goes on from here" in out
    assert "will resume" in worldloom("plan", file, many).stdout
    assert worldloom("run", file, many, "--only", "data").returncode == 0


def test_colours_appear_only_where_they_are_wanted(file):
    assert "\x1b" not in worldloom("plan", file).stdout
    coloured = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm"}
    assert "\x1b" in worldloom("plan", file, env=coloured).stdout
    assert "\x1b[3" not in worldloom("plan", file, env={**coloured, "NO_COLOR": "1"}).stdout


def test_a_reader_that_has_gone_is_no_error(file):
    program = f"{sys.executable} -m worldloom.pipeline schema | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_run_whose_reader_has_gone_runs_on(file, tmp_path):
    program = f"{sys.executable} -m worldloom.pipeline run {file} --only data | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "out").glob("artifacts/data/*/DONE.json"))


def test_without_a_command_the_commands_are_listed(call):
    code, out, err = call()
    assert code == 2
    assert "validate" in out + err and "doctor" in out + err


def test_the_terminal_gets_bars_and_a_pipe_gets_lines(monkeypatch):
    from rich.console import Console

    from worldloom.pipeline.reporter import JsonReporter, LineReporter
    from worldloom.pipeline.terminal import TerminalReporter

    assert isinstance(cli._reporter("json"), JsonReporter)
    assert isinstance(cli._reporter("text"), LineReporter)
    monkeypatch.setattr(cli, "_console", lambda: Console(force_terminal=True, _environ={"TERM": "xterm"}))
    assert isinstance(cli._reporter("text"), TerminalReporter)
    monkeypatch.setattr(cli, "_console", lambda: Console(force_terminal=True, _environ={"TERM": "dumb"}))
    assert isinstance(cli._reporter("text"), LineReporter)


def test_serving_without_its_extra_says_what_to_install(call, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("worldloom.pipeline.service.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = call("serve", "somewhere")
    assert code == 2 and "pip install 'worldloom[serve]'" in err
