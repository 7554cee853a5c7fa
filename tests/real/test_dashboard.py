"""The dashboard in a browser."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import expect
from real.stage import TOKEN, running_stage

from harness.valkey import StoreOfTest, valkey_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
DRESSES = {
    "light-desktop": {"color_scheme": "light", **DESKTOP},
    "dark-desktop": {"color_scheme": "dark", **DESKTOP},
    "light-phone": {"color_scheme": "light", **PHONE},
    "dark-phone": {"color_scheme": "dark", **PHONE},
    "few-colours": {"forced_colors": "active", **DESKTOP},
}
expect.set_options(timeout=30_000)
# Whoever wants to look at what the tests see names a directory.
PICTURES = os.environ.get("DASHBOARD_PICTURES")
ESCAPES = "\x1b[31;1mred\x1b[0m\x07"
MARKUP = "<img src=x onerror=document.title='taken'><script>document.title='taken'</script>[bold]x[/bold]"
TURNED = "\u202egnp.exe\u2066"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def stage(tmp_path_factory):
    """A dashboard that has seen an hour, and each fate of a post. Tests have posts of their own."""
    directory = tmp_path_factory.mktemp("stage")
    with (
        valkey_server("--appendonly", "yes", directory=directory) as url,
        contextlib.closing(StoreOfTest(url, "stage")) as store,
    ):
        async with running_stage(store, directory) as stage:
            await stage.pass_an_hour()
            for number in range(700, 703):
                await stage.fail(str(number), "the text is longer than 300 graphemes")
            await stage.fail("688", "BlobTooLarge: This file is too large.", "news", group="autumn")
            await stage.controls.pause("news")
            for number in range(710, 713):
                await stage.post(str(number), accounts=("news",))
            yield stage


class Operator:
    """Somebody who looks at the dashboard, and all that their browser complains of."""

    def __init__(self, reader, stage) -> None:
        self.reader = reader
        self.page = reader.page
        self.stage = stage
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))

    async def log_in(self, token=TOKEN):
        await self.page.goto(self.stage.ops)
        await self.page.get_by_label("Admin token").fill(token)
        await self.page.keyboard.press("Enter")

    async def is_live(self):
        await expect(self.page.locator("#live")).to_have_text("live")

    def row(self, where, name):
        """The row of a list that begins with this name."""
        rows = self.page.locator(f"#{where} > li")
        return rows.filter(has=self.page.locator(".name").first.get_by_text(name, exact=True))

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    async def hears(self, text):
        await expect(self.page.locator("#said")).to_have_text(text)

    def strangers(self):
        """Requests to other hosts."""
        return [url for url in self.reader.requests if not url.startswith((f"{self.stage.url}/", "data:"))]


@pytest_asyncio.fixture(loop_scope="module")
async def visit(read, stage):
    """Open a browser: await visit(color_scheme="dark"). Nothing may be complained of, no other host asked."""
    operators = []

    async def come(**dress):
        operators.append(Operator(await read("about:blank", **dress), stage))
        return operators[-1]

    yield come
    assert [operator.reader.trouble for operator in operators if operator.reader.trouble] == []
    assert [operator.complaints for operator in operators if operator.complaints] == []
    assert [operator.strangers() for operator in operators if operator.strangers()] == []


@pytest_asyncio.fixture(loop_scope="module")
async def enter(visit):
    """Open the dashboard, logged in."""

    async def come(**dress):
        operator = await visit(**dress)
        await operator.log_in()
        await operator.is_live()
        return operator

    return come


async def test_without_the_token_there_is_nothing(read, stage):
    operator = Operator(await read("about:blank"), stage)
    await operator.log_in("a-token-of-32-characters-but-wrong")
    await expect(operator.page.get_by_role("alert")).to_have_text("This is not the admin token.")
    assert await operator.page.context.cookies() == []
    assert await operator.page.locator("#hit-ratio").count() == 0
    answer = await operator.page.request.get(f"{stage.ops}/events")
    assert answer.status == 401
    assert await operator.reader.axe() == []
    # The browser itself notes that the answer was a 401, and nothing else.
    assert [text for text in operator.complaints if "401" not in text] == []


async def test_it_shows_live_numbers(enter, stage):
    operator = await enter()
    await expect(operator.page.locator("#hit-ratio")).to_contain_text("%")
    shown = operator.page.locator("#api-facts dd").nth(1)
    total = int((await shown.inner_text()).replace(",", ""))
    stage.proxy.web.tally.add("feedproxy_upstream_requests", "200", by=17)
    await expect(shown).to_have_text(f"{total + 17:,}")
    assert await operator.page.locator("#plot-ratio path.series").count() == 1
    assert await operator.page.locator("#plot-reads path.series").count() == 2


async def test_plots_are_read_by_keyboard(enter):
    operator = await enter()
    plot = operator.page.get_by_role("slider", name="Throughput")
    await plot.focus()
    newest = int(await plot.get_attribute("aria-valuemax"))
    assert newest >= 55
    await plot.press("ArrowLeft")
    assert await plot.get_attribute("aria-valuenow") == str(newest - 1)
    await plot.press("Home")
    text = await plot.get_attribute("aria-valuetext")
    assert "to the API" in text
    assert await operator.page.locator("#plot-reads .cursor").count() == 1


async def test_a_dead_letter_is_tried_again_by_keyboard_alone(enter, stage):
    job = await stage.fail("to-retry", "not this time")
    other = await stage.fail("to-stay", "not this time either")
    operator = await enter()
    button = operator.button("Retry to-retry on main")
    await button.focus()
    await operator.page.keyboard.press("Enter")
    await operator.hears("Post to-retry is tried again.")
    await expect(button).to_have_count(0)
    assert (await stage.states(job), await stage.states(other)) == (["ready"], ["dead"])
    # Whoever goes by the keyboard is not sent back to the top.
    assert await operator.page.evaluate("document.activeElement.dataset.act") == "Retry"
    await stage.queue.cancel(job)
    await stage.queue.cancel(other)


async def test_dead_letters_of_one_reason_are_given_up_once_that_is_confirmed(enter, stage):
    jobs = [await stage.fail(f"hopeless-{number}", "no such language") for number in range(3)]
    operator = await enter()
    give_up = operator.page.locator("#errors > li", has_text="no such language").get_by_text("Give up all")
    await give_up.click()
    await operator.page.keyboard.press("Escape")
    await expect(operator.page.get_by_role("dialog")).to_have_count(0)
    assert [await stage.states(job) for job in jobs] == [["dead"]] * 3
    await give_up.click()
    await operator.button("Give up").click()
    await operator.hears("3 posts given up.")
    assert [await stage.states(job) for job in jobs] == [["canceled"]] * 3


async def test_an_account_is_paused_and_resumed(enter, stage):
    operator = await enter()
    await operator.button("Pause archive").click()
    await operator.hears("archive is paused: its posts wait.")
    await expect(operator.row("accounts", "archive").locator(".badge")).to_have_text("paused")
    assert [one.paused for one in (await stage.controls.overview(["archive", "main"])).accounts] == [
        True,
        False,
    ]
    await operator.button("Resume archive").click()
    await expect(operator.row("accounts", "archive").locator(".badge")).to_have_text("open")
    assert [one.paused for one in (await stage.controls.overview(["archive", "main"])).accounts] == [
        False,
        False,
    ]


async def test_everything_is_paused_and_resumed(enter, stage):
    operator = await enter()
    await operator.button("Pause all posts").click()
    await operator.button("Pause").click()
    await operator.hears("Everything is paused.")
    resume = operator.button("Resume all posts")
    await expect(resume).to_be_visible()
    assert (await stage.controls.overview([])).paused
    await resume.click()
    await expect(operator.button("Pause all posts")).to_be_visible()
    assert not (await stage.controls.overview([])).paused


async def test_a_post_tells_why_it_waits_and_is_canceled(enter, stage):
    await stage.controls.pause("archive")
    job = await stage.post("patient", accounts=("archive",), group="spring")
    operator = await enter()
    await operator.page.get_by_label("Group").fill("spring")
    await expect(operator.page.locator("#jobs > li")).to_have_count(1)
    row = operator.row("jobs", "patient")
    await row.locator("summary").click()
    await expect(row.locator("details")).to_contain_text("archive is paused")
    await operator.button("Cancel post patient").click()
    await operator.button("Cancel it").click()
    await expect(row.locator(".badge").first).to_have_text("canceled")
    assert await stage.states(job) == ["canceled"]
    await stage.controls.resume("archive")


async def test_what_tenants_write_is_text_and_nothing_else(enter, stage):
    job = await stage.fail(f"evil {MARKUP}", f"{ESCAPES} {TURNED} {MARKUP}")
    operator = await enter()
    row = operator.page.locator("#letters > li", has_text="evil")
    shown = await row.inner_text()
    assert MARKUP in shown
    assert "\ufffd[31;1mred\ufffd[0m\ufffd \ufffdgnp.exe\ufffd" in shown
    assert not {"\x1b", "\x07", "\u202e", "\u2066"} & set(await operator.page.inner_text("body"))
    assert await operator.page.locator("li img, li script").count() == 0
    assert await operator.page.title() == "feedproxy"
    await row.get_by_text("Cancel").click()
    assert MARKUP in await operator.page.locator("#ask-text").inner_text()
    await operator.button("Give up").click()
    await expect(row).to_have_count(0)
    assert await stage.states(job) == ["canceled"]


async def test_it_listens_only_while_it_is_looked_at(enter):
    operator = await enter()
    page = operator.page
    async with page.expect_event("requestfailed", lambda request: request.url.endswith("/ops/events")):
        await page.evaluate(
            "Object.defineProperty(document, 'hidden', { value: true, configurable: true });"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
    async with page.expect_request("**/ops/events"):
        await page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")


async def test_who_logs_out_is_out(enter, stage):
    operator = await enter()
    await operator.button("Log out").click()
    await expect(operator.page.get_by_label("Admin token")).to_be_visible()
    assert await operator.page.context.cookies() == []
    await operator.page.goto(stage.ops)
    assert operator.page.url == f"{stage.ops}/login"


@pytest.mark.parametrize("dress", DRESSES)
async def test_axe_finds_no_fault(enter, dress):
    operator = await enter(**DRESSES[dress])
    await expect(operator.row("letters", "688")).to_be_visible()
    await operator.row("jobs", "710").locator("summary").click()
    await expect(operator.row("jobs", "710").locator("details")).to_contain_text("news is paused")
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not await operator.page.evaluate(wide)
    assert await operator.reader.axe() == []
    await operator.button("Cancel post 710").click()
    assert await operator.reader.axe() == []
    await operator.button("Leave it").click()
    if PICTURES:
        await operator.row("jobs", "710").locator("summary").click()
        await operator.page.screenshot(path=Path(PICTURES) / f"{dress}.png", full_page=True)
