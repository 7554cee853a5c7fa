"""What Prometheus itself says of /metrics."""

from __future__ import annotations

import asyncio
import subprocess

import pytest

from harness.newsroom import Newsroom
from harness.proxy import feed
from harness.upstream import Response, xrpc_error


@pytest.mark.parametrize("used", [False, True], ids=["idle", "used"])
async def test_promtool_finds_nothing_to_complain_of(start, upstream, store, tmp_path, monkeypatch, used):
    monkeypatch.setenv("PASSWORD_main", "app-password")
    monkeypatch.setenv("TOKEN_blog", "blog-token-of-the-site")
    config = tmp_path / "feedproxy.toml"
    config.write_text(
        '[[accounts]]\nname = "main"\nidentifier = "alice.test"\npassword_env = "PASSWORD_main"\n'
        '[[sites]]\nname = "blog"\ntoken_env = "TOKEN_blog"\naccounts = ["main"]\n'
    )
    async with (
        Newsroom(store.url, store.namespace, tmp_path).open() as room,
        start(CONFIG=config, PLC_URL=room.directory.url) as proxy,
    ):
        if used:
            for answer in (
                upstream.answer,
                lambda _: xrpc_error(404, "NotFound"),
                lambda _: Response(close=True),
            ):
                upstream.answer = answer
                await proxy.get(feed(f"a{upstream.count}.test"))
            async with room.host({"main": "alice.test"}) as host:
                await host.send()
        text = (await proxy.get("/metrics")).text
    assert ('feedproxy_jobs{state="ready"} 1.0' in text) == used
    checked = await asyncio.to_thread(
        subprocess.run,
        ["promtool", "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
