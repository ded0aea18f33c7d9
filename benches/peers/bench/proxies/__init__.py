"""How each proxy is set up for a row.

A contender makes a list of `Spec`: one process each, in the order in which
they are started. Every one of them counts as "on the path".
"""

from dataclasses import dataclass

from ..world import SAME_SITE

SOURCE, DESTINATION = "source", "destination"
WEST_GATEWAY, EAST_GATEWAY = "west gateway", "east gateway"


@dataclass(frozen=True)
class Spec:
    role: str
    host: str  # its namespace
    command: list


@dataclass(frozen=True)
class Contender:
    """One way to carry a row."""

    label: str
    # (row, directory for its files, certificates) -> [Spec]
    specs: object
    # row -> the virtual address that the client dials.
    virtual_address: object
    # row -> whether it can carry it.
    carries: object = lambda row: row.hops != 4
    ours: bool = False
    # (program, what installs it)
    needs: tuple = ()


def same_site(_row):
    """What every peer's client dials: they forward whatever arrives."""
    return SAME_SITE
