"""Running the demo small: a model with random weights, and what every run of it must show."""
import json
import os
import subprocess
import sys

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


class DemoCase(Case):
    """One model and one text for all tests of a program."""

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
        """The summary of a run that must be good, and its output."""
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
