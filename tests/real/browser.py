"""Debian's Chromium, pages of a site of the test's own for it, and what can be asked of a page."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, BrowserContext, Page, async_playwright
from real.harness import HERE

MODULES = HERE / "node_modules"
# The sandbox cannot start as root; nothing here leaves the host.
_OPTIONS = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"]
_PATIENCE_MS = 30_000
_TYPES = {
    "": "text/html",
    ".ico": "image/x-icon",
    ".js": "text/javascript",
    ".css": "text/css",
    ".jpg": "image/jpeg",
}

# Adds up what moved without the reader's doing, from the first paint on.
_WATCH_SHIFTS = """
    window.shifts = 0
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts += entry.value
    }).observe({ type: 'layout-shift', buffered: true })
"""

# What is in the shadow root of the first widget, short of what depends on the time it is looked at.
_TREE = """
    (selector) => {
      const tree = (node) => {
        if (node.nodeType === Node.TEXT_NODE) return node.data
        const updated = node.parentElement?.className === 'updated'
        const changing = ['title', 'style', 'data-stale', ...(updated ? ['datetime'] : [])]
        const names = node.getAttributeNames().filter((name) => !changing.includes(name)).sort()
        const attributes = names.map((name) => `${name}=${node.getAttribute(name)}`)
        const children = node.localName === 'time' ? [] : [...node.childNodes].map(tree)
        return [node.localName, attributes, ...children]
      }
      const root = document.querySelector(selector).shadowRoot
      root.normalize()
      return tree(root.querySelector('.feed'))
    }
"""

_LOAD_PICTURES = """
    async (images) => {
      const missing = []
      for (const image of images) {
        image.loading = 'eager'
        if (!image.closest('details:not([open])')) await image.decode().catch(() => missing.push(image.src))
      }
      return missing
    }
"""


class Site:
    """A web site on loopback with `policy` as its CSP: `pages` by path, and packages under /modules."""

    def __init__(self) -> None:
        self.pages: dict[str, str | bytes] = {}
        self.policy: str | None = None
        self.requests: list[tuple[str, dict[str, str]]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                site.requests.append((self.path, dict(self.headers)))
                found = site.find(path)
                self.send_response(404 if found is None else 200)
                body = b"" if found is None else found
                self.send_header("Content-Type", f"{_TYPES[Path(path).suffix]}; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                if site.policy is not None:
                    self.send_header("Content-Security-Policy", site.policy)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def find(self, path: str) -> bytes | None:
        """What lies at `path`."""
        if path.startswith("/modules/"):
            return (MODULES / path.removeprefix("/modules/")).read_bytes()
        page = self.pages.get(path)
        return page.encode() if isinstance(page, str) else page

    def put(self, body: str, *, head: str = "", path: str = "/", html: str = 'lang="en"') -> str:
        """A page with `body`; its address."""
        viewport = '<meta name="viewport" content="width=device-width">'
        self.pages[path] = (
            f'<!doctype html><html {html}><head><meta charset="utf-8"><title>A site</title>'
            f"{viewport}{head}</head><body><main><h1>A site</h1>{body}</main></body></html>"
        )
        return f"{self.url}{path}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextlib.contextmanager
def running_site() -> Iterator[Site]:
    site = Site()
    try:
        yield site
    finally:
        site.close()


@contextlib.asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    if shutil.which("chromium") is None:
        raise RuntimeError(f"Chromium is not installed: run {HERE / 'install.sh'}")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_OPTIONS)
        try:
            yield browser
        finally:
            await browser.close()


class Reader:
    """Somebody with a browser of their own (`options` as Playwright's contexts take them), on one page."""

    def __init__(self, context: BrowserContext, page: Page) -> None:
        self.context = context
        self.page = page
        self.requests: list[str] = []
        self.trouble: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("dialog", self._dismiss)
        page.on(
            "console", lambda message: self.trouble.append(message.text) if "Policy" in message.text else None
        )

    async def _dismiss(self, dialog: Any) -> None:
        self.trouble.append(f"dialog: {dialog.message}")
        await dialog.dismiss()

    async def open(self, url: str) -> None:
        await self.page.goto(url)

    async def shows(self, selector: str = ".posts .post") -> None:
        """Wait until something of the widget is there."""
        await self.page.locator(selector).first.wait_for()

    async def settled(self) -> None:
        """Wait until nothing is loading any more, and it is painted."""
        await self.page.wait_for_load_state("networkidle")
        await self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    async def pictures(self) -> list[str]:
        """Have every picture loaded, even far below; the addresses of those that do not come."""
        return list(await self.page.locator("img").evaluate_all(_LOAD_PICTURES))

    async def shifts(self) -> float:
        """The cumulative layout shift since the first paint."""
        await self.settled()
        return float(await self.page.evaluate("window.shifts"))

    async def tree(self, selector: str = "bluesky-feed") -> list[Any]:
        """The markup of a widget."""
        return list(await self.page.evaluate(_TREE, selector))

    async def axe(self) -> list[str]:
        """What axe-core finds fault with."""
        await self.page.evaluate((MODULES / "axe-core" / "axe.min.js").read_text(encoding="utf-8"))
        found = await self.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        assert found["passes"]
        return [
            f"{violation['id']}: {node['target']} {node['failureSummary']}"
            for violation in found["violations"]
            for node in violation["nodes"]
        ]


@contextlib.asynccontextmanager
async def reader(browser: Browser, **options: Any) -> AsyncIterator[Reader]:
    context = await browser.new_context(**options)
    try:
        context.set_default_timeout(_PATIENCE_MS)
        await context.add_init_script(_WATCH_SHIFTS)
        yield Reader(context, await context.new_page())
    finally:
        await context.close()
