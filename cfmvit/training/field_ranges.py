"""Ranges of a configuration's fields; a value outside is an error that names the field, the rule and the value."""

from __future__ import annotations

import math


def check(name: str, value: object, ok: bool, rule: str) -> None:
    """Raise ``ValueError`` unless ``ok``."""
    if not ok:
        raise ValueError(f"config: {name} must {rule}, got {value!r}")


def _finite(prefix: str, config: object, name: str) -> float:
    value = getattr(config, name)
    check(prefix + name, value, not isinstance(value, float) or math.isfinite(value), "be finite")
    return value


def positive(prefix: str, config: object, *names: str) -> None:
    """Check fields that must be finite and above 0."""
    for name in names:
        value = _finite(prefix, config, name)
        check(prefix + name, value, value > 0, "be positive")


def not_negative(prefix: str, config: object, *names: str) -> None:
    """Check fields that must be finite and at least 0."""
    for name in names:
        value = _finite(prefix, config, name)
        check(prefix + name, value, value >= 0, "be at least 0")


def fraction(prefix: str, config: object, *names: str) -> None:
    """Check fields that must lie in [0, 1]."""
    for name in names:
        value = getattr(config, name)
        check(prefix + name, value, 0 <= value <= 1, "lie between 0 and 1")


def below_one(prefix: str, config: object, *names: str) -> None:
    """Check fields that must lie in [0, 1): the weight that a running mean gives its past."""
    for name in names:
        value = getattr(config, name)
        check(prefix + name, value, 0 <= value < 1, "be at least 0 and below 1")
