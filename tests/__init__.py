"""A regular package, because verl installs a package `tests` of its own, which wins over a namespace package."""
