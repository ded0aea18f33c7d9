"""Shows that every contender verifies both sides: with a certificate of
somebody else on either side, no request may get through."""

import os
import shutil
import time

from . import rows
from .certs import SERVER_NAME
from .load import LoadFailed
from .run import NotMeasured, Path

# What each is given instead of its own: same CA but another name, and another CA.
IMPOSTORS = {
    f"the destination is not {SERVER_NAME}": ("orders", "checkout"),
    "the source is of an unknown CA": ("checkout", "payments"),
}
# A refusal must last this long, in seconds; until then a proxy may be starting.
REFUSED_FOR = 2


def check(contenders, settings):
    """0 if nobody was deceived."""
    row = rows.select(["h1-two-hop-1"])[0]
    own, deceived = settings.certs, 0
    for contender in (contender for contender in contenders if contender.carries(row)):
        settings.certs = own
        try:
            with Path(contender, row, settings):
                print(f"{contender.label:14} carries with its own certificates")
        except NotMeasured as error:
            print(f"{contender.label:14} FAILS with its own certificates: {error}")
            deceived += 1
            continue
        for what, (victim, impostor) in IMPOSTORS.items():
            settings.certs = own + ".impostor"
            shutil.copytree(own, settings.certs)
            for ending in (".pem", ".key", ".both.pem"):
                shutil.copy(os.path.join(own, impostor + ending), os.path.join(settings.certs, victim + ending))
            refused = refuses(contender, row, settings)
            print(f"{contender.label:14} {what}: {'refused' if refused else 'ACCEPTED'}")
            deceived += not refused
            shutil.rmtree(settings.certs)
    return 1 if deceived else 0


def refuses(contender, row, settings):
    """Whether every request fails, while the proxies run."""
    path = Path(contender, row, settings, ready=False)
    with path:
        end = time.monotonic() + REFUSED_FOR
        while time.monotonic() < end:
            try:
                path.probe()
                return False
            except LoadFailed:
                time.sleep(0.1)
        ended = [process.role for process in path.processes if process.ended()]
        if ended:
            raise SystemExit(f"{contender.label}: {ended[0]} ended, which shows nothing: {path.processes[0].tail()}")
        return True
