#!/usr/bin/env python3
"""kvf bench failure: a peer that dies is noticed, reads of one that hangs end at their deadline, and both are read from again."""
import json
import os
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import cluster
from cluster import Case, run

FAULTS = ("kill -9", "SIGSTOP", "link down", "peer unheard", "peer deaf")


class FailureTest(Case):
    def test_one_round_over_tcp(self):
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "out.json")
            done = run("kvf", "bench", "failure", "--tls", "tcp", "--rounds", "1", "--json", out, timeout=100)
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(out, encoding="utf-8") as file:
                report = json.load(file)
        self.assertTrue(report["verified"])
        rows = {row["name"]: row["value"] for row in report["results"]}
        faults = FAULTS if report["config"]["links"] else FAULTS[:2]
        for fault in faults:
            self.assertGreater(rows[fault + ", tcp: time to detect"], 0, fault)
            self.assertGreater(rows[fault + ", tcp: time to recover"], 0, fault)
            self.assertGreater(rows[fault + ", tcp: reads lost"], 0, fault)
        # A kill is told by the kernel, long before the silence that tells of the rest; and a read does not wait for either.
        self.assertLess(rows["kill -9, tcp: time to detect"], report["config"]["dead_after_ms"])
        for fault in faults[1:]:
            self.assertGreater(rows[fault + ", tcp: time to detect"], report["config"]["dead_after_ms"] / 2, fault)
            self.assertLess(rows[fault + ", tcp: first read that fails"], rows[fault + ", tcp: time to detect"], fault)

    def test_options(self):
        self.assert_failed(run("kvf", "bench", "failure", "--rounds", "0"), 2, "--rounds")


if __name__ == "__main__":
    cluster.need("kvf")
    if "ucx0" in os.path.realpath(cluster.BUILD + "/kvf"):
        print("this build has no UCX")
        sys.exit(77)
    cluster.main()
