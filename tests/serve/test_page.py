"""The chat page in headless Chromium, against a small fake API."""

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ROOT
from fake_api import FakeApi, call, serving

from herd.base.hazards import HAZARDS

playwright = pytest.importorskip("playwright.sync_api", reason="the chat page is tested with playwright")
expect = playwright.expect
PAGE = ROOT / "herd/serve/page.html"
HINDI = "नमस्ते, क्षमा कीजिए: **भारत** की राजधानी नई दिल्ली है।"
THAI = "ประเทศไทยรวมเลือดเนื้อชาติเชื้อไทยเป็นประชารัฐไผทของไทยทุกส่วนอยู่ดำรงคงไว้ได้ทั้งมวลด้วยไทยล้วนหมายรักสามัคคี"
WEATHER = [{"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed here")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving(PAGE) as api:
        yield api


@pytest.fixture
def page(browser: Any, api: FakeApi) -> Iterator[Any]:
    """The page, opened; nothing it does may raise, be refused by its own policy, or leave its origin."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(10_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if "Content Security" in line.text else None)
    mine = (api.url, "data:")
    page.on("request", lambda request: None if request.url.startswith(mine) else faults.append(request.url))
    page.goto(api.url)
    expect(page.get_by_label("Model")).to_be_enabled()
    yield page
    context.close()
    assert faults == []


def say(page: Any, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def last(page: Any) -> Any:
    return page.locator("article.assistant").last


def done(page: Any) -> Any:
    """Wait for the end of an answer and return its bubble."""
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    expect(page.locator(".busy")).to_have_count(0)
    return last(page)


def contents(request: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(message["role"], message["content"]) for message in request["messages"]]


@pytest.mark.parametrize("tag", ["style", "script"])
def test_policy_names_the_hash(tag: str) -> None:
    text = PAGE.read_text()
    (body,) = re.findall(f"<{tag}[^>]*>(.*?)</{tag}>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
    assert f"{tag}-src 'sha256-{digest}'" in text, f"write sha256-{digest} into the policy of {PAGE.name}"


def test_hazards_are_those_of_the_package() -> None:
    (body,) = re.findall(r"const HAZARDS = \{(.*?)\};", PAGE.read_text(), re.DOTALL)
    assert dict(re.findall(r'(S\d+): "([^"]+)"', body)) == HAZARDS


def test_send_and_follow_up(page: Any, api: FakeApi) -> None:
    api.play("Hel", "lo **you**\n\n1. one\n2. `two`\n\n```python\nx = 1 < 2\n```\ntail")
    page.get_by_text("Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Max tokens").fill("64")
    page.get_by_label("Seed").fill("11")
    say(page, "first")
    bubble = done(page)
    assert bubble.locator(".text > *").evaluate_all("nodes => nodes.map(n => n.tagName)") == ["P", "OL", "PRE", "P"]
    assert bubble.locator("strong").inner_text() == "you"
    assert bubble.locator("pre").inner_text() == "x = 1 < 2"
    expect(bubble.locator(".facts")).to_contain_text("7 prompt + 5 answer tokens of 1,024")
    expect(bubble.locator(".facts")).to_contain_text("tokens/s")
    expect(page.get_by_role("status")).to_contain_text("Hello you")
    assert api.requests[0] | {"messages": None} == {
        "model": "flagship", "stream": True, "stream_options": {"include_usage": True}, "messages": None,
        "temperature": 0.6, "seed": 11, "max_tokens": 64,
    }  # fmt: skip
    api.play("more")
    page.get_by_label("Model").select_option("flagship/base")
    expect(page.get_by_text("no guard")).to_be_visible()
    page.get_by_label("Message", exact=True).fill("a")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("b")
    page.keyboard.press("Enter")
    done(page)
    assert api.requests[1]["model"] == "flagship/base"
    roles = contents(api.requests[1])
    assert roles[:2] == [("system", "Be brief."), ("user", "first")]
    assert roles[2][0] == "assistant"
    assert roles[2][1].startswith("Hello **you**")
    assert roles[3:] == [("user", "a\nb")]


@pytest.mark.parametrize("way", ["Escape", "button"])
def test_stop_closes_the_connection_and_keeps_what_came(page: Any, api: FakeApi, way: str) -> None:
    api.play("begun", hold=threading.Event())
    say(page, "go")
    expect(last(page)).to_contain_text("begun")
    if way == "Escape":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Stop").click()
    expect(done(page).locator(".facts")).to_contain_text("stopped")
    assert api.left.wait(5), "the server was not told that nobody listens any more"
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    api.play("on")
    say(page, "and?")
    done(page)
    assert contents(api.requests[1]) == [("user", "go"), ("assistant", "begun"), ("user", "and?")]


def test_what_is_selected_stays_so_while_the_answer_grows(page: Any, api: FakeApi) -> None:
    hold = threading.Event()
    api.play("a first paragraph\n\nand a", " second", hold=hold)
    say(page, "go")
    expect(last(page)).to_contain_text("second")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('.assistant p:not(.who)'))")
    hold.set()
    done(page)
    assert page.evaluate("getSelection().toString()") == "a first paragraph"


def test_regenerate_edit_and_new_chat(page: Any, api: FakeApi) -> None:
    for text in ("one", "two", "three"):
        api.play(text)
    say(page, "question")
    done(page).get_by_role("button", name="Regenerate").click()
    expect(done(page)).to_contain_text("two")
    assert api.requests[0]["messages"] == api.requests[1]["messages"]
    assert api.requests[0]["seed"] != api.requests[1]["seed"], "the same seed would give the same answer again"
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Your message").fill("better question")
    page.keyboard.press("Enter")
    expect(done(page)).to_contain_text("three")
    assert contents(api.requests[2]) == [("user", "better question")]
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("article")).to_have_count(0)


def test_new_chat_forgets_an_answer_under_way(page: Any, api: FakeApi) -> None:
    api.play("old", hold=threading.Event())
    say(page, "go")
    expect(last(page)).to_contain_text("old")
    page.get_by_role("button", name="New chat").click()
    assert api.left.wait(5)
    api.play("new")
    say(page, "again")
    expect(done(page)).to_contain_text("new")
    assert contents(api.requests[1]) == [("user", "again")]


def test_tool_calls_are_cards_and_take_results(page: Any, api: FakeApi) -> None:
    page.get_by_text("Settings").click()
    page.get_by_label("Tools").fill("[{]")
    say(page, "weather?")
    expect(page.get_by_role("alert")).to_contain_text("The tools cannot be read")
    expect(page.get_by_label("Tools")).to_be_focused()
    assert api.requests == []
    page.get_by_label("Tools").fill(json.dumps(WEATHER))
    hold = threading.Event()
    calls = [*call(0, "weather", '{"ci', 'ty": "Chiang Mai"}'), *call(1, "weather", '{"city": "Delhi"}')]
    api.play(*calls, finish="tool_calls", hold=hold)
    say(page, "weather?")
    card = last(page).locator(".call")
    expect(card.nth(0).locator("pre")).to_have_text('{"city": "Chiang Mai"}')  # while it streams: as it comes
    hold.set()
    expect(card.nth(0).locator("pre")).to_have_text('{\n  "city": "Chiang Mai"\n}')
    card.nth(0).get_by_label("Result of weather").fill("31 °C")
    page.keyboard.press("Enter")
    expect(card.nth(1).get_by_label("Result of weather")).to_be_focused()
    page.keyboard.type("28 °C")
    api.play("Warm.")
    page.keyboard.press("Enter")
    expect(done(page)).to_contain_text("Warm.")
    assert api.requests[0]["tools"] == [{"type": "function", "function": WEATHER[0]}]
    _, asked, *results = api.requests[1]["messages"]
    arguments = [each["function"]["arguments"] for each in asked["tool_calls"]]
    assert arguments == ['{"city": "Chiang Mai"}', '{"city": "Delhi"}']
    assert results == [
        {"role": "tool", "tool_call_id": "call_0x", "content": "31 °C"},
        {"role": "tool", "tool_call_id": "call_1x", "content": "28 °C"},
    ]


def test_a_call_without_result_is_not_sent(page: Any, api: FakeApi) -> None:
    api.play(*call(0, "weather", '{"ci'), finish="length")
    say(page, "weather?")
    expect(done(page).locator(".facts")).to_contain_text("cut off")
    expect(page.get_by_role("button", name="Send result")).to_have_count(0)
    api.play("ok")
    say(page, "never mind")
    done(page)
    assert contents(api.requests[1]) == [("user", "weather?"), ("user", "never mind")]


def test_guard_decisions_are_marked(page: Any, api: FakeApi) -> None:
    blocked = {"herd": {"guard": {"where": "input", "hazards": ["S9"], "p_unsafe": 0.981}}}
    api.play("I can't help with that.", blocked, finish="content_filter")
    say(page, "how?")
    note = done(page).locator(".blocked")
    expect(note).to_contain_text("blocked your message: S9 Indiscriminate Weapons (probability of unsafe 0.98)")
    expect(last(page)).to_contain_text("I can't help with that.")
    api.play("", finish="content_filter")
    say(page, "how else?")
    expect(done(page).locator(".blocked")).to_contain_text("The guard blocked this")


def test_errors_are_readable_and_retried(page: Any, api: FakeApi) -> None:
    full = '{"error": {"message": "64 requests wait.", "type": "rate_limit_error"}}'
    api.play(status=429, body=full, headers=(("Retry-After", "3"),))
    say(page, "hello")
    expect(done(page).locator(".problem")).to_contain_text("is full (429): 64 requests wait. It asks to wait 3 s.")
    api.play("half", {"error": {"message": "The engine fell.", "code": 500}}, finish=None)
    page.get_by_role("button", name="Retry").click()
    expect(done(page).locator(".problem")).to_contain_text("The engine fell.")
    api.play("half", finish=None)
    page.get_by_role("button", name="Retry").click()
    expect(done(page).locator(".problem")).to_contain_text("The connection ended before the answer did.")
    api.play(status=502, body="<h1>Bad gateway</h1>")
    page.get_by_role("button", name="Retry").click()
    expect(done(page).locator(".problem")).to_contain_text("<h1>Bad gateway</h1>")
    api.play("well")
    page.get_by_role("button", name="Retry").click()
    expect(done(page).locator(".text")).to_have_text("well")
    assert {json.dumps(contents(request)) for request in api.requests} == {'[["user", "hello"]]'}


def test_a_key_is_asked_for_and_kept_in_the_tab(page: Any, api: FakeApi) -> None:
    api.key = "herd-secret"
    page.reload()
    expect(page.locator("#notice .problem")).to_contain_text("The server asks for an API key (401): No such key.")
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("herd-secret")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Model")).to_be_enabled()
    page.reload()
    expect(page.get_by_label("Model")).to_be_enabled()
    kept = page.evaluate("[JSON.stringify(localStorage), document.cookie, sessionStorage['herd.key']]")
    assert kept == ["{}", "", "herd-secret"]


def test_nothing_that_is_said_runs(page: Any, api: FakeApi) -> None:
    attack = '<img src=x onerror="window.hit=1"></script><script>window.hit=1</script>'
    page.add_init_script("window.hit = 0")
    page.reload()
    expect(page.get_by_label("Model")).to_be_enabled()
    chunks = [attack, f"\n\n**{attack}** `{attack}`\n- {attack}\n```{attack}\n{attack}\n```\n[a](javascript:hit=1)"]
    guard = {"herd": {"guard": {"where": attack, "hazards": [attack], "p_unsafe": 0.5}}}
    api.play(*chunks, *call(0, attack, attack), guard, finish="content_filter")
    say(page, attack)
    bubble = done(page)
    expect(page.locator(".said")).to_have_text(attack)
    assert bubble.locator(".text p").first.inner_text() == attack
    api.play(status=500, body=json.dumps({"error": {"message": attack}}))
    say(page, attack)
    expect(done(page).locator(".problem")).to_contain_text(attack)
    expect(page.locator("#turns :is(img, script, a, iframe, style)")).to_have_count(0)
    assert page.evaluate("window.hit || 0") == 0


def test_the_policy_refuses_markup_and_foreign_requests(browser: Any, api: FakeApi) -> None:
    """The second wall, for a mistake in the first: its own page, since it trips the policy on purpose."""
    page = browser.new_page()
    page.goto(api.url)
    refused = page.evaluate("() => { try { document.body.innerHTML = '<b>' } catch (error) { return error.message } }")
    assert "TrustedHTML" in refused
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => '', (e) => e.message)") == "Failed to fetch"
    color = "node => { node.setAttribute('style', 'color: red'); return getComputedStyle(node).color }"
    assert page.locator("h1").evaluate(color) == "rgb(27, 31, 36)"
    page.close()


def test_scripts_directions_and_line_breaks(page: Any, api: FakeApi) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    for text in (HINDI, THAI, "مرحبا بالعالم"):
        api.play(text)
        say(page, text)
        done(page)
    paragraphs = page.locator(".assistant .text p")
    assert paragraphs.evaluate_all("nodes => nodes.map(n => n.lang)") == ["hi", "th", "ar"]
    directions = paragraphs.evaluate_all("nodes => nodes.map(n => getComputedStyle(n).direction)")
    assert directions == ["ltr", "ltr", "rtl"]
    expect(paragraphs.nth(0)).to_have_text(HINDI.replace("**", ""))
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("#scroll").evaluate("node => node.scrollWidth <= node.clientWidth")
    starts, words = paragraphs.nth(1).evaluate("""node => {
      const text = node.firstChild, range = document.createRange(), starts = [];
      let top = -1;
      for (let i = 0; i < text.length; i++) {
        range.setStart(text, i); range.setEnd(text, i + 1);
        const box = range.getClientRects()[0];
        if (box && box.width && box.top > top + 5) { starts.push(i); top = box.top; }
      }
      const words = new Intl.Segmenter("th", {granularity: "word"}).segment(text.data);
      return [starts, [...words].map((word) => word.index)];
    }""")
    assert len(starts) > 2
    assert set(starts) <= set(words), "a Thai line was broken inside a word"


def test_theme_follows_the_system_and_the_button(page: Any, api: FakeApi) -> None:
    def background() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page.emulate_media(color_scheme="dark")
    assert background() == "rgb(20, 23, 26)"
    page.reload()
    page.get_by_role("button", name="Light colours").click()
    assert background() == "rgb(252, 252, 250)"
    page.reload()
    assert background() == "rgb(252, 252, 250)"


def test_keyboard_reaches_everything_in_order(page: Any) -> None:
    page.get_by_label("Model").focus()
    seen = []
    for _ in range(6):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert seen == ["new", "theme", "SUMMARY", "scroll", "message", "send"]
