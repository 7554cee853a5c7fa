"""The age of a feed in words: "updated 3 minutes ago"."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from urllib.parse import quote

import humanize

Wording = Callable[[float], bytes]


def wording(locale: str) -> Wording:
    """A function from an age in seconds to the value of Feed-Updated, in the language `locale`.

    In English it begins with "updated"; humanize has no such word for other languages, so there it is the
    time alone ("vor 3 Minuten"). Browsers read header values as Latin-1: what does not fit is UTF-8 in
    percent-encoding, for decodeURIComponent.
    """
    if locale == "en":
        return _english

    def localised(age_s: float) -> bytes:
        humanize.i18n.activate(locale)
        text = humanize.naturaltime(timedelta(seconds=_told_s(age_s)))
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError:
            return quote(text, safe=" ").encode("ascii")

    return localised


def _english(age_s: float) -> bytes:
    if age_s < 60:
        return b"updated just now"
    humanize.i18n.deactivate()
    return f"updated {humanize.naturaltime(timedelta(seconds=_told_s(age_s)))}".encode("ascii")


def _told_s(age_s: float) -> int:
    """Whole seconds; below a minute nothing is counted out."""
    return 0 if age_s < 60 else math.floor(age_s)
