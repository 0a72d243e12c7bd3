"""Shards: the addresses in a cluster's URL, and the hash tag that keeps the keys of a queue together.

Where in the flow: settings check a URL with this, and connections find the slot of a queue. A cluster divides keys
among its servers by 16,384 slots; where a key has a part in braces, that part alone decides. Each key of a queue has
the queue's name in it, so a name such as ``{mail}`` puts all of them into one slot, and its scripts stay atomic.

Source: the Redis Cluster specification, "hash tags"; CRC-16/XMODEM.
"""

from __future__ import annotations

import binascii
import re

SLOTS = 16_384
SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
"""The schemes of a cluster's URL, and those of the URLs of its servers."""


def is_cluster(url: str) -> bool:
    """Tell whether a URL is that of a cluster."""
    return url.partition("://")[0] in SCHEMES


def seeds_of(url: str) -> list[str]:
    """Return the URL of each server that a cluster's URL names, with login and options."""
    scheme, _, rest = url.partition("://")
    authority, tail = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr] # always fits
    login, at, hosts = authority.rpartition("@")
    return [f"{SCHEMES[scheme]}://{login}{at}{host}{tail}" for host in hosts.split(",")]


def tag_of(name: str) -> str | None:
    """Return the hash tag of a name, or None: what is between its first ``{`` and the next ``}``, if anything is."""
    found = re.match(r"[^{]*\{([^}]+)\}", name)
    return found[1] if found else None


def tagged(name: str) -> str:
    """Return a name with a hash tag: itself, or in braces."""
    return name if tag_of(name) else f"{{{re.sub(r'[{}]', '', name)}}}"


def slot_of(name: str) -> int:
    """Return the slot of a key, or of all keys of a queue whose name has a hash tag."""
    return binascii.crc_hqx((tag_of(name) or name).encode(), 0) % SLOTS
