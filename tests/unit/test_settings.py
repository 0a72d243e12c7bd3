from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from knapsaq.environment import redact
from knapsaq.errors import SettingsError
from knapsaq.settings import Settings


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No variable and no .env file of the developer reaches a test; the working directory is an empty one."""
    for name in os.environ:
        if name.upper().startswith("KNAPSAQ_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestReading:
    def test_without_any_setting_a_private_broker_and_the_queue_default_are_used(self) -> None:
        """A fresh clone runs without configuration."""
        settings = Settings()
        assert settings.broker_url == "embedded"
        assert settings.embedded_dir == Path(".knapsaq")
        assert settings.queues == ("default",)
        assert settings.api_token is None
        assert settings.timezone == "UTC"

    def test_the_constructor_wins_over_the_environment_and_that_over_the_file(
        self, empty_environment: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The nearer source wins, value by value."""
        (empty_environment / ".env").write_text("KNAPSAQ_CONCURRENCY=1\nKNAPSAQ_LEASE=5\nKNAPSAQ_RESULT_TTL=7\n")
        monkeypatch.setenv("KNAPSAQ_CONCURRENCY", "2")
        monkeypatch.setenv("KNAPSAQ_LEASE", "6")
        settings = Settings(concurrency=3)
        assert (settings.concurrency, settings.lease, settings.result_ttl) == (3, 6.0, 7)

    def test_other_programs_may_use_the_same_file_and_it_may_begin_with_a_byte_order_mark(
        self, empty_environment: Path
    ) -> None:
        """A line that is no setting of ours is passed over, and a mark before the first line does not hide it."""
        (empty_environment / ".env").write_bytes(
            b"\xef\xbb\xbfKNAPSAQ_CONCURRENCY=4\nPOSTGRES_DB=x\nKNAPSAQ_APP=app.queue.config\n"
        )
        assert Settings().concurrency == 4

    def test_an_empty_variable_is_not_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Compose files leave empty variables; an empty token above all must not become a valid one."""
        monkeypatch.setenv("KNAPSAQ_BROKER_URL", "")
        monkeypatch.setenv("KNAPSAQ_API_TOKEN", "")
        assert Settings().broker_url == "embedded"
        assert Settings().api_token is None

    @pytest.mark.parametrize("value", ["default,mail", " default , mail,", '["default", "mail"]'])
    def test_queues_are_named_with_commas_or_as_a_list(self, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both spellings that people use in environments mean the same."""
        monkeypatch.setenv("KNAPSAQ_QUEUES", value)
        assert Settings().queues == ("default", "mail")

    def test_queues_may_be_a_list_or_a_tuple_in_a_program(self) -> None:
        """What a program has at hand is accepted; a name with a hash tag for Redis Cluster is a name."""
        given: Any = ["default", "{payments}"]
        assert Settings(queues=given).queues == Settings(queues=tuple(given)).queues == ("default", "{payments}")

    def test_load_takes_settings_a_url_or_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """``connect()`` accepts all three; a URL alone leaves the other settings to the environment."""
        monkeypatch.setenv("KNAPSAQ_CONCURRENCY", "3")
        mine = Settings(concurrency=5)
        assert Settings.load(mine) is mine
        assert Settings.load().concurrency == 3
        by_url = Settings.load("redis://localhost:6379/2")
        assert (by_url.broker_url, by_url.concurrency) == ("redis://localhost:6379/2", 3)

    def test_settings_do_not_change(self) -> None:
        """An instance can be handed around: nobody changes it."""
        settings = Settings()
        with pytest.raises(AttributeError):
            settings.concurrency = 5  # type: ignore[misc]

    def test_an_application_adds_settings_in_a_subclass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A subclass reads its own fields with the same prefix, and its checks are reported in the same way."""

        class AppSettings(Settings):
            database_url: str = "sqlite://"

            def __post_init__(self) -> None:
                if self.database_url == "wrong":
                    raise ValueError("a database that exists")

        monkeypatch.setenv("KNAPSAQ_DATABASE_URL", "postgresql://db")
        assert AppSettings().database_url == "postgresql://db"
        with pytest.raises(SettingsError, match=r"AppSettings .* a database that exists"):
            AppSettings(database_url="wrong")

    @pytest.mark.parametrize("field", dataclasses.fields(Settings), ids=lambda field: field.name)
    def test_every_setting_is_described(self, field: dataclasses.Field[Any]) -> None:
        """The manual's table is made of these descriptions."""
        assert field.metadata["description"]


WRONG: list[tuple[str, Any, str]] = [
    ("broker_url", "postgres://localhost", "redis://, rediss:// or unix://"),
    ("broker_url", "localhost:6379", "redis://, rediss:// or unix://"),
    ("broker_url", "redis://", "a host"),
    ("broker_url", "redis://localhost:notaport", "port"),
    ("broker_url", "redis://localhost:99999", "port"),
    ("broker_url", "redis://localhost/jobs", "database's number"),
    ("broker_url", "unix://run/redis.sock", "three slashes"),
    ("broker_url", "redis+cluster://", "redis+cluster://one:6379,two:6379"),
    ("broker_url", "redis+cluster://one:7000,two:seven", "port is a number"),
    ("broker_url", "rediss+cluster://one:7000,two:7001/1", "database 0 alone"),
    ("embedded_dir", 5, "Directory"),
    ("embedded_dir", "~nobody-of-this-name/x", "home directory"),
    ("queues", "", "at least one"),
    ("queues", [], "at least one"),
    ("queues", "mail,mail", "each name once"),
    ("queues", "my mail", "'my mail' is not"),
    ("queues", "m" * 65, "1 to 64"),
    ("queues", '["mail"', "JSON list"),
    ("queues", ["mail", 3], "comma-separated"),
    ("task_routes", "payments", "a JSON object of patterns and queues"),
    ("task_routes", {" ": "mail"}, "patterns that are not empty"),
    ("task_routes", {"a.*": "two words"}, "names of queues, which 'a.*': 'two words' is not"),
    ("task_routes", {"a.*": 3}, "names of queues, which for 'a.*' 3 is not"),
    ("concurrency", 0, "a whole number from 1 to 10,000"),
    ("concurrency", 10_001, "a whole number from 1 to 10,000"),
    ("concurrency", "many", "a whole number from 1 to 10,000"),
    ("timezone", "Mars/Olympus", "IANA"),
    ("timezone", "America", "IANA"),
    ("timezone", "../secret", "IANA"),
    ("task_timeout", -1, "a number from 0 to"),
    ("task_max_retries", -1, "a whole number from 0 to 10,000"),
    ("result_ttl", -2, "a whole number from -1 to"),
    ("lease", 0.5, "a number from 1 to 3,600"),
    ("lease", float("nan"), "a number from 1 to 3,600"),
    ("loop_stall_limit", 0.5, "0 for no limit, or at least 1 second"),
    ("shutdown_grace", float("inf"), "a number from 0 to 86,400"),
    ("max_payload_bytes", 1023, "a whole number from 1,024 to 536,870,912"),
    ("api_token", " ", "at least one character"),
    ("log_level", "LOUD", "one of DEBUG, INFO"),
]


class TestWrongValues:
    @pytest.mark.parametrize(("name", "value", "expected"), WRONG)
    def test_a_wrong_value_is_refused_with_the_variable_and_what_would_be_right(
        self, name: str, value: Any, expected: str
    ) -> None:
        """The error names the variable to change, and says in words what to put there."""
        with pytest.raises(SettingsError) as caught:
            Settings(**{name: value})
        assert caught.value.setting == f"KNAPSAQ_{name.upper()}"
        assert expected in caught.value.expected
        assert "Input should" not in str(caught.value)

    def test_a_wrong_variable_is_refused_in_the_same_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a value comes from makes no difference, and the error survives the way between processes."""
        monkeypatch.setenv("KNAPSAQ_CONCURRENCY", "0")
        with pytest.raises(SettingsError) as caught:
            Settings()
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own bytes
        assert str(caught.value).startswith("setting KNAPSAQ_CONCURRENCY is '0'; expected a whole number from 1")

    def test_a_mistyped_name_in_a_program_is_refused(self) -> None:
        """It would be passed over otherwise; a secret under a mistyped name is not shown."""
        with pytest.raises(SettingsError, match="did you mean 'api_token'") as caught:
            Settings(api_tokn="hunter2")  # type: ignore[call-arg]
        assert "hunter2" not in str(caught.value)

    def test_a_file_in_another_encoding_is_refused(self, empty_environment: Path) -> None:
        """The error says which file, as the program may not know that it is read at all."""
        (empty_environment / ".env").write_bytes("KNAPSAQ_TIMEZONE=UTC".encode("utf-16"))
        with pytest.raises(SettingsError, match=r"setting \.env .* UTF-8"):
            Settings()

    @pytest.mark.parametrize("log_level", ["debug", "Debug", "DEBUG"])
    def test_a_log_level_may_be_written_in_small_letters(self, log_level: str) -> None:
        """Both ways are common."""
        assert Settings(log_level=log_level).log_level == "DEBUG"

    @pytest.mark.parametrize("result_ttl", [-1, 0, 1])
    def test_results_may_be_kept_not_at_all_for_ever_or_for_seconds(self, result_ttl: int) -> None:
        """SAQ's meaning of -1 and 0 stays."""
        assert Settings(result_ttl=result_ttl).result_ttl == result_ttl

    @pytest.mark.parametrize(
        "url",
        [
            "redis://localhost",
            "redis://user:p%40ss@localhost:6379/1?max_connections=5",
            "rediss://[::1]:6380/",
            "unix:///run/redis.sock?db=2",
            "redis+cluster://one:7000,two,[::1]:7002",
            "rediss+cluster://user:p%40ss@one:7000,two:7001/0?ssl_cert_reqs=none",
            "unix://user:pass@/run/redis.sock",
        ],
    )
    def test_the_urls_of_redis_are_accepted(self, url: str) -> None:
        """Whatever redis-py understands may be given."""
        assert Settings(broker_url=url).broker_url == url


class TestSecrets:
    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("redis://:hunter2@host:6379/0", "redis://:***@host:6379/0"),
            ("rediss://user:hunter2@host", "rediss://user:***@host"),
            ("redis://user:hun/ter2@host", "redis://user:***@host"),
            ("redis://user:hu@n?ter2@host", "redis://user:***@host"),
            ("redis://user:hun\nter2@host", "redis://user:***@host"),
            ("unix:///s.sock?db=1&password=hunter2&x=1", "unix:///s.sock?db=1&password=***&x=1"),
            ("redis://host?PASSWORD=hunt@er2", "redis://host?PASSWORD=***"),
            ("rediss://host?ssl_password=hunter2", "rediss://host?ssl_password=***"),
            ("redis://host:6379/0", "redis://host:6379/0"),
            ("embedded", "embedded"),
        ],
    )
    def test_a_password_in_a_url_is_hidden(self, url: str, shown: str) -> None:
        """Also one that was not percent-encoded, which is when the URL ends up in an error."""
        assert redact(url) == shown

    def test_nothing_that_is_printed_shows_a_secret(self) -> None:
        """Settings may be logged as a whole."""
        settings = Settings(broker_url="redis://user:hunter2@host", api_token="hunter2")  # type: ignore[arg-type]
        assert "hunter2" not in f"{settings!r} {settings} {settings.redacted_broker_url}"
        assert settings.redacted_broker_url == "redis://user:***@host"
        assert settings.api_token is not None
        assert settings.api_token.get_secret_value() == "hunter2"

    @pytest.mark.parametrize(
        "wrong", [{"broker_url": "http://user:hunter2@host"}, {"broker_url": "redis://u:hun/ter2@h"}, {"api_token": 2}]
    )
    def test_an_error_shows_no_secret(self, wrong: dict[str, Any]) -> None:
        """Neither its text nor the error that it came from, which a traceback would print."""
        with pytest.raises(SettingsError) as caught:
            Settings(**wrong)
        assert caught.value.__suppress_context__
        assert "***" in str(caught.value)
        assert "hun" not in str(caught.value)
