"""Typed configuration: dataclasses, filled from a TOML or JSON file and ``dotted.key=value`` overrides."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from cfmvit._io import atomic_write, parse_json
from cfmvit._require import require

Config = TypeVar("Config")


def load_config(
    cls: type[Config], file: str | Path | None = None, overrides: list[str] | None = None
) -> Config:
    """Build a ``cls`` from its defaults, then a file, then overrides; the last one wins.

    Args:
        cls: a dataclass; fields may be dataclasses themselves.
        file: ``.toml`` or ``.json``; the ``config.json`` that a run saves can be given back.
        overrides: ``"optim.lr=1e-3"``; values are read as JSON, and as plain text where that fails.

    Raises:
        FileNotFoundError: ``file`` does not exist.
        ValueError: a file that can't be parsed, an unknown key, or a value of the wrong type. The message names the
            key and lists the valid ones.
    """
    values: dict[str, Any] = _read(Path(file)) if file is not None else {}
    for item in overrides or []:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ValueError(f"config: an override must look like key=value, got {item!r}")
        _set(values, key.split("."), _parse(text), item)
    return _build(cls, values, "", None)


def save_config(config: Any, path: str | Path) -> None:
    """Write a config as JSON that ``load_config`` reads back."""
    with atomic_write(path, "w") as file:
        json.dump(dataclasses.asdict(config), file, indent=2)
        file.write("\n")


def format_config(config: Any, prefix: str = "") -> str:
    """Return the config as lines of ``dotted.key = value``, the form in which overrides are given."""
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            lines.append(format_config(value, f"{prefix}{field.name}."))
        else:
            lines.append(f"{prefix}{field.name} = {json.dumps(value)}")
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"config: no file at {path}")
    try:
        if path.suffix == ".json":
            values = parse_json(path.read_text(encoding="utf-8"))
        elif path.suffix == ".toml":
            values = _toml().loads(path.read_text(encoding="utf-8"))
        else:
            raise ValueError("its name must end in .toml or .json")
    except ValueError as error:
        raise ValueError(f"config: {path} can't be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} must hold a table of keys, got {type(values).__name__}")
    return values


def _toml() -> Any:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib
    return require("tomli", extra="models")


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def _set(values: dict[str, Any], keys: list[str], value: Any, item: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ValueError(f"config: {item!r} sets a key inside {key!r}, which holds a plain value")
    values[keys[-1]] = value


def _build(cls: type[Config], values: Any, prefix: str, default: Config | None) -> Config:
    if not isinstance(values, dict):
        raise ValueError(f"config: {prefix.rstrip('.')} must be a table of keys, got {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(
                f"config: unknown key {prefix}{key}; valid keys: {', '.join(prefix + name for name in fields)}"
            )
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            inner = _default(fields[key], default)
            arguments[key] = _build(hint, value, f"{prefix}{key}.", inner)  # type: ignore[arg-type]
        else:
            arguments[key] = _convert(value, hint, prefix + key)
    if default is None:
        return cls(**arguments)
    return dataclasses.replace(default, **arguments)  # type: ignore[type-var]


def _default(field: dataclasses.Field[Any], outer: Any) -> Any:
    """Return what a table has where nothing is given: the outer table's own defaults, which may be others than its class's."""
    if outer is not None:
        return getattr(outer, field.name)
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def _convert(value: Any, hint: Any, key: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option)
        if option is type(None) and value is None:
            return None
        if option is bool and isinstance(value, bool):
            return value
        if option is int and _is_number(value) and int(value) == value:
            return int(value)
        if option is float and _is_number(value):
            return float(value)
        if option is str and isinstance(value, str):
            return value
        if origin is dict and isinstance(value, dict):
            return dict(value)
        if origin is typing.Literal and value in typing.get_args(option):
            return value
        if origin in (list, tuple) and isinstance(value, (list, tuple)):
            inner = typing.get_args(option)
            kinds = [inner[0]] * len(value) if origin is list or inner[-1] is Ellipsis else list(inner)
            if len(kinds) == len(value):
                return origin(_convert(v, k, f"{key}[{i}]") for i, (v, k) in enumerate(zip(value, kinds)))
    choices = [
        choice
        for option in options
        if typing.get_origin(option) is typing.Literal
        for choice in typing.get_args(option)
    ]
    if choices:
        hint = "; fp16 would need its losses scaled, bf16 needs nothing" if value == "fp16" else ""
        raise ValueError(f"config: {key} must be one of {', '.join(map(str, choices))}, got {value!r}{hint}")
    wanted = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    raise ValueError(f"config: {key} must be {wanted}, got {value!r}")


def _is_number(value: Any) -> bool:
    """Say whether a value is a number that a finite float can hold; NaN compares as false."""
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )
