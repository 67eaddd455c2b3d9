"""What the options have in common: each is checked when its config is made."""

import dataclasses
import math
import re
from typing import Any


def require(condition: bool, got: str, wanted: str) -> None:
    """Raises a ``ValueError`` with what was got and what was wanted, unless the condition holds."""
    if not condition:
        raise ValueError(f"got {got}; wanted {wanted}")


def require_finite(section: str, options: Any) -> None:
    """Refuses NaN and infinity in any number of a section; ``section`` is its prefix, such as ``optim.``."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            require(
                not isinstance(number, float) or math.isfinite(number),
                f"{section}{field.name}={value}",
                "finite numbers",
            )


def require_pattern(name: str, pattern: str) -> None:
    """Refuses what is not a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"got {name}={pattern!r} ({error}); wanted a regular expression") from error
