"""Amounts that a provider writes as text, without saying in which unit."""

import re
from typing import Final

from metering.money import INT64_MAX

_TEXT: Final = re.compile(r"([0-9]{1,40})(?:\.([0-9]{1,40}))?", re.ASCII)
# ISO 4217: currencies whose minor unit is not a hundredth.
_WHOLE: Final = (
    "BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND",
    "VUV", "XAF", "XOF", "XPF",
)  # fmt: skip
_THOUSANDTHS: Final = ("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND")
_DECIMALS: Final = {**dict.fromkeys(_WHOLE, 0), **dict.fromkeys(_THOUSANDTHS, 3)}
_DECIMALS_USUAL: Final = 2


def minor_of_text(text: str, currency: str) -> int | None:
    """Return the minor units that `text` names, or None if it is not an amount above zero.

    An integer counts minor units, `12.30` major ones. A part of a minor unit counts as a whole one,
    so that no less is called back than was said; more than 64 bits hold is as much as they hold.
    """
    found = _TEXT.fullmatch(text)
    if found is None:
        return None
    whole, part = found.groups()
    if part is None:
        return min(int(whole), INT64_MAX) or None
    decimals = _DECIMALS.get(currency.upper(), _DECIMALS_USUAL)
    rest = part[decimals:].strip("0")
    minor = int(whole + part[:decimals].ljust(decimals, "0")) + bool(rest)
    return min(minor, INT64_MAX) or None
