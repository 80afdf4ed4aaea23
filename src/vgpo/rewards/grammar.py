r"""The grammar of the symbolic check: an allow-list of tokens.

It is applied to the final text that a parser gets, after all rewriting by mathruler and math-verify.
sympy turns such a text into Python code and evaluates it, so the tokens are those of Python's own tokenizer.
Letters of any script are variables, except those that Unicode normalisation (NFKC) would change, such as `ⅹ` or
fullwidth `ｘ`.
"""

import io
import itertools
import keyword
import re
import tokenize
import unicodedata

from vgpo.answers import MAX_SYMBOLIC_LENGTH

FUNCTIONS = ("sqrt", "ln")
CONSTANTS = ("pi",)

_GREEK_VARIANTS = "µϑϕϖϰϱϵ"  # `latex2text`'s output for `\vartheta` and so on; NFKC changes them, harmlessly
_NOT_LETTERS = str.maketrans("", "", f"0123456789{_GREEK_VARIANTS}")
_NUMBER = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_OPERATORS = frozenset(["+", "-", "*", "/", "**", "(", ")"])
_NO_OPERAND = frozenset([("(", ")"), ("(", "*"), ("(", "**"), ("(", "/")])

_LATEX = re.compile(
    r"""(?: \\[A-Za-z]+ | \\[ ,:;!%$&|{}()\[\]\\]             # a macro
          | [A-Za-z0-9\s+\-*/^_=<>(){}\[\]|,.:&~%$]
          | [Α-Ωα-ωϵϑϕϖϱϰµπ∞√°·×÷±−≤≥≠≈∪∩∈∉⊂⊆∅ℝℤℕℚℂ]
        )*""",
    re.VERBOSE,
)

_COSTLY = re.compile(
    r"""(?:\^|\*\*)[\s{(+-]*(?:[0-9.]+|[a-z])\s*(?:\^|\*\*)   # a power in the exponent of a power
      | (?:\^|\*\*)[\s{(+-]*[0-9]{5}                          # an exponent of five digits or more
      | (?<!\\)!                                              # a factorial; \! is only a thin space
    """,
    re.VERBOSE | re.IGNORECASE,
)
_CODE = re.compile(r"""["'`;@#]|__|[a-z_)\]]\s*\.\s*[a-z_]""", re.IGNORECASE)  # not mathematical


def is_costly(text: str) -> bool:
    """Whether `text` has a tower of powers, a huge exponent or a factorial: a number that may never be computed."""
    return _COSTLY.search(text) is not None


def is_unsafe(text: str) -> bool:
    """Whether to skip the symbolic check of `text`: too long, too costly, or not mathematical.

    This only saves time. What may be evaluated is decided at the parser (`is_expression`, `is_latex`).
    """
    return len(text) > MAX_SYMBOLIC_LENGTH or is_costly(text) or _CODE.search(text) is not None


def is_expression(text: str) -> bool:
    """Whether `text` consists of numbers, listed names, letters as variables, and operators: no attribute, index,
    string, keyword or comma, and no `()` (a tuple or a call) or `(*` (a list of arguments).

    `tokenize.TokenError` or SyntaxError where Python cannot split it into tokens; sympy cannot either.
    """
    tokens = list(tokenize.generate_tokens(io.StringIO(text.strip()).readline))
    pairs = itertools.pairwise(token.string for token in tokens if token.type != tokenize.NL)
    return all(map(_is_listed, tokens)) and not any(pair in _NO_OPERAND for pair in pairs)


def is_latex(text: str) -> bool:
    """Whether `text` consists of macros, letters, digits and mathematical signs; for parsers that evaluate nothing."""
    return _LATEX.fullmatch(text) is not None


def _is_listed(token: tokenize.TokenInfo) -> bool:
    if token.type == tokenize.NUMBER:
        return _NUMBER.fullmatch(token.string) is not None
    if token.type == tokenize.NAME:
        return _is_variable(token.string) and not keyword.iskeyword(token.string)
    if token.type == tokenize.OP:
        return token.string in _OPERATORS
    return token.type == tokenize.NL or (token.type in (tokenize.NEWLINE, tokenize.ENDMARKER) and not token.string)


def _is_variable(name: str) -> bool:
    """Whether `name` is one letter, or lower-case letters and digits, which sympy splits into symbols, or has such
    subscripts as in `x_1`. `sqrt` and `pi` are too; but no name with an underscore at either end, or two in a row.
    """
    if len(name) > 1 and name != name.lower():
        return False
    parts = name.split("_")
    letters = "".join(parts).translate(_NOT_LETTERS)
    return all(parts) and (letters.isalpha() or not letters) and unicodedata.normalize("NFKC", letters) == letters
