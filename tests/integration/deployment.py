"""feedproxy as an operator runs it: `serve`, and workers around one Redis, each a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import httpx

from harness.waiting import until_true
from harness.workers import Nursery, WorkerProcess
from integration.processes import ServeProcess, environment

OVER = ("completed", "partial", "failed", "canceled")


@dataclass(frozen=True, kw_only=True)
class AccountOfTest:
    """An account, as feedproxy.toml names it."""

    name: str
    identifier: str
    password: str


class Deployment:
    """`with` starts `serve`; workers are started one by one, and may be frozen, killed and told to reload."""

    def __init__(
        self,
        directory: Path,
        nursery: Nursery,
        accounts: Sequence[AccountOfTest],
        *,
        sites: Sequence[str] = ("blog",),
        **settings: Any,
    ) -> None:
        self._directory = directory
        self._nursery = nursery
        self.workers: list[WorkerProcess] = []
        for account in accounts:
            self._password_file(account.name).write_text(account.password, encoding="utf-8")
        config = directory / "feedproxy.toml"
        config.write_text(self._tenants(accounts, sites), encoding="utf-8")
        self.tokens = {site: f"token-of-the-site-{site}" for site in sites}
        tokens = {f"TOKEN_OF_{site.upper()}": token for site, token in self.tokens.items()}
        self._settings = {"CONFIG": config, "PDS_RPS": 1000, "PDS_BURST": 1000, **tokens, **settings}
        self.serve = ServeProcess(directory / "data", **self._settings)

    def __enter__(self) -> Self:
        self._start()
        return self

    def restart(self) -> None:
        """End `serve` as an operator does, and start it anew on the same data."""
        self.client.close()
        self.serve.terminate()
        self.serve = ServeProcess(self._directory / "data", **self._settings)
        self._start()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What an operator's command says on this host."""
        environ = environment(self._directory / "data", **self._settings)
        words = [sys.executable, "-P", "-m", "proxy.cli", *arguments]
        return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=60, check=False)

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        for worker in self.workers:
            worker.kill()
        self.serve.__exit__(*exc)

    def worker(self, **settings: Any) -> WorkerProcess:
        """One more worker, with settings of its own."""
        worker = self._nursery.start(environment(self._directory / "data", **self._settings | settings))
        self.workers.append(worker)
        return worker

    def change_password(self, account: str, password: str) -> None:
        """A person puts another password there and tells every process."""
        self._password_file(account).write_text(password, encoding="utf-8")
        self.serve.send(signal.SIGHUP)
        for worker in self.workers:
            worker.reload()

    def post(
        self, number: int | str, *, site: str = "blog", age_s: float = 60.0, **fields: Any
    ) -> dict[str, Any]:
        """Send a post as the CMS of `site` does; the job. `age_s` says how long ago it was published."""
        answer = self.send(document(number, age_s=age_s, **fields), site=site)
        assert answer.status_code == 202, answer.text
        return answer.json()

    def send(self, post: Mapping[str, Any], *, site: str = "blog") -> httpx.Response:
        return self.client.post("/syndicate", json=dict(post), headers=self._bearer(site))

    def job(self, job: Mapping[str, Any], *, site: str = "blog") -> dict[str, Any]:
        """The job as it is now."""
        answer = self.client.get(job["links"]["self"], headers=self._bearer(site))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def retry(self, job: Mapping[str, Any], *, site: str = "blog") -> httpx.Response:
        return self.client.post(job["links"]["retry"], headers=self._bearer(site))

    def ended(
        self, job: Mapping[str, Any], *, site: str = "blog", deadline_s: float = 60.0
    ) -> dict[str, Any]:
        """The job when it has ended."""
        give_up_at = time.monotonic() + deadline_s
        while True:
            path = f"{job['links']['self']}?wait=5"
            shown = self.client.get(path, headers=self._bearer(site)).json()
            if shown["status"] in OVER:
                return shown
            assert time.monotonic() < give_up_at, shown

    def waits_for(self, job: Mapping[str, Any], reason: str, *, site: str = "blog") -> dict[str, Any]:
        """The job when each of its accounts waits for that."""

        def waiting() -> dict[str, Any] | None:
            shown = self.job(job, site=site)
            return shown if all(one["waiting_for"] == reason for one in shown["accounts"]) else None

        return until_true(waiting, f"{job['id']} waits for {reason}")

    def _start(self) -> None:
        self.serve.start()
        self.serve.wait_ready()
        # There is no TLS on loopback, and loading the certificates for it takes longer than most tests.
        self.client = httpx.Client(base_url=self.serve.base_url, trust_env=False, verify=False, timeout=30)

    def _bearer(self, site: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.tokens[site]}"}

    def _password_file(self, account: str) -> Path:
        return self._directory / f"{account}.password"

    def _tenants(self, accounts: Sequence[AccountOfTest], sites: Sequence[str]) -> str:
        tables = [
            f'[[accounts]]\nname = "{one.name}"\nidentifier = "{one.identifier}"\n'
            f'password_file = "{self._password_file(one.name)}"\n'
            for one in accounts
        ]
        names = ", ".join(f'"{one.name}"' for one in accounts)
        tables += [
            f'[[sites]]\nname = "{site}"\ntoken_env = "FEEDPROXY_TOKEN_OF_{site.upper()}"\n'
            f"accounts = [{names}]\nposts_per_hour = 10000\n"
            for site in sites
        ]
        return "\n".join(tables)


def document(number: int | str, *, age_s: float = 60.0, **fields: Any) -> dict[str, Any]:
    """A post as a CMS sends it, published `age_s` ago."""
    published_at = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=age_s)
    return {
        "id": str(number),
        "url": f"https://blog.example/{number}",
        "title": f"Post {number}",
        "published_at": published_at.isoformat(),
        **fields,
    }
