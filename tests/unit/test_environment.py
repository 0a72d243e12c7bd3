from __future__ import annotations

import copy
import dataclasses
import pickle
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pydantic
import pytest

from knapsaq import Settings
from knapsaq.environment import EnvironmentSettings, SecretStr, setting
from knapsaq.errors import ConfigurationError, SettingsError


class Colour(Enum):
    RED = "red"


class Shop(EnvironmentSettings, prefix="SHOP_"):
    """An application's own settings."""

    name: str
    port: int = setting(default=25, ge=1, le=65535, description="where mail is taken")
    debug: bool = False
    rate: float = 1
    budget: Decimal | None = None
    colours: tuple[Colour, ...] = ()
    mode: Literal["live", "test"] = "test"
    zone: ZoneInfo = ZoneInfo("UTC")
    host: IPv4Address | None = None
    pause: timedelta = timedelta(0)
    keys: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    hosts: tuple[str, ...] = ()
    token: SecretStr = SecretStr("none")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working directory, where no .env file is."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestReading:
    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("port", " 80 ", 80),
            ("port", "80.0", 80),
            ("port", "1_000", 1000),
            ("debug", "yes", True),
            ("debug", "0", False),
            ("debug", "Off", False),
            ("rate", ".5", 0.5),
            ("rate", "1e3", 1000.0),
            ("rate", "-inf", float("-inf")),
            ("budget", "1.10", Decimal("1.10")),
            ("colours", '["red", "red"]', (Colour.RED, Colour.RED)),
            ("mode", "live", "live"),
            ("zone", "Europe/Berlin", ZoneInfo("Europe/Berlin")),
            ("host", "10.0.0.1", IPv4Address("10.0.0.1")),
            ("pause", "PT1M", timedelta(minutes=1)),
            ("keys", '{"a": [1, 2]}', {"a": [1, 2]}),
            ("token", "hunter2", SecretStr("hunter2")),
            ("name", "17", "17"),
            ("name", " [1] ", " [1] "),
        ],
    )
    def test_a_text_becomes_what_its_field_is_annotated_with(
        self, name: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whether it comes from the environment or from the program; a text stays as it is."""
        monkeypatch.setenv("SHOP_NAME", "corner")
        given: Any = {name: text}
        assert getattr(Shop(**given), name) == value
        monkeypatch.setenv(f"SHOP_{name.upper()}", text)
        assert getattr(Shop(), name) == value

    def test_another_file_may_be_named_or_none(self, folder: Path) -> None:
        """The name of a variable may be in small letters, as everywhere."""
        (folder / ".env").write_text("SHOP_NAME=here\nexport shop_port='80'  # a comment\n")
        (folder / "other.env").write_text("SHOP_NAME=there\n")
        shop = Shop()  # type: ignore[call-arg]
        assert (shop.name, shop.port) == ("here", 80)
        other: Any = {"_env_file": folder / "other.env"}
        assert Shop(**other).name == "there"
        nowhere: Any = {"_env_file": folder / "nowhere.env", "name": "corner"}
        assert Shop(**nowhere).port == Shop(name="corner", _env_file=None).port == 25  # type: ignore[arg-type]
        several: Any = {"_env_file": (".env", "other.env")}
        with pytest.raises(SettingsError, match="expected the path of one file, or None for none"):
            Shop(**several)

    def test_an_empty_variable_leaves_it_to_the_file(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is as if it was not there."""
        (folder / ".env").write_text("SHOP_NAME=here\nSHOP_PORT=\n")
        monkeypatch.setenv("SHOP_NAME", "")
        shop = Shop()  # type: ignore[call-arg]
        assert (shop.name, shop.port) == ("here", 25)

    def test_one_can_ask_who_has_chosen_a_value(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Somebody, be it with the value of the default, or nobody."""
        monkeypatch.setenv("SHOP_PORT", "25")
        shop = Shop(name="corner")
        assert [name for name in Shop.names() if shop.is_given(name)] == ["name", "port"]

    def test_a_subclass_has_a_prefix_and_defaults_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The prefix counts for what it inherits, too; without one it is the parent's."""

        class Tests(Settings, prefix="TEST_"):
            concurrency: int = 1

        class Mail(Shop):
            sender: str = "me"

        monkeypatch.setenv("TEST_LEASE", "7")
        monkeypatch.setenv("SHOP_SENDER", "you")
        assert (Tests().concurrency, Tests().lease) == (1, 7)
        assert Mail(name="x").sender == "you"


class TestWrongValues:
    @pytest.mark.parametrize(
        ("name", "value", "text"),
        [
            ("name", None, "SHOP_NAME is None; expected a value of type str"),
            ("port", 0, "SHOP_PORT is 0; expected a whole number from 1 to 65,535 (where mail is taken)"),
            ("debug", "perhaps", "SHOP_DEBUG is 'perhaps'; expected a value of type bool"),
            ("budget", [], "SHOP_BUDGET is []; expected a value of type"),
            ("colours", "green", "SHOP_COLOURS is 'green'; expected a value of type tuple"),
            ("colours", '["green"]', "SHOP_COLOURS is '[\"green\"]'; expected"),
            ("zone", "Mars/Olympus", "SHOP_ZONE is 'Mars/Olympus'; expected a value of type ZoneInfo"),
            ("host", "10.0.0.256", "SHOP_HOST is '10.0.0.256'; expected a value of type ipaddress.IPv4Address | None"),
        ],
    )
    def test_it_is_refused_with_the_variable_and_what_would_be_right(self, name: str, value: object, text: str) -> None:
        """Also where the field is not described."""
        given: Any = {"name": "corner", name: value}
        with pytest.raises(SettingsError) as caught:
            Shop(**given)
        assert str(caught.value).startswith(f"setting {text}")

    def test_a_missing_value_is_named(self) -> None:
        """The first that is missing."""
        with pytest.raises(SettingsError, match=r"^setting SHOP_NAME is None; expected a value of type str"):
            Shop()  # type: ignore[call-arg]

    def test_a_wrong_default_is_told(self) -> None:
        """It is checked as if somebody had given it."""

        class Wrong(EnvironmentSettings):
            port: int = setting(default=0, ge=1, le=9)

        with pytest.raises(SettingsError, match=r"PORT is 0; expected a whole number from 1 to 9$"):
            Wrong()

    def test_a_type_that_nobody_knows_is_told_where_the_class_is_written(self) -> None:
        """With the class and the type."""
        with pytest.raises(ConfigurationError, match=r"Wrong.*'Nowhere' is not defined"):

            class Wrong(EnvironmentSettings):
                place: Nowhere  # type: ignore[name-defined]  # noqa: F821


class TestInstance:
    def test_other_values_make_another_instance(self) -> None:
        """They are checked as the constructor's, and what is not named stays, whatever the environment says now."""
        shop = Shop(name="corner", port=80)
        other: Shop = shop.with_values(port="81")
        assert (other.name, other.port, shop.port, other.is_given("port")) == ("corner", 81, 80, True)
        for wrong, text in (({"port": 0}, "SHOP_PORT is 0"), ({"prot": 1}, "did you mean 'port'")):
            with pytest.raises(SettingsError, match=text):
                shop.with_values(**wrong)

    def test_it_does_not_change_and_goes_between_processes(self) -> None:
        """Equal values make equal instances; the standard library's own functions know it."""
        shop = Shop(name="corner", token=SecretStr("hunter2"))
        for change in (lambda: setattr(shop, "name", "x"), lambda: delattr(shop, "name")):
            with pytest.raises(AttributeError):
                change()
        again = pickle.loads(pickle.dumps(shop))  # noqa: S301 - our own bytes
        assert again == copy.deepcopy(shop) == dataclasses.replace(shop) == shop
        assert again.is_given("token")
        assert not again.is_given("port")
        assert dataclasses.replace(shop, port=80) != shop

    def test_secrets_are_shown_to_nobody(self) -> None:
        """Not in the whole, not alone, not when they are wrong; one of pydantic's is taken as well."""
        given: Any = {"name": "redis://user:hunter2@host", "token": pydantic.SecretStr("hunter2")}
        shop = Shop(**given)
        assert "hunter2" not in f"{shop!r} {shop} {shop.token!r} {shop.token}"
        hosts: Any = {"name": "corner", "token": "t", "hosts": ["redis://user:hunter2@host"]}
        assert "hunter2" not in repr(Shop(**hosts))
        assert shop.token.get_secret_value() == "hunter2"
        assert {shop.token, SecretStr("hunter2")} == {SecretStr("hunter2")}
        assert shop.token != "hunter2"
        wrong: Any = {"name": "corner", "token": ["hunter2"]}
        with pytest.raises(SettingsError) as caught:
            Shop(**wrong)
        assert "hunter2" not in str(caught.value)
