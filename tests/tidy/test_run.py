#!/usr/bin/env python3
"""tests/run itself: programs that pass, fail, skip, crash, hang, lie and print garbage."""
import os
import subprocess
import sys
import tempfile
import time
import unittest

RUN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "run")


class RunTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="kvf-run-")
        self.addCleanup(self.folder.cleanup)

    def program(self, name, body):
        path = os.path.join(self.folder.name, name)
        with open(path, "w") as out:
            out.write("#!/bin/sh\n" + body + "\n")
        os.chmod(path, 0o755)
        return path

    def run_all(self, *programs, timeout="30"):
        environment = dict(os.environ, TEST_TIMEOUT=timeout)
        done = subprocess.run([sys.executable, RUN, "--only", self.folder.name, *programs], env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        lines = done.stdout.splitlines()
        return done.returncode, lines[-1], done.stdout

    def check(self, body, last, code, **options):
        got = self.run_all(self.program("program", body), **options)
        self.assertEqual(got[:2], (code, last), got[2])
        return got[2]

    def test_cmocka_tests_are_counted_one_by_one(self):
        self.check("echo '[==========] Running 2 test(s).'; echo '[ RUN      ] a'; echo noise; echo '[       OK ] a'\n"
                   "echo '[ RUN      ] b'; echo '[  SKIPPED ] b'; echo '[==========] 2 test(s) run.'\n"
                   "echo '[  PASSED  ] 1 test(s).'", "1 passed, 0 failed, 1 skipped", 0)

    def test_a_failed_cmocka_test_is_named_and_its_output_shown(self):
        text = self.check("echo '[==========] Running 2 test(s).'; echo '[ RUN      ] a'; echo '[  ERROR   ] --- 1 != 2'\n"
                          "echo '[  FAILED  ] a'; echo '[ RUN      ] b'; echo '[       OK ] b'; echo '[  FAILED  ] 1 test(s)'\n"
                          "echo '[  FAILED  ] a'; exit 1", "1 passed, 1 failed, 0 skipped", 1)
        self.assertIn("FAIL  a", text)
        self.assertIn("--- 1 != 2", text)

    def test_77_failed_tests_are_no_skip(self):
        self.check("echo '[==========] Running 1 test(s).'; echo '[ RUN      ] a'; echo '[  FAILED  ] a'; exit 77",
                   "0 passed, 1 failed, 0 skipped", 1)

    def test_a_crash_inside_a_test_fails_that_test(self):
        text = self.check("echo '[==========] Running 1 test(s).'; echo '[ RUN      ] a'; kill -SEGV $$",
                          "0 passed, 1 failed, 0 skipped", 1)
        self.assertIn("SIGSEGV", text)

    def test_a_bad_end_after_good_tests_is_a_failure(self):
        good = "echo '[==========] Running 1 test(s).'; echo '[ RUN      ] a'; echo '[       OK ] a'; "
        self.check(good + "exit 23", "1 passed, 1 failed, 0 skipped", 1)

    def test_tests_that_never_ran_are_a_failure(self):
        self.check("echo '[==========] Running 5 test(s).'; echo '[ RUN      ] a'; echo '[       OK ] a'",
                   "1 passed, 1 failed, 0 skipped", 1)

    def test_a_hang_ends_with_all_its_processes(self):
        pid_file = os.path.join(self.folder.name, "pid")
        begin = time.monotonic()
        text = self.check(f"sleep 100 & echo $! > {pid_file}; sleep 100", "0 passed, 1 failed, 0 skipped", 1, timeout="0.5")
        self.assertLess(time.monotonic() - begin, 20)
        self.assertIn("still running after 0.5 s", text)
        with open(pid_file) as pid:
            self.assertFalse(is_running(int(pid.read())))

    def test_exit_code_77_is_a_skip_with_its_reason(self):
        good = self.program("good", "exit 0")
        skip = self.program("skip", "echo no GPU here; exit 77")
        code, last, text = self.run_all(good, skip)
        self.assertEqual((code, last), (0, "1 passed, 0 failed, 1 skipped"))
        self.assertIn("no GPU here", text)

    def test_a_plain_program_counts_as_one(self):
        self.check("echo hello", "1 passed, 0 failed, 0 skipped", 0)
        self.check("echo hello; exit 3", "0 passed, 1 failed, 0 skipped", 1)

    def test_a_last_line_of_counts_is_added(self):
        self.check("echo '3 passed, 0 failed, 2 skipped'", "3 passed, 0 failed, 2 skipped", 0)
        self.check("echo '3 passed, 1 failed, 2 skipped'; exit 1", "3 passed, 1 failed, 2 skipped", 1)
        self.check("echo '3 passed, 0 failed, 0 skipped'; exit 1", "3 passed, 1 failed, 0 skipped", 1)
        self.check("echo '0 passed, 0 failed, 0 skipped'", "0 passed, 1 failed, 0 skipped", 1)

    def test_garbage_and_missing_programs_do_not_stop_the_run(self):
        garbage = self.program("garbage", "head -c 300000 /dev/urandom; exit 1")
        missing = os.path.join(self.folder.name, "missing")
        good = self.program("good", "exit 0")
        code, last, _ = self.run_all(garbage, missing, good)
        self.assertEqual((code, last), (1, "1 passed, 2 failed, 0 skipped"))

    def test_nothing_that_passed_is_no_success(self):
        code, last, _ = self.run_all(self.program("skip", "exit 77"))
        self.assertEqual((code, last), (1, "0 passed, 0 failed, 1 skipped"))
        code, last, _ = self.run_all()
        self.assertEqual((code, last), (1, "0 passed, 0 failed, 0 skipped"))


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    result = unittest.main(exit=False, verbosity=0).result
    failed = len(result.failures) + len(result.errors)
    sys.stderr.flush()
    print(f"{result.testsRun - failed - len(result.skipped)} passed, {failed} failed, {len(result.skipped)} skipped")
    sys.exit(1 if failed else 0)
