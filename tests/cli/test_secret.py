#!/usr/bin/env python3
"""Nodes with a secret, as processes: who comes up for whom, a change of secret, strangers, and where the secret is to be seen."""
import glob
import os
import re
import secrets
import signal
import socket
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import cluster
from cluster import Case, Cluster, environment

cluster.need("kvfd", "etcd")


def up_peers(daemon):
    return sorted(peer["name"] for peer in daemon.status()["peers"] if peer["up"])


def counter(daemon, name):
    match = re.search(rf"^kvf_{name}_total(?:{{[^}}]*}})? (\d+)$", daemon.get("/metrics"), re.M)
    return int(match.group(1))


def until(condition, seconds=cluster.PATIENCE):
    """The first true value, or the last one."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(0.05)


def listening(pid):
    """Addresses and ports on which a process listens over TCP."""
    inodes = set()
    for link in glob.glob(f"/proc/{pid}/fd/*"):
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
        except OSError:
            continue
        if match:
            inodes.add(match.group(1))
    found = []
    for path, local in (("/proc/net/tcp", "0100007F"), ("/proc/net/tcp6", "00000000000000000000000001000000")):
        if not os.path.exists(path):
            continue
        with open(path) as table:
            for line in list(table)[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    address, port = fields[1].split(":")
                    found.append((address == local, int(port, 16)))
    return found


def memory_holds(pid, needle):
    """Whether a writable mapping that would be in a core dump holds the bytes."""
    with open(f"/proc/{pid}/smaps") as maps:
        ranges, current = [], None
        for line in maps:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line)
            if match:
                current = (int(match.group(1), 16), int(match.group(2), 16), match.group(3))
            elif line.startswith("VmFlags:") and current[2].startswith("rw") and " dd" not in line:
                ranges.append(current)
    looked = 0
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for start, end, _ in ranges:
            tail = b""
            for at in range(start, end, 1 << 22):
                try:
                    memory.seek(at)
                    piece = memory.read(min(1 << 22, end - at))
                except OSError:
                    break
                looked += len(piece)
                if needle in tail + piece:
                    return True, looked
                tail = piece[-len(needle):]
    return False, looked


def open_files(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_bytes(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS:"))


class Secrets(Case):
    def setUp(self):
        self.cluster = Cluster()
        self.path = os.path.join(self.cluster.folder, "secret")

    def tearDown(self):
        self.cluster.close()

    def put(self, *lines, path=None):
        """Writes a file beside it and moves it over, as one should."""
        path = path or self.path
        with open(path + ".new", "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write("".join(line + "\n" for line in lines))
        os.rename(path + ".new", path)
        return path

    def node(self, name, path=None, **sets):
        sets.setdefault("log_level", "info")
        if path:
            sets["cluster_secret_file"] = path
        return self.cluster.kvfd(name, **sets).await_ready()

    def test_who_has_the_secret_is_a_peer_and_nobody_else(self):
        self.put(secrets.token_hex(32))
        other = self.put(secrets.token_hex(32), path=self.path + "-other")
        a, b = self.node("a", self.path), self.node("b", self.path)
        wrong, none = self.node("wrong", other), self.node("none")
        self.assertTrue(until(lambda: up_peers(a) == ["b"] and up_peers(b) == ["a"]))
        # The others are in etcd for all to see; they go down again and again, and nothing is said to them.
        self.assertTrue(until(lambda: all("does not prove" in d.stderr() for d in (a, b, wrong, none))), a.stderr())
        for daemon in (wrong, none):
            self.assertEqual(up_peers(daemon), [])
        self.assertEqual(up_peers(a), ["b"])
        self.assertGreater(counter(a, "messages_unproved"), 0)
        for daemon in (a, b, wrong, none):
            self.assertEqual(daemon.stop(), 0)

    def test_a_secret_changes_while_nodes_run(self):
        old, new = secrets.token_hex(32), secrets.token_hex(32)
        paths = [self.put(old, path=f"{self.path}-{i}") for i in range(3)]
        nodes = [self.node(f"n{i}", path) for i, path in enumerate(paths)]
        everybody = [["n1", "n2"], ["n0", "n2"], ["n0", "n1"]]
        self.assertTrue(until(lambda: [up_peers(n) for n in nodes] == everybody))
        for step, lines in enumerate(((old, new), (new, old), (new,))):
            for i, path in enumerate(paths):
                self.put(*lines, path=path)
                if i > 0:  # the first one notices by itself
                    nodes[i].process.send_signal(signal.SIGHUP)
            self.assertTrue(until(lambda: all(n.stderr().count("was read anew") > step for n in nodes)), nodes[0].stderr())
        # A newcomer knows nothing but the new one; nobody who was there went down.
        late = self.node("late", paths[0])
        self.assertTrue(until(lambda: up_peers(late) == ["n0", "n1", "n2"]))
        for node, others in zip(nodes, everybody):
            self.assertEqual(up_peers(node), sorted(others + ["late"]))
            self.assertNotIn("is down", node.stderr())
        # What cannot be used changes nothing.
        os.chmod(paths[1], 0o644)
        nodes[1].process.send_signal(signal.SIGHUP)
        self.assertTrue(until(lambda: "what it held before stays" in nodes[1].stderr()))
        self.assertEqual(up_peers(nodes[1]), ["late", "n0", "n2"])
        for node in nodes + [late]:
            self.assertEqual(node.stop(), 0)

    def test_the_secret_is_nowhere_to_be_seen(self):
        secret = secrets.token_hex(32)
        self.put(secret)
        a, b = self.node("a", self.path, log_level="debug"), self.node("b", self.path, log_level="debug")
        self.assertTrue(until(lambda: up_peers(a) == ["b"] and up_peers(b) == ["a"]))
        pid = a.process.pid
        shown = cluster.run("kvfd", "--check", "--set", f"cluster.secret_file={self.path}")
        info = cluster.run("kvf", "info", "-c", env=environment(KVF_CLUSTER_SECRET_FILE=self.path))
        with open(f"/proc/{pid}/cmdline") as command, open(f"/proc/{pid}/environ") as env:
            texts = [command.read(), env.read(), a.stderr(), b.stderr(), a.ready, a.get("/v1/status"), a.get("/metrics"),
                     shown.stdout + shown.stderr, info.stdout + info.stderr, self.cluster.kvf("status", "-o", "json").stdout]
        self.assertIn(self.path, shown.stdout)
        for text in texts:
            for at in range(0, len(secret) - 10, 5):
                self.assertNotIn(secret[at:at + 10], text)
        try:
            found, looked = memory_holds(pid, secret.encode())
            known, _ = memory_holds(pid, self.path.encode())
        except PermissionError:
            self.skipTest("the memory of a child cannot be read here")
        self.assertGreater(looked, 1 << 20)
        self.assertTrue(known, "the name of its file is in its settings")
        self.assertFalse(found, "a core dump would hold the secret")

    def test_without_a_secret_it_listens_on_loopback_alone(self):
        lone = self.node("lone")
        ports = listening(lone.process.pid)
        self.assertGreaterEqual(len(ports), 2)  # the fabric's and the admin's
        self.assertTrue(all(local for local, _ in ports), ports)
        outward = [name for _, name in socket.if_nameindex() if name != "lo"]
        for interface in outward[:1] + ["all"]:
            done = cluster.run("kvfd", "--set", f"etcd.endpoints={self.cluster.url}", "--set", f"fabric.interface={interface}")
            self.assertEqual(done.returncode, 2, done.stderr)
            if "carrier" not in done.stderr:
                self.assertIn("cluster.secret_file", done.stderr)

    def test_a_file_that_others_may_read_is_refused(self):
        self.put(secrets.token_hex(32))
        os.chmod(self.path, 0o640)
        done = cluster.run("kvfd", "--set", f"cluster.secret_file={self.path}")
        self.assert_failed(done, 2, "cluster.secret_file", "chmod 600")
        done = cluster.run("kvfd", "--set", "cluster.secret_file=/nowhere/secret")
        self.assert_failed(done, 2, "cluster.secret_file", "No such file")

    def test_strangers_on_the_ports_hinder_nobody(self):
        """Connections that say nothing or garbage, by the hundred, while two members stay up and a third comes."""
        self.put(secrets.token_hex(32))
        a, b = self.node("a", self.path), self.node("b", self.path)
        self.assertTrue(until(lambda: up_peers(a) == ["b"] and up_peers(b) == ["a"]))
        admin = int(a.admin.rsplit(":", 1)[1])
        ports = [port for _, port in listening(a.process.pid) if port != admin]
        self.assertTrue(ports)
        memory, files, held = resident_bytes(a.process.pid), open_files(a.process.pid), []
        try:
            for i in range(300):
                s = socket.create_connection(("127.0.0.1", ports[i % len(ports)]), timeout=5)
                held.append(s)
                if i % 3:
                    s.sendall(os.urandom(8 + i))
            c = self.node("c", self.path)
            self.assertTrue(until(lambda: up_peers(a) == ["b", "c"] and up_peers(c) == ["a", "b"]), c.stderr())
            time.sleep(3)  # longer than fabric.dead_after
            self.assertEqual(up_peers(a), ["b", "c"])
            self.assertNotIn("is down", a.stderr() + b.stderr())
            # A stranger costs the socket that the kernel gave it and its buffer, and nothing per byte that it said.
            self.assertLess(open_files(a.process.pid) - files, len(held) + 50)
            self.assertLess(resident_bytes(a.process.pid) - memory, 16 << 20)
        finally:
            for s in held:
                s.close()
        self.assertTrue(until(lambda: open_files(a.process.pid) - files < 50), (files, open_files(a.process.pid)))
        for daemon in (a, b, c):
            self.assertEqual(daemon.stop(), 0)


if __name__ == "__main__":
    cluster.main()
