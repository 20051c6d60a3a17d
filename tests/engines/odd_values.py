"""Events of a server with one value of them changed into what it should never be."""

import copy
import json
from collections.abc import Iterator
from typing import Any

# What stands for raw bytes that json.dumps does not write.
RAW = {
    '"@nan"': b"NaN",
    '"@infinite"': b"-Infinity",
    '"@exponent"': b"1e999",
    '"@digits"': b"9" * 5000,
    '"@deep"': b"[" * 5000,
    '"@utf8"': b'"\xff\xfe"',
    '"@half"': b'"\\ud800"',
    '"@open"': b'"',
}
ODD: tuple[Any, ...] = (None, True, 5, -1, 10**30, 2**31, 1.5, "text", "", [], {}, [1], [[]], {"a": 1}, [None])


def odd_events(event: Any) -> Iterator[tuple[str, bytes]]:
    """Yield what was changed, and the event with that: each value replaced by each odd one, or left out."""
    for path in _paths(event):
        for odd in (*ODD, *(name.strip('"') for name in RAW)):
            yield f"{path} is {odd!r:.40}", _line(_changed(event, path, odd))
        if path:
            yield f"{path} is missing", _line(_changed(event, path, KeyError))


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inside:
        yield from _paths(one, (*at, name))


def _changed(event: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    changed = copy.deepcopy(event)
    parent = changed
    for name in path[:-1]:
        parent = parent[name]
    if odd is KeyError:
        del parent[path[-1]]
    else:
        parent[path[-1]] = odd
    return changed


def _line(event: Any) -> bytes:
    text = json.dumps(event).encode()
    for name, raw in RAW.items():
        text = text.replace(name.encode(), raw)
    return b"data: " + text + b"\n\n"
