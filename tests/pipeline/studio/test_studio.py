"""The studio in a browser: every page is opened, used and photographed, with a silent console and no serious fault of accessibility."""

import asyncio
import base64
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
import uvicorn

from worldloom.pipeline.service.app import PAGE, create_app
from worldloom.pipeline.service.calls import NoCalls
from worldloom.pipeline.service.engine import Engine, local_engine
from worldloom.pipeline.service.limits import Limits
from worldloom.pipeline.service.served import Served
from worldloom.pipeline.service.tenants import Tenants
from worldloom.stages import train_tokenizer
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.card import Card, Curves, Gallery, Item, Table, write_card, write_picture
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.stages.worker import Worker
from worldloom.tokenizers.image_settings import VqVae

ROOT = Path(__file__).parents[3]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
TSC = ROOT / "node_modules" / ".bin" / "tsc"
PICTURES = ROOT / "build" / "studio"  # where the photographs lie
MOST_BYTES = 200_000
TOKEN = "wl_a-token-for-tests"
WAIT = 60_000  # ms; only a page that does not work waits so long

browser_needed = pytest.mark.skipif(BROWSER is None, reason="no browser is installed: apt-get install chromium")


# What needs no browser


def test_all_files_together_stay_below_200_kb():
    assert sum(path.stat().st_size for path in PAGE.iterdir()) < MOST_BYTES


def test_nothing_is_loaded_from_elsewhere():
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|url\(", text), path.name


def test_every_file_is_used_and_every_file_used_is_there():
    named = {
        name
        for path in PAGE.iterdir()
        for name in re.findall(r"[\"'](?:\./)?([a-z-]+\.(?:js|css|svg))[\"']", path.read_text(encoding="utf-8"))
    }
    assert named == {path.name for path in PAGE.iterdir()} - {"index.html"}


def test_every_link_of_the_page_leads_somewhere():
    app = create_app(Engine(NoCalls(), Served((), None, (), ()), Limits()))
    links = re.findall(r'(?:href|src)="/?([^"#][^"]*)"', (PAGE / "index.html").read_text(encoding="utf-8"))

    async def statuses():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return {link: (await client.get(f"/{link}")).status_code for link in links}

    assert set(asyncio.run(statuses()).values()) == {200} and "v1/info" in links


@pytest.mark.skipif(not TSC.is_file(), reason="TypeScript is not installed: npm install, at the root of the repository")
def test_the_types_that_comments_give_are_right():
    checked = subprocess.run([TSC, "-p", ROOT / "jsconfig.json"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.skipif(not AXE.is_file(), reason="faults of accessibility are not looked for; npm install, at the root, installs axe-core")
def test_faults_of_accessibility_are_looked_for():
    assert "axe" in AXE.read_text(encoding="utf-8")[:200]


# In a browser


@pytest.fixture(scope="module")
def served(studio_root, live, learnt):
    """Where a service of all kinds of tokenizers, an untrained world, a run at work and one with checkpoints listens."""
    dress(studio_root)
    with Listening(create_app(local_engine([str(root) for root in (studio_root, live.parents[2], learnt.parents[2])]))) as address:
        yield address


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """The artifact of a stage at work: this process holds its lock."""
    root = tmp_path_factory.mktemp("live")
    folder = root / "artifacts" / "learn" / "00ff"
    for each in (folder / "logs", folder / "staging" / "progress", root / "runs" / "one"):
        each.mkdir(parents=True)
    (folder / "stage.json").write_text(json.dumps({"kind": "train_things", "produces": "world_model", "inputs": {}, "settings": {}}))
    (root / "runs" / "one" / "artifacts.json").write_text(json.dumps({"learn": "artifacts/learn/00ff"}))
    (root / "runs" / "latest").symlink_to("one")
    with open(folder / "staging" / "run.lock", "w") as lock:
        lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture(scope="module")
def learnt(studio_root, tmp_path_factory):
    """The artifact of a tokenizer of pictures that has learnt for two steps, with a checkpoint at each."""
    root = tmp_path_factory.mktemp("learnt")
    parts = VqVae(codebook_size=17, downsample=8, width=4, blocks=1)
    settings = TrainTokenizer(
        run="train_tokenizer", data="data", stream="view", tokenizer=parts, batch_size=4, steps=2, warmup=0, log_every=1, save_every=1
    )
    (root / "artifacts").mkdir()
    (root / "artifacts" / "data").symlink_to(studio_root / "artifacts" / "data")  # an artifact finds its inputs beside it
    data = Artifact.open(root / "artifacts" / "data" / "0123456789abcdef")
    made = execute(train_tokenizer.STAGE, "two_steps", settings, {"data": data}, root / "artifacts" / "two_steps" / "f0", Worker())
    (root / "runs" / "one").mkdir(parents=True)
    (root / "runs" / "one" / "artifacts.json").write_text(json.dumps({"two_steps": "artifacts/two_steps/f0"}))
    (root / "runs" / "latest").symlink_to("one")
    return made.folder


def goes_on(folder, step):
    """The stage has done so many of its 40 steps."""
    (folder / "staging" / "progress" / "0.json").write_text(
        json.dumps({"done": step, "total": 40, "unit": "steps", "notes": {"loss": 1 / step}})
    )
    lines = "".join(json.dumps({"step": one, "loss/frame": 1 / one}) + "\n" for one in range(1, step + 1))
    (folder / "logs" / "metrics.jsonl").write_text(lines)


@pytest.fixture
def saved(live):
    """Writes a checkpoint of the stage at work, as far as it can be seen from outside."""

    def save(step):
        folder = live / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "MANIFEST.json").write_text("{}")

    yield save
    shutil.rmtree(live / "checkpoints")


class Listening:
    """uvicorn in a thread, on a free port of loopback."""

    def __init__(self, app):
        self.server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=2))
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.02)
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()


def dress(root):
    """Gives the run what a real one leaves: events, a log of losses, a card with verdicts."""
    world = root / "artifacts" / "world" / "0123456789abcdef"
    (world / "logs").mkdir(exist_ok=True)
    lines = [{"step": step, "loss/words": 5 / step, "loss/view": 4 / step**0.5} for step in range(1, 40)]
    (world / "logs" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    import numpy as np

    picture = write_picture(world, "made", np.full((16, 16, 3), (200, 60, 30), np.uint8))
    items = tuple(Item(file=picture, caption=f"a red thing, {word}", verdict=word, detail="seen: blue") for word in ("right", "wrong"))
    blocks = (
        Gallery(title="words → view: combinations that training never saw", items=items),
        Curves(title="Losses", series=("loss/words", "loss/view"), unit="nats"),
        Table(title="Counts", columns=("split", "samples"), rows=(("train", 12),)),
    )
    write_card(world, Card(title="World model", blocks=blocks))
    events = [
        {"eventType": kind, "eventTime": f"2026-01-01T00:00:0{second}+00:00", "job": {"namespace": "tiny", "name": "world"}, "facts": {}}
        for second, kind in enumerate(("START", "COMPLETE"))
    ]
    (root / "runs" / "first" / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Containers have no user namespaces for Chromium's sandbox; it opens nothing but this service.
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--mute-audio"])
        yield browser
        browser.close()


@pytest.fixture
def said():
    """Errors and warnings on the page's console."""
    return []


@pytest.fixture
def page(chromium, served, said, request):
    """A page whose console stayed silent, that asked this service alone, and was photographed."""
    width, scheme = getattr(request, "param", (1280, "light"))
    context = chromium.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme, reduced_motion="reduce")
    context.set_default_timeout(WAIT)
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    asked = []
    page.on("request", lambda asking: asked.append(asking.url))
    yield page
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")  # else the bars stand in the picture's middle
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_")).strip("-")
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith((served, "data:", "blob:"))] == []


def look(page, served, view):
    page.goto(f"{served}/#/{view}")
    page.wait_for_selector(".view h1")


def picture():
    from PIL import Image

    written = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(written, "PNG")
    return written.getvalue()


DROP = """([selector, name, type, content]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(content), letter => letter.charCodeAt(0))], name, { type }));
  document.querySelector(selector).dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


@browser_needed
def test_a_picture_is_dropped_and_its_codes_are_shown(page, served):
    look(page, served, "tokenizers/view")
    page.wait_for_selector("code-grid")
    before = page.eval_on_selector("code-grid", "grid => grid.codes.join()")
    page.evaluate(DROP, [".drop", "gradient.png", "image/png", base64.b64encode(picture()).decode()])
    page.wait_for_function("before => document.querySelector('code-grid')?.codes.join() !== before", arg=before)
    codes = page.eval_on_selector("code-grid", "grid => [grid.rows, grid.columns, grid.codes.length]")
    assert codes == [3, 3, 9]

    page.hover(".screen code-grid", position={"x": 10, "y": 10})
    code = page.eval_on_selector("code-grid", "grid => grid.codes[0]")
    assert page.inner_text(".told >> nth=0").startswith(f"Code {code} · row 1, column 1")
    page.click(".screen code-grid", position={"x": 10, "y": 10})
    assert page.eval_on_selector("code-grid", "grid => grid.picked") == code
    page.wait_for_selector(f".alone :text('{code}')")

    slider = page.get_by_role("slider", name="Original at the left")
    slider.focus()
    page.keyboard.press("Home")
    assert page.eval_on_selector("compare-pair", "pair => pair.style.getPropertyValue('--at')") == "0%"
    assert "likeness (PSNR)" in page.inner_text(".figures")


@browser_needed
def test_the_keyboard_alone_walks_the_grid_and_marks_a_code(page, served):
    look(page, served, "tokenizers/view")
    page.wait_for_selector("code-grid")
    page.locator("code-grid").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert "row 2, column 2" in page.inner_text(".told >> nth=0")
    page.keyboard.press("Enter")
    assert page.eval_on_selector("code-grid", "grid => grid.picked === grid.codes[4]")
    page.keyboard.press("Escape")
    assert page.eval_on_selector("code-grid", "grid => grid.picked") is None
    page.locator(".squares").focus()
    for key in ("ArrowRight", "ArrowRight", "Enter"):  # the first arrow comes to code 0
        page.keyboard.press(key)
    assert page.eval_on_selector("code-grid", "grid => grid.picked") == 1
    assert page.inner_text(".book .told").startswith("Code 1: chosen ")


@browser_needed
@pytest.mark.parametrize("tokenizer", ["words", "view", "clip", "push", "sound"])
@pytest.mark.parametrize("page", [(1280, "light"), (360, "dark")], indirect=True, ids=["desk", "phone"])
def test_every_kind_of_value_becomes_codes_and_comes_back(page, served, tokenizer):
    look(page, served, f"tokenizers/{tokenizer}")
    page.wait_for_selector(".result .figures")
    assert int(page.locator(".figures div", has_text=re.compile(r"^\d+\s*codes$|codes\s*\d+$")).first.locator("dd").inner_text()) > 0
    fits(page)
    faultless(page)


@browser_needed
def test_a_sound_and_its_reconstruction_can_be_played(page, served):
    look(page, served, "tokenizers/sound")
    for name in ("Play: Original", "Play: From its codes"):
        page.get_by_role("button", name=name).click()
    assert page.eval_on_selector("code-grid", "grid => [grid.rows, grid.columns]") == [2, 10]  # levels below each other, time to the right


@browser_needed
def test_typed_words_are_cut_into_pieces(page, served):
    look(page, served, "tokenizers/words")
    page.wait_for_selector(".pieces button")
    page.get_by_role("textbox", name="Text").fill("a red circle")
    page.wait_for_selector(".big-text:text-is('a red circle')")
    pieces = page.locator(".pieces button span").all_inner_texts()
    assert "".join(pieces).replace(" ", "").replace("␣", "") == "aredcircle"


@browser_needed
@pytest.mark.parametrize("page", [(1280, "dark"), (360, "light")], indirect=True, ids=["desk", "phone"])
def test_a_caption_is_typed_and_the_rest_appears_code_by_code(page, served):
    look(page, served, "world")
    page.get_by_label("words", exact=True).fill("a red circle")
    page.get_by_role("button", name="Weave", exact=True).click()
    page.wait_for_selector(".segment.image .made img")
    page.wait_for_selector(".state.done")
    assert page.eval_on_selector(".segment.image code-grid", "grid => grid.codes.length === 9 && grid.codes.every(code => code >= 0)")
    assert page.inner_text(".segment.text .big-text") == "a red circle"
    fits(page)
    faultless(page)


@browser_needed
def test_the_model_may_choose_what_to_make(page, served):
    look(page, served, "world")
    page.locator(".stream-row", has_text="words").get_by_role("radio", name="Leave").check()
    page.get_by_label("Let the model choose").check()
    page.get_by_role("button", name="Weave", exact=True).click()
    page.wait_for_selector(".state.done")
    faultless(page)


@browser_needed
@pytest.mark.parametrize("page", [(1280, "light"), (360, "dark")], indirect=True, ids=["desk", "phone"])
def test_a_dream_is_steered_by_arrow_keys_and_by_buttons(page, served):
    look(page, served, "world/dream")
    page.wait_for_selector(".strip li")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".strip li:nth-child(2)")
    assert page.inner_text(".strip li:nth-child(2) span") == "right"
    page.get_by_role("button", name="up", exact=True).dispatch_event("click")
    page.wait_for_selector(".strip li:last-child span:text-is('up')")
    page.get_by_role("button", name="Another dream").click()
    page.wait_for_function("() => document.querySelectorAll('.strip li').length === 1")
    fits(page)
    faultless(page)


@browser_needed
def test_of_several_keys_that_are_held_the_last_counts_until_it_is_let_go(page, served):
    look(page, served, "world/dream")
    page.wait_for_selector(".strip li")

    def goes_on(name):
        """Two more steps, the last of them this one."""
        page.wait_for_function(
            """([name, from]) => {
                const last = document.querySelector(".strip li:last-child");
                return last.innerText === name && Number(last.querySelector("img").alt.split(" ")[1]) >= from + 2;
            }""",
            arg=[name, int(page.get_attribute(".strip li:last-child img", "alt").split()[1])],
        )

    page.keyboard.down("ArrowRight")
    goes_on("right")
    page.keyboard.down("ArrowUp")
    goes_on("up")
    page.keyboard.press("a")
    goes_on("up")
    page.keyboard.up("ArrowUp")
    goes_on("right")
    assert page.locator(".pad .held").count() == 1
    page.keyboard.up("ArrowRight")
    assert page.locator(".pad .held").count() == 0
    page.wait_for_timeout(400)  # the step that was under way is there by then
    steps = page.locator(".strip li").count()
    page.wait_for_timeout(400)
    assert page.locator(".strip li").count() == steps


@browser_needed
@pytest.mark.parametrize("page", [(1280, "dark"), (360, "light")], indirect=True, ids=["desk", "phone"])
def test_a_run_shows_its_graph_its_losses_and_the_oracles_verdicts(page, served, studio_root):
    look(page, served, "runs")
    page.wait_for_selector("stage-graph a")
    assert page.locator("stage-graph a").count() == len(list((studio_root / "artifacts").iterdir()))
    assert page.eval_on_selector("stage-graph", "graph => graph.scrollWidth <= graph.clientWidth")
    for stage in ("data", "world"):
        page.locator("stage-graph a", has_text=stage).click()
        page.wait_for_selector(f"[aria-label='Stage {stage}']")
    assert page.locator("line-chart polyline").count() == 2
    assert page.locator(".verdict.right").count() == page.locator(".verdict.wrong").count() == 1
    page.locator(".gallery img").first.scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector('.gallery img').naturalWidth === 16")
    fits(page)
    faultless(page)


@browser_needed
def test_progress_and_losses_of_a_stage_at_work_are_seen_as_they_come(page, served, live):
    goes_on(live, 10)
    look(page, served, f"runs/{live.parents[2].name}/learn")
    page.wait_for_selector(".progress [aria-valuenow='10']")
    assert "10 of 40 steps" in page.inner_text(".progress")
    before = page.get_attribute("line-chart polyline", "points")
    goes_on(live, 20)
    page.wait_for_selector(".progress [aria-valuenow='20']")
    assert len(page.get_attribute("line-chart polyline", "points")) > len(before)
    assert page.locator("stage-graph a.running").count() == 1
    faultless(page)


@browser_needed
def test_a_checkpoint_that_is_written_while_the_page_is_open_is_offered(page, served, live, saved):
    goes_on(live, 21)
    look(page, served, f"runs/{live.parents[2].name}/learn")
    page.wait_for_selector(".progress [aria-valuenow='21']")
    assert page.locator(".checkpoints").count() == 0
    for number, step in enumerate((10, 20), 1):
        saved(step)
        page.get_by_role("button", name=f"Step {step}", exact=True).wait_for()
        assert page.locator(".checkpoints .row button").count() == number


@browser_needed
def test_what_goes_on_is_seen_though_something_beside_it_has_the_focus_and_keeps_it(page, served, live, saved):
    goes_on(live, 22)
    saved(20)
    look(page, served, f"runs/{live.parents[2].name}/learn")
    page.get_by_role("button", name="Step 20", exact=True).focus()
    goes_on(live, 30)
    page.wait_for_selector(".progress [aria-valuenow='30']")
    assert page.evaluate("document.activeElement.innerText") == "Step 20"


@browser_needed
@pytest.mark.parametrize("page", [(1280, "dark"), (360, "light")], indirect=True, ids=["desk", "phone"])
def test_samples_of_checkpoints_are_made_on_request_and_stand_in_the_order_of_their_steps(page, served, learnt):
    look(page, served, f"runs/{learnt.parents[2].name}/two_steps")
    for step in (2, 1):
        button = page.get_by_role("button", name=f"Step {step}", exact=True)
        button.click()
        page.wait_for_selector(f"[aria-label='Step {step}'] li")
        assert button.is_disabled()
    lines = page.locator(".checkpoints section")
    assert lines.evaluate_all("all => all.map(each => each.dataset.step)") == ["1", "2"]
    assert lines.evaluate_all("all => all.map(each => each.querySelectorAll('li').length)") == [5, 5]  # as many as are held out
    page.wait_for_function("() => [...document.querySelectorAll('.checkpoints img')].every(each => each.naturalWidth === 24)")
    assert page.locator(".checkpoints :text('PSNR')").count() == 10
    fits(page)
    faultless(page)


@browser_needed
def test_a_checkpoint_that_went_meanwhile_is_said_and_may_be_asked_for_again(page, served, said, learnt):
    look(page, served, f"runs/{learnt.parents[2].name}/two_steps")
    button = page.get_by_role("button", name="Step 2", exact=True)
    button.wait_for()
    there, away = learnt / "checkpoints", learnt / "away"
    there.rename(away)
    button.click()
    page.wait_for_selector(".checkpoints .trouble")
    assert "two_steps has no checkpoint of step 2; it has none" in page.inner_text(".checkpoints .trouble")
    away.rename(there)
    assert button.is_enabled()
    page.wait_for_timeout(200)  # the answer is on the console by then
    assert said and all("404" in line for line in said)
    said.clear()
    button.click()
    page.wait_for_selector("[aria-label='Step 2'] li")


@browser_needed
@pytest.mark.parametrize("page", [(1280, "light"), (360, "dark")], indirect=True, ids=["desk", "phone"])
def test_datasets_show_shards_counts_and_samples(page, served):
    look(page, served, "datasets")
    page.wait_for_selector(".samples li")
    page.get_by_label("With the stream").select_option("sound")
    page.wait_for_function("() => [...document.querySelectorAll('.samples li')].every(each => each.querySelector('.value.audio'))")
    first = page.inner_text(".samples li >> nth=0")
    page.get_by_label("Split").select_option("train")
    page.wait_for_function("first => document.querySelector('.samples li').innerText !== first", arg=first)
    assert page.locator(".shards li").count() >= 4
    fits(page)
    faultless(page)


@browser_needed
@pytest.mark.parametrize("page", [(390, "light")], indirect=True, ids=["phone"])
def test_the_chosen_one_of_a_row_wider_than_a_phone_is_in_sight(page, served):
    look(page, served, "tokenizers/words")
    page.wait_for_selector(".cards [aria-current]")
    left, right, width = page.eval_on_selector(
        ".cards [aria-current]",
        "card => [card.getBoundingClientRect().left, card.getBoundingClientRect().right, card.parentElement.parentElement.scrollWidth]",
    )
    assert 0 <= left < right <= 390 < width
    faultless(page)


@browser_needed
def test_the_theme_is_changed_and_remembered(page, served):
    look(page, served, "datasets")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    button = page.locator("#theme")
    button.click()
    button.click()
    assert button.get_attribute("aria-label") == "Theme: dark"
    page.reload()
    page.wait_for_selector(".view h1")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


@browser_needed
def test_what_the_service_refuses_is_said_in_its_words(page, served, said):
    look(page, served, "tokenizers/view")
    page.wait_for_selector("code-grid")
    page.evaluate(DROP, [".drop", "no.png", "image/png", base64.b64encode(b"no picture").decode()])
    page.wait_for_selector("#says:not(:empty)")
    assert "the content is not a picture" in page.inner_text("#says")
    page.wait_for_timeout(200)  # both answers, of the codes and of the picture itself, are on the console by then
    assert said and all("415" in line for line in said)
    said.clear()


@browser_needed
def test_a_token_is_asked_for_where_one_is_needed(chromium, studio_root):
    tenants = Tenants([("team", hashlib.sha256(TOKEN.encode()).hexdigest(), None)])
    with Listening(create_app(local_engine([str(studio_root)]), tenants)) as address:
        page = chromium.new_page()
        page.goto(f"{address}/#/runs")
        page.get_by_role("textbox", name="Token").fill(TOKEN)
        page.get_by_role("button", name="Go on").click()
        page.wait_for_selector("stage-graph a", timeout=WAIT)
        page.close()


def fits(page):
    """Nothing makes the page wider than the window."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def faultless(page):
    """axe-core finds nothing serious; where it is not installed, the test above says how to get it."""
    if not AXE.is_file():
        return
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    serious = [
        (fault["id"], [node["html"][:160] for node in fault["nodes"]][:4])
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []
