"""Conversion of answers to plain text: LaTeX, Unicode and markup with the same meaning become the same characters."""

import re
import unicodedata

__all__ = ["fold", "to_plain"]

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SUPERSCRIPT_RUN = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_BEFORE_VULGAR_FRACTION = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")
_DOLLAR = "\ue000"  # stands for the dollar sign of money while those around formulas are removed
_NUMBER = r"[-+]?[\d,]*\.?\d+"
_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[\u2212\u2013\u2010\u2011]", "-"),
        (r"\u2044", "/"),
        (r"\\\$", _DOLLAR),
        (r"(?<!\\)\$\$?([^$]*)(?<!\\)\$\$?", r"\1"),
        (r"\\\(|\\\)|(?<!\\)\\\[|\\\]", " "),
        (r"\\!", ""),
        (r"\\([%#&])", r"\1"),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", ""),
        (r"\\(?:displaystyle|textstyle|limits)(?![a-zA-Z])", ""),
        (r"\\[,;:> ]|~|\\q?quad(?![a-zA-Z])", " "),
        (r"\{,\}", ","),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (
            r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\(?:degree|textdegree)(?![a-zA-Z])|º",
            "°",
        ),
        (r"\\(?:times|cdot)(?![a-zA-Z])|[\u00d7\u00b7\u22c5\u2217]", "*"),
        (r"\\colon(?![a-zA-Z])|\u2236", ":"),
        (r"\\in(?![a-zA-Z])|∈", "="),
        (r"\\infty(?![a-zA-Z])", "∞"),
        (r"\\pi(?![a-zA-Z])|(?<![a-zA-Z\\])pi(?![a-zA-Z])", "π"),
        (r"(?:√|\\sqrt(?![a-zA-Z]))\s*(\d+|[a-zA-Z](?![a-zA-Z]))", r"\\sqrt{\1}"),
        (r"\\[lr]brace(?![a-zA-Z])|\\(?=[{}])", ""),
        (
            r"\\(?:text|mathrm|mathbf|textbf|textit|textrm|mathit|mbox|operatorname)\s*\{([^{}]*)\}",
            r" \1 ",
        ),
        (r"\{\s*\{([^{}]*)\}\s*\}", r"{\1}"),
        (rf"(?<=\d)\s*\\frac\s*(?=\d|\{{\s*{_NUMBER})", r" \\frac"),
        (
            rf"\\frac\s*(?:\{{\s*({_NUMBER})\s*\}}|(\d))\s*(?:\{{\s*({_NUMBER})\s*\}}|(\d))",
            r"\1\2/\3\4",
        ),
        (_DOLLAR, "$"),
        (r"\s+\^\s*", "^"),
        (r"\s+", " "),
    )
]
_QUOTES = "\"'`“”\u2018\u2019*"


def to_plain(text: str) -> str:
    """Return plain text in which numbers, units and words are readable; formulas stay LaTeX."""
    if text.isascii() and text.isalnum() and "pi" not in text:
        return text
    text = text.replace("º", "°")
    if not text.isascii():
        text = _SUPERSCRIPT_RUN.sub(lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", text)
        text = unicodedata.normalize("NFKC", _BEFORE_VULGAR_FRACTION.sub(" ", text))
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text.strip().strip(_QUOTES).rstrip(".,;: ").strip().strip(_QUOTES)


def fold(plain: str) -> str:
    """Return the text without case, hyphens, repeated spaces and punctuation after words, which do not distinguish
    answers."""
    text = plain.casefold()
    text = re.sub(r"(?<=[^\W\d_]{2})[!?]", "", text)
    text = re.sub(r"(?<=[^\W\d_])-(?=[^\W\d_])", " ", text)
    text = re.sub(r"[.,;:](?!\d)|(?<!\d)[,;:](?=\d)", " ", text)
    text = re.sub(f"[{_QUOTES}]", "", text)
    return " ".join(text.split())
