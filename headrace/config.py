"""The configuration of every process: a TOML file and environment variables; each section is checked by its owner.

    [kafka]                       HEADRACE_KAFKA__BOOTSTRAP=broker:9092
    bootstrap = "broker:9092"

The file is the one named by ``--config`` or else ``$HEADRACE_CONFIG``, or else ``./headrace.toml`` if it exists. Every
key has a default, and the environment overrides the file. There, lists are written ``a,b,c`` or as JSON, and everything
under ``HEADRACE_KAFKA__CLIENT__…`` is passed to the Kafka clients unchanged. An unknown key or an impossible value is
refused at startup, in one line that says what would be right.
"""

from __future__ import annotations

import json
import os
import tomllib
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from headrace.config_errors import PREFIX, Explainer, keys_of, nearest
from headrace.sentences import say
from model.config import ModelConfig
from serving.config import ServingConfig
from state.config import StoreConfig
from stream.config import StreamConfig
from trainer.config import TrainerConfig
from wire.checks import Number, Switch, expect
from wire.client_options import OPTIONS
from wire.config import ActionConfig, KafkaConfig, SequenceConfig, check_sizes
from wire.errors import ConfigError

DEFAULT_PATH = Path("headrace.toml")
# Keys of [model] that other sections determine.
FOLLOWS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "kinds": ("action", "kinds", tuple),
    "num_features": ("action", "features", len),
    "num_user_features": ("action", "user_features", len),
    "user_tokens": ("action", "user_tokens", bool),
    "propensity": ("action", "propensity", bool),
    "max_context": ("sequence", "max_context", int),
}


class _Environment(EnvSettingsSource):
    """Environment variables; lists may be written ``a,b,c``, and tables as JSON."""

    def __call__(self) -> dict[str, Any]:
        values: dict[str, Any] = super().__call__()
        for section, entries in values.items():
            if isinstance(entries, dict):
                kinds = _field_types(_section_types().get(section))
                _refuse_empty_path(section, entries, kinds)
                values[section] = {key: _parse(kinds.get(key), text) for key, text in entries.items()}
        return values


class Settings(BaseSettings):
    """The configuration of every process, with one attribute per section."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, hide_input_in_errors=False,
        allow_inf_nan=False,
    )  # fmt: skip

    action: ActionConfig = Field(default_factory=ActionConfig)
    sequence: SequenceConfig = Field(default_factory=SequenceConfig)
    store: StoreConfig = Field(default_factory=StoreConfig)
    kafka: KafkaConfig = Field(default_factory=KafkaConfig)
    stream: StreamConfig = Field(default_factory=StreamConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    serving: ServingConfig = Field(default_factory=ServingConfig)

    @model_validator(mode="before")
    @classmethod
    def _let_the_model_follow(cls, values: Any) -> Any:
        """Fill in the model's keys that other sections determine."""
        model = values.get("model", {}) if isinstance(values, dict) else {}
        if not isinstance(model, dict):
            return values
        follows = {}
        for key, (section, name, derive) in FOLLOWS.items():
            given = values.get(section, {})
            if isinstance(given, dict) and name in given:
                with suppress(TypeError, ValueError, OverflowError):  # its own section says what is wrong with it
                    follows[key] = derive(given[name])
            else:
                follows[key] = derive(getattr(_section_types()[section](), name))
        return {**values, "model": {**follows, **model}}

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        for key, (section, name, derive) in FOLLOWS.items():
            decided = derive(getattr(getattr(self, section), name))
            if getattr(self.model, key) != decided:
                raise ValueError(
                    f"model.{key}: expected {decided!r} as {section}.{name} says, got {getattr(self.model, key)!r}; "
                    f"leave model.{key} out"
                )
        check_sizes(self.action, self.sequence)
        expect(
            not self.model.predict_value or self.trainer.shards == 1,
            "trainer.shards",
            "1 with model.predict_value, which several processes do not support",
            self.trainer.shards,
            "leave one of them out",
        )
        strange = sorted(set(self.trainer.kind_weights) - set(self.action.kinds))
        expect(
            not strange, "trainer.kind_weights", f"kinds among {self.action.kinds}", strange, "add them to action.kinds"
        )
        are_weighed = self.action.propensity or bool(self.trainer.kind_weights)
        for key in ("shards", "memory_group"):
            expect(
                not are_weighed or getattr(self.trainer, key) == 1,
                f"trainer.{key}",
                "1 with action.propensity or trainer.kind_weights, which neither several processes nor a memory on the "
                "GPU support",
                getattr(self.trainer, key),
                "leave one of them out",
            )
        longest_s = self.kafka.min_compaction_lag_s / 2
        expect(
            self.trainer.feedback != "wait" or self.trainer.feedback_window_s <= longest_s,
            "trainer.feedback_window_s",
            f"at most {longest_s:.15g} with feedback = 'wait', half of kafka.min_compaction_lag_s: what waits is read "
            "again from the topic at a restart",
            self.trainer.feedback_window_s,
            f"give kafka.min_compaction_lag_s {2 * self.trainer.feedback_window_s:.15g}, or wait less",
        )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment overrides the file; there are no other sources."""
        return _Environment(settings_cls), init_settings


def load_settings(path: Path | str | None = None) -> Settings:
    """`read_settings` for a process: a wrong key or value ends it, with one line on stderr and exit status 2."""
    try:
        return read_settings(path)
    except ConfigError as error:
        say(f"headrace: {error}", is_error=True)
        raise SystemExit(2) from None


def read_settings(path: Path | str | None = None) -> Settings:
    """Read and check the file and the environment. Raises `ConfigError`."""
    source, table = _read_file(path)
    _refuse_unknown_environment()
    try:
        _refuse_other_spellings(table)
        _refuse_switches(table)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    try:
        return Settings(**table)
    except ValidationError as error:
        explainer = Explainer(_section_types(), source, table)
        raise ConfigError(explainer.explain(error.errors()[0])) from None


def _read_file(path: Path | str | None) -> tuple[str, dict[str, Any]]:
    file = Path(named) if (named := path or os.environ.get(PREFIX + "CONFIG")) else DEFAULT_PATH
    if not named and not file.is_file():
        return str(file), {}
    try:
        return str(file), tomllib.loads(_text_of(file, file.read_bytes()))
    except ConfigError:
        raise
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: expected TOML, got {error}; correct it") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{str(file)!s:.200}: cannot read it: {why}; name another with --config") from None


def _text_of(file: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ConfigError(f"{file}: expected UTF-8, got UTF-16; save it as UTF-8, which TOML asks for") from None
        number = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start : error.start + 1]
        raise ConfigError(
            f"{file}:{number}: expected UTF-8, got the byte {byte!r}; save it as UTF-8: iconv -f latin1 -t utf-8"
        ) from None


def _section_types() -> dict[str, Any]:
    return {name: field.annotation for name, field in Settings.model_fields.items()}


def _field_types(section: Any) -> dict[str, Any]:
    if not is_dataclass(section):
        return {}
    return typing.get_type_hints(section) if isinstance(section, type) else {}


def _parse(kind: Any, text: Any) -> Any:
    """The value of an environment variable; text becomes a list or a table if the key's type calls for one."""
    origin = typing.get_origin(kind)
    if isinstance(text, dict):
        # A password that looks like a number remains text.
        return {name: _scalar(value) if _is_parsed(name) else value for name, value in text.items()}
    if origin is tuple:
        if text.lstrip().startswith("["):
            return _json(text)
        return [item.strip() for item in text.split(",") if item.strip()]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _json(text)
    return text


def _is_parsed(option: str) -> bool:
    return isinstance(OPTIONS.get(option), Number | Switch)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _scalar(text: Any) -> Any:
    value = _json(text) if isinstance(text, str) else text
    return text if isinstance(value, list | dict) and not isinstance(text, str) else value


def _refuse_other_spellings(table: Mapping[str, Any]) -> None:
    """Refuse [Kafka] for [kafka]: pydantic accepts either, and the last one if both are given. Raises `ConfigError`."""
    for section in table.keys() - Settings.model_fields.keys():
        meant = section.lower()
        if meant in Settings.model_fields:
            raise ConfigError(f"[{section}]: there is no such section; write it as [{meant}]")


def _refuse_switches(table: Mapping[str, Any]) -> None:
    """Refuse true or false for a number, which pydantic would read as 1 or 0. Raises `ConfigError`."""
    for section, owner in _section_types().items():
        entries, types = table.get(section), _field_types(owner)
        for key, value in entries.items() if isinstance(entries, Mapping) else ():
            is_number = types.get(key) in (int, float)
            expect(not (isinstance(value, bool) and is_number), f"{section}.{key}", "a number", value, "give a number")
        _refuse_empty_path(section, entries if isinstance(entries, Mapping) else {}, types)


def _refuse_empty_path(section: str, entries: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Refuse a path that is empty, as an unset variable of a compose file is: it would be the current folder."""
    for key, value in entries.items():
        is_fine = types.get(key) is not Path or value != ""
        expect(is_fine, f"{section}.{key}", "a path", value, 'leave it out to get the default; "." is this folder')


def _refuse_unknown_environment() -> None:
    seen: dict[str, str] = {}
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX):
            _check_variable(name, name[len(PREFIX) :].lower())
            if (other := seen.setdefault(name.upper(), name)) != name:
                raise ConfigError(f"environment: {other} and {name} are the same key; remove one")


def _check_variable(name: str, rest: str) -> None:
    section, divided, _ = rest.partition("__")
    if divided and section not in Settings.model_fields:
        raise ConfigError(
            f"environment: {name} names no section{nearest(section, Settings.model_fields)}; "
            f"sections: {', '.join(Settings.model_fields)}"
        )
    if not divided and section in Settings.model_fields:
        raise ConfigError(f"environment: {name} names no key; write {name}__KEY for each key of [{section}]")
    meant = None if divided else _single_underscores().get(rest)
    # For a service `headrace-serving`, Kubernetes sets HEADRACE_SERVING_PORT=tcp://…
    if meant is not None and "://" not in os.environ[name]:
        raise ConfigError(f"environment: {name} is no key; write {PREFIX}{meant.upper()}, with two underscores")


def _single_underscores() -> dict[str, str]:
    """Each key as it is written by someone who forgets an underscore → as it should be."""
    return {
        f"{section}_{key}": f"{section}__{key}" for section, owner in _section_types().items() for key in keys_of(owner)
    }
