"""The version of this installation."""

from functools import cache
from importlib.metadata import version as of_package


@cache
def version() -> str:
    return of_package("worldloom")
