"""Parse an answer as text: the box, the choice letter, and what can be decided without algebra.

All functions only process strings, in linear time, and are safe on hostile text of any length.
"""

import re
from dataclasses import dataclass, replace
from decimal import Decimal

MAX_SYMBOLIC_LENGTH = 1000  # characters; a longer answer is compared as text only

_BOX = "\\boxed{"
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # skips a macro or an escaped brace

# Characters and their LaTeX: full-width forms, CJK punctuation, dashes, superscripts.
_CHARACTERS = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5E)} | str.maketrans(
    {"　": " ", "。": ".", "、": ",", "【": "[", "】": "]", "～": "~", "〜": "~", "−": "-", "–": "-", "—": "-",
     "°": r"^\circ", "²": "^2", "³": "^3", "π": r"\pi "}
)  # fmt: skip
_CHOICE_STOP = re.compile(r"(?<=[A-LＡ-Ｌ])．")  # numbers also contain such a point
_A_CHOICE = r"\s*[(（\[【]?[A-LＡ-Ｌ][)）\]】]?\s*"
_CHINESE_STOP = re.compile(rf"^({_A_CHOICE})、(?!{_A_CHOICE}(?:[、,，和]|$))")  # A、12, but not A、B
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|([0-9.]+|[A-Za-z])|(?=\{))")
_LATEX_BLANK = re.compile(r"(\\\\)|(?:\\[ ,;:]|\\(?:quad|qquad|enspace)(?![A-Za-z])|~)|(\\!)")  # `\\ ` is a line break
_RANGE_TILDE = re.compile(r"(?<=[0-9])\s*~\s*(?=[0-9])(?![0-9]{3}(?![0-9]))")
_GROUPING_BLANK = re.compile(r"(?<=[0-9])\s(?=[0-9]{3}(?![0-9]))")
_ADDING_BLANK = re.compile(r"(?<=[0-9])(?<!frac [0-9])\s+(?=[0-9])")

_TEXT_MACRO = re.compile(r"\\(?:text(?:bf|it|rm|sf|up)?|math(?:rm|bf|it|sf)|mbox|operatorname)\s*\{([^{}]*)\}")
_FONT_GROUP = re.compile(r"\{\s*\\(?:bf|it|rm|sf)(?![A-Za-z])([^{}]*)\}")
_AROUND = re.compile(r"(?<!\\)\$|\\[()]")  # mathematical characters
_BOLD = re.compile(r"\*\*(.+)\*\*", re.DOTALL)

_REFERENCE_CHOICE = re.compile(r"\(([A-L])\)|\[([A-L])\]|([A-L])[.:)]?")
_NEXT_CHOICE = r"\s\(?[a-l][.:)]\s|[\s0-9][(\[][a-l][)\]]\s*[^\s.]|[\s0-9][a-l][.:]\S|\s[a-l]\)[0-9\\]"
_MARK = r"(?:\(([a-l])\)|\[([a-l])\]|([a-l])(?:[:)]|\.(?![0-9])))"  # (A), [A], A., A: or A); not A.5
_CHOICE = re.compile(
    rf"""(?:{_MARK}
           (?!\s*(?:[,;/&|]|[a-l][.:]|(?:or|and|\(?[a-l]\)|\[[a-l]\])(?!\w)))
           (?:(?!{_NEXT_CHOICE}).)*  # text that neither continues with another letter nor names one like the first
      | ([a-l]))
    """,
    re.VERBOSE | re.DOTALL,
)
_CHOICE_BEFORE_VALUE = re.compile(r"(?:\([A-L]\)|[A-L][.:)])\s+(?=[^\s])")
_BETWEEN_CHOICES = re.compile(r"[,;\s]|\band\b")
_ONE_OF_CHOICES = re.compile(r"\([A-L]\)|[A-L]")

# One unit per line, with all its spellings. mathruler deletes most of them from both sides.
_SPELLINGS = """
mm millimeter millimeters millimetre millimetres 毫米
cm centimeter centimeters centimetre centimetres 厘米
dm decimeter decimeters decimetre decimetres 分米
km kilometer kilometers kilometre kilometres 千米 公里
m meter meters metre metres 米
inch inches in
ft foot feet
yd yard yards
mi mile miles
nmi 海里
ms millisecond milliseconds
s sec secs second seconds 秒
min mins minute minutes 分钟
h hr hrs hour hours 小时
day days 天
week weeks
month months
year years
mg milligram milligrams
kg kilogram kilograms 千克 公斤
g gram grams 克
lb lbs pound pounds
oz ounce ounces
ton tons tonne tonnes 吨
ml mL milliliter milliliters millilitre millilitres 毫升
L liter liters litre litres 升
degree degrees deg ^\\circ ^{\\circ} 度
celsius ^\\circC ^{\\circ}C
fahrenheit ^\\circF ^{\\circ}F
rad radian radians
unit units
% \\% percent
$ \\$ dollar dollars
cent cents
euro euros €
yuan 元
"""
_UNITS = {
    spelling if len(spelling) == 1 else spelling.lower(): line.split()[0]
    for line in _SPELLINGS.strip().splitlines()
    for spelling in line.split()
    if spelling != "$"  # a bare one is a mathematical character
}
_WORDS_FOR_UNITS = [re.escape(name) for name in _UNITS if len(name) > 1 and name[0] not in "^\\"]
_WORD_UNITS = "|".join(sorted(_WORDS_FOR_UNITS, key=len, reverse=True))
_UNIT = re.compile(
    rf"""(?:(?<![A-Za-z\\/])(?P<times>(?i:square|sq\.?|cubic|cu\.?|平方|立方)\s*)?
            (?P<name>(?i:{_WORD_UNITS})|(?<=\s)[gshL]|(?<=[0-9\s)}}方])m|[米秒天克吨升度元])
            (?:\s*(?:\^\s*(?P<brace>\{{\s*)?(?P<power>[23])(?(brace)\s*\}})|(?P<word>(?i:squared|cubed))))?
          | (?P<sign>\^\s*(?:\\circ|\{{\s*\\circ\s*\}})\s*(?:[CF](?![A-Za-z]))?|\\?%|€|\\\$)
        )\s*\.?$
    """,
    re.VERBOSE,
)
_BRACED_UNIT = re.compile(rf"(?<!sqrt)\{{\s*((?i:square|cubic)?\s*(?i:{_WORD_UNITS}))\s*\}}$")
_CURRENCY = re.compile(r"(?:\\\$|€)\s*(?=[0-9.])")
_POWERS = {"s": "2", "c": "3", "平": "2", "立": "3"}  # by the first letter of square(d), cubic, cubed

_PLAIN_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_GROUPED_NUMBER = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")
_RANGE = re.compile(r"[0-9.]+(?:-[0-9.]+|:[0-9.]+)+|[0-9]+(?:/[0-9]+){2,}")  # 3-5, 2020-01-02, 10:30, 1/2/2020
_NAME = re.compile(
    r"""(?:m?\s*\\(?:angle|triangle|overline|widehat|vec)\s*)?
        \{?(?:[A-Za-z]|[A-Z]{2,4}|[^\W\d_]{3,}(?:\s+[^\W\d_]+)*|\\[a-z]+)\}?
        '*(?:\s*_\s*(?:\w|\{[^{}]*\}))?(?:\([a-z]\))?""",
    re.VERBOSE,
)
_SUM_OF_NAMES = re.compile(r"[A-Z]+(?:\s*[+-]\s*[A-Z]+)+")
_ARITHMETIC = re.compile(r"(?:[0-9.\s()+*/^-]|\\cdot|\\times|\\div)+")
_UNFINISHED = re.compile(r"(?:[-+*/^=(,]|\\cdot|\\times|\\div)$")
_NO_VARIABLE = re.compile(r"-?[^\W_]?[^A-Za-z+-]*")
_INDEX = re.compile(r"\w\[")
_EQUALS = re.compile(r"(?<![<>!])=")
_COMPARISON = re.compile(r"[<>≤≥≠≈,;!]|\\(?:leq?|geq?|neq?|lt|gt|approx|begin)(?![A-Za-z])|\b(?:or|and)\b")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[a-z*]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{3,}|[A-Z]{2,}|(?i:cm)|[\u3040-\u30ff\u3400-\u9fff]")
_FUNCTIONS = [
    "sqrt",
    "frac",
    "ln",
    "log",
    "exp",
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "arcsin",
    "arccos",
    "arctan",
]
_NOT_WORDS = frozenset([*_FUNCTIONS, "pi", "inf", "infty", "and", "million", "billion", "trillion"])


@dataclass(frozen=True)
class Quantity:
    """The parts of an answer: `x = 5 cm^2` has the name x, the value 5 and the unit cm^2; "" for a missing part."""

    name: str
    value: str
    unit: str


def extract_boxed(text: str) -> str | None:
    r"""The stripped content of the last `\boxed{...}` in `text`.

    None if there is no box or the last one is not closed; "" if it is empty. Linear in `len(text)`.
    """
    start = text.rfind(_BOX)
    if start == -1:
        return None
    start += len(_BOX)
    end = _closing_brace(text, start)
    return None if end is None else text[start:end].strip()


def strip_outer_box(reference: str) -> str:
    r"""`reference` without surrounding blanks and without a `\boxed{...}` that encloses all of it."""
    reference = reference.strip()
    if reference.startswith(_BOX) and _closing_brace(reference, len(_BOX)) == len(reference) - 1:
        return reference[len(_BOX) : -1].strip()
    return reference


def canonical_answer(text: str) -> str:
    r"""`text` in plain LaTeX: ASCII for full-width forms, `\sqrt{}`, `\pi` and `^\circ` for √, π and °, blanks for
    `~`, `\,` and the like, and no blanks between digits.

    "1 000" is 1000, and "1 1/2" is 1+1/2. mathruler also handles mixed numbers, but reads 11/2 first.
    """
    text = _CHOICE_STOP.sub(". ", _CHINESE_STOP.sub(r"\1. ", text)).translate(_CHARACTERS)
    text = _ROOT.sub(_root_macro, text)
    text = _RANGE_TILDE.sub("-", text)
    text = _LATEX_BLANK.sub(lambda blank: blank[1] or ("" if blank[2] else " "), text).strip()
    return _ADDING_BLANK.sub("+", _GROUPING_BLANK.sub("", text))


def choice_letter(reference: str) -> str | None:
    r"""The letter, A-L, of a reference answer that is one choice: `A`, `(A)`, `[A]`, `A.`, `A:`, `A)`, also in
    `\text{}`."""
    choice = _REFERENCE_CHOICE.fullmatch(_plain(canonical_answer(strip_outer_box(reference))))
    return next(filter(None, choice.groups())) if choice else None


def compare_text(answer: str | None, reference: str) -> bool | None:
    """Whether `answer` is correct, as far as text alone can decide; None leaves it to the symbolic check.

    `answer` is the content of a box or None (no answer, never correct), `reference` a non-empty answer without a box;
    both are in the form of `canonical_answer`. A reference answer that is a `choice_letter` is multiple choice and
    always decided here. One with several letters, "A, C" or "AC" in alphabetical order, is a set: another list of
    letters is correct if it is the same set. Units and names on both sides must match. Words, numbers, dates and
    ranges are always decided here.
    """
    if not answer:
        return False
    if answer == reference:
        return True
    if letter := choice_letter(reference):
        return _chosen(answer) == letter
    if max(len(answer), len(reference)) > MAX_SYMBOLIC_LENGTH:
        return False
    if _PLAIN_NUMBER.fullmatch(answer) and _PLAIN_NUMBER.fullmatch(reference):  # most answers: nothing to parse
        return Decimal(answer) == Decimal(reference)
    right, given = _reference_choices(reference), _choice_letters(answer)
    if right and given:
        return set(given) == set(right)
    if _normalise(answer) == _normalise(reference):
        return True
    return _compare_quantities(*_quantities(answer, reference))


def symbolic_pair(answer: str, reference: str) -> tuple[str, str]:
    """What the symbolic check gets if `compare_text` cannot decide: both values, in the same unit."""
    given, right = _quantities(answer, reference)
    return (answer, reference) if _is_share(given, right) else (given.value, right.value)


def answered_letter(answer: str) -> str | None:
    """The letter, A-L, of an answer that is one choice, alone or before its text: `(B)`, `b`, `B. 12 cm`."""
    return _chosen(canonical_answer(answer))


def normal_text(text: str) -> str:
    r"""`text` for a comparison of letters only: without blanks, capitals, and a surrounding `\text{}` or `$`."""
    return _normalise(canonical_answer(text))


def number_distance(answer: str, reference: str) -> Decimal | None:
    """The distance of two numbers; None if one side is not a number, or both have units or names that differ."""
    given, right = _quantities(canonical_answer(answer), canonical_answer(reference))
    numbers = _number(given.value), _number(right.value)
    if numbers[0] is None or numbers[1] is None:
        return None
    if any(left and other and left != other for left, other in ((given.unit, right.unit), (given.name, right.name))):
        return None
    return abs(numbers[0] - numbers[1])


def is_words(text: str) -> bool:
    """Whether `text` has words or names, whose letters must never be multiplied: `left`, `ab`, `5 felt`, `AB`."""
    text = _ENVIRONMENT.sub(" ", _plain(text))
    if any(word not in _NOT_WORDS for word in _WORD.findall(text)):
        return True
    pairs = [word for word in re.findall(r"[^\W\d_]{2,}", text) if word not in _NOT_WORDS]
    return bool(pairs) and not re.search(r"[\d+*/^=<>_(){},-]", text)


def _compare_quantities(given: Quantity, right: Quantity) -> bool | None:
    if given.name and right.name and _squeeze(given.name) != _squeeze(right.name):
        return False
    if given.unit and right.unit and given.unit != right.unit:
        return False
    if not given.value or not right.value:
        return given.value == right.value and given.unit == right.unit
    verdict = _compare_values(given.value, right.value)
    return verdict or (None if _is_share(given, right) else verdict)


def _is_share(given: Quantity, right: Quantity) -> bool:
    """Whether exactly one side is a percentage: some readers take 50% as 0.5."""
    numbers = _number(given.value) is not None and _number(right.value) is not None
    return numbers and given.unit != right.unit and "%" in (given.unit, right.unit)


def _compare_values(answer: str, reference: str) -> bool | None:
    if _squeeze(answer) == _squeeze(reference):
        return True
    given, right = _number(answer), _number(reference)
    if given is not None and right is not None:
        return given == right
    if bool(_EQUALS.search(answer)) != bool(_EQUALS.search(reference)):  # mathruler drops the shorter side
        return False
    if bool(_INDEX.search(answer)) != bool(_INDEX.search(reference)):
        return None  # code, which the symbolic check rejects and counts
    if any(_RANGE.fullmatch(_squeeze(text)) or is_words(text) for text in (answer, reference)):
        return False
    return None


def _quantities(answer: str, reference: str) -> tuple[Quantity, Quantity]:
    """The parts of both sides. A choice letter or a chain of equations may precede the value of an answer."""
    given, right = _read_quantity(_CHOICE_BEFORE_VALUE.sub("", _plain(answer))), _read_quantity(_plain(reference))
    if not right.name and "=" not in right.value:
        given = replace(given, value=_last_side(given.value))
    return given, right


def _read_quantity(text: str) -> Quantity:
    value, unit = _split_unit(text.removesuffix(".").rstrip())
    name, value = _split_name(value)
    return Quantity(name, value, unit)


def _split_unit(text: str) -> tuple[str, str]:
    """Value and unit; words that end like a unit ("good day") and an algebraic `2x+3m` have no unit."""
    if currency := _CURRENCY.match(text):
        return text[currency.end() :], _UNITS[currency[0].strip()]
    text = _BRACED_UNIT.sub(r" \1", text)
    found = _UNIT.search(text)
    value = text[: found.start()].rstrip() if found else text
    if not found or _UNFINISHED.search(value) or is_words(_value_side(value)):
        return text, ""
    letter = found["name"] and len(found["name"]) == 1 and found["name"].isascii()
    if letter and not _NO_VARIABLE.fullmatch(_ENVIRONMENT.sub("", _value_side(value))):
        return text, ""
    spelling = found["name"] or "".join(found["sign"].split())
    spelling = spelling if len(spelling) == 1 else spelling.lower()
    power = found["power"] or _POWERS.get((found["times"] or found["word"] or " ")[0].lower(), "")
    return value, _UNITS[spelling] + (f"^{power}" if power else "")


def _value_side(text: str) -> str:
    return text.rpartition("=")[2].strip()


def _split_name(text: str) -> tuple[str, str]:
    """Name and value of `x = 5` or `5 = x`; anything else has no name."""
    left, _, right = map(str.strip, text.partition("="))
    if not (left and right) or "=" in right or _COMPARISON.search(text):
        return "", text
    if _NAME.fullmatch(left):
        return left, right
    return (right, left) if re.fullmatch("[A-Za-z]", right) else ("", text)


def _last_side(text: str) -> str:
    """The last side of a chain of equations that begins with a name or a sum: 576 in `24*24 = 576`."""
    first, *others = (side.strip() for side in text.split("="))
    if not others or not all(others) or _COMPARISON.search(text):
        return text
    is_sum = _ARITHMETIC.fullmatch(first) and _number(first) is None
    return others[-1] if is_sum or _NAME.fullmatch(first) or _SUM_OF_NAMES.fullmatch(first) else text


def _number(text: str) -> Decimal | None:
    """The exact number that `text` writes in digits, with or without commas between groups of three."""
    text = "".join(text.split())
    if _GROUPED_NUMBER.fullmatch(text):
        text = text.replace(",", "")
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def _root_macro(root: re.Match[str]) -> str:
    radicand = root[1] or root[2]
    return rf"\sqrt{{{radicand}}}" if radicand else r"\sqrt"


def _closing_brace(text: str, start: int) -> int | None:
    """Index of the brace that closes a group whose content begins at `start`; None if it is not closed."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        if brace[0] == "{":
            depth += 1
        elif brace[0] == "}":
            depth -= 1
        if depth == 0:
            return brace.start()
    return None


def _plain(text: str) -> str:
    r"""`text` without surrounding `$` and braces, and with each `\text{}` or `\bf` replaced by its content."""
    if text.startswith("$") and text.count("$") == 1:  # $12: money, not mathematics
        text = f"\\{text}"
    text = _FONT_GROUP.sub(r"\1", _AROUND.sub("", text))
    text = _TEXT_MACRO.sub(_macro_content, text).strip()
    if text.startswith("{") and _closing_brace(text, 1) == len(text) - 1:
        text = text[1:-1].strip()
    return _BOLD.sub(r"\1", text) if _BOLD.fullmatch(text) else text


def _macro_content(macro: re.Match[str]) -> str:
    """A blank separates it from a number before it: `5\text{s}` is five seconds."""
    before = macro.string[macro.start() - 1 : macro.start()]
    return f" {macro[1]}" if before.isalnum() or before in {"}", ")"} else macro[1]


def _normalise(text: str) -> str:
    return _squeeze(_plain(text)).removesuffix(".")


def _squeeze(text: str) -> str:
    return "".join(text.split()).lower()


def _chosen(answer: str) -> str | None:
    """The letter of an answer, also in lower case, alone or before the text of the choice."""
    choice = _CHOICE.fullmatch(_plain(answer).lower())
    return next(filter(None, choice.groups())).upper() if choice else None


def _choice_letters(text: str) -> list[str] | None:
    r"""The letters of `AC`, `A, C`, `C and A`, `(A); (C)`, also inside `\text{}`; None for anything else."""
    parts = [part for part in _BETWEEN_CHOICES.split(_plain(text)) if part]
    letters = [part.strip("()") for part in (list(parts[0]) if len(parts) == 1 else parts)]
    listed = all(map(_ONE_OF_CHOICES.fullmatch, letters if len(parts) == 1 else parts))
    return letters if listed and len(set(letters)) == len(letters) > 1 else None


def _reference_choices(reference: str) -> list[str] | None:
    """The letters of a reference answer that is a set. "BAD" and "DA" are names: a set is in alphabetical order."""
    letters = _choice_letters(reference)
    if letters and "".join(letters) == _plain(reference) and letters != sorted(letters):
        return None
    return letters
