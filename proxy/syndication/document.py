"""From the bytes of a request to a JSON document that has exactly one meaning, within bounds.

RFC 8259 leaves open what duplicate names, NaN and lone surrogates mean; here they are faults (RFC 7493).
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn

from proxy.errors import Faulty

MAX_DEPTH: Final = 16
# Names and values of tenants that are quoted back are cut here.
MAX_QUOTED_CHARS: Final = 100

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_document(body: bytes) -> Any:
    """The JSON document in `body`, which the caller has bounded in size.

    Raises Faulty (422 invalid_json) for what is no I-JSON, or is nested deeper than MAX_DEPTH.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(f"the body is not UTF-8 at byte {error.start}") from None
    try:
        document = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_float=_finite,
            parse_int=_integer,
            parse_constant=_no_constant,
        )
    except json.JSONDecodeError as error:
        raise _invalid(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise _too_deep() from None
    _check(document)
    return document


def json_path(location: tuple[int | str, ...]) -> str:
    """`location` within a document as a JSONPath (RFC 9535), names of tenants cut to a bounded length."""
    return "$" + "".join(_step(part) for part in location)


def quoted(text: str) -> str:
    """`text` of a tenant as it may stand in a message: a JSON string of bounded length, in ASCII."""
    return json.dumps(text if len(text) <= MAX_QUOTED_CHARS else f"{text[:MAX_QUOTED_CHARS]}…")


def _step(part: int | str) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if _PLAIN_NAME.fullmatch(part) else f"[{quoted(part)}]"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise _invalid(f"the name {quoted(name)} occurs twice in one object")
        document[name] = value
    return document


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _invalid("a number is too large")
    return number


def _integer(text: str) -> int:
    # Within what every reader of JSON represents exactly.
    if len(text) > 17 or abs(int(text)) > 2**53:
        raise _invalid("an integer is too large")
    return int(text)


def _no_constant(name: str) -> NoReturn:
    raise _invalid(f"{name} is not JSON")


def _check(document: Any) -> None:
    """Refuse what is nested too deep and strings that are no text, level by level."""
    level = [document]
    for _ in range(MAX_DEPTH):
        if any(isinstance(item, str) and _SURROGATE.search(item) for item in level):
            raise _invalid("a string contains half of a surrogate pair, which is no character")
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise _too_deep()


def _children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [*item, *item.values()]
    return item if isinstance(item, list) else []


def _too_deep() -> Faulty:
    return _invalid(f"the document is nested deeper than {MAX_DEPTH} levels")


def _invalid(message: str) -> Faulty:
    return Faulty("invalid_json", "the body is not a JSON document", (("$", message),))
