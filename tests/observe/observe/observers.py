"""Prometheus, Zipkin, an OpenTelemetry collector and statsd, each as it comes."""

import json
import os
import socket

from interop.process import Failed, Process, write

from .waiting import get, get_json, until

PROMETHEUS, ZIPKIN = "http://127.0.0.1:9090", "http://127.0.0.1:9411"
OTLP_GRPC, OTLP_HTTP = "http://127.0.0.1:4317", "http://127.0.0.1:4318"
STATSD = 8125
STATSD_MANAGEMENT = 8126
# So short that a minute's window is full soon.
SCRAPE = "1s"


class Observers:
    def __init__(self, cache, examples, directory):
        self.cache, self.examples, self.directory = cache, examples, directory
        self.spans = os.path.join(directory, "spans.json")
        self.processes = []

    def start(self, targets):
        self.zipkin()
        self.collector()
        self.statsd()
        self.prometheus(targets)
        return self

    def wait(self):
        until("Prometheus is ready", lambda: get(f"{PROMETHEUS}/-/ready"))
        until("statsd answers", lambda: self.ask_statsd("stats"))
        until("Zipkin is healthy", lambda: get(f"{ZIPKIN}/health"))

    def begin(self, name, command, **more):
        self.processes.append(Process(name, command, self.directory, **more))

    def check(self):
        for process in self.processes:
            process.check()

    def prometheus(self, targets):
        """With the rules that we ship, and every process of the mesh as a target."""
        rules = [os.path.join(self.examples, "prometheus", name) for name in ["rules.yml", "flagger.yml"]]
        config = {
            "global": {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE},
            "rule_files": rules,
            "scrape_configs": [{"job_name": "isthmus", "static_configs": [
                {"targets": [addr], "labels": {"part": part}} for part, addr in targets]}]}
        self.begin("prometheus", [
            os.path.join(self.cache, "prometheus/usr/bin/prometheus"),
            f"--config.file={write(self.directory, 'prometheus.yml', config)}",
            f"--storage.tsdb.path={self.directory}/prometheus", "--web.listen-address=127.0.0.1:9090"])

    def zipkin(self):
        self.begin("zipkin", ["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-jar",
                              os.path.join(self.cache, "zipkin.jar")])

    def collector(self):
        grpc, http = ({"endpoint": at.removeprefix("http://")} for at in [OTLP_GRPC, OTLP_HTTP])
        config = {
            "receivers": {"otlp": {"protocols": {"grpc": grpc, "http": http}}},
            "exporters": {"file": {"path": self.spans, "flush_interval": "200ms"}},
            "service": {
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["file"]}}}}
        path = write(self.directory, "collector.yaml", config)
        self.begin("collector", [os.path.join(self.cache, "collector"), f"--config=file:{path}"])

    def statsd(self):
        # It empties its counters at every flush.
        config = {"address": "127.0.0.1", "port": STATSD, "mgmt_address": "127.0.0.1",
                  "mgmt_port": STATSD_MANAGEMENT, "flushInterval": 3600_000, "backends": ["./backends/console"]}
        path = write(self.directory, "statsd.json", config)
        self.begin("statsd", ["node", os.path.join(self.cache, "statsd/node_modules/statsd/stats.js"), path])

    def ask_statsd(self, command):
        with socket.create_connection(("127.0.0.1", STATSD_MANAGEMENT), 5) as conn:
            conn.sendall(command.encode() + b"\n")
            text = b""
            while not text.endswith(b"END\n\n"):
                chunk = conn.recv(65536)
                if not chunk:
                    raise Failed(f"statsd, {command}: {text.decode()}")
                text += chunk
        return text.decode()

    def query(self, promql):
        """Labels and values of what an instant query finds."""
        answer = get_json(f"{PROMETHEUS}/api/v1/query", query=promql)["data"]
        if answer["resultType"] == "scalar":
            return [({}, float(answer["result"][1]))]
        return [(one["metric"], float(one["value"][1])) for one in answer["result"]]

    def otlp_spans(self, trace):
        """Spans of a trace as the collector wrote them, each as Zipkin has it."""
        with open(self.spans) as file:
            # The last line may be half there.
            lines = [line for line in file.read().split("\n")[:-1] if line]
        found = []
        for batch in map(json.loads, lines):
            for resource in batch["resourceSpans"]:
                service = {a["key"]: a["value"].get("stringValue", "") for a in resource["resource"]["attributes"]}
                for span in (span for scope in resource["scopeSpans"] for span in scope["spans"]):
                    if span["traceId"] == trace:
                        found.append(otlp(span, service))
        return found

    def zipkin_spans(self, trace):
        spans = get_json(f"{ZIPKIN}/api/v2/trace/{trace}")
        return [{"id": span["id"], "parent": span.get("parentId"), "kind": span["kind"], "name": span["name"],
                 "service": span["localEndpoint"]["serviceName"], "site": span["tags"]["site"],
                 "began": span["timestamp"], "ended": span["timestamp"] + span["duration"],
                 "tags": span["tags"]} for span in spans]


def otlp(span, resource):
    kinds = {2: "SERVER", 3: "CLIENT"}
    tags = {a["key"]: next(iter(a["value"].values())) for a in span["attributes"]}
    return {"id": span["spanId"], "parent": span.get("parentSpanId") or None, "kind": kinds[span["kind"]],
            "name": span["name"], "service": resource["service.name"], "site": resource["isthmus.site"],
            "began": int(span["startTimeUnixNano"]) // 1000, "ended": int(span["endTimeUnixNano"]) // 1000,
            "tags": tags}
