from __future__ import annotations

from typing import Any

import msgspec
import pytest

from knapsaq import events

RECORD = {"key": "k1", "function": 5, "kwargs": {"card": "hunter2"}}


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (msgspec.json.encode(RECORD), "(key 'k1', length 53)"),
        (msgspec.json.encode(RECORD).decode(), "(key 'k1', length 53)"),
        (RECORD, "(key 'k1', dict)"),
        (b'{"kwargs": {"card": "hunter2', "(without a key, length 28)"),
        (b'["hunter2"]', "(without a key, length 11)"),
        (b'{"key": {"card": "hunter2"}}', "(without a key, length 28)"),
        (b"\xff hunter2", "(without a key, length 9)"),
        (b"[" * 100_000, "(without a key, length 100,000)"),
        (None, "(without a key, NoneType)"),
    ],
)
def test_of_an_unreadable_record_the_key_and_the_size_are_logged(
    caplog: pytest.LogCaptureFixture, record: Any, told: str
) -> None:
    """Arguments are nobody's business in a log."""
    events.record_unreadable("mail", record, ValueError("no good"))
    assert f"queue mail holds a record that cannot be read {told}: ValueError: no good" in caplog.text
    assert "hunter2" not in caplog.text


def test_an_error_that_carries_the_bytes_is_told_by_its_text(caplog: pytest.LogCaptureFixture) -> None:
    """What a decoder could not read is in the error's ``repr``."""
    record = b"hunter2 \xff"
    with pytest.raises(UnicodeDecodeError) as caught:
        record.decode()
    events.record_unreadable("mail", record, caught.value)
    assert "hunter2" not in caplog.text
    assert "UnicodeDecodeError: 'utf-8' codec can't decode byte" in caplog.text
