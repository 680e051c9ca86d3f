#!/usr/bin/env python3
"""llm --record writes a selection log that kvf bench policy replays; a damaged log is refused with one line."""
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


if __name__ == "__main__":
    cluster.need("kvf", "llm")
    cluster.main()
