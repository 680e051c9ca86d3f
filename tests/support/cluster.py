"""What the tests of the programs share: fresh folders, one etcd, kvfd processes, and their certain end.

Everything that a Cluster starts is stopped by its close(), by pid, and dies with the test process whatever happens to it.
"""
import ctypes
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("KVF_BUILD") or os.path.join(ROOT, "build"))
SANITIZED = BUILD.endswith(("-address", "-thread"))
PATIENCE = 60 if SANITIZED else 20  # seconds that a program may take to start or stop

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent():
    """In the child, before exec: SIGKILL when the parent goes (PR_SET_PDEATHSIG)."""
    _libc.prctl(1, signal.SIGKILL, 0, 0, 0)


def program(name):
    return os.path.join(BUILD, name)


def need(*names):
    """Skips the whole program when something to run is missing."""
    for name in names:
        path = program(name) if name in ("kvf", "kvfd", "kvfcoord", "llm") else shutil.which(name)
        if not path or not os.path.exists(path):
            print(f"{name} is not here")
            sys.exit(77)


def environment(**extra):
    """Ours without KVF_ settings, so that a developer's own do not change the tests."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("KVF_")}
    env["LC_ALL"] = "C"
    env.setdefault("ASAN_OPTIONS", "detect_leaks=1")
    # UCX's hooks of memory calls run in a thread's last moments, when ThreadSanitizer has let go of it.
    env.setdefault("UCX_MEM_MMAP_HOOK_MODE", "none")
    env.update(extra)
    return env


def free_ports(count):
    """Ports that were free a moment ago."""
    held = [socket.socket() for _ in range(count)]
    try:
        for s in held:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in held]
    finally:
        for s in held:
            s.close()


def run(name, *arguments, timeout=None, env=None, stdin=None):
    """A finished program: .returncode, .stdout, .stderr as text."""
    return subprocess.run([program(name), *arguments], stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, errors="replace", timeout=timeout or PATIENCE,
                          env=env or environment(), preexec_fn=die_with_parent)


class Daemon:
    """A started kvfd."""

    def __init__(self, folder, sets, env=None):
        arguments = [program("kvfd")]
        for name, value in sets.items():
            arguments += ["--set", f"{name}={value}"]
        self.name = sets.get("node.name", "")
        self.stderr_path = os.path.join(folder, f"kvfd-{self.name}-{time.monotonic_ns()}.err")
        with open(self.stderr_path, "wb") as sink:
            self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sink,
                                            env=env or environment(), preexec_fn=die_with_parent)
        self.ready = ""
        self.admin = ""

    def await_ready(self, seconds=None):
        """Its one line; an AssertionError with its complaint when it does not come."""
        deadline = time.monotonic() + (seconds or PATIENCE)
        text = b""
        while b"\n" not in text:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise AssertionError(f"kvfd {self.name} is not ready: {self.stderr()}")
            piece = os.read(self.process.stdout.fileno(), 4096)
            if not piece:
                raise AssertionError(f"kvfd {self.name} ended with {self.process.wait()}: {self.stderr()}")
            text += piece
        self.ready = text.decode("utf-8", "replace").splitlines()[0]
        match = re.search(r"admin at (\S+)$", self.ready)
        self.admin = match.group(1) if match else ""
        return self

    def stderr(self):
        with open(self.stderr_path, errors="replace") as text:
            return text.read()

    def get(self, path):
        with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=PATIENCE) as answer:
            return answer.read().decode()

    def status(self):
        return json.loads(self.get("/v1/status"))

    def stop(self, number=signal.SIGTERM):
        """Its exit code; negative when it had to be killed."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = -99
        self.process.stdout.close()
        return code


class Cluster:
    """A folder, and an etcd when asked for."""

    def __init__(self, etcd=True):
        self.folder = tempfile.mkdtemp(prefix="kvf-test-")
        self.daemons = []
        self.etcd = None
        self.url = ""
        if etcd:
            try:
                self.start_etcd()
            except BaseException:
                self.close()
                raise

    def start_etcd(self):
        client, peer = free_ports(2)
        self.url = f"http://127.0.0.1:{client}"
        with open(os.path.join(self.folder, "etcd.log"), "wb") as log:
            self.etcd = subprocess.Popen(
                ["etcd", "--name", "test", "--data-dir", os.path.join(self.folder, "etcd"), "--unsafe-no-fsync",
                 "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
                 "--listen-peer-urls", f"http://127.0.0.1:{peer}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
                 "--initial-cluster", f"test=http://127.0.0.1:{peer}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
                    if json.load(answer).get("health") == "true":
                        return
            except OSError:
                pass
            if self.etcd.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError("etcd does not start")

    def stop_etcd(self):
        if self.etcd:
            self.etcd.kill()
            self.etcd.wait()
            self.etcd = None

    def kvfd(self, name, env=None, **sets):
        """Starts one; setting names are written with _ for the dot: dram_bytes."""
        values = {"node.name": name, "dram.bytes": "16M", "fetch.staging": "4M", "block.count_max": "10000"}
        if self.url:
            values["etcd.endpoints"] = self.url
        values.update({key.replace("_", ".", 1): value for key, value in sets.items()})
        daemon = Daemon(self.folder, values, env)
        self.daemons.append(daemon)
        return daemon

    def kvf(self, *arguments, **options):
        return run("kvf", *arguments, "--etcd", self.url, **options)

    def close(self):
        for daemon in self.daemons:
            if daemon.process.poll() is None:
                daemon.process.kill()
            daemon.process.wait()
            daemon.process.stdout.close()
        self.stop_etcd()
        shutil.rmtree(self.folder, ignore_errors=True)


class Case(unittest.TestCase):
    """Adds what every test of a program asserts."""

    def assert_failed(self, done, code, *words):
        """Exit code, one line on standard error that holds the words, and no crash."""
        shown = f"\nexit {done.returncode}\nstdout: {done.stdout}\nstderr: {done.stderr}"
        self.assertEqual(done.returncode, code, shown)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, shown)
        for word in words:
            self.assertIn(word, done.stderr, shown)

    def assert_done(self, done):
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)


def main():
    """Runs the tests of the calling program and prints the line that tests/run counts."""
    result = unittest.main(exit=False, verbosity=0).result
    failed = len(result.failures) + len(result.errors)
    sys.stderr.flush()
    print(f"{result.testsRun - failed - len(result.skipped)} passed, {failed} failed, {len(result.skipped)} skipped")
    sys.exit(1 if failed else 0)
