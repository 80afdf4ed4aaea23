"""Strict YAML files: each value is what it looks like, or a one-line error."""

import re
import stat
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20
OCTAL = re.compile(r"[-+]?0[0-9_]+")  # 010 is 8 in YAML 1.1
SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")  # 1:30 is 90
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
TIMESTAMP = "tag:yaml.org,2002:timestamp"


class YamlFileError(ValueError):
    """A YAML file that cannot be read, or a value that YAML reads differently than it looks."""


class StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which rejects duplicate keys and numbers that are not what they look like.

    The standard loader takes the last of two equal keys; dates stay texts here.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  # as the parent has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, value in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} occurs twice; keep one of them", problem_mark=key.start_mark
                )
            seen.add(name)
            check_scalars(str(key.value), value)
        return node


def check_scalars(key: str, node: yaml.Node) -> None:
    """Check that plain numbers, also in lists, are what they look like."""
    waiting, seen = [node], {id(node)}  # an alias is the node that it names
    while waiting:
        item = waiting.pop()
        check_scalar(key, item)
        inner = [one for one in item.value if id(one) not in seen] if isinstance(item, yaml.SequenceNode) else []
        seen.update(map(id, inner))
        waiting.extend(inner)


def check_scalar(key: str, node: yaml.Node) -> None:
    if not isinstance(node, yaml.ScalarNode) or node.tag not in NUMBERS or node.style is not None:
        return
    kind = "an octal number" if OCTAL.fullmatch(node.value) else "a number of base 60"
    if OCTAL.fullmatch(node.value) or SEXAGESIMAL.fullmatch(node.value):
        raise yaml.MarkedYAMLError(
            problem=f"{key} is {node.value}, which YAML reads as {kind}; write a decimal number, or put it in quotes",
            problem_mark=node.start_mark,
        )


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        YamlFileError: It is not a regular file of at most 1 MiB with one mapping; names the file and, if possible, the
        line.
    """
    text = read_text(path)
    try:
        values = StrictLoader(text).get_single_data()
    except yaml.YAMLError as error:
        raise YamlFileError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise YamlFileError(f"{path}: not valid YAML: brackets are nested too deeply") from error
    except ValueError as error:  # such as a number of more digits than Python reads
        raise YamlFileError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise YamlFileError(f"{path}: expected a mapping of 'field: value' lines, found {type(values).__name__}")
    return values


def read_text(path: Path) -> str:
    """The text of a small regular UTF-8 file.

    Raises:
        YamlFileError: It is something else, which is not read, or cannot be read.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise YamlFileError(f"{path}: not a regular file; name a file")
        if found.st_size > MAX_BYTES:
            raise YamlFileError(f"{path}: has {found.st_size:,} bytes, expected at most {MAX_BYTES:,}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlFileError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise YamlFileError(f"{path}: cannot be read: {error.strerror}") from error
