"""Provenance of a run: code, versions, machine, seed, command."""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("vgpo", "torch", "transformers", "trl", "accelerate", "peft", "datasets")
SECRET = re.compile(r"(hub_token|api_key|password|secret)$")
HIDDEN = "<hidden>"


def describe_environment(seed: int, command: Sequence[str]) -> dict[str, Any]:
    """Describe the code, the machine and the command of a run that starts now.

    Returns:
        dict: `commit` (str, or None outside a git repository), `dirty` (tracked files differ from the
        commit; None likewise), `untracked` (paths git neither tracks nor ignores), `versions`, `python`,
        `platform`, `cpu_count`, `memory_bytes`, `devices` (accelerators by name), `seed`, `command`,
        `started` (UTC, ISO 8601). Values of options that hold credentials are replaced by `<hidden>`.
    """
    commit = git("rev-parse", "HEAD")
    untracked = git("ls-files", "--others", "--exclude-standard", "--directory")
    return {
        "commit": None if commit is None else commit.strip(),
        "dirty": None if commit is None else code_diff() != "",
        "untracked": None if untracked is None else untracked.splitlines(),
        "versions": {name: installed_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": physical_memory(),
        "devices": accelerators(),
        "seed": seed,
        "command": hide_secret_options(command),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def code_diff() -> str:
    """Return the changes of tracked files since the commit, empty if none or outside a repository."""
    return git("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv") or ""


def git(*arguments: str) -> str | None:
    """Run git in the current directory; None without git, a repository or a commit."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def physical_memory() -> int | None:
    """Return the machine's memory in bytes, None if unknown."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def accelerators() -> list[str]:
    import torch  # writing a report must not wait for it

    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else []


def hide_secrets(config: Any) -> Any:
    """Return a copy of nested dicts and lists with the values of credential fields hidden."""
    if isinstance(config, dict):
        return {
            key: HIDDEN if value and SECRET.search(str(key)) else hide_secrets(value) for key, value in config.items()
        }
    if isinstance(config, list):
        return [hide_secrets(item) for item in config]
    return config


def hide_secret_options(command: Sequence[str]) -> list[str]:
    """Hide `--hub_token VALUE` and `--hub_token=VALUE`."""
    shown: list[str] = []
    hide_next = False
    for word in command:
        name, equals, _ = word.partition("=")
        secret = name.startswith("--") and SECRET.search(name.replace("-", "_")) is not None
        if hide_next:
            shown.append(HIDDEN)
        else:
            shown.append(f"{name}={HIDDEN}" if secret and equals else word)
        hide_next = secret and not equals and not hide_next
    return shown


def cpu_name() -> str:
    """The CPU model name, if known."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()
