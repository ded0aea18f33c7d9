"""All cases, in the order in which they run."""

from ..case import CASES as ALL
from . import http1, http2, grpc, opaque, websocket, proxies, differential  # noqa: F401  they register
