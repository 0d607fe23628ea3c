"""The page in a real Chromium: it answers, offline, at phone width and in dark mode; what a model writes stays text.

Pictures of it are left under build/screenshots, to be looked at.
"""

from __future__ import annotations

import sys
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from starlette.testclient import TestClient

from asterism.core.errors import UnsupportedError
from asterism.serve.app import create_app
from asterism.serve.playground.mount import mount
from tests.serve import live as serving
from tests.serve.playground.browser import DESKTOP, PHONE, browser

WILD = ' <img src=x onerror="window.hit=1"> <script>window.hit=1</script> ${window.hit=1} {{value}}'
QUERY = "Is a surgeon liable for negligence?"
READY = "document.querySelector('#ask') && document.querySelector('#settings button')"
RIVAL = "document.querySelector('#rival_wanted input')?.value === 'RIVAL'"
DONE = "/tokens in/.test(document.querySelector('#status').innerText) && document.querySelector('#place svg')"


pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated")  # Gradio counts its events with pandas


@pytest.fixture(scope="module")
def tab():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def page(explaining, served):
    """A running server with its page; `answers` sets what its engine writes."""
    with pytest.MonkeyPatch.context() as patch:
        plain = serving.create_app
        patch.setattr(serving, "create_app", lambda *given, **named: mount(plain(*given, **named)))
        with serving.live(explaining(" yes."), served) as own:
            yield own


@pytest.fixture
def answers(page, explaining):
    """`answers(text)`: from now on every answer is this text."""

    def write(text, **switches):
        page.until(lambda: not page.engine.running)
        new = explaining(text, **switches)
        for name in ("answer", "endless", "pause"):
            setattr(page.engine, name, getattr(new, name))
        page.engine.jobs.clear()
        page.engine.wishes.clear()
        return page

    return write


def ask(tab, url, text=QUERY):
    tab.asked.clear()
    tab.errors.clear()
    tab.open(url, READY)
    tab.type("#text textarea", text)
    tab.click("#ask")


def box(tab, name):
    return tab.value(f"document.querySelector('#{name} textarea').value")


def test_it_answers_on_every_screen_and_fetches_nothing_from_elsewhere(answers, tab):
    own = answers(WILD)
    tab.look(DESKTOP)
    ask(tab, own.url)
    tab.until(DONE)
    assert [box(tab, name) for name in ("composed", "base", "rival")] == [WILD] * 3
    assert tab.value("window.hit === undefined && !document.querySelector('img[src=x]')")
    assert tab.value("document.querySelector('#mixture').innerText").startswith(
        "The mixture, renewed after 64 tokens\nshare\nloss\nscience"
    )
    assert tab.value("document.querySelector('#layers svg') !== null")
    for size, dark in ((DESKTOP, False), (DESKTOP, True), (PHONE, True), (PHONE, False)):
        tab.look(size, dark=dark)
        tab.until(f"document.body.classList.contains('dark') === {str(dark).lower()}")
        assert tab.value("document.documentElement.scrollWidth") <= size[0]
        tab.screenshot(f"playground-{size[0]}-{'dark' if dark else 'light'}")
    tab.click("#settings button")
    tab.until(RIVAL.replace("RIVAL", "uniform mixture"))
    assert tab.value("document.documentElement.scrollWidth") <= PHONE[0]
    tab.screenshot(f"playground-{PHONE[0]}-settings")
    assert tab.errors == []
    elsewhere = [url for url in tab.asked if urlsplit(url).scheme not in ("data", "blob") and not url.startswith(f"{own.url}/")]
    assert elsewhere == []
    assert len(tab.asked) > 10


def test_a_link_keeps_the_settings(answers, tab):
    own = answers(" yes.")
    tab.look(DESKTOP)
    tab.open(
        f"{own.url}/?text=Why%3F&top_k=2&mode=fast&layers=1&rival=legal&most=16&seed=7", "document.querySelector('#text textarea')?.value"
    )
    tab.click("#settings button")
    tab.until(RIVAL.replace("RIVAL", "legal"))
    tab.click("#ask")
    tab.until(DONE)
    wanted = parse_qs(urlsplit(tab.value("location.href")).query)
    assert {name: wanted[name] for name in ("text", "top_k", "mode", "layers", "rival", "most", "seed")} == {
        "text": ["Why?"], "top_k": ["2"], "mode": ["fast"], "layers": ["1"], "rival": ["legal"], "most": ["16"], "seed": ["7"]
    }  # fmt: skip
    (_, wish), *_ = own.engine.wishes
    assert (wish.settings.top_k, wish.settings.mode) == (2, "fast")
    shares = [job.composition.mixture.shares for job in own.engine.jobs if job.composition]
    assert {"legal": 1.0} in shares
    assert {job.composition.settings.layers for job in own.engine.jobs if job.composition} == {1, "all"}
    assert "Rival: legal" in tab.value("document.querySelector('#rival').innerText")


def test_the_link_button_takes_what_stands_there_now(page, tab):
    tab.look(DESKTOP)
    tab.open(page.url, READY)
    tab.type("#text textarea", "Not asked yet & more")
    tab.click("#copy")
    tab.until("document.querySelector('#copy').innerText !== 'Link'")
    assert parse_qs(urlsplit(tab.value("location.href")).query)["text"] == ["Not asked yet & more"]
    tab.until("document.querySelector('#copy').innerText === 'Link'")


def test_stop_and_leaving_free_the_rows(answers, tab):
    own = answers(" go on", endless=True, pause=0.05)
    tab.look(DESKTOP)
    ask(tab, own.url, "Go")
    tab.until("document.querySelector('#composed textarea').value.length > 5")
    assert len(own.engine.running) == 3
    tab.click("#stop")
    own.until(lambda: not own.engine.running, 4)
    ask(tab, own.url, "Go")
    tab.until("document.querySelector('#composed textarea').value.length > 5")
    tab.do("Page.navigate", url="about:blank")
    own.until(lambda: not own.engine.running, 4)
    assert own.asking.gate.inside == 0


def test_errors_are_shown_as_everywhere(answers, tab):
    own = answers(" yes.")
    tab.look(PHONE)
    ask(tab, own.url, "word " * 300)
    tab.until("document.querySelector('#status [role=alert]')")
    told = tab.value("document.querySelector('#status').innerText")
    assert "no room" in told
    assert "mend: shorten" in told
    tab.screenshot("playground-error")


def test_the_api_keeps_its_addresses_and_gradio_gives_no_others(page):
    for path in ("v1/nope", "login", *(f"gradio_api/{name}" for name in ("upload", "file=/etc/passwd", "proxy=https://x.y", "run/ask"))):
        found = httpx.get(f"{page.url}/{path}")
        assert found.status_code == 404, path
        assert found.json()["error"]["code"] == "not_found"
    assert httpx.post(f"{page.url}/gradio_api/upload", files={"files": b"x"}).status_code == 404
    assert httpx.get(f"{page.url}/v1/completions").status_code == 405
    home = httpx.get(page.url)
    assert home.status_code == 200
    assert "default-src 'self'" in home.headers["content-security-policy"]
    assert str(page.asking.served.root) not in home.text
    assert httpx.get(f"{page.url}/gradio_api/info").json()["named_endpoints"] == {}


def test_keys_guard_the_page_too(explaining, served):
    with TestClient(mount(create_app(explaining(" yes."), served, keys=("sesame-open",)))) as client:
        refused = client.get("/")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].lower().startswith(("basic", "bearer"))
        assert client.get("/", auth=("me", "sesame-open")).status_code == 200
        assert client.post("/gradio_api/queue/join", json={}).status_code == 401


def test_without_gradio_it_says_what_to_install(explaining, served, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UnsupportedError, match="--no-playground"):
        mount(create_app(explaining(" yes."), served))
