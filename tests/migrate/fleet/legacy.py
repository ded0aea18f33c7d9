"""What the legacy proxies run: each has the application of its host and that of the next
one as backends."""

import os
import subprocess

from .world import ROOT, address

CACHE = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
# As tests/interop/setup installs it.
ENVOY = os.environ.get("ENVOY", CACHE + "/isthmus-bench/envoy-1.40.0/envoy/_bin/envoy")
# As tests/migrate/setup installs it.
PINS = os.path.join(ROOT, "tests/migrate/finagle/pins.sh")
FINAGLE = subprocess.check_output(["bash", "-c", f'. "{PINS}"; echo "$FINAGLE"'], text=True).strip()
# Small, and started in a second: of classes that a run before has left there.
ARCHIVE = FINAGLE + "/router.jsa"
JAVA = ["java", "-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", f"-XX:SharedArchiveFile={ARCHIVE}"]
JAVA += ["-cp", f"{FINAGLE}/router.jar:{FINAGLE}/jars/*"]

HAPROXY = """
global
    {admin}
    hard-stop-after 30s
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
frontend fe_web
    bind {address}:80
    default_backend apps
backend apps
    balance roundrobin
    server own {address}:8080
    server other {other}:8080
"""
NGINX = """
daemon on;
pid {work}/nginx.pid;
error_log {work}/error.log;
events {{ worker_connections 512; }}
{body}
"""
NGINX_HTTP = """
http {{
    access_log off;
    upstream apps {{ server {address}:8080; server {other}:8080; }}
    server {{ listen 80; location / {{ proxy_pass http://apps; }} }}
}}
"""
NGINX_STREAM = """
stream {{
    upstream apps {{ server {address}:8080; server {other}:8080; }}
    server {{ listen {address}:80; proxy_pass apps; }}
}}
"""
ENVOY_YAML = """
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: 9901 }} }} }}
static_resources:
  listeners:
    - name: web
      address: {{ socket_address: {{ address: {address}, port_value: 80 }} }}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: web
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
                route_config:
                  virtual_hosts:
                    - {{ name: all, domains: ["*"], routes: [{{ match: {{ prefix: / }}, route: {{ cluster: apps }} }}] }}
  clusters:
    - name: apps
      type: STATIC
      connect_timeout: 2s
      load_assignment:
        cluster_name: apps
        endpoints:
          - lb_endpoints:
              - endpoint: {{ address: {{ socket_address: {{ address: {address}, port_value: 8080 }} }} }}
              - endpoint: {{ address: {{ socket_address: {{ address: {other}, port_value: 8080 }} }} }}
"""
# Finagle's, in the place of Linkerd: see finagle/Router.java.
LINKERD = """
admin: {{ ip: 127.0.0.1, port: 9990 }}
usage: {{ enabled: false }}
namers:
- kind: io.l5d.fs
  rootDir: {work}/disco
routers:
- protocol: http
  label: web
  dtab: |
    /fs => /#/io.l5d.fs ;
    /svc => /fs ;
    /svc/web.example => /fs/missing | /fs/apps ;
  servers:
  - {{ ip: {listens}, port: 4140 }}
  # So that connections to another host are new ones again and again.
  client: {{ clientSession: {{ lifeTimeMs: 500 }} }}
"""


def haproxy(host, fill):
    # The second one has no socket to be told by.
    admin = f"stats socket {host.work}/admin.sock level admin" if host.name == "haproxy-1" else "maxconn 1000"
    return HAPROXY.format(admin=admin, **fill), ["haproxy", "-db", "-f", host.config]


def nginx(host, fill):
    is_http = host.name == "nginx-1"
    text = NGINX.format(body=(NGINX_HTTP if is_http else NGINX_STREAM).format(**fill), **fill)
    if not is_http:
        text = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n" + text
    return text, ["nginx", "-c", host.config]


def envoy(host, fill):
    return ENVOY_YAML.format(**fill), [ENVOY, "-c", host.config, "--use-dynamic-base-id", "--concurrency", "1", "-l", "error"]


def linkerd(host, fill):
    names = {
        "apps": f"{host.address} 8080\n{host.other} 8080\n",
        # The application here, and that of the other host by its Linkerd.
        f"{host.name}.example": f"{host.address} 8080\n",
        f"{host.peer}.example": f"{address(host.peer)} {host.port}\n",
    }
    os.makedirs(host.work + "/disco")
    for name, text in names.items():
        with open(f"{host.work}/disco/{name}", "w") as file:
            file.write(text)
    return LINKERD.format(**fill), [*JAVA, "Router", host.config]


KINDS = {"haproxy": haproxy, "nginx": nginx, "envoy": envoy, "linkerd": linkerd}
