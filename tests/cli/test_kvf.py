#!/usr/bin/env python3
"""kvf: usage, info, and status, sessions and move against a cluster and without one."""
import json
import os
import socket
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import cluster
from cluster import Case, Cluster, free_ports, run


class UsageTest(Case):
    def test_help_lists_verbs_exit_codes_and_ends_with_examples(self):
        done = run("kvf", "--help")
        self.assert_done(done)
        for word in ("status", "sessions", "move", "info", "bench", "KVF_ETCD_ENDPOINTS", "exit codes: 0 done"):
            self.assertIn(word, done.stdout)
        self.assertLess(done.stdout.index("exit codes"), done.stdout.rindex("examples"))

    def test_every_verb_has_help(self):
        for verb in ("status", "sessions", "move", "info"):
            done = run("kvf", verb, "--help")
            self.assert_done(done)
            self.assertTrue(done.stdout.startswith(f"usage: kvf {verb}"), done.stdout)
            self.assertLess(done.stdout.index("exit codes"), done.stdout.index("examples"))

    def test_no_verb_and_unknown_verb(self):
        self.assert_failed(run("kvf"), 2, "verb")
        self.assert_failed(run("kvf", "fly"), 2, "fly")

    def test_unknown_options(self):
        self.assert_failed(run("kvf", "--nonsense", "status"), 2, "--nonsense")
        self.assert_failed(run("kvf", "status", "--nonsense"), 2, "--nonsense")
        self.assert_failed(run("kvf", "info", "-z"), 2, "-z")
        self.assert_failed(run("kvf", "status", "--etcd"), 2, "--etcd")

    def test_wrong_number_of_arguments(self):
        self.assert_failed(run("kvf", "status", "a", "b"), 2, "b")
        self.assert_failed(run("kvf", "move", "1"), 2, "missing")

    def test_bad_values(self):
        self.assert_failed(run("kvf", "status", "--timeout", "soon"), 2, "soon")
        self.assert_failed(run("kvf", "status", "--timeout", "nan"), 2, "nan")
        self.assert_failed(run("kvf", "status", "--set", "no.such=1"), 2, "no.such", "ERR_CONFIG")
        self.assert_failed(run("kvf", "status", "--config", "/nowhere/kvf.conf"), 2, "/nowhere/kvf.conf")
        for session in ("0", "-1", "x", "0x", "9223372036854775808", "18446744073709551617"):
            self.assert_failed(run("kvf", "move", "--", session, "b"), 2, session)

    def test_a_full_standard_output_is_a_failure(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run([cluster.program("kvf"), "info", "-c"], stdout=full, stderr=subprocess.PIPE, text=True,
                                  env=cluster.environment(), timeout=cluster.PATIENCE)
        self.assertEqual((done.returncode, len(done.stderr.splitlines())), (1, 1), done.stderr)


class InfoTest(Case):
    def test_build_and_devices_without_a_flag(self):
        done = run("kvf", "info")
        self.assert_done(done)
        for word in ("version", "cpu kernels", "gpu", "huge pages", "memlock", "numa", "ucx", "io_uring"):
            self.assertIn(word, done.stdout)

    def test_settings_are_the_file_in_deploy(self):
        done = run("kvf", "info", "-c")
        self.assert_done(done)
        with open(os.path.join(cluster.ROOT, "deploy", "kvf.conf")) as text:
            self.assertEqual(done.stdout, text.read(), "deploy/kvf.conf is old: kvf info -c > deploy/kvf.conf")

    def test_settings_are_read_back(self):
        done = run("kvf", "info", "-c", "--set", "dram.bytes=48M", env=cluster.environment(KVF_SSD_DEPTH="7"))
        self.assert_done(done)
        self.assertIn("\ndram.bytes = 48M\n", done.stdout)
        self.assertIn("\nssd.depth = 7\n", done.stdout)
        fresh = Cluster(etcd=False)
        self.addCleanup(fresh.close)
        path = os.path.join(fresh.folder, "kvf.conf")
        with open(path, "w") as out:
            out.write(done.stdout)
        self.assertEqual(run("kvf", "info", "-c", "--config", path).stdout, done.stdout)

    def test_sizes(self):
        done = run("kvf", "info", "-t")
        self.assert_done(done)
        for name in ("kvf_entry", "kvf_peer", "kvf_request_slot", "kvf_pull_part", "kvf_link"):
            self.assertRegex(done.stdout, rf"{name} +\d+ ")

    def test_a_peer_wants_a_name_and_no_other_flag(self):
        for arguments in (["-p"], ["-p", "-b", "two"], ["two"]):
            self.assert_failed(run("kvf", "info", *arguments), 2, "-p wants the name of a node")
        self.assert_failed(run("kvf", "info", "-b", "--json"), 2, "--json")


class NoClusterTest(Case):
    """Nothing listens, something else listens, something listens and says nothing."""

    def check(self, url, seconds):
        for verb in (["status"], ["sessions"], ["move", "1", "b"]):
            begin = time.monotonic()
            self.assert_failed(run("kvf", *verb, "--etcd", url, "--timeout", "1"), 3, url, "etcd")
            self.assertLess(time.monotonic() - begin, seconds * (4 if cluster.SANITIZED else 1))

    def test_nothing_listens(self):
        self.check(f"http://127.0.0.1:{free_ports(1)[0]}", 3)

    def test_a_listener_that_says_nothing(self):
        with socket.create_server(("127.0.0.1", 0)) as mute:
            self.check(f"http://127.0.0.1:{mute.getsockname()[1]}", 5)

    def test_a_listener_that_is_no_etcd(self):
        def answer(server):
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(65536)
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\n\xff{[1")

        with socket.create_server(("127.0.0.1", 0)) as other:
            thread = threading.Thread(target=answer, args=(other,), daemon=True)
            thread.start()
            self.check(f"http://127.0.0.1:{other.getsockname()[1]}", 5)
            other.shutdown(socket.SHUT_RDWR)
        thread.join(5)


class EmptyClusterTest(Case):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster()
        cls.addClassCleanup(cls.cluster.close)

    def test_status_sessions_and_unknown_names(self):
        kvf = self.cluster.kvf
        done = kvf("status")
        self.assert_done(done)
        self.assertIn("0 nodes, 0 sessions, leader none", done.stdout)
        self.assert_failed(kvf("status", "ghost"), 1, "ghost", "ERR_NOT_FOUND")
        done = kvf("sessions")
        self.assert_done(done)
        self.assertEqual(done.stdout, "no sessions\n")
        self.assert_failed(kvf("move", "7", "ghost"), 1, "session 7", "ERR_NOT_FOUND")


class ClusterTest(Case):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster()
        cls.addClassCleanup(cls.cluster.close)
        cls.one = cls.cluster.kvfd("one", lend_bytes="8M").await_ready()
        cls.two = cls.cluster.kvfd("two").await_ready()

    def put(self, key, value):
        """Writes a key to etcd as its gateway takes it."""
        import base64
        import urllib.request
        encode = lambda text: base64.b64encode(text.encode()).decode()
        body = json.dumps({"key": encode(key), "value": encode(value)}).encode()
        with urllib.request.urlopen(f"{self.cluster.url}/v3/kv/put", body, timeout=10):
            pass

    def test_status_lists_the_nodes(self):
        done = self.cluster.kvf("status")
        self.assert_done(done)
        rows = {line.split()[0]: line for line in done.stdout.splitlines() if line}
        self.assertIn(" up ", rows["one"])
        self.assertIn("8.0 MiB", rows["one"])
        self.assertIn(self.two.admin, rows["two"])

    def test_how_a_peer_is_reached_and_why(self):
        def known():
            done = self.cluster.kvf("info", "-p", "one", "--json")
            self.assert_done(done)
            root = json.loads(done.stdout)
            self.assertEqual((root["schema"], root["peer"]), ("kvf-peer/1", "one"))
            entries = {entry["node"]: entry for entry in root["from"]}
            self.assertIn("two", entries)
            self.assertNotIn("one", entries)
            peer = entries["two"].get("peer")
            return entries["two"] if peer and peer["up"] and peer["pieces"] else None

        end, entry = time.monotonic() + cluster.PATIENCE, known()
        while not entry and time.monotonic() < end:
            time.sleep(0.1)
            entry = known()
        self.assertTrue(entry, "two does not know one's memory")
        peer = entry["peer"]
        # On one host, by one user, with fabric.transport auto: one's memory is mapped at two.
        self.assertEqual(peer["way"], "mapped")
        self.assertIn("same host", peer["why"])
        self.assertGreaterEqual(peer["region_bytes"]["mapped"], 8 << 20)
        self.assertGreater(peer["frame_bytes"], 4096)
        self.assertIn("UCX_TLS=", entry["ucx_settings"])
        self.assertTrue(peer["congestion_control"].startswith("reno"), peer["congestion_control"])
        done = self.cluster.kvf("info", "-p", "one")
        self.assert_done(done)
        self.assertIn("two to one\n", done.stdout)
        self.assertIn("congestion   reno", done.stdout)
        self.assertIn("same host", done.stdout)
        # two lends nothing: there is no memory to be reached.
        done = self.cluster.kvf("info", "-p", "two")
        self.assertIn("lends no memory", done.stdout)
        self.assert_failed(self.cluster.kvf("info", "-p", "ghost"), 1, "ghost", "ERR_NOT_FOUND")

    def test_status_as_json(self):
        done = self.cluster.kvf("--json", "status")
        self.assert_done(done)
        self.assertTrue(done.stdout.lstrip("{ \n").startswith('"schema": "kvf-status/1"'), done.stdout[:80])
        root = json.loads(done.stdout)
        nodes = {node["name"]: node for node in root["nodes"]}
        self.assertEqual([node["reachable"] for node in nodes.values()], [True, True])
        self.assertEqual([t["name"] for t in nodes["one"]["status"]["tiers"]], ["gpu", "dram", "remote", "ssd", "peer"])
        self.assertEqual(nodes["one"]["status"]["lending"]["capacity_bytes"], 8 << 20)

    def test_status_of_one_node(self):
        done = self.cluster.kvf("status", "one")
        self.assert_done(done)
        for word in ("one: version", "TIER", "dram", "ssd.path is empty"):
            self.assertIn(word, done.stdout)

    def test_settings_come_from_the_environment_and_a_file(self):
        done = run("kvf", "status", "--json", env=cluster.environment(KVF_ETCD_ENDPOINTS=self.cluster.url))
        self.assert_done(done)
        path = os.path.join(self.cluster.folder, "kvf.conf")
        with open(path, "w") as out:
            out.write(f"etcd.endpoints = {self.cluster.url}\netcd.prefix = /elsewhere\n")
        done = run("kvf", "status", "--config", path)
        self.assert_done(done)
        self.assertIn("cluster /elsewhere", done.stdout)
        self.assertIn("0 nodes", done.stdout)

    def test_a_dead_node_is_shown_as_unreachable(self):
        other = Cluster()
        self.addCleanup(other.close)
        third = other.kvfd("third", etcd_lease="60s").await_ready()
        third.process.kill()
        third.process.wait()
        done = other.kvf("status")
        self.assert_done(done)
        self.assertIn("third", done.stdout)
        self.assertIn("third is unreachable", done.stdout)
        self.assert_failed(other.kvf("status", "third"), 1, "third")
        node = [n for n in json.loads(other.kvf("status", "--json").stdout)["nodes"] if n["name"] == "third"][0]
        self.assertEqual((node["reachable"], "error" in node), (False, True))

    def test_how_much_is_lent(self):
        kvf = self.cluster.kvf
        self.assert_failed(kvf("lend", "nobody", "0"), 1, "nobody", "ERR_NOT_FOUND")
        self.assert_failed(kvf("lend", "one", "much"), 2, "much")
        self.assert_failed(kvf("lend", "two", "0"), 1, "lend.bytes", "ERR_UNSUPPORTED")
        done = kvf("lend", "one", "1M")
        self.assert_done(done)
        self.assertIn("of at most 1.0 MiB", done.stdout)
        done = kvf("lend", "one", "8M", "--json")
        self.assert_done(done)
        self.assertEqual(json.loads(done.stdout)["limit_bytes"], 8 << 20)

    def test_a_node_is_drained(self):
        kvf = self.cluster.kvf
        self.assert_failed(kvf("drain", "nobody"), 1, "nobody", "ERR_NOT_FOUND")
        for node in ("one", "two"):  # also one that lends nothing
            done = kvf("drain", node, "--json")
            self.assert_done(done)
            answer = json.loads(done.stdout)
            self.assertEqual((answer["schema"], answer["node"], answer["draining"], answer["empty"], answer["lent_bytes"]),
                             ("kvf-drain/1", node, True, True, 0))
            done = kvf("drain", node)
            self.assert_done(done)
            self.assertIn(f"node {node} has nothing of others", done.stdout)
            done = kvf("status", node, "--json")
            self.assertTrue(json.loads(done.stdout)["nodes"][0]["status"]["drain"]["draining"])
            done = kvf("drain", node, "-e", "--json")
            self.assert_done(done)
            self.assertFalse(json.loads(done.stdout)["draining"])
            self.assertIn("as before", kvf("drain", node, "-e").stdout)
        lending = [n for n in json.loads(kvf("status", "--json").stdout)["nodes"] if n["name"] == "one"][0]["status"]["lending"]
        self.assertEqual(lending["limit_bytes"], 8 << 20)

    def test_moves_that_cannot_be(self):
        kvf = self.cluster.kvf
        self.assert_failed(kvf("move", "7", "two"), 1, "session 7", "ERR_NOT_FOUND")
        for session, home in ((500, "one"), (501, "nobody")):
            self.put(f"/kvfabric/default/sessions/{session:016x}",
                     json.dumps({"home": home, "epoch": 1, "state": "active", "tokens": 64, "model": "m"}))
        self.assert_failed(kvf("move", "501", "two"), 1, "nobody", "ERR_PEER_LOST")
        self.assert_failed(kvf("move", "500", "nowhere"), 1, "nowhere", "ERR_NOT_FOUND")
        self.assert_failed(kvf("move", "500", "one"), 1, "already")
        # Placement names the home, but the home has no such session.
        self.assert_failed(kvf("move", "0x1f4", "two", "--timeout", "5"), 1, "ERR_NOT_FOUND")
        done = kvf("sessions")
        self.assert_done(done)
        self.assertIn("nobody (gone)", done.stdout)
        self.assertEqual(len(json.loads(kvf("sessions", "--json").stdout)["sessions"]), 2)

    def test_hostile_records_do_not_hurt(self):
        for value in ("", "{}", "[" * 200, '{"home":5,"epoch":"x"}', "\u0000\u0001", '{"home":"' + "a" * 5000 + '"}'):
            self.put("/kvfabric/default/sessions/00000000000000ff", value)
            self.put("/kvfabric/default/members/evil", value)
            self.assert_done(self.cluster.kvf("status"))
            self.assert_done(self.cluster.kvf("sessions"))
        self.assertEqual(self.one.get("/healthz"), "ok\n")


if __name__ == "__main__":
    cluster.need("kvf", "kvfd", "etcd")
    cluster.main()
