"""What stands behind our proxies: one server per port, started if a case uses
it. Each function writes its configuration and starts it."""

import glob
import os
import secrets
import shutil
import subprocess
from concurrent import futures

from bench.proxies import envoy

from .process import Process, write

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "servers")
PYTHON = os.path.join(os.environ.get("ISTHMUS_INTEROP_CACHE", ""), "venv", "bin", "python")
PYTHON2 = os.path.join(os.environ.get("ISTHMUS_INTEROP_CACHE", ""), "python2", "python")
# What a download and an upload are.
LARGE = 20 << 20

PORTS = {"nginx": 6001, "node": 6002, "node-h2": 6003, "nghttpd": 6004, "envoy": 6005, "grpc": 6006, "postgres": 6010,
         "redis": 6011, "mariadb": 6012, "sshd": 6013, "websocket": 6014, "origin": 6020}

# Servers that refuse to be root are this user, in a user namespace.
AS_USER = ["unshare", "--user", "--map-user=65534", "--map-group=65534"]


def nginx(directory, port):
    files = os.path.join(directory, "files")
    os.makedirs(files)
    with open(os.path.join(files, "small.txt"), "w") as file:
        file.write("".join(f"line {number}\n" for number in range(1000)))
    with open(os.path.join(files, "large.bin"), "wb") as file:
        file.write(secrets.token_bytes(LARGE))
    config = os.path.join(directory, "nginx.conf")
    with open(config, "w") as file:
        file.write(f"""
daemon off;
worker_processes 1;
user root;
pid {directory}/nginx.pid;
error_log {directory}/nginx.error.log;
events {{ }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/nginx.body;
    proxy_temp_path {directory}/nginx.proxy;
    fastcgi_temp_path {directory}/nginx.fastcgi;
    uwsgi_temp_path {directory}/nginx.uwsgi;
    scgi_temp_path {directory}/nginx.scgi;
    server {{ listen 127.0.0.1:{port}; root {files}; location = /ping {{ return 200 "pong"; }} }}
}}
""")
    return Process("nginx", ["nginx", "-c", config], directory)


def node(directory, port):
    return Process("node", ["node", os.path.join(HERE, "node.js"), str(port), str(PORTS["node-h2"])], directory)


def nghttpd(directory, port):
    files = os.path.join(directory, "nghttpd-files")
    os.makedirs(files)
    with open(os.path.join(files, "page"), "w") as file:
        file.write("from nghttpd\n")
    return Process("nghttpd", ["nghttpd", "--no-tls", "-a", "127.0.0.1", "-d", files, "--echo-upload",
                               "--trailer", "x-end: 1", str(port)], directory)


def envoy_server(directory, port):
    """Envoy in front of Node: whichever HTTP our proxy speaks."""
    return envoy_proxy("envoy-server", directory, port, PORTS["node"], "http1", "AUTO")


def envoy_proxy(name, directory, port, target, protocol, codec):
    manager = envoy.connection_manager(codec)
    manager["typed_config"]["codec_type"] = codec
    listener = {"name": "in", "address": envoy.address("127.0.0.1", port), "filter_chains": [{"filters": [manager]}]}
    config = envoy.bootstrap(listener, envoy.cluster("127.0.0.1", target, protocol))
    del config["admin"]  # a port of its own for each is not worth it
    path = write(directory, f"{name}.json", config)
    return Process(name, [envoy.binary(), "-c", path, "--concurrency", "1", "--disable-hot-restart",
                          "--log-level", "error"], directory)


def grpc(directory, port):
    return Process("grpc", [PYTHON, os.path.join(HERE, "grpc_server.py"), str(port)], directory, cwd=HERE)


def postgres(directory, port):
    binaries = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
    data = as_user(directory, "postgres")
    make([*AS_USER, f"{binaries}/initdb", "-D", data, "-U", "interop", "--auth=trust", "--no-sync"])
    return Process("postgres", [*AS_USER, f"{binaries}/postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port),
                                "-k", "", "-F"], directory)


def redis(directory, port):
    return Process("redis", ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "",
                             "--dir", directory], directory)


def mariadb(directory, port):
    data = as_user(directory, "mariadb")
    make([*AS_USER, "mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db",
          "--auth-root-authentication-method=normal"])
    return Process("mariadb", [*AS_USER, "mariadbd", "--no-defaults", f"--datadir={data}", "--bind-address=127.0.0.1",
                               f"--port={port}", f"--socket={data}/socket", "--skip-name-resolve"], directory)


def as_user(directory, name):
    """A directory of the user that some servers are: root outside."""
    path = os.path.join(directory, name)
    os.makedirs(path)
    return path


def sshd(directory, port):
    place = os.path.join(directory, "ssh")
    os.makedirs(place, mode=0o700)
    for key in ("host", "user"):
        make(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{place}/{key}"])
    config = os.path.join(place, "sshd_config")
    with open(config, "w") as file:
        file.write(f"""
ListenAddress 127.0.0.1:{port}
HostKey {place}/host
AuthorizedKeysFile {place}/user.pub
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
PidFile none
Subsystem sftp internal-sftp
""")
    return Process("sshd", ["/usr/sbin/sshd", "-D", "-e", "-f", config], directory)


def websocket(directory, port):
    return Process("websocket", [PYTHON2, os.path.join(HERE, "websocket_server.py"), str(port)], directory)


def make(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}:\n{(done.stdout + done.stderr)[-800:]}")


# name: (what starts it, programs that it needs)
SERVERS = {
    "nginx": (nginx, ["nginx"]),
    "node": (node, ["node"]),
    "nghttpd": (nghttpd, ["nghttpd"]),
    "envoy": (envoy_server, [envoy.binary()]),
    "grpc": (grpc, []),
    "postgres": (postgres, []),
    "redis": (redis, ["redis-server"]),
    "mariadb": (mariadb, ["mariadbd", "mariadb-install-db"]),
    "sshd": (sshd, ["sshd", "ssh-keygen"]),
    "websocket": (websocket, [PYTHON2]),
}


def behind(ports):
    """The servers that listen there; Node has two ports, and the differential
    test is its own server."""
    return sorted({"node" if name == "node-h2" else name for name in ports} - {"origin"})


def require(names):
    """Says everything that is missing."""
    missing = [need for name in names for need in SERVERS[name][1] if not shutil.which(need)]
    if "postgres" in names and not glob.glob("/usr/lib/postgresql/*/bin/initdb"):
        missing.append("postgres")
    return missing


def start(names, directory):
    """All of them at once; returns when all listen."""
    with futures.ThreadPoolExecutor() as pool:
        started = {name: pool.submit(SERVERS[name][0], directory, PORTS[name]) for name in names}
    return [process.result().wait_for(PORTS[name]) for name, process in started.items()]
