#!/usr/bin/env python3
"""kvf bench policy replays what llm --record wrote, kvf bench trace a trace of requests; damaged files are refused with one line."""
import json
import os
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import cluster
from cluster import Case, run

LINES = ("optimum", "lru", "lfu", "score", "blend", "blend-shared")


class PolicyTest(Case):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.log = os.path.join(cls.folder.name, "random.sel")
        model, text = (os.path.join(cls.folder.name, name) for name in ("random.gguf", "text"))
        with open(text, "w", encoding="utf-8") as file:
            file.write("".join(f"line {i} says {i * i % 97} and no more.\n" for i in range(120)))
        cls.made = run("llm", "--make-random", model)
        cls.recorded = run("llm", "--model", model, "--prompt-file", text, "--prompt-tokens", "600", "--generate", "40",
                           "--budget", "20", "--record", cls.log, "--follow")

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def bench(self, *arguments):
        return run("kvf", "bench", "policy", *arguments)

    def test_curves_are_ordered(self):
        self.assert_done(self.made)
        self.assertEqual(self.recorded.returncode, 0, self.recorded.stderr)
        out = os.path.join(self.folder.name, "out.json")
        done = self.bench("--log", self.log, "--json", out)
        self.assert_done(done)
        with open(out, encoding="utf-8") as file:
            report = json.load(file)
        self.assertTrue(report["verified"])
        rows = {row["name"]: row["value"] for row in report["results"]}
        for line in LINES:
            self.assertIn(line, done.stdout)
            for times in ("1.00x", "1.50x", "4.00x"):
                self.assertGreaterEqual(rows[f"random.sel {line} {times}"] + (100 if line == "blend-shared" else 1e-9),
                                        rows[f"random.sel optimum {times}"])
        self.assertGreater(rows["random.sel lru 1.00x"], rows["random.sel optimum 4.00x"])

    def test_a_damaged_log_is_refused(self):
        with open(self.log, "rb") as file:
            log = bytearray(file.read())
        bad = os.path.join(self.folder.name, "bad.sel")
        for damage, why in ((log[:-3], "cut short"), (log[:200], "cut short"), (b"", "no selection log"),
                            (log[:8] + b"\2" + log[9:], "version"), (log[:96] + b"\1" + log[97:], "order")):
            with open(bad, "wb") as file:
                file.write(damage)
            self.assert_failed(self.bench("--log", bad), 1, why)
        self.assert_failed(self.bench("--log", "/nowhere/x.sel"), 1, "/nowhere/x.sel")
        self.assert_failed(self.bench(), 1, "--log")

    def test_recording_needs_a_budget_and_a_place(self):
        self.assert_failed(run("llm", "--model", "m", "--prompt-file", "t", "--plain", "--record", "x"), 2, "--budget")
        self.assert_failed(run("llm", "--model", "m", "--prompt-file", "t", "--budget", "5", "--follow"), 2, "--prompt-tokens")


class TraceTest(Case):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def bench(self, text, *arguments):
        path, out = (os.path.join(self.folder.name, name) for name in ("trace.jsonl", "out.json"))
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        done = run("kvf", "bench", "trace", "--trace", path, "--json", out, *arguments)
        rows = {}
        if done.returncode == 0:
            with open(out, encoding="utf-8") as file:
                rows = {row["name"]: row["value"] for row in json.load(file)["results"]}
        return done, rows

    def test_hits_of_a_small_trace(self):
        requests = [[7, 8, 9], [7, 8, 1], [5, 8], [7, 8, 9]]
        done, rows = self.bench("".join(json.dumps({"hash_ids": ids}) + "\n" for ids in requests), "--capacity", "100", "--capacity",
                                "20")
        self.assert_done(done)
        for policy in ("lru", "lfu", "s3fifo", "arc"):
            self.assertAlmostEqual(rows[f"{policy} 100 % prefix"], 100 * 5 / 11, 3)  # 8 behind the new 5 is worth nothing
            self.assertAlmostEqual(rows[f"{policy} 100 % plain"], 100 * 6 / 11, 3)
            self.assertLessEqual(rows[f"{policy} 20 % plain"], rows["optimum 20 % plain"])
        self.assertAlmostEqual(rows["optimum 20 % plain"], 100 * 3 / 11, 3)  # one block: 8, always

    def test_other_files_are_refused(self):
        for text, why in (("", "no requests"), ("{}\n", "hash_ids"), ('{"hash_ids": [1.5]}\n', "integer"), ("nonsense\n", "hash_ids"),
                          ('{"hash_ids": "x"}\n', "hash_ids"), ('{"hash_ids": [[]]}\n', "integer")):
            self.assert_failed(self.bench(text)[0], 1, why)
        self.assert_failed(run("kvf", "bench", "trace", "--trace", "/nowhere/t"), 1, "/nowhere/t")
        self.assert_failed(run("kvf", "bench", "trace", "--capacity", "0"), 2, "--capacity")

    def test_without_the_trace_it_says_so(self):
        done = run("kvf", "bench", "trace")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, "skipped: there is no|requests")


if __name__ == "__main__":
    cluster.need("kvf", "llm")
    cluster.main()
