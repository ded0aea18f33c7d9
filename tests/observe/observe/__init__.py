"""Our mesh, and observers that nobody here wrote.

observers.py   Prometheus, Zipkin, an OpenTelemetry collector, statsd
mesh.py        two sites of our programs
traffic.py     what calls what
cases.py       what the observers must have seen; queries.toml has the PromQL
cli.py         runs it and counts
"""
