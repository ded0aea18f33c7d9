"""Our proxies and peers that nobody here wrote.

world.py         our proxies: one hop in plaintext, two hops with mutual TLS
servers.py       what stands behind them
process.py       processes, and waiting for their ports
case.py          what a case is; cases/ has them all
cli.py           runs them and counts
differential/    the same bytes through us, Envoy and HAProxy
"""
