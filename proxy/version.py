"""The version, as the distribution states it."""

from importlib.metadata import version

VERSION = version("feedproxy")
