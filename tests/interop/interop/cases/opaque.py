"""Opaque protocols, half of which the server begins: each with its port
declared as tcp and with detection."""

import getpass
import hashlib
import os
import socket
import tempfile

from ..case import case, equal, holds
from ..process import run
from ..servers import LARGE

PSQL = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "interop", "-d", "postgres", "-h", "127.0.0.1"]
MARIADB = ["mariadb", "--no-defaults", "--protocol=tcp", "-h", "127.0.0.1", "-u", "root", "-N", "-B"]


def both(name, service, *needs):
    """A case for the port declared as tcp, and one for detection."""
    def register(check):
        for declared in (service, f"{service}-detect"):
            register_as = case(f"opaque/{name}/{declared}", [declared], needs)
            register_as(lambda way, declared=declared: check(way, way.front(declared)))
        return check
    return register


@both("postgresql", "postgres", "psql")
def postgresql(way, port):
    psql = [*PSQL, "-p", str(port)]
    table = f"t{port}"
    run([*psql, "-c", f"create table {table} (id int, text text); insert into {table} select n, repeat('x', 1000) "
                      f"from generate_series(1, 5000) n"])
    equal(run([*psql, "-c", f"select count(*), sum(length(text)) from {table}"]).stdout, b"5000|5000000\n", "sums")
    rows = run([*psql, "-c", f"copy {table} to stdout"]).stdout
    equal(len(rows.splitlines()), 5000, "rows copied out")
    run([*psql, "-c", f"truncate {table}", "-c", f"copy {table} from stdin"], stdin=rows)
    equal(run([*psql, "-c", f"copy {table} to stdout"]).stdout, rows, "rows after they were copied in")
    # Asks for TLS, which the server has not: 'S' or 'N' comes before anything else.
    equal(run([*psql, "-c", "select 1"], env={"PGSSLMODE": "prefer"}).stdout, b"1\n", "with an offer of TLS")


@both("redis", "redis", "redis-cli")
def redis(way, port):
    cli = ["redis-cli", "-h", "127.0.0.1", "-p", str(port)]
    value = b"v" * (4 << 20)
    equal(run([*cli, "-x", "set", f"key{port}"], stdin=value).stdout, b"OK\n", "set")
    equal(run([*cli, "--raw", "get", f"key{port}"]).stdout, value + b"\n", "get")
    pipelined = b"".join(b"INCR counter%d\r\n" % port for _ in range(5000))
    holds(b"errors: 0, replies: 5000" in run([*cli, "--pipe"], stdin=pipelined).stdout, "5000 commands at once")
    equal(run([*cli, "get", f"counter{port}"]).stdout.strip(b'"\n'), b"5000", "the counter")
    # Inline commands look like the first line of HTTP until its end.
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(b"GET nothing\r\n")
        equal(client.recv(100), b"$-1\r\n", "an inline GET")


@both("mariadb", "mariadb", "mariadb")
def mariadb(way, port):
    """The server speaks first."""
    client = [*MARIADB, "-P", str(port)]
    base = f"d{port}"
    run([*client, "-e", f"create database {base}; create table {base}.t (id int, text longtext)"])
    statement = f"insert into {base}.t values (1, '{'y' * (4 << 20)}'), (2, 'z');\n"
    run(client, stdin=statement.encode())
    equal(run([*client, "-e", f"select count(*), sum(length(text)) from {base}.t"]).stdout,
          f"2\t{(4 << 20) + 1}\n".encode(), "sums")
    equal(len(run([*client, "-e", f"select text from {base}.t where id = 1"]).stdout), (4 << 20) + 1, "4 MiB down")


@both("ssh", "ssh", "ssh", "scp")
def ssh(way, port):
    """Both speak first. 20 MiB there and back, and a command's end."""
    place = os.path.join(way.root, "ssh")
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes",
               "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes", "-i", f"{place}/user", "-F", "none"]
    me = f"{getpass.getuser()}@127.0.0.1"
    equal(run(["ssh", *options, "-p", str(port), me, "echo to you; exit 7"], status=7).stdout, b"to you\n", "a command")
    with tempfile.TemporaryDirectory() as directory:
        paths = [os.path.join(directory, name) for name in ("sent", "there", "back")]
        with open(paths[0], "wb") as file:
            file.write(os.urandom(LARGE))
        run(["scp", *options, "-P", str(port), paths[0], f"{me}:{paths[1]}"])
        run(["scp", *options, "-P", str(port), f"{me}:{paths[1]}", paths[2]])
        sums = [hashed(path) for path in paths]
    equal(sums[1:], sums[:1] * 2, "checksums")


def hashed(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@case("opaque/half-close", ["redis"])
def half_close(way):
    """What was sent before the end of one direction is answered on the other."""
    with socket.create_connection(("127.0.0.1", way.front("redis")), 10) as client:
        client.sendall(b"PING\r\n" * 1000)
        client.shutdown(socket.SHUT_WR)
        said = b"".join(iter(lambda: client.recv(65536), b""))
    equal(said, b"+PONG\r\n" * 1000, "answers after the half-close")
