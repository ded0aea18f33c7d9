"""What a case is: a function that raises if it does not hold."""

from dataclasses import dataclass

from .process import Failed

CASES = []


@dataclass(frozen=True)
class Case:
    name: str
    check: object  # (Way) -> None
    # The services of world.SERVICES that it calls.
    services: tuple
    # What must be installed.
    needs: tuple
    # Takes long; a shorter form of it is a case of its own.
    long: bool


def case(name, services, needs=(), long=False):
    def register(check):
        CASES.append(Case(name, check, tuple(services), tuple(needs), long))
        return check
    return register


def equal(found, wanted, what):
    if found != wanted:
        raise Failed(f"{what}: {shown(found)}, not {shown(wanted)}")


def holds(condition, text):
    if not condition:
        raise Failed(text)


def shown(value):
    text = repr(value)
    return text if len(text) < 300 else text[:280] + f"… ({len(text)})"
