"""Codec: values between Python's types and JSON's, for a call's arguments and a task's result.

JSON only: no pickle, no class named by stored bytes. What JSON cannot carry is refused, with its type named.
"""

from __future__ import annotations

import json
import math
import re
import types
from typing import Any

import msgspec

SHOWN_CHARACTERS = 200

SECRET = re.compile(
    r"passw|passphrase|secret|token|api_?key|private_?key|authorization|cookie|credential|card", re.IGNORECASE
)
"""Names whose values are not shown."""


def to_json_types(value: object) -> Any:
    """Return ``value`` made of dicts, lists, text, numbers, booleans and None alone.

    Raises:
        TypeError: It holds something that JSON cannot carry; the text names its type.
        ValueError: It holds a number or text that JSON cannot carry.
    """
    plain = msgspec.to_builtins(value, str_keys=True, enc_hook=_encode_foreign)
    if plain.__class__ in _WITH_NUMBERS:
        _refuse_infinite(plain)
    if isinstance(plain, _WITH_TEXT):
        msgspec.json.encode(plain)  # refuses half a surrogate pair, as os.fsdecode makes them
    return plain


def canonical(value: object) -> bytes:
    """Return text that is the same for equal values, in every process: the members of sets and dicts are sorted."""
    plain = msgspec.to_builtins(value, str_keys=True, order="deterministic", enc_hook=_sorted_foreign)
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def from_json_types(value: object, annotation: Any) -> Any:
    """Return ``value`` as the annotated type.

    Raises:
        msgspec.ValidationError: It does not fit; the text says where and why.
    """
    return msgspec.convert(value, annotation, str_keys=True, dec_hook=_decode_foreign)


def utf8(text: str) -> str:
    """Return text that UTF-8 can carry: what it cannot, such as half of a surrogate pair, is written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown(value: object) -> str:
    """Return a short ``repr`` with the type, for errors."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - an error about a value must not fail on that value
        text = "<no repr>"
    cut = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
    return f"{cut} ({type(value).__name__})"


def copied(value: Any) -> Any:
    """Return JSON types with lists and dicts of their own, so that whoever changes them changes no one else's."""
    if value.__class__ is dict:
        return {name: copied(item) for name, item in value.items()}
    return [copied(item) for item in value] if value.__class__ is list else value


_WITHOUT_TEXT = (object.__str__, object.__repr__)
_WITH_NUMBERS = (float, list, tuple, dict)
_WITH_TEXT = (str, list, tuple, dict)


def _refuse_infinite(plain: Any) -> None:
    """Refuse NaN and infinity, which JSON would silently turn into null."""
    if isinstance(plain, float) and not math.isfinite(plain):
        msg = f"{plain} is not a JSON number"
        raise ValueError(msg)
    if isinstance(plain, (list, tuple, dict)):
        for item in plain.values() if isinstance(plain, dict) else plain:
            _refuse_infinite(item)


def _encode_foreign(value: object) -> Any:
    """Encode what msgspec does not know: pydantic models."""
    dump = getattr(type(value), "model_dump", None)
    if not isinstance(dump, types.FunctionType):
        msg = f"objects of type {type(value).__name__} are not supported"
        raise TypeError(msg)
    plain = dump(value, mode="json", round_trip=True)
    # A secret, above all, is dumped as asterisks.
    if _decode_foreign(type(value), plain) != value:
        msg = f"a {type(value).__name__} does not come back from JSON as it was"
        raise ValueError(msg)
    return plain


def _sorted_foreign(value: Any) -> Any:
    """Encode what msgspec does not know for ``canonical``: the fields of pydantic models, and what they are made of."""
    kind: Any = type(value)
    if hasattr(kind, "model_dump"):
        return dict(value)
    # What has no text of its own, as a default may be, would tell its address.
    return str(value) if (kind.__str__, kind.__repr__) != _WITHOUT_TEXT else f"{kind.__module__}.{kind.__qualname__}"


def _decode_foreign(annotation: type, value: Any) -> Any:
    """Decode what msgspec does not know: pydantic models."""
    validate = getattr(annotation, "model_validate_json", None)
    if validate is not None:
        # As JSON, since a strict model takes text for a datetime from there alone; by name, as it is dumped by name.
        return validate(msgspec.json.encode(value), by_alias=False, by_name=True)
    if isinstance(value, annotation):
        return value
    msg = f"expected {annotation.__name__}, got {type(value).__name__}"
    raise TypeError(msg)
