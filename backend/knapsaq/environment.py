"""Environment: classes whose values come from the program, the environment or a ``.env`` file.

Where in the flow: ``Settings`` is such a class, and an application may write more. Fields are
written as a dataclass has them. Making an instance reads, converts and checks each; after that
nobody looks at the environment again.

Invariants, each a test in ``tests/unit/test_environment.py``:

* the program wins over the environment, which wins over the file, value by value; an empty variable is not set;
* a wrong value raises :class:`SettingsError`, which names the variable and shows no secret;
* an instance does not change, and survives the way to another process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self, dataclass_transform, get_type_hints

import msgspec

from knapsaq.errors import ConfigurationError, SettingsError, nearest

HIDDEN = "***"
ENV_FILE = ".env"
WORDS = {
    **dict.fromkeys(("true", "t", "yes", "y", "on"), True),
    **dict.fromkeys(("false", "f", "no", "n", "off"), False),
}


class SecretStr:
    """A text that nothing prints: ``str()`` and ``repr()`` give asterisks.

    Args:
        value: The text.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def get_secret_value(self) -> str:
        """Return the text."""
        return self._value

    def __repr__(self) -> str:
        return f"SecretStr({HIDDEN!r})"

    def __str__(self) -> str:
        return HIDDEN

    def __eq__(self, other: object) -> bool:
        return self._value == other._value if isinstance(other, SecretStr) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value)


def redact(url: str) -> str:
    """Return a URL with its password hidden, be it before the ``@`` or in the query; any other text as it is."""
    shown = re.sub(r"([?&](?:ssl_)?password=)[^&]*", rf"\1{HIDDEN}", url, flags=re.IGNORECASE)
    # Greedy up to the last @: a password in which / ? # or @ was not percent-encoded must not be shown either.
    return re.sub(r"(://[^:/@]*):.*@", rf"\1:{HIDDEN}@", shown, flags=re.DOTALL)


def setting(
    *,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    description: str = "",
    ge: float | None = None,
    le: float | None = None,
    read: Callable[[Any], Any] | None = None,
    check: Callable[[Any], Any] | None = None,
) -> Any:
    """Describe a field of :class:`EnvironmentSettings`; one without a default has to be given.

    Args:
        default: What is taken if nobody gives a value; read and checked as if somebody had.
        default_factory: Makes the default, for values that can be changed.
        description: What the value means; an error says it.
        ge: The least number.
        le: The greatest one.
        read: Makes of what was given, mostly a text, something to convert to the annotated type.
        check: Takes the converted value and returns the one to keep.

    Both functions refuse a value by a ``ValueError`` that says what would be right.
    """
    rules = {"description": description, "ge": ge, "le": le, "read": read, "check": check}
    made: Any = field(default=default, default_factory=default_factory, metadata=rules)
    return made


# In a base class, so that type checkers derive the constructors of the classes below from their fields.
@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting, field))
class EnvironmentSettings:
    """The base of classes whose fields are also variables, ``<PREFIX><FIELD>`` in capitals.

    ``class Shop(EnvironmentSettings, prefix="SHOP_")`` reads ``SHOP_MAIL_HOST`` for its field ``mail_host``. The
    constructor takes each field by name, and ``_env_file``: another file than ``.env``, or None for none. What is
    not given there comes from the environment, then from the file, then from the default. A text is converted to the
    field's type, from JSON where the type is made of several values. A method ``__post_init__`` may check the whole
    and raise ``ValueError``.

    Raises:
        SettingsError: A value is missing or wrong, or a name given to the constructor is none of the fields.
        ConfigurationError: A field's type is not known where the class is defined.
    """

    _prefix: ClassVar[str] = ""
    _types: ClassVar[Mapping[str, Any]] = {}
    _given: frozenset[str]

    def __init_subclass__(cls, *, prefix: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if prefix is not None:
            cls._prefix = prefix
        dataclass(frozen=True, kw_only=True, init=False, repr=False)(cls)
        try:
            hints = get_type_hints(cls, include_extras=True)
        except NameError as error:
            msg = f"a setting of {cls.__qualname__} is of a type that its module does not have: {error}"
            raise ConfigurationError(msg) from None
        cls._types = {each.name: hints[each.name] for each in cls._fields()}

    def __init__(self, **values: Any) -> None:
        env_file = values.pop("_env_file", ENV_FILE)
        self._refuse_unknown(values)
        given = {**self._found({} if env_file is None else _file(env_file)), **values}
        vars(self).update({each.name: self._value(each, given) for each in self._fields()}, _given=frozenset(given))
        self._verify()

    @classmethod
    def _fields(cls) -> tuple[Field[Any], ...]:
        made: Any = cls
        return fields(made)

    def with_values(self, **values: Any) -> Self:
        """Return the settings with other values, which are converted and checked as those of the constructor.

        Raises:
            SettingsError: A value is wrong, or a name is none of the fields.
        """
        self._refuse_unknown(values)
        changed = object.__new__(type(self))
        new = {each.name: self._value(each, values) for each in self._fields() if each.name in values}
        vars(changed).update({**vars(self), **new}, _given=self._given | values.keys())
        changed._verify()
        return changed

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the fields."""
        return tuple(cls._types)

    def is_given(self, name: str) -> bool:
        """Tell whether somebody has chosen a value: the program, the environment or the file."""
        return name in self._given

    def __repr__(self) -> str:
        shown = ((each.name, getattr(self, each.name)) for each in self._fields())
        texts = (f"{name}={redact(repr(value))}" for name, value in shown)
        return f"{type(self).__qualname__}({', '.join(texts)})"

    @classmethod
    def _variable(cls, name: str) -> str:
        return f"{cls._prefix}{name}".upper()

    @classmethod
    def _refuse_unknown(cls, names: Mapping[str, Any]) -> None:
        for name in names:
            if name not in cls._types:
                # Not the value: it may be a secret whose name was mistyped.
                raise SettingsError(cls._variable(name), HIDDEN, f"the name of a setting: {nearest(name, cls._types)}")

    @classmethod
    def _found(cls, file: Mapping[str, str | None]) -> dict[str, str]:
        """Return the texts of the environment and the file, by field."""
        names = {cls._variable(name): name for name in cls._types}
        texts = {variable.upper(): text for source in (file, os.environ) for variable, text in source.items() if text}
        return {name: texts[variable] for variable, name in names.items() if variable in texts}

    def _verify(self) -> None:
        check: Callable[[], None] | None = getattr(self, "__post_init__", None)
        try:
            if check:
                check()
        except ValueError as error:
            raise SettingsError(type(self).__qualname__, HIDDEN, str(error)) from None

    @classmethod
    def _value(cls, each: Field[Any], given: Mapping[str, Any]) -> Any:
        """Return a field's value: what was given, converted and checked, or the default."""
        if each.name in given:
            return cls._checked(each, given[each.name])
        if each.default_factory is not MISSING:
            return cls._checked(each, each.default_factory())
        if each.default is MISSING:
            raise SettingsError(cls._variable(each.name), None, cls._expected(each))
        return cls._checked(each, each.default)

    @classmethod
    def _checked(cls, each: Field[Any], given: Any) -> Any:
        kind, rules = cls._types[each.name], each.metadata
        try:
            value = _converted(rules["read"](given) if rules.get("read") else given, kind)
            _refuse_outside(value, rules.get("ge"), rules.get("le"))
            return rules["check"](value) if rules.get("check") else value
        except ValueError as error:
            asked = "" if isinstance(error, msgspec.ValidationError) else str(error)
            # `from None`: the other error's text may show the value, which may hold a password.
            raise SettingsError(cls._variable(each.name), _shown(kind, given), asked or cls._expected(each)) from None

    @classmethod
    def _expected(cls, each: Field[Any]) -> str:
        """Return in words what a setting has to be: a number's range, what it is about, or its type."""
        kind, rules = cls._types[each.name], each.metadata
        about, low, high = rules.get("description"), rules.get("ge"), rules.get("le")
        if low is None or high is None:
            return about or f"a value of type {kind.__name__ if isinstance(kind, type) else kind}"
        number = "a whole number" if kind is int else "a number"
        return f"{number} from {low:,} to {high:,}" + (f" ({about})" if about else "")


def _converted(value: Any, kind: Any) -> Any:
    """Return a value as a type; of several ways to read a text the first that fits decides.

    Raises:
        msgspec.ValidationError: None fits.
    """
    try:
        return msgspec.convert(value, kind, strict=False, dec_hook=_decoded)
    except msgspec.ValidationError:
        for reading in _readings(value) if isinstance(value, str) else ():
            try:
                return msgspec.convert(reading, kind, dec_hook=_decoded)
            except msgspec.ValidationError:
                continue
        raise


def _refuse_outside(value: Any, low: float | None, high: float | None) -> None:
    if (low is not None and not value >= low) or (high is not None and not value <= high):  # NaN is neither
        raise ValueError


def _readings(text: str) -> Iterator[Any]:
    """Return what a text may mean: a number with blanks around, a word for yes or no, JSON."""
    text = text.strip()
    if text.lower() in WORDS:
        yield WORDS[text.lower()]
    for parse in (int, float, msgspec.json.decode):
        try:
            yield parse(text)
        except ValueError:
            continue


def _decoded(kind: type, value: Any) -> Any:
    """Return a value of a type that msgspec does not know, such as a path; msgspec turns what this raises."""
    if isinstance(value, kind):
        return value
    if kind is SecretStr and hasattr(value, "get_secret_value"):  # pydantic's
        value = value.get_secret_value()
    if not isinstance(value, str):
        msg = f"expected {kind.__name__}"
        raise TypeError(msg)
    try:
        return kind(value)
    except Exception:  # noqa: BLE001 - whatever a type raises, the text is none of it
        msg = f"no {kind.__name__}"
        raise ValueError(msg) from None


def _shown(kind: Any, given: Any) -> Any:
    """Return a value as an error may show it."""
    if "SecretStr" in str(kind):
        return HIDDEN
    return redact(given) if isinstance(given, str) else given


def _file(path: str | os.PathLike[str]) -> Mapping[str, str | None]:
    """Return the variables of a file; none where there is no file."""
    if not isinstance(path, (str, os.PathLike)):
        raise SettingsError("_env_file", path, "the path of one file, or None for none")
    file = Path(path).expanduser()
    if not file.is_file():
        return {}
    from dotenv import dotenv_values  # noqa: PLC0415 - a program without such a file does without it

    try:
        # Editors on Windows begin the file with a byte order mark.
        return dotenv_values(file, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(os.fspath(path), f"not UTF-8 at byte {error.start}", "a text file in UTF-8") from None
