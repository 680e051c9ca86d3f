#!/usr/bin/env python3
"""The whole demo on a small model with random weights: four nodes, spills, a move, a killed lender; and its clean end."""
import json
import os
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import cluster
from cluster import Case, Cluster

DEMO = os.path.join(cluster.ROOT, "examples", "llm", "demo.py")
# Small, but with everything in it: 10.6 MiB of K and V, of which 8 lie elsewhere.
SIZES = ["--prompt-tokens", "2700", "--generate", "24"]
SECONDS = 600 if cluster.SANITIZED else 110


def processes_of(folder):
    """Command lines of living processes that name the folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as text:
                line = text.read().decode("utf-8", "replace").replace("\0", " ")
        except OSError:
            continue
        if folder in line and int(pid) != os.getpid():
            found.append(line)
    return found


class DemoTest(Case):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(etcd=False)
        cls.addClassCleanup(cls.cluster.close)
        cls.model = os.path.join(cls.cluster.folder, "random.gguf")
        done = cluster.run("llm", "--make-random", cls.model)
        assert done.returncode == 0, done.stderr
        cls.text = os.path.join(cls.cluster.folder, "text")
        with open(cls.text, "w") as out:
            for i in range(400):
                out.write(f"Line {i} of a text that nobody wrote: {i * i % 97} and {i * 7 % 13}.\n")

    def command(self, name, *options):
        self.work = os.path.join(self.cluster.folder, name)
        self.json = os.path.join(self.cluster.folder, f"{name}.json")
        return [sys.executable, DEMO, "--build", cluster.BUILD, "--model", self.model, "--prompt", self.text, "--work", self.work,
                "--json", self.json, *SIZES, *options]

    def demo(self, name, *options):
        done = subprocess.run(self.command(name, *options), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=SECONDS, env=cluster.environment(),
                              preexec_fn=cluster.die_with_parent)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assert_nothing_left()
        with open(self.json) as text:
            return json.load(text), done.stdout

    def assert_nothing_left(self):
        self.assertEqual(os.listdir(self.work), [])
        self.assertEqual(processes_of(self.work), [])

    def assert_right(self, result):
        shown = json.dumps({k: v for k, v in result.items() if k != "text"}, indent=1)
        self.assertTrue(result["tokens_equal"], shown)
        self.assertEqual((result["generated_tokens"], result["prompt_tokens"]), (24, 2700), shown)
        self.assertEqual(result["wrong_blocks"], 0, shown)
        self.assertGreaterEqual(result["share_away_from_home_dram"], 0.75, shown)
        self.assertGreater(result["blocks_verified"], 0, shown)
        self.assertGreater(result["move_bytes_before_switch"], 0, shown)
        for tier in ("remote", "ssd"):
            self.assertGreater(result["tiers"][tier]["chunks_read"], 0, shown)
            self.assertGreater(result["tiers"][tier]["bytes_read"], 0, shown)
        self.assertAlmostEqual(sum(t["share"] for t in result["tiers"].values()), 1.0, places=6)
        for key in ("ms_per_token", "ms_per_token_plain", "move_stop_ms"):
            self.assertGreater(result[key], 0, shown)

    def test_tokens_equal_plain_memory_through_a_move(self):
        result, output = self.demo("move")
        self.assert_right(result)
        self.assertIsNone(result["killed"])
        self.assertEqual(result["logits_equal"], result["logits_compared"])
        self.assertIn("all 24 equal those of plain memory", output)

    def test_tokens_equal_plain_memory_when_a_lender_is_killed(self):
        result, _ = self.demo("kill", "--kill", "--transport", "tcp")
        self.assert_right(result)
        self.assertEqual(result["killed"], "lender1")
        self.assertGreater(result["recomputed_tokens"], 0)

    def test_budget(self):
        result, output = self.demo("budget", "--budget", "20")
        self.assertEqual(result["positions"], 24)
        self.assertTrue(0 <= result["top1_agreement"] <= 1 and result["mean_kl"] >= 0)
        self.assertIn("top-1 agreement", output)

    def test_an_interrupt_leaves_nothing(self):
        process = subprocess.Popen(self.command("interrupt"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, env=cluster.environment(), start_new_session=True,
                                   preexec_fn=cluster.die_with_parent)
        deadline = time.monotonic() + SECONDS
        while not processes_of(self.work) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=SECONDS)
        self.assertEqual(process.returncode, 1, output)
        self.assertIn("demo: stopped", output)
        self.assert_nothing_left()
        self.assertFalse(os.path.exists(self.json))

    def test_a_text_that_is_too_short_is_told(self):
        done = subprocess.run(self.command("short")[:-4] + ["--prompt-tokens", "90000"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS,
                              env=cluster.environment())
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("has only", done.stdout)
        self.assert_nothing_left()


if __name__ == "__main__":
    cluster.need("kvf", "kvfd", "llm", "etcd")
    cluster.main()
