"""Search for a completion's final answer.

Only the text in the last `<answer>` tags, or else after the thinking, is searched. The first of these that exists is
the answer: the last `\\boxed{}`; the text after the last `####`; the text after the last "answer is"; the whole text
or its last line; the last formula or number. If a number is part of a calculation, the whole calculation is taken,
not the number.
"""

import re

from rl.rewards.answers.latex import last_boxed
from rl.rewards.answers.plain import to_plain
from rl.rewards.answers.quantities import NUMBER, parse_quantity
from rl.rewards.answers.units import is_known_unit

__all__ = ["final_answers"]

_TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_MARKER = re.compile(
    r"\b(?:answers?|(?:correct|right|best)\s+(?:option|choice))\b(?:\s+(?:to|for|of)\b[^.\n:=]{0,80}?)?(?:\s+(?:is|are|was|equals|would be|will be|should be|must be))?"
    r"\s*(?:(?<=\bis)|(?<=\bare)|(?<=\bwas)|(?<=\bequals)|(?<=\bbe)|[:=])\s*:?\s*(?!not\b)(?=\S)",
    re.IGNORECASE,
)
_FILLER = re.compile(
    r"(?:(?:about|approximately|equal to|exactly|simply|just|therefore|thus|that|the|an?|option|choice|letter|number)\s+|[:=≈*]+\s*)+",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?:[\"')\]*]*)(?=\s|$)")
_CLAUSE_END = re.compile(
    r"\s*(?:,\s+(?=[a-z])(?!and\b|or\b)|\s\(|\s(?:because|since|as|which|where|so|after|when|if)\s).*",
    re.DOTALL,
)
_FRACTION = r"\\[dtc]?frac\s*(?:\{[^{}]*\}|\d)\s*(?:\{[^{}]*\}|\d)"
_OPERAND = rf"[$€£¥₹]?(?:(?:\d+\s+)?\d+\s*/\s*\d+|(?:\d+\s*)?{_FRACTION}|{NUMBER}(?!\.\d)(?:[eE][-+]?\d+)?|[½⅓⅔¼¾⅕⅛])[%°]?"
_OPERATOR = (
    r"(?:[-+*/\u00d7÷^\u2212\u2013\u00b7\u22c5]|(?<!\s):(?!\s)|(?<=\s):(?=\s)|\\times|\\cdot|\\div)"
)
_EXPRESSION = re.compile(
    r"\$\$?(?=\S)([^$\n]{1,300})(?<=\S)\$\$?(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]"
    rf"|((?<![\w.\\])[-+\u2212]?\s?{_OPERAND}(?:\s*{_OPERATOR}\s*[({{]?[-\u2212]?{_OPERAND}[)}}]?)*)(\s?[^\W\d_]+(?:\^\{{?\d\}}?|[²³])?)?",
    re.DOTALL,
)
_DISPLAY = re.compile(r"\\\[.+?\\\]|\$\$.+?\$\$", re.DOTALL)
_CHOICE = re.compile(r"\(([A-J])\)")
_SEVERAL_CHOICES = re.compile(r"\([A-J]\)\s*(?:or|and|[,/&])?\s*\([A-J]\)\W*$")
_SEVERAL_NUMBERS = re.compile(
    rf"(?<![\w.,(\[{{])({_OPERAND}(?:\s*(?:[,;|]|\b(?:or|and|to)\b)+\s*{_OPERAND}|\s+{_OPERAND})+)[\s.!]*$"
)
_REFUSED = re.compile(
    r"(?:\bnot|n['\u2019]t|\bnever|\bcannot)\s+(?:be\s+|equal\s+(?:to\s+)?)?$|[<>≤≥≠]\s*$",
    re.IGNORECASE,
)
"""Pattern of words before a number which say that it is not the answer, or only a bound of it."""
_MAX_CHARS = 20_000


def final_answers(completion: str) -> list[str]:
    """Return readings of the completion's one final answer, the most literal first; empty if there is none."""
    text = completion.rpartition("</think>")[2]
    if tagged := _TAGS.findall(text):
        text = tagged[-1]
    boxed = last_boxed(text)
    if boxed is not None:
        return [boxed]
    _, marker, last = text.rpartition("####")
    if marker:
        return [last.strip().partition("\n")[0]]
    text = text[-_MAX_CHARS:].replace("**", "").replace("__", "").strip()
    if markers := list(_MARKER.finditer(text)):
        return _phrases(_first_line(text[markers[-1].end() :]))
    return _undelimited(text)


def _first_line(text: str) -> str:
    """Return the first line, or the displayed formula that begins there."""
    display = _DISPLAY.match(text)
    return display[0] if display else text.partition("\n")[0]


def _phrases(line: str) -> list[str]:
    """Return the line, its first sentence, and both without words that introduce or explain the answer."""
    sentence = line[: end.start()] if (end := _SENTENCE_END.search(line)) else line
    clause = _CLAUSE_END.sub("", sentence)
    phrases = [line, sentence, clause]
    return list(
        dict.fromkeys(
            [*phrases, *(_FILLER.sub("", p, count=1) for p in phrases if _FILLER.match(p))]
        )
    )


def _undelimited(text: str) -> list[str]:
    if not text:
        return []
    last_line = text.rpartition("\n")[2]
    answers = [text, last_line] if len(text) <= 1000 else [last_line]
    if parse_quantity(to_plain(last_line)):
        return answers
    answers += _last_number(text)
    if (choices := _CHOICE.findall(text)) and not _SEVERAL_CHOICES.search(text):
        answers.append(choices[-1])
    return list(dict.fromkeys(answers))


def _last_number(text: str) -> list[str]:
    """Return the last formula or number with its unit, or the whole list at the end of the text; empty if there is
    none."""
    if several := _SEVERAL_NUMBERS.search(text.rpartition("\n")[2]):
        return [several[1]]
    expressions = list(_EXPRESSION.finditer(text))
    if not expressions or _REFUSED.search(text[: expressions[-1].start()]):
        return []
    *formulas, numbers, word = expressions[-1].groups()
    if formula := next((f for f in formulas if f), None):
        return [formula]
    is_factor = word is not None and len(word) == 1  # 2x is no 2
    is_unit = word is not None and is_known_unit(word.strip())
    return [numbers + word if is_unit or is_factor else numbers]
