"""Ranges of a configuration's fields; a value outside is an error that names the field, the rule and the value."""

from __future__ import annotations


def check(name: str, value: object, ok: bool, rule: str) -> None:
    """Raise ``ValueError`` unless ``ok``."""
    if not ok:
        raise ValueError(f"config: {name} must {rule}, got {value!r}")


def positive(prefix: str, config: object, *names: str) -> None:
    """Check fields that must be above 0."""
    for name in names:
        value = getattr(config, name)
        check(prefix + name, value, value > 0, "be positive")


def not_negative(prefix: str, config: object, *names: str) -> None:
    """Check fields that must be at least 0."""
    for name in names:
        value = getattr(config, name)
        check(prefix + name, value, value >= 0, "be at least 0")


def fraction(prefix: str, config: object, *names: str) -> None:
    """Check fields that must lie in [0, 1]."""
    for name in names:
        value = getattr(config, name)
        check(prefix + name, value, 0 <= value <= 1, "lie between 0 and 1")
