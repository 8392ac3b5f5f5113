"""A browser that sees files only, and a site with one more replication whose every text is hostile."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
HOSTILE = "<script>document.title='caught'</script><img src=x onerror=\"document.title='caught'\">" + "w" * 300
HOSTILE += "\u202e\x1b[31m"  # the text after them would be reversed, and red in a terminal


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def results():
    """The committed results of each replication, by name."""
    found = (json.loads(path.read_text()) for path in sorted(ROOT.glob("results/*/results.json")))
    return {one["name"]: one for one in found}


@pytest.fixture
def open_page(browser):
    """Open a file; what the page asks for from elsewhere is refused and kept, like every message of its console."""
    contexts = []

    def opened(path: Path, fragment: str = "", *, width: int = 1280, dark: bool = False, script: bool = True):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            java_script_enabled=script,
        )
        contexts.append(context)
        page = context.new_page()
        page.troubles = []

        def route(request):
            if request.request.url.startswith("file:"):
                request.continue_()
            else:
                page.troubles.append(request.request.url)
                request.abort()

        page.route("**/*", route)
        page.on("console", lambda message: page.troubles.append(message.text))
        page.on("pageerror", lambda error: page.troubles.append(str(error)))
        page.goto(path.absolute().as_uri() + fragment)
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def hostile(tmp_path_factory, results):
    """A site with one replication whose names and texts are markup, and longer than any screen is wide."""
    from kdlib.report.site import write_pages

    one = copy.deepcopy(next(one for one in results.values() if one["headline"]))
    place = one["headline"]
    kept = {
        place["table"],
        place["claim"],
        place["mode"],
        *(row["verdict"] for t in one["tables"] for row in t["claims"]),
    }
    kept |= {"exact", "effect", "primary", "ours", "transfer", "schedule", "softness"}
    names = {metric for table in one["tables"] for metric in table["metrics"]}
    arms = {arm["arm"] for table in one["tables"] for arm in table["arms"]}
    roles = {arm["role"] for table in one["tables"] for arm in table["arms"]}

    def spoiled(thing):
        if isinstance(thing, dict):
            return {spoiled(key) if key in arms else key: spoiled(value) for key, value in thing.items()}
        if isinstance(thing, list):
            return [spoiled(value) for value in thing]
        if isinstance(thing, str) and thing in arms:
            return HOSTILE + thing
        return HOSTILE if isinstance(thing, str) and thing not in kept | names | roles else thing

    folder = tmp_path_factory.mktemp("hostile") / "site"
    write_pages(
        folder, [spoiled(one) | {"name": "hostile", "source": {"citation": HOSTILE, "url": "javascript:alert(1)"}}]
    )
    return folder
