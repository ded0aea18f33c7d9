"""CPU per request of Isthmus and of other proxies, side by side.

rows.py       what is measured, and the goals
proxies/      how each proxy is set up for a row
world.py      network namespaces and interception
process.py    processes, pinning, CPU and memory accounting
load.py       what drives the requests
run.py        one measurement; cli.py all of them, interleaved
report.py     tables
honesty.py    that everybody verifies certificates
profiling.py  where our own CPU time goes
"""
