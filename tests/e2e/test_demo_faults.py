#!/usr/bin/env python3
"""The small demo with a killed lender over TCP, and with a budget."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
sys.dont_write_bytecode = True
import cluster
from demo import DemoCase


class DemoFaultsTest(DemoCase):
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


if __name__ == "__main__":
    cluster.need("kvf", "kvfd", "llm", "etcd")
    cluster.main()
