"""Nobody: the client's own TCP connections to the server, over the same
wide-area link as ours."""

from ..rows import HTTP1_PORT
from ..world import SERVER_EAST_IP
from . import Contender


def contenders():
    return [Contender("plain", lambda *_: [], lambda _row: f"{SERVER_EAST_IP}:{HTTP1_PORT}",
                      lambda row: row.lossy)]
