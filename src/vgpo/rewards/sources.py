"""Find reward functions by name: built-in, `module:function`, or `file.py:function`."""

import functools
import importlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType

from vgpo.rewards.checked import FAILURES, RewardError, RewardFunction, checked
from vgpo.rewards.containment import StoppedBySignal, contained
from vgpo.rewards.functions import accuracy_reward, format_reward, lenient_accuracy_reward
from vgpo.rewards.grader import lenient_grader
from vgpo.text import did_you_mean

REWARDS: dict[str, RewardFunction] = {
    "accuracy": accuracy_reward,
    "accuracy_math_verify": lenient_accuracy_reward,
    "format": format_reward,
}


@functools.cache
def load_reward(source: str) -> RewardFunction:
    """The checked reward function (`vgpo.rewards.checked`) that `source` names.

    Args:
        source: A name in `REWARDS`, `package.module:function`, or `path/to/file.py:function`, where the path is taken
            from the working folder. Importing it runs the module.

    Raises:
        RewardError: No such name, module, file or function, a module that fails, or an object that is not a function.
    """
    if ":" not in source:
        return checked(_built_in(source))
    place, _, name = source.rpartition(":")
    module = _load_file(source, Path(place).expanduser()) if place.endswith(".py") else _load_module(source, place)
    if name not in vars(module):
        raise RewardError(f"reward {source!r}: {place} has no {name!r}{did_you_mean(name, vars(module))}")
    function = vars(module)[name]
    if inspect.isclass(function) or not callable(function):
        raise RewardError(
            f"reward {source!r}: {name!r} is {'a class' if inspect.isclass(function) else type(function).__name__}, "
            "expected a function, or an object that can be called"
        )
    try:
        inspect.signature(function)
    except ValueError as error:
        raise RewardError(f"reward {source!r}: {error}; wrap it in a function with arguments and **kwargs") from error
    return checked(function)


def _built_in(name: str) -> RewardFunction:
    if name not in REWARDS:
        raise RewardError(
            f"unknown reward {name!r}{did_you_mean(name, REWARDS)}; "
            f"rewards are {sorted(REWARDS)}, 'module:function' and 'path/to/file.py:function'"
        )
    if REWARDS[name] is lenient_accuracy_reward:
        try:
            lenient_grader()
        except ImportError as error:
            raise RewardError(f"reward {name!r}: {error}") from error
    return REWARDS[name]


def _load_module(source: str, name: str) -> ModuleType:
    try:
        with contained():
            return importlib.import_module(name)
    except StoppedBySignal:
        raise
    except FAILURES as error:
        raise _import_error(source, name, Path.cwd(), error) from error


def _load_file(source: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise RewardError(f"reward {source!r}: there is no file {path.absolute()}")
    name = f"vgpo_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # required by dataclasses and pickle
    try:
        with contained():
            spec.loader.exec_module(module)
    except StoppedBySignal:
        raise
    except FAILURES as error:
        raise _import_error(source, str(path), path.resolve().parent, error) from error
    return module


def _import_error(source: str, place: str, folder: Path, error: BaseException) -> RewardError:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    line = f" ({frame.tb_frame.f_code.co_filename}:{frame.tb_lineno})" if frame else ""
    text = traceback.format_exception_only(error)[-1].strip()  # also for an error whose own text cannot be read
    cure = _cure(folder, error.name) if isinstance(error, ModuleNotFoundError) and error.name else ""
    return RewardError(f"reward {source!r}: importing {place} failed: {text}{line}{cure}")


def _cure(folder: Path, name: str) -> str:
    """Advice for a module that is in `folder`; empty otherwise."""
    if not (folder / name).is_dir() and not (folder / f"{name}.py").is_file():
        return ""
    return f". {name} is in {folder}, which is not on Python's path: start the command with PYTHONPATH={folder}"
