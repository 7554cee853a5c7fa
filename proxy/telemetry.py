"""Structured logs: a constant event name with fields, JSON where no person is watching."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

import structlog

from proxy.settings import Settings
from proxy.tracing import with_trace

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# Without the values of local variables: there are tokens among them.
_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)

# What looks like a secret, wherever it came from: a password in a URL, a bearer token, a session's token.
# In JSON, the letter of an escaped line break may stand before it, and a backslash behind it is not its own.
_LIKE_SECRETS = re.compile(
    r"(?P<url>://[^/\s:@\"]*:)[^/\s@\"]+(?=@)"
    r"|(?P<bearer>(?:\b|(?<=\\[bfnrt]))Bearer )[^\s\"',\\]+"
    r"|(?:\b|(?<=\\[bfnrt]))eyJ[\w-]+\.[\w-]+\.[\w-]+",
    re.ASCII,
)
_MASK = "********"
# Shorter ones would mask words that mean nothing.
_SHORTEST = 8

Logger = structlog.typing.FilteringBoundLogger


class _Unbreakable(io.TextIOBase):
    """A stream whose reader may go away: what cannot be written is lost, and nothing else is."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.isatty()
        return False


class Redactor:
    """Takes secrets out of lines of the log: those that it knows, and what looks like one."""

    def __init__(self) -> None:
        self._known: re.Pattern[str] | None = None
        self._secrets: set[str] = set()

    def learn(self, secrets: Iterable[str]) -> None:
        """These are secret from now on, as well as those before."""
        found = {secret for secret in secrets if len(secret) >= _SHORTEST}
        # As JSON and Python write them, too.
        self._secrets |= {
            written[1:-1] for each in found for written in (f"'{each}'", json.dumps(each), repr(each))
        }
        longest_first = sorted(self._secrets, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __call__(self, line: str) -> str:
        """`line` with its secrets masked."""
        if self._known is not None:
            line = self._known.sub(_MASK, line)
        return _LIKE_SECRETS.sub(lambda found: (found["url"] or found["bearer"] or "") + _MASK, line)


def configure_logging(settings: Settings, *, role: str, target: TextIO = sys.stderr) -> Redactor:
    """Send every log line of this process to `target`, marked with the process's `role`.

    Called once by each process before it builds anything. Lines of the libraries (uvicorn, asyncio) are
    rendered the same way. What is returned has to learn the secrets that are not of `settings`.
    """
    redactor = Redactor()
    redactor.learn(settings.secrets())
    stream = _Unbreakable(target)
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not stream.isatty())
    shared: list[structlog.typing.Processor] = [
        with_trace,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        _with_role(role),
    ]
    renderer: list[structlog.typing.Processor] = (
        [_TRACEBACKS, structlog.processors.JSONRenderer()]
        if as_json
        else [
            _inert,
            structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=_inert_traceback),
        ]
    )
    renderer.append(lambda _logger, _method, line: redactor(str(line)))
    level = _LEVELS[settings.log_level]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", stream)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
    # uvicorn warns of every request that is no HTTP: whoever sends such would write our log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logging.getLogger("uvicorn.access").setLevel(logging.INFO if settings.access_log else logging.CRITICAL)
    return redactor


def get_logger() -> Logger:
    """A logger whose methods take a constant event name and fields."""
    logger: Logger = structlog.get_logger()
    return logger


def _printable(text: str, *, but: str = "") -> str:
    """`text` in which escapes stand for what a terminal would obey, save the characters in `but`."""
    return "".join(
        char if char.isprintable() or char in but else char.encode("unicode_escape").decode() for char in text
    )


def _inert(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Have strangers' text do nothing on a terminal (JSON is escaped by itself)."""
    # Of an exception, a traceback is made later.
    return {
        name: value if name == "exc_info" or not isinstance(value, str) else _printable(value)
        for name, value in event.items()
    }


def _inert_traceback(target: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    target.write(_printable(text.getvalue(), but="\n"))


def _with_role(role: str) -> structlog.typing.Processor:
    def add(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event.setdefault("role", role)
        return event

    return add
