"""The server of Autobahn's test suite, for its Python 2.7: websocket_server.py <port>"""

import sys

from autobahntestsuite.testee import TesteeServerFactory
from twisted.internet import reactor

port = int(sys.argv[1])
factory = TesteeServerFactory("ws://127.0.0.1:%d" % port)
# Behind a proxy the port in Host is the proxy's.
factory.externalPort = None
reactor.listenTCP(port, factory, interface="127.0.0.1")
reactor.run()
