"""Network namespaces, links between them, and interception.

    client ── 10.77.0.0/24 ── server        one and two hops
      └─ 10.77.1.0/24 ─ west ─ 10.77.2.0/24 ─ east ─ 10.77.3.0/24 ─┘   across sites

The client dials a virtual address; nftables REDIRECTs it to the proxy beside
it, as on a joined machine.
"""

import ctypes
import os
import subprocess
import threading

CLIENT, SERVER, WEST, EAST = "client", "server", "west", "east"
HOSTS = (CLIENT, SERVER, WEST, EAST)

CLIENT_IP, SERVER_IP = "10.77.0.1", "10.77.0.2"
WEST_LAN, WEST_WAN = "10.77.1.2", "10.77.2.1"
EAST_WAN, EAST_LAN = "10.77.2.2", "10.77.3.1"
SERVER_EAST_IP = "10.77.3.2"

# Virtual addresses of the services; see proxies/isthmus.py.
SAME_SITE, OTHER_SITE, PLAIN = "10.99.0.1", "10.99.0.2", "10.99.0.3"
VIRTUAL = "10.99.0.0/24"

CAPTURE_PORT = 4141  # where the source's proxy takes captured connections
INBOUND_PORT = 4143  # where the destination's proxy takes mTLS

# One proxy sees many short connections here; the defaults run out of ports.
SYSCTLS = {
    "net.ipv4.ip_local_port_range": "10000 65535",
    "net.ipv4.tcp_tw_reuse": "1",
    "net.core.somaxconn": "8192",
    "net.ipv4.tcp_max_syn_backlog": "8192",
    "net.netfilter.nf_conntrack_tcp_timeout_time_wait": "1",
    "net.netfilter.nf_conntrack_tcp_timeout_close": "1",
}

CAPTURE_RULES = f"""
table ip capture {{
    chain output {{
        type nat hook output priority -100;
        ip daddr {VIRTUAL} tcp dport != 0 redirect to :{CAPTURE_PORT}
    }}
}}
"""


def build(congestion):
    """Makes the namespaces. Runs in a network and mount namespace of its own
    (see `run`), so nothing has to be removed."""
    for host in HOSTS:
        ip("netns", "add", host)
        ip("-n", host, "link", "set", "lo", "up")
    link(CLIENT, CLIENT_IP, SERVER, SERVER_IP)
    link(CLIENT, "10.77.1.1", WEST, WEST_LAN)
    link(WEST, WEST_WAN, EAST, EAST_WAN)
    link(EAST, EAST_LAN, SERVER, SERVER_EAST_IP)
    # Something must route to the virtual addresses before nftables sees them.
    ip("-n", CLIENT, "route", "add", VIRTUAL, "via", SERVER_IP)
    for host in HOSTS:
        inside(host, lambda: write_sysctls(SYSCTLS))
    set_congestion(congestion)
    must(["nsenter", f"--net=/run/netns/{CLIENT}", "nft", "-f", "-"], CAPTURE_RULES)


def link(left, left_ip, right, right_ip):
    names = f"to-{right}", f"to-{left}"
    ip("-n", left, "link", "add", names[0], "type", "veth", "peer", "name", names[1], "netns", right)
    for host, name, address in (left, names[0], left_ip), (right, names[1], right_ip):
        ip("-n", host, "address", "add", f"{address}/24", "dev", name)
        ip("-n", host, "link", "set", name, "up")


def set_congestion(name):
    """The same congestion control for everybody, load and backends too."""
    for host in HOSTS:
        inside(host, lambda: write_sysctls({"net.ipv4.tcp_congestion_control": name}))


def write_sysctls(values):
    for name, value in values.items():
        path = "/proc/sys/" + name.replace(".", "/")
        try:
            with open(path, "w") as file:
                file.write(value)
        except OSError as error:
            raise SystemExit(f"cannot set {name} to {value}: {error}") from error


def inside(host, function):
    """Runs a function on a thread that lives in a namespace; sockets that it
    makes stay there. (os.setns is newer than the Python of Debian 12.)"""
    result = []

    def body():
        try:
            fd = os.open(f"/run/netns/{host}", os.O_RDONLY)
            if ctypes.CDLL(None, use_errno=True).setns(fd, 0) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter namespace {host}")
            os.close(fd)
            result.append((True, function()))
        except BaseException as error:  # handed to the caller below
            result.append((False, error))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    fine, value = result[0]
    if not fine:
        raise value
    return value


def ip(*args):
    must(["ip", *args])


def must(command, stdin=None):
    done = subprocess.run(command, input=stdin, text=True, capture_output=True, timeout=30)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
