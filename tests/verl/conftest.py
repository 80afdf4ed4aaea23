"""verl is not part of the default environment: without it, its tests are not collected."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("verl") else ["test_*.py"]
