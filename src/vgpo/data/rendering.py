"""Render the text of a prompt: a jinja template with the problem."""

import functools
import stat
from pathlib import Path

import jinja2
import jinja2.meta
import jinja2.sandbox

from vgpo.data.errors import DataError
from vgpo.data.files import expanded, status_of

_VARIABLE = "problem"
_FOLDER = Path(__file__).parent / "templates"
# Errors that an expression of a template may raise, such as {{ problem.x }} or {{ problem + 1 }}.
_FAULTS = (jinja2.TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError)


def template_text(name_or_path: str) -> str:
    """The source of a template: "plain", "think_boxed" or the path of a jinja file. DataError if unknown."""
    packaged = {path.stem: path for path in sorted(_FOLDER.glob("*.jinja"))}
    path = packaged.get(name_or_path) or expanded(name_or_path)
    status = status_of(path)
    if status is None or not stat.S_ISREG(status.st_mode):
        raise DataError(
            f"there is no prompt template {name_or_path!r}; use one of {list(packaged)} or the path of a jinja file"
        )
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"the prompt template {path} cannot be read ({error.strerror}); correct its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"the prompt template {path} is not UTF-8 ({error}); save it as UTF-8") from error


def render(template: str, problem: str) -> str:
    """The template filled in with `problem`; template: from `template_text`. DataError if rendering fails."""
    try:
        return compiled(template).render(problem=problem)
    except _FAULTS as error:
        raise DataError(
            f"the prompt template cannot be rendered ({type(error).__name__}: {error}); correct it. The problem is "
            f"{problem[:80]!r}"
        ) from error


@functools.cache
def compiled(text: str) -> jinja2.Template:
    """The compiled template. DataError for a syntax error, or for variables other than `problem`."""
    # Not HTML, so no escaping; the sandbox prevents a downloaded template from reaching Python.
    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    try:
        variables = jinja2.meta.find_undeclared_variables(environment.parse(text))
        template = environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"the prompt template has an error in line {error.lineno}: {error.message}") from error
    if variables != {_VARIABLE}:
        raise DataError(
            f"the prompt template uses the variables {sorted(variables)}; expected exactly ['problem'], as in "
            "{{ problem }}"
        )
    return template
