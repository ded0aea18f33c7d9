"""What needs no proxy: python3 -m unittest bench.tests"""

import contextlib
import http.server
import json
import os
import random
import socket
import subprocess
import tempfile
import threading
import time
import unittest

from . import exchanges, lossy, report, rows
from .load import H2load, LoadFailed, Paced, Wrk
from .process import process_clock
from .proxies import envoy, haproxy, isthmus, nginx

WRK = """Running 3s test @ http://10.99.0.1/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.02ms    2.10ms  44.31ms   97.10%
    Req/Sec    29.97k     1.20k   31.02k    80.00%
  Latency Distribution
     50%  985.00us
     75%    1.02ms
     90%    1.10ms
     99%    6.20ms
  {count} requests in 3.00s, 36.02MB read
{errors}Requests/sec:  29970.00
Transfer/sec:     12.01MB
"""

H2LOAD = """starting benchmark...
finished in 2.00s, 1000.00 req/s, 3.80MB/s
requests: 2000 total, 2128 started, 2000 done, {fine} succeeded, {failed} failed, {errored} errored, 0 timeout
status codes: {ok} 2xx, 0 3xx, 0 4xx, {refused} 5xx
traffic: 7.60MB (7964172) total, 327.17KB (335024) headers (space savings 92.43%), 6.80MB ({data}) data
"""


def h2load(data, ok=2000, refused=0, errored=0):
    return H2LOAD.format(data=data, ok=ok, fine=ok, failed=2000 - ok, refused=refused, errored=errored)


class Loads(unittest.TestCase):
    def test_wrk_is_read(self):
        outcome = Wrk(0, {}).outcome(WRK.format(count=89910, errors=""))
        self.assertEqual((outcome.units, outcome.errors, outcome.seconds), (89910, 0, 3.0))
        self.assertEqual(outcome.latencies, {"p50": 0.985, "p99": 6.2})

    def test_what_failed_in_wrk_is_counted(self):
        errors = "  Socket errors: connect 1, read 20, write 300, timeout 4000\n  Non-2xx or 3xx responses: 50000\n"
        self.assertEqual(Wrk(0, {}).outcome(WRK.format(count=89910, errors=errors)).errors, 54321)
        with self.assertRaises(LoadFailed):
            Wrk(0, {}).outcome(WRK.format(count=0, errors=errors))

    def test_whole_answers_count_in_h2load(self):
        size = H2load.answer
        cases = [
            (h2load(2000 * size), 0),
            # Cut short, refused, lost.
            (h2load(1990 * size), 10),
            (h2load(1500 * size, ok=1500, refused=500), 500),
            (h2load(2000 * size, errored=7), 7),
        ]
        for text, errors in cases:
            self.assertEqual(H2load(0, {}).outcome(text).errors, errors, text)
        with self.assertRaises(LoadFailed):
            H2load(0, {}).outcome(h2load(0, ok=0, refused=2000))

    def test_an_answer_without_a_reason_phrase_is_one(self):
        self.assertEqual(Paced(0, {}).outcome(h2load(2000 * Paced.answer, ok=0)).errors, 0)


class Cpu(unittest.TestCase):
    def test_the_clock_of_another_process_is_its_cpu_time(self):
        busy = subprocess.Popen(["python3", "-c", "while True: pass"])
        idle = subprocess.Popen(["sleep", "60"])
        try:
            deadline = time.monotonic() + 30
            while time.clock_gettime(process_clock(busy.pid)) < 0.3 and time.monotonic() < deadline:
                time.sleep(0.05)
            self.assertGreaterEqual(time.clock_gettime(process_clock(busy.pid)), 0.3)
            self.assertLess(time.clock_gettime(process_clock(idle.pid)), 0.3)
        finally:
            busy.kill(), idle.kill()
            busy.wait(), idle.wait()


class Lossy(unittest.TestCase):
    @contextlib.contextmanager
    def link(self, delay, loss):
        """(where packets go in, what carries them, where they come out)"""
        with contextlib.ExitStack() as ends:
            pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
            for end in sum(pairs, ()):
                ends.enter_context(end)
                end.setblocking(False)
            (near, source), (sink, far) = pairs
            yield near, lossy.Direction(source.fileno(), sink.fileno(), delay, loss, random.Random(1)), far

    def carried(self, loss, count):
        """Which of so many packets arrived, in the order in which they did."""
        arrived = []
        with self.link(0.001, loss) as (near, direction, far):
            for number in range(count):
                near.send(number.to_bytes(4, "big"))
                direction.take()
                if number % 100 == 99:
                    time.sleep(0.002)
                    direction.send()
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            arrived.append(int.from_bytes(far.recv(4), "big"))
        return arrived

    def test_every_packet_arrives_in_order(self):
        self.assertEqual(self.carried(0.0, 1000), list(range(1000)))

    def test_nothing_arrives_before_its_time(self):
        with self.link(60, 0.0) as (near, direction, far):
            near.send(b"packet")
            lossy.carry([direction], until=time.monotonic() + 0.05)
            self.assertEqual(len(direction.held), 1)
            with self.assertRaises(BlockingIOError):
                far.recv(16)

    def test_as_many_are_lost_as_it_says(self):
        arrived = self.carried(0.1, 1000)
        # Five standard deviations.
        self.assertAlmostEqual(len(arrived), 900, delta=48)


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.connections.add(self.client_address)
        status, body = (200, b"body") if self.headers["Host"] == "fine" else (503, b"none")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        time.sleep(0.02)
        self.wfile.write(body)
        if status != 200:
            self.close_connection = True

    def log_message(self, *_):
        pass


class Exchanges(unittest.TestCase):
    def drive(self, host, kept):
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
            server.connections = set()
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                run = exchanges.drive(server.server_address, host, b"body", 4, 0.3, kept)
            finally:
                server.shutdown()
            return run, len(server.connections)

    def test_each_has_a_connection_of_its_own(self):
        run, connections = self.drive("fine", False)
        self.assertEqual((run.errors, connections), (0, len(run.times)), run.problem)
        # To the end of the answer, not to its beginning.
        self.assertGreaterEqual(min(run.times), 20)

    def test_connections_that_are_kept_are_used_again(self):
        run, connections = self.drive("fine", True)
        self.assertEqual((run.errors, connections), (0, 4), run.problem)
        self.assertGreater(len(run.times), 4)

    def test_what_is_refused_is_an_error(self):
        run, _ = self.drive("odd", True)
        self.assertEqual(run.times, [])
        self.assertGreater(run.errors, 0)
        self.assertIn("none", run.problem)


def measured(**values):
    return {label: {"ours": label == "isthmus", "runs": [{"value": value, "errors": 0} for value in found]}
            for label, found in values.items()}


class Reports(unittest.TestCase):
    def row(self, name, **values):
        return {"name": name, "title": "", "unit": "", "contenders": measured(**values)}

    def test_goals_are_ratios_of_the_same_run(self):
        lines = list(report.verdicts(self.row("h1-two-hop-32", haproxy=[10, 20, 30], isthmus=[8, 16, 40])))
        self.assertEqual(lines, ["goal ≤ 0.85 × haproxy: 0.80 (min), 0.80 (median) met"])
        lines = list(report.verdicts(self.row("h1-two-hop-32", haproxy=[10, 20, 30], isthmus=[8, 18, 19])))
        self.assertTrue(lines[0].endswith("NOT MET"), lines)

    def test_the_best_of_several_peers_counts(self):
        lines = list(report.verdicts(self.row("h2-two-hop", haproxy=[50], envoy=[30], isthmus=[20])))
        self.assertIn("0.67", lines[0])

    def test_bulk_across_sites_is_measured_against_two_hops(self):
        found = {"isthmus/same-site": [2.0], "isthmus/tls": [4.0], "isthmus/quic": [14.0]}
        row = self.row("cross-bulk", **found)
        for label, entry in row["contenders"].items():
            entry["ours"] = label.startswith("isthmus/")
        lines = list(report.verdicts(row))
        self.assertIn("isthmus/tls: goal ≤ 2.5 × isthmus/same-site: 2.00 (min), 2.00 (median) met", lines)
        self.assertIn("isthmus/quic: goal ≤ 6.0 × isthmus/same-site: 7.00 (min), 7.00 (median) NOT MET", lines)

    def test_what_crossing_sites_adds_is_measured_against_two_hops_of_haproxy(self):
        found = {"haproxy/same-site": [156.0], "isthmus/same-site": [100.0], "isthmus/tls": [189.0],
                 "isthmus/quic": [290.0]}
        row = self.row("cross-h1-1", **found)
        for label, entry in row["contenders"].items():
            entry["ours"] = label.startswith("isthmus/")
        lines = list(report.verdicts(row))
        self.assertIn("isthmus/tls minus isthmus/same-site: +89.00 (min), +89.00 (median)", lines)
        self.assertIn("  of haproxy/same-site 0.57 (min), 0.57 (median), goal ≤ 0.58 met", lines)
        self.assertIn("  of haproxy/same-site 1.22 (min), 1.22 (median), goal ≤ 1.15 NOT MET", lines)

    def test_what_was_not_measured_has_no_verdict(self):
        self.assertEqual(list(report.verdicts(self.row("h1-two-hop-32", haproxy=[], isthmus=[8]))), [])
        self.assertEqual(list(report.verdicts(self.row("h1-two-hop-32", haproxy=[8], isthmus=[]))), [])


    def test_the_table_has_a_column_for_everybody_measured(self):
        rows_measured = [self.row("h1-two-hop-32", haproxy=[10, 30, 20], isthmus=[8]),
                         self.row("cross-h2", **{"isthmus/tls": [5]})]
        near, far = (report.table([one], ["haproxy", "isthmus", "isthmus/tls"]) for one in rows_measured)
        self.assertIn("| haproxy | isthmus |", near)
        self.assertIn("| 20.0 (10.0) | 8.00 (8.00) |", near)
        self.assertIn("| isthmus/tls |", far)


class Rows(unittest.TestCase):
    def test_a_row_is_named_by_its_beginning(self):
        self.assertEqual([row.name for row in rows.select(["h2"])], ["h2-one-hop", "h2-two-hop"])
        self.assertEqual([row.name for row in rows.select(["h1-two-hop-32"])], ["h1-two-hop-32"])
        with self.assertRaises(SystemExit):
            rows.select(["h3"])

    def test_quick_names_rows_that_exist(self):
        self.assertEqual([row.name for row in rows.select(rows.QUICK)], rows.QUICK)

    def test_every_row_has_a_contender_of_ours_and_peers_but_bulk_across_sites(self):
        ours = isthmus.contenders("isthmus", "edge-proxy")
        peers = haproxy.contenders() + nginx.contenders() + envoy.contenders()
        for row in rows.ROWS:
            self.assertTrue(any(contender.carries(row) for contender in ours), row.name)
            self.assertEqual(any(contender.carries(row) for contender in peers),
                             row.hops != 4 or row.name in rows.ADDED, row.name)

    def test_our_configuration_is_one_worker_without_an_access_log(self):
        with tempfile.TemporaryDirectory() as directory:
            for row in rows.ROWS:
                for contender in isthmus.contenders("isthmus", "edge-proxy"):
                    if contender.carries(row):
                        specs = contender.specs(row, directory, "/certs")
                        self.assertEqual(len(specs), row.hops if "same-site" not in contender.label else 2)
            for name in os.listdir(directory):
                with open(os.path.join(directory, name)) as file:
                    config = json.load(file)
                if "identity" in config:
                    self.assertEqual((config["workers"], config["access_log"]), (1, "off"), name)


if __name__ == "__main__":
    unittest.main()
