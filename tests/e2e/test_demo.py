#!/usr/bin/env python3
"""The whole demo on a small model with random weights: four nodes, spills, a move; and its clean end."""
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
sys.dont_write_bytecode = True
import cluster
from demo import SECONDS, DemoCase, processes_of


class DemoTest(DemoCase):
    def test_tokens_equal_plain_memory_through_a_move(self):
        result, output = self.demo("move")
        self.assert_right(result)
        self.assertIsNone(result["killed"])
        self.assertEqual(result["logits_equal"], result["logits_compared"])
        self.assertIn("all 24 equal those of plain memory", output)

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
