"""Hosts with a legacy proxy and an application each, in network namespaces, and what
becomes of them while they move. `../fleet.py` runs it."""
