"""Ranges of a configuration's fields; a value outside is an error that names the field, the rule and the value."""

from __future__ import annotations

import math

_MOST = {
    "convs": 100,
    "channels": 2**16,
    "fc": 2**16,
    "image_size": 2**12,
    "window": 2**10,
    "box_size": 256,
    "mask_size": 256,
    "vlm_grid": 1024,
}


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
        _check_size(prefix + name, value)


def not_negative(prefix: str, config: object, *names: str) -> None:
    """Check fields that must be finite and at least 0."""
    for name in names:
        value = _finite(prefix, config, name)
        check(prefix + name, value, value >= 0, "be at least 0")
        _check_size(prefix + name, value)


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


def _check_size(name: str, value: float) -> None:
    """A stranger's configuration fails here, before it fills the memory; counts of steps and seeds may be larger."""
    most = next((most for part, most in _MOST.items() if name.endswith(part)), None)
    if most is not None:
        check(name, value, value <= most, f"be at most {most}")
