#!/usr/bin/env python3
"""The admin interface of a node: what it answers, and that hostile input is answered and survived."""
import http.client
import json
import os
import random
import socket
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import cluster
from cluster import Case, Cluster

SEED = 20261123


class AdminTest(Case):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(etcd=False)
        cls.addClassCleanup(cls.cluster.close)
        cls.daemon = cls.cluster.kvfd("solo", lend_bytes="4M").await_ready()

    def request(self, method, path, body=None, headers=None):
        host, port = self.daemon.admin.rsplit(":", 1)
        connection = http.client.HTTPConnection(host, int(port), timeout=cluster.PATIENCE)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer
        finally:
            connection.close()

    def raw(self, data):
        host, port = self.daemon.admin.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=5) as peer:
            try:
                peer.sendall(data)
                peer.shutdown(socket.SHUT_WR)
                return peer.recv(65536)
            except OSError:
                return b""

    def move(self, body, headers=None):
        code, text, _ = self.request("POST", "/v1/move", body, headers)
        return code, json.loads(text)

    def test_health(self):
        self.assertEqual(self.request("GET", "/healthz")[:2], (200, "ok\n"))

    def test_status(self):
        code, text, answer = self.request("GET", "/v1/status")
        status = json.loads(text)
        self.assertEqual((code, answer.getheader("Content-Type"), status["node"]), (200, "application/json", "solo"))
        tiers = {tier["name"]: tier for tier in status["tiers"]}
        self.assertEqual({name: tier["state"] for name, tier in tiers.items()},
                         {"gpu": "absent", "dram": "ok", "remote": "absent", "ssd": "absent", "peer": "absent"})
        self.assertGreaterEqual(tiers["dram"]["capacity_bytes"], 15 << 20)
        self.assertTrue(all(tier["reason"] for tier in tiers.values() if tier["state"] != "ok"))
        self.assertEqual(status["lending"]["capacity_bytes"], 4 << 20)
        self.assertEqual(status["etcd"]["configured"], False)
        self.assertEqual(status["counters"]["blocks_corrupt"], 0)
        self.assertEqual(status["latencies"]["attend_wait"]["n"], 0)
        self.assertEqual(status["pid"], self.daemon.process.pid)
        self.assertLess(status["uptime_s"], 3600)

    def test_sessions(self):
        code, text, _ = self.request("GET", "/v1/sessions")
        self.assertEqual((code, json.loads(text)["sessions"]), (200, []))

    def test_metrics_are_prometheus_text(self):
        code, text, answer = self.request("GET", "/metrics")
        self.assertEqual(code, 200)
        self.assertTrue(answer.getheader("Content-Type").startswith("text/plain; version=0.0.4"))
        typed = {}
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                self.assertNotIn(name, typed)
                typed[name] = kind
            elif not line.startswith("# HELP "):
                self.assertRegex(line, r'^kvf_[a-z0-9_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.]+$')
                base = line.split("{")[0].split(" ")[0]
                self.assertTrue(base in typed or base.rsplit("_", 1)[0] in typed, line)
        self.assertEqual(typed["kvf_blocks_sealed_total"], "counter")
        self.assertEqual(typed["kvf_fetch_seconds"], "histogram")
        self.assertEqual(typed["kvf_ssd_queued"], "gauge")
        self.histograms_are_whole(text, [name for name, kind in typed.items() if kind == "histogram"])

    def histograms_are_whole(self, text, names):
        """Buckets rise with their bound, the last is +Inf and is the count; base units; every series has a sum."""
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        self.assertGreater(len(names), 8)
        series = {}
        for sample, value in samples.items():
            name, _, labels = sample.partition("{")
            if name.endswith("_bucket"):
                rest, _, bound = labels.rstrip("}").rpartition("le=")
                series.setdefault((name[:-len("_bucket")], rest.rstrip(",")), []).append((bound.strip('"'), int(value)))
        self.assertEqual({name for name, _ in series}, set(names))
        for (name, labels), buckets in series.items():
            self.assertTrue(name.endswith("_seconds"), name)
            bounds = [float(bound) for bound, _ in buckets]
            counts = [count for _, count in buckets]
            self.assertEqual(buckets[-1][0], "+Inf")
            self.assertEqual(bounds, sorted(set(bounds)))
            self.assertEqual(counts, sorted(counts))
            suffix = "{" + labels + "}" if labels else ""
            self.assertEqual(int(samples[name + "_count" + suffix]), counts[-1])
            self.assertGreaterEqual(float(samples[name + "_sum" + suffix]), 0)

    def test_unknown_paths_and_methods(self):
        for path in ("/", "/v1", "/v1/status/", "/../etc/passwd", "/%00", "/v1/status%2f", "/" + "a" * 3000):
            self.assertIn(self.request("GET", path)[0], (404, 400, 414), path)
        self.assertEqual(self.request("POST", "/v1/status", "{}")[0], 405)
        self.assertEqual(self.request("GET", "/v1/move")[0], 405)
        self.assertEqual(self.request("GET", "/v1/lend")[0], 405)
        self.assertEqual(self.request("DELETE", "/metrics")[0], 405)

    def test_bodies_that_are_no_order_are_refused(self):
        good = {"session": "1", "node": "b"}
        wrong = ["", "x", "[]", "null", '"1"', "{", "[" * 10000, '{"session":"1","session":"2","node":"b"}', "\xff\xfe"]
        for change in ({"session": None}, {"session": "0"}, {"session": "-1"}, {"session": -1}, {"session": 1.5}, {"session": ""},
                       {"session": "9223372036854775808"}, {"session": "0x"}, {"session": "1 "}, {"session": "1\u0000"},
                       {"session": ["1"]}, {"node": ""}, {"node": 5}, {"node": "a/b"}, {"node": "a" * 64}, {"node": "\n"},
                       {"timeout_ms": 0}, {"timeout_ms": -5}, {"timeout_ms": "9"}, {"timeout_ms": 600001}, {"timeout_ms": None},
                       {"timeout_ms": 1e300}, {"more": 1}):
            wrong.append(json.dumps({**good, **change}))
        for body in wrong:
            code, answer = self.move(body.encode("latin-1"))
            self.assertEqual((code, answer["error"]), (400, "ERR_INVALID"), body[:80])
            self.assertTrue(answer["message"])

    def test_how_much_is_lent(self):
        for body in ("[]", "{}", '{"bytes":-1}', '{"bytes":"1"}', '{"bytes":1.5}', '{"bytes":1,"within_ms":0}',
                     '{"bytes":1,"within_ms":600001}', '{"bytes":1,"more":1}'):
            code, text, _ = self.request("POST", "/v1/lend", body)
            self.assertEqual((code, json.loads(text)["error"]), (400, "ERR_INVALID"), body)
        for limit, stands in ((0, 0), (1 << 20, 1 << 20), (1 << 60, 4 << 20)):
            code, text, _ = self.request("POST", "/v1/lend", json.dumps({"bytes": limit}))
            self.assertEqual((code, json.loads(text)),
                             (200, {"status": "OK", "limit_bytes": stands, "lent_bytes": 0, "revoked_blocks": 0}))
            lending = json.loads(self.request("GET", "/v1/status")[1])["lending"]
            self.assertEqual((lending["limit_bytes"], lending["wanted_bytes"]), (stands, 0))

    def test_a_node_is_drained(self):
        for body in ("[]", "{}", '{"on":1}', '{"on":"true"}', '{"on":true,"within_ms":0}', '{"on":true,"within_ms":600001}',
                     '{"on":true,"more":1}'):
            code, text, _ = self.request("POST", "/v1/drain", body)
            self.assertEqual((code, json.loads(text)["error"]), (400, "ERR_INVALID"), body)
        for on in (True, False):
            code, text, _ = self.request("POST", "/v1/drain", json.dumps({"on": on, "within_ms": 100}))
            self.assertEqual((code, json.loads(text)), (200, {"status": "OK", "draining": on}))
            status = json.loads(self.request("GET", "/v1/status")[1])
            self.assertEqual((status["drain"]["draining"], status["drain"]["empty"]), (on, on))
            self.assertEqual(status["lending"]["limit_bytes"], 0 if on else 4 << 20)

    def test_a_body_beyond_the_limit_is_refused(self):
        self.assertEqual(self.move(b" " * (64 * 1024 + 1))[0], 413)
        self.assertEqual(self.move(b" " * (4 << 20))[0], 413)

    def test_web_pages_are_refused(self):
        self.assertEqual(self.move(b'{"session":"1","node":"b"}', {"Origin": "http://somewhere"})[0], 403)

    def test_an_unknown_session_is_not_found(self):
        code, answer = self.move(b'{"session":"0xff","node":"b","timeout_ms":1000}')
        self.assertEqual((code, answer["error"]), (404, "ERR_NOT_FOUND"))

    def test_garbage_on_the_wire(self):
        chance = random.Random(SEED)
        print(f"seed {SEED}")
        valid = b"POST /v1/move HTTP/1.1\r\nHost: x\r\nContent-Length: 26\r\n\r\n" + b'{"session":"1","node":"b"}'
        for _ in range(60):
            data = bytearray(valid)
            for _ in range(chance.randrange(1, 12)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            self.raw(bytes(data[:chance.randrange(1, len(data) + 1)]))
            self.raw(chance.randbytes(chance.randrange(1, 2000)))
        self.raw(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20000)
        self.raw(b"POST /v1/move HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n")
        self.raw(b"POST /v1/move HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx")
        self.assertEqual(self.request("GET", "/healthz")[0], 200)

    def test_more_connections_than_are_served(self):
        host, port = self.daemon.admin.rsplit(":", 1)
        held = []
        for _ in range(40):
            peer = socket.socket()
            peer.setblocking(False)
            peer.connect_ex((host, int(port)))
            held.append(peer)
        time.sleep(0.2)
        for peer in held:
            peer.close()
        deadline = time.monotonic() + cluster.PATIENCE
        while True:
            try:
                self.assertEqual(self.request("GET", "/healthz")[0], 200)
                return
            except (OSError, http.client.HTTPException):
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.1)

    def test_stop_does_not_wait_for_idle_connections(self):
        other = self.cluster.kvfd("other").await_ready()
        host, port = other.admin.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=5) as idle:
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            idle.recv(1000)
            with socket.create_connection((host, int(port)), timeout=5) as half:
                half.sendall(b"POST /v1/move HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
                begin = time.monotonic()
                self.assertEqual(other.stop(), 0, other.stderr())
                self.assertLess(time.monotonic() - begin, 15 if cluster.SANITIZED else 4)


if __name__ == "__main__":
    cluster.need("kvfd")
    cluster.main()
