"""How soon the studio is painted, in headless Chromium on loopback, and how large it is; budgets stand in for peers."""

import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.figure import Figure, at_most

ROUNDS = 9
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def figures() -> Iterator[Figure]:
    """The median of new browser contexts, so that nothing is in a cache."""
    from worldloom.pipeline.service.app import PAGE

    yield at_most("studio.bytes", sum(path.stat().st_size for path in PAGE.iterdir()), "bytes", "budget", 200_000, 1.0)
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.stderr.write("no browser is installed, so the studio's first paint is not measured: apt-get install chromium\n")
        return
    with tempfile.TemporaryDirectory() as folder, _served(Path(folder)) as address:
        yield at_most("studio.first_paint", statistics.median(_paints(browser, address)), "s", "budget", 1.0, 1.0)


def _paints(browser: str, address: str) -> Iterator[float]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for _ in range(ROUNDS):
            page = opened.new_page()
            page.goto(address)
            page.wait_for_selector(".view h1")
            yield page.evaluate(FIRST_PAINT) / 1000
            page.close()
        opened.close()


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    import uvicorn

    from worldloom.pipeline.service.app import create_app
    from worldloom.pipeline.service.engine import local_engine
    from worldloom.tokenizers.image import ImageTokenizer, build_autoencoder
    from worldloom.tokenizers.image_settings import VqVae

    parts = VqVae(codebook_size=17, downsample=8, width=4, blocks=1)
    ImageTokenizer(build_autoencoder(parts, seed=1).eval(), parts, 32, 32).save_pretrained(folder / "tokenizer")
    server = uvicorn.Server(uvicorn.Config(create_app(local_engine([str(folder)])), log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join()
