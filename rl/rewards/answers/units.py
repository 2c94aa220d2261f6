"""Units of quantities: physical units, money, percent, and counted things."""

import re

__all__ = ["Unit", "is_known_unit", "parse_unit", "same_unit"]

Unit = frozenset[str]
"""Set of canonical words; empty if no unit is given."""

_PREFIXES = {
    "k": "kilo",
    "c": "centi",
    "m": "milli",
    "d": "deci",
    "μ": "micro",
    "n": "nano",
    "M": "mega",
    "G": "giga",
}
_BASES = {
    "m": "meter", "g": "gram", "s": "second", "L": "liter", "l": "liter", "J": "joule", "W": "watt",
    "N": "newton", "V": "volt", "A": "ampere", "Pa": "pascal", "Hz": "hertz", "Wh": "watthour", "mol": "mole",
}  # fmt: skip
_OTHERS = {
    "h": "hour", "hr": "hour", "hrs": "hour", "min": "minute", "mins": "minute", "sec": "second", "secs": "second",
    "K": "kelvin", "C": "°c", "F": "°f", "in": "inch", "ft": "foot", "yd": "yard", "mi": "mile", "lb": "pound",
    "lbs": "pound", "oz": "ounce", "ml": "milliliter", "cc": "cm^3",
    "%": "%", "percent": "%", "percentage": "%", "$": "$", "dollar": "$", "usd": "$", "buck": "$", "€": "€", "euro": "€",
    "eur": "€", "£": "pound", "gbp": "pound", "¥": "¥", "yen": "¥", "₹": "₹", "rupee": "₹", "¢": "cent",
    "°": "°", "degree": "°", "deg": "°", "°c": "°c", "°f": "°f", "celsius": "°c", "fahrenheit": "°f",
    "feet": "foot", "metre": "meter", "litre": "liter", "tonne": "ton", "yr": "year", "yrs": "year", "hz": "hertz",
    "am": "am", "a.m": "am", "pm": "pm", "p.m": "pm",
}  # fmt: skip
_WORDS = (
    "meter", "gram", "second", "liter", "joule", "watt", "newton", "volt", "ampere", "pascal",
    "hertz", "mole", "hour", "minute", "day", "week", "month", "year", "kelvin", "inch", "foot",
    "yard", "mile", "pound", "ounce", "cent", "ton", "acre", "gallon", "quart", "pint", "cup",
    "radian", "bit", "byte", "ohm",
)  # fmt: skip
_SYMBOLS = {
    **{
        prefix + base: long + word
        for prefix, long in _PREFIXES.items()
        for base, word in _BASES.items()
    },
    **_BASES,
    **_OTHERS,
}
_LONG = {prefix + word for prefix in ("", *_PREFIXES.values()) for word in _WORDS}
_KNOWN = {*_SYMBOLS.values(), *_LONG, "per"}
_NOT_UNITS = frozenset((
    "or", "and", "plus", "minus", "times", "divided", "squared", "cubed", "factorial", "pi",
    "sqrt", "sin", "cos", "tan", "log", "ln", "exp", "if", "mod", "over", "i", "e", "x", "y", "z",
    "n",
))  # fmt: skip
_WORD = re.compile(
    r"(?:°\s*[CF]?(?![a-zA-Z])|[%$€£¥₹¢]|[^\W\d_][^\W\d_'.-]*(?:[-'.][^\W\d_]+)*)(?:\^\{?[-+]?\d\}?)?\.?|/"
)
_SPEEDS = {"mph": "mile per hour", "kph": "kilometer per hour", "kmh": "kilometer per hour"}
_SPEED = re.compile(r"\b(?:mph|kph|kmh)\b", re.IGNORECASE)
_END_OF_UNIT = frozenset((
    "in", "on", "at", "of", "for", "from", "with", "by", "to", "as", "left", "more", "altogether",
    "total", "each", "every", "is", "are", "was", "were", "will", "there", "that", "which",
))  # fmt: skip
"""Words that end a unit, as in `18 dollars in total`."""
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3"}


def parse_unit(text: str) -> Unit | None:
    """Return the unit in the text after a number; None if the text is no unit."""
    text = text.strip().strip("()[]").strip().rstrip(".,;:")
    text = re.sub("(?<=[a-z]{2})[!?]+$", "", text)
    text = _SPEED.sub(lambda match: _SPEEDS[match[0].lower()], text)
    words, power, end = [], "", 0
    for match in _WORD.finditer(text):
        if text[end : match.start()].strip(" ,()'"):
            return None
        end = match.end()
        word = match[0].rstrip(".").replace(" ", "")
        if word.casefold() in _POWERS:
            power = _POWERS[word.casefold()]
            continue
        if word.casefold() in _END_OF_UNIT and not (word == "in" and not text[end:].strip()):
            return None if re.search(r"[\d+*=^\\]", text[end:]) else frozenset(words)
        if word == "a" and words:  # as in dollars a day
            word = "per"
        canonical = _canonical(word, power)
        if canonical is None:
            return None
        words.append(canonical)
        power = ""
    if text[end:].strip(" ,()'"):
        return None
    if {"°", "°c"} <= set(words) or {"°", "°f"} <= set(words):
        words.remove("°")
    return frozenset(words)


def is_known_unit(word: str) -> bool:
    """Return whether a word after a number is always a unit, as cm is and apples is not."""
    unit = parse_unit(word)
    return bool(unit) and unit <= _KNOWN and word not in ("in", "A", "a", "am", "min", "sec", "h")


def same_unit(one: Unit, other: Unit) -> bool:
    """Return whether two units agree; a missing unit agrees with any."""
    known, other_known = _measures(one), _measures(other)
    if known and other_known:
        return known == other_known
    return one <= other or other <= one


def _measures(unit: Unit) -> Unit:
    return frozenset(word for word in unit if word.partition("^")[0] in _KNOWN)


def _canonical(word: str, power: str) -> str | None:
    if word == "/":
        return "per"
    stem, caret, exponent = word.partition("^")
    exponent = exponent.strip("{}")
    if caret:
        power = "" if exponent == "1" else f"^{exponent}"
    lower = stem.casefold()
    if stem in _SYMBOLS:
        return _SYMBOLS[stem] + power
    if lower in _NOT_UNITS or (len(stem) == 1 and stem.isalpha()):
        return None
    singular = _singular(lower)
    for name in (lower, singular):
        if name in _OTHERS:
            return _OTHERS[name] + power
        name = name.replace("metre", "meter").replace("litre", "liter")
        if name in _LONG:
            return name + power
    return None if caret else singular + power


def _singular(word: str) -> str:
    if word == "inches":
        return "inch"
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 2 else word
