"""nginx: one worker, keep-alive towards upstreams, stub_status on, no log.

It speaks HTTP/1.1 between proxies; for HTTP/2 clients and applications it
uses gRPC's upstream module, its only one that speaks HTTP/2.
"""

import os

from ..certs import SERVER_NAME
from ..rows import HTTP2, TCP
from ..world import CAPTURE_PORT, CLIENT, INBOUND_PORT, SERVER, SERVER_IP
from . import DESTINATION, SOURCE, Contender, Spec, same_site

NEEDS = ("nginx", "apt-get install nginx-light libnginx-mod-stream")
STREAM_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"

MAIN = """
{modules}
user root;
daemon off;
worker_processes 1;
pid {directory}/{name}.pid;
error_log {directory}/{name}.error.log;
events {{ worker_connections 20000; }}
{blocks}
"""

# The default of 1000 requests per connection would measure handshakes too.
HTTP = """
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/{name}.body;
    proxy_temp_path {directory}/{name}.proxy;
    fastcgi_temp_path {directory}/{name}.fastcgi;
    uwsgi_temp_path {directory}/{name}.uwsgi;
    scgi_temp_path {directory}/{name}.scgi;
    server {{ listen 127.0.0.1:8404; location / {{ stub_status; }} }}
    upstream out {{
        server {upstream};
        keepalive 512;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {listen}{h2};
        {tls}
        http2_max_concurrent_streams 256;
        location / {{
            {passing}
        }}
    }}
}}
"""

PROXY_PASS = """
            proxy_pass {scheme}://out;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
"""

STREAM = """
stream {{
    server {{
        listen {listen};
        {tls}
        proxy_pass {upstream};
        {passing}
    }}
}}
"""

ACCEPT_TLS = """
        ssl_certificate {certs}/orders.pem;
        ssl_certificate_key {certs}/orders.key;
        ssl_client_certificate {certs}/west.example.root.pem;
        ssl_verify_client on;
        ssl_verify_depth 2;
        ssl_protocols TLSv1.3;
"""

DIAL_TLS = """
            {module}_ssl_certificate {certs}/checkout.pem;
            {module}_ssl_certificate_key {certs}/checkout.key;
            {module}_ssl_trusted_certificate {certs}/west.example.root.pem;
            {module}_ssl_verify on;
            {module}_ssl_verify_depth 2;
            {module}_ssl_name {name};
            {module}_ssl_server_name on;
            {module}_ssl_protocols TLSv1.3;
"""


def contenders():
    # Its clear-text listeners speak either HTTP/1.1 or HTTP/2.
    return [Contender("nginx", specs, same_site, needs=NEEDS,
                      carries=lambda row: row.hops != 4 and not row.excess)]


def specs(row, directory, certs):
    capture = f"0.0.0.0:{CAPTURE_PORT}"
    if row.hops == 1:
        config = write(row, directory, certs, "one-hop", capture, f"{SERVER_IP}:{row.backend_port}")
        return [spec(SOURCE, CLIENT, config)]
    inbound = f"{SERVER_IP}:{INBOUND_PORT}"
    source = write(row, directory, certs, SOURCE, capture, inbound)
    destination = write(row, directory, certs, DESTINATION, inbound, f"127.0.0.1:{row.backend_port}")
    return [spec(DESTINATION, SERVER, destination), spec(SOURCE, CLIENT, source)]


def write(row, directory, certs, name, listen, upstream):
    dials_tls, accepts_tls = name == SOURCE, name == DESTINATION
    module = "grpc" if row.mode == HTTP2 else "proxy"
    dial = DIAL_TLS.format(module=module, certs=certs, name=SERVER_NAME) if dials_tls else ""
    accept = ACCEPT_TLS.format(certs=certs) if accepts_tls else ""
    listen += " ssl" if accepts_tls else ""
    names = {"directory": directory, "name": f"nginx-{name}"}
    if row.mode == TCP:
        passing = dial + ("            proxy_ssl on;" if dials_tls else "")
        blocks = STREAM.format(listen=listen, tls=accept, upstream=upstream, passing=passing)
    else:
        passing = dial + {
            "grpc": f"            grpc_pass grpc{'s' if dials_tls else ''}://out;",
            "proxy": PROXY_PASS.format(scheme="https" if dials_tls else "http"),
        }[module]
        blocks = HTTP.format(**names, listen=listen, upstream=upstream, tls=accept, passing=passing,
                             h2=" http2" if row.mode == HTTP2 else "")
    modules = f"load_module {STREAM_MODULE};" if row.mode == TCP else ""
    path = os.path.join(directory, f"nginx-{name}.conf")
    with open(path, "w") as file:
        file.write(MAIN.format(**names, modules=modules, blocks=blocks))
    return path


def spec(role, host, config):
    return Spec(role, host, ["nginx", "-c", config])
