"""Hash tags, slots, and the addresses in a cluster's URL."""

from __future__ import annotations

import pytest

from knapsaq.nodes import is_apart
from knapsaq.shards import is_cluster, seeds_of, slot_of, tag_of, tagged


class TestTags:
    @pytest.mark.parametrize(
        ("name", "tag"),
        [
            ("{mail}", "mail"),
            ("shop-{mail}.2", "mail"),
            ("{a}{b}", "a"),
            ("{{a}", "{a"),
            ("mail", None),
            ("{}", None),
            ("{}{a}", None),
            ("{mail", None),
            ("}mail{", None),
        ],
    )
    def test_it_is_what_the_first_braces_hold(self, name: str, tag: str | None) -> None:
        """As the specification has it: empty braces are none, and later ones do not count."""
        assert tag_of(name) == tag

    @pytest.mark.parametrize("name", ["mail", "{}", "{mail", "}mail{", "{mail}", "a{b}c"])
    def test_any_name_can_be_given_one(self, name: str) -> None:
        """What an error says that is to be written can be used."""
        assert tag_of(tagged(name)) or not name.strip("{}")

    @pytest.mark.parametrize(
        ("key", "slot"),
        # From `CLUSTER KEYSLOT` of Valkey 9.1.
        [("123456789", 12739), ("foo", 12182), ("{foo}bar", 12182), ("saq:{a}:queued", 15495), ("{a}", 15495)],
    )
    def test_all_keys_of_a_queue_have_the_slot_of_its_tag(self, key: str, slot: int) -> None:
        """CRC-16/XMODEM modulo 16,384."""
        assert slot_of(key) == slot


class TestApart:
    @pytest.mark.parametrize(
        ("flow", "queue", "apart"),
        [
            ("{a}:~key", "{b}", True),
            ("{a}:~key", "{a}", False),
            ("{a}:~key", "{a}-low", False),
            ("{a}:key", "{b}", False),  # on one server
            ("a:~key", "b", True),
        ],
    )
    def test_the_mark_and_the_tags_tell(self, flow: str, queue: str, apart: bool) -> None:
        """A workflow that was begun on one server stays one of one server."""
        assert is_apart(flow, queue) is apart


class TestUrl:
    def test_each_address_has_login_and_options(self) -> None:
        """Whichever node answers first is spoken to in the same way."""
        assert seeds_of("redis+cluster://me:p%40ss@one:7000,[::1]:7001/0?ssl_keyfile=k") == [
            "redis://me:p%40ss@one:7000/0?ssl_keyfile=k",
            "redis://me:p%40ss@[::1]:7001/0?ssl_keyfile=k",
        ]
        assert seeds_of("rediss+cluster://one") == ["rediss://one"]

    @pytest.mark.parametrize("url", ["redis://one", "unix:///a", "embedded", "cluster://one"])
    def test_other_urls_are_none(self, url: str) -> None:
        """One scheme, with TLS or without."""
        assert not is_cluster(url)
