#!/usr/bin/env python3
"""kvf bench fabric: pulls between processes over TCP and shared memory are right, and what it writes says so."""
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import cluster
from cluster import Case, environment, run


class FabricTest(Case):
    def bench(self, *arguments):
        """Its configuration, and its rows by name. The programs beside which it measures are hidden: its own part is tested."""
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "out.json")
            done = run("kvf", "bench", "fabric", "--memory", "0.25", "--rounds", "1", "--time", "0.3", "--json", out, *arguments,
                       env=environment(PATH=folder), timeout=100)
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(out, encoding="utf-8") as file:
                report = json.load(file)
        self.assertTrue(report["verified"])
        return report["config"], {row["name"]: row for row in report["results"]}

    def test_one_pulls_from_one(self):
        config, rows = self.bench("--size", "64", "--depth", "4")
        self.assertFalse(config["ucx_perftest"])
        for name in ("tcp 64 KiB depth 4", "tcp 64 KiB depth 4 unchecked", "shm 64 KiB depth 4", "tcp 64 KiB alone",
                     "tcp 1 of 64 chunks of 4 KiB"):
            self.assertGreater(rows[name]["value"], 0, name)
        self.assertEqual(rows["shm 64 KiB depth 4 unchecked"]["limit_name"], "memcpy")
        self.assertGreater(rows["shm 64 KiB in place"]["value"], 0)

    def test_many(self):
        _, rows = self.bench("--peers", "3", "--tls", "tcp", "--size", "64", "--depth", "2")
        self.assertGreater(rows["tcp 64 KiB depth 2, 3 to one"]["value"], 0)
        self.assertGreater(rows["tcp 64 KiB depth 2, 3 servers of one"]["value"], 0)
        self.assertLessEqual(rows["tcp 64 KiB depth 2, 3 to one: slowest reader"]["ratio"], 1)

    def hung_up_on(self, where):
        """One that says its proof a letter at a time does not keep the others waiting."""
        host, port = where.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=20) as caller:
            end = time.monotonic() + 20
            with self.assertRaises(OSError):
                while time.monotonic() < end:
                    caller.sendall(b"a")
                    time.sleep(0.1)

    def test_two_machines(self):
        """One process serves and another measures with it, who knows the same secret; a third knows another, and learns nothing."""
        with tempfile.TemporaryDirectory() as folder:
            for name, secret in (("ours", "a" * 32), ("theirs", "b" * 32)):
                with open(os.path.join(folder, name), "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                    file.write(secret)
            ours = ("--secret-file", os.path.join(folder, "ours"))
            server = subprocess.Popen([os.path.join(cluster.BUILD, "kvf"), "bench", "fabric", "--serve", "127.0.0.1:0", "--memory",
                                       "0.5", "--seed", "7", *ours], env=environment(), stdout=subprocess.PIPE, text=True)
            try:
                where = re.search(r"at (\S+);", server.stdout.readline()).group(1)
                refused = run("kvf", "bench", "fabric", "--peer", where, "--secret-file", os.path.join(folder, "theirs"))
                self.assert_failed(refused, 1, "another secret")
                self.hung_up_on(where)
                # Its region is as large as it says, but no larger than is allowed here.
                self.assert_failed(run("kvf", "bench", "fabric", "--peer", where, "--memory", "0.25", *ours), 1, "--memory")
                ours += ("--memory", "0.5")
                config, rows = self.bench("--peer", where, "--size", "64", "--depth", "4", "--spin", "300", *ours)
                self.assertGreater(rows["tcp 64 KiB depth 4"]["value"], 0)
                self.assertEqual((config["region_bytes"], config["reactor_spin_us"]), (512 << 20, 300))
                self.assert_failed(run("kvf", "bench", "fabric", "--peer", where, "--tls", "shm", *ours), 1, "another --tls")
                _, rows = self.bench("--peer", where, "--size", "256", "--depth", "2", *ours)
                self.assertGreater(rows["tcp 256 KiB depth 2"]["value"], 0)
            finally:
                server.terminate()
                server.stdout.close()
                self.assertEqual(server.wait(20), 0)
        self.assert_failed(run("kvf", "bench", "fabric", "--serve", "0.0.0.0:0", "--memory", "0.25"), 1, "a secret is needed")

    def test_options(self):
        for option, value in (("--size", "3"), ("--depth", "65"), ("--tls", "pigeon"), ("--peers", "1"), ("--rounds", "0"), ("--spin", "0")):
            self.assert_failed(run("kvf", "bench", "fabric", option, value), 2, option)


if __name__ == "__main__":
    cluster.need("kvf")
    if "ucx0" in os.path.realpath(cluster.BUILD + "/kvf"):
        print("this build has no UCX")
        sys.exit(77)
    cluster.main()
