#!/usr/bin/env python3
"""kvfd: its options, exit codes, one-line errors, start and stop."""
import ctypes
import os
import signal
import subprocess
import sys
import time
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import cluster
from cluster import Case, Cluster, free_ports, run

SMALL = ["--set", "dram.bytes=16M", "--set", "fetch.staging=4M", "--set", "block.count_max=10000"]
REQUIRED = ["--set", "ssd.required=true"]


def set_of(name, value):
    return ["--set", f"{name}={value}"]


class UsageTest(Case):
    def test_help_lists_exit_codes_and_ends_with_examples(self):
        done = run("kvfd", "--help")
        self.assert_done(done)
        self.assertIn("exit codes: 0 done, 1 failed, 2 wrong usage", done.stdout)
        self.assertLess(done.stdout.index("exit codes"), done.stdout.index("examples"))

    def test_version(self):
        done = run("kvfd", "--version")
        self.assert_done(done)
        self.assertRegex(done.stdout, r"^kvfd \d+\.\d+ \(")

    def test_unknown_option(self):
        self.assert_failed(run("kvfd", "--nonsense"), 2, "--nonsense", "--help")

    def test_missing_value_and_stray_argument(self):
        self.assert_failed(run("kvfd", "--set"), 2, "--set")
        self.assert_failed(run("kvfd", "stray"), 2, "stray")
        self.assert_failed(run("kvfd", "--set", "dram.bytes"), 2, "name=value")

    def test_unknown_key(self):
        self.assert_failed(run("kvfd", *set_of("dram.byte", "1G")), 2, "dram.byte", "nearest is 'dram.bytes'", "ERR_CONFIG")

    def test_value_out_of_bounds(self):
        self.assert_failed(run("kvfd", *set_of("dram.bytes", "1k")), 2, "dram.bytes", "1M to", "ERR_CONFIG")

    def test_bad_value_in_the_environment(self):
        done = run("kvfd", "--check", env=cluster.environment(KVF_SSD_DEPTH="many"))
        self.assert_failed(done, 2, "KVF_SSD_DEPTH", "many")


class ConfigFileTest(Case):
    def setUp(self):
        self.cluster = Cluster(etcd=False)
        self.addCleanup(self.cluster.close)
        self.path = os.path.join(self.cluster.folder, "kvf.conf")

    def write(self, text):
        with open(self.path, "w") as out:
            out.write(text)

    def test_check_prints_what_would_run(self):
        self.write("node.name = fromfile\nlend.bytes = 3M\ndram.bytes = 64M\n")
        done = run("kvfd", "--config", self.path, *set_of("dram.bytes", "32M"), "--check",
                   env=cluster.environment(KVF_LEND_BYTES="5M"))
        self.assert_done(done)
        first = done.stdout.splitlines()[0]
        self.assertRegex(first, r"^kvfd: fromfile would run, dram 32M, lends 5M, no ssd, alone, admin at 127\.0\.0\.1:0$")
        self.assertIn("  etcd.lease = 5s", done.stdout)

    def test_absent_file(self):
        self.assert_failed(run("kvfd", "--config", self.path), 2, self.path)

    def test_unknown_key_is_named_with_its_line(self):
        self.write("# a comment\n\nnode.nam = x\n")
        self.assert_failed(run("kvfd", "--config", self.path, "--check"), 2, f"{self.path}:3", "node.nam")

    def test_a_file_of_garbage(self):
        with open(self.path, "wb") as out:
            out.write(bytes(range(256)) * 40)
        self.assert_failed(run("kvfd", "--config", self.path, "--check"), 2, self.path)


class FailedStartTest(Case):
    """Each gives one line, the right code, and ends at once."""

    def setUp(self):
        self.cluster = Cluster(etcd=False)
        self.addCleanup(self.cluster.close)

    def start(self, *options):
        return run("kvfd", *SMALL, *set_of("node.name", "a"), *options)

    def test_etcd_absent_within_its_timeout(self):
        url = f"http://127.0.0.1:{free_ports(1)[0]}"
        begin = time.monotonic()
        done = self.start(*set_of("etcd.endpoints", url), *set_of("etcd.timeout", "1s"))
        self.assertLess(time.monotonic() - begin, 15 if cluster.SANITIZED else 5)
        self.assert_failed(done, 3, "ERR_STORE", "etcd")

    def test_admin_address_in_use(self):
        first = self.cluster.kvfd("first").await_ready()
        done = self.start(*set_of("admin.listen", first.admin))
        self.assert_failed(done, 1, "admin.listen", "ERR_EXISTS")

    def test_admin_address_is_no_address(self):
        self.assert_failed(self.start(*set_of("admin.listen", "nonsense")), 2, "admin.listen", "host:port")

    def test_ssd_path_that_cannot_be_written(self):
        self.assert_failed(self.start(*REQUIRED, *set_of("ssd.path", "/proc/nowhere")), 1, "/proc/nowhere", "ERR_IO")

    def test_disk_full(self):
        # A file larger than the whole memory file system is refused before anything is written.
        if not os.path.isdir("/dev/shm") or not os.access("/dev/shm", os.W_OK):
            self.skipTest("no /dev/shm")
        about = os.statvfs("/dev/shm")
        if not about.f_blocks:
            self.skipTest("/dev/shm has no limit")
        path = f"/dev/shm/kvf-test-{os.getpid()}"
        os.mkdir(path)
        self.addCleanup(os.rmdir, path)
        self.addCleanup(lambda: [os.unlink(os.path.join(path, f)) for f in os.listdir(path)])
        size = about.f_blocks * about.f_frsize + (1 << 30)
        done = self.start(*REQUIRED, *set_of("ssd.path", path), *set_of("ssd.bytes", size))
        self.assert_failed(done, 1, "ERR_DISK_FULL", "ssd.bytes")

    def test_ssd_area_of_another_process(self):
        area = os.path.join(self.cluster.folder, "ssd")
        os.mkdir(area)
        self.cluster.kvfd("first", ssd_path=area, ssd_bytes="8M").await_ready()
        done = self.start(*REQUIRED, *set_of("ssd.path", area), *set_of("ssd.bytes", "8M"))
        self.assert_failed(done, 1, "ERR_BUSY")

    def test_impossible_memory(self):
        self.assert_failed(self.start(*set_of("dram.bytes", "8T")), 1, "ERR_NO_MEMORY")


class AloneTest(Case):
    """A node without etcd, from start to stop."""

    def setUp(self):
        self.cluster = Cluster(etcd=False)
        self.addCleanup(self.cluster.close)

    def test_start_and_stop(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            daemon = self.cluster.kvfd("solo").await_ready()
            self.assertRegex(daemon.ready, r"^kvfd: solo ready, dram 16M, .*admin at 127\.0\.0\.1:\d+$")
            self.assertEqual(daemon.get("/healthz"), "ok\n")
            self.assertEqual(daemon.stop(number), 0, daemon.stderr())
            self.assertEqual(daemon.stderr(), "")

    def test_ssd_tier_starts_and_stops(self):
        area = os.path.join(self.cluster.folder, "ssd")
        os.mkdir(area)
        daemon = self.cluster.kvfd("solo", ssd_path=area, ssd_bytes="8M").await_ready()
        ssd = [t for t in daemon.status()["tiers"] if t["name"] == "ssd"][0]
        self.assertEqual(ssd["state"], "ok")
        self.assertEqual(daemon.stop(), 0, daemon.stderr())


class SsdOffTest(Case):
    """An SSD area that cannot be used: refused when it is required, else the node lives without it and says why."""

    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster()
        cls.addClassCleanup(cls.cluster.close)

    def setUp(self):
        self.area = os.path.join(self.cluster.folder, self._testMethodName)
        self.file = os.path.join(self.area, "kvf.area")

    def check(self, *words, code=1, size="8M"):
        done = run("kvfd", *SMALL, *REQUIRED, *set_of("node.name", "refused"), *set_of("ssd.path", self.area),
                   *set_of("ssd.bytes", size))
        self.assert_failed(done, code, *words)
        name = self._testMethodName[5:25].replace("_", "-")
        daemon = self.cluster.kvfd(name, ssd_path=self.area, ssd_bytes=size).await_ready()
        self.assertIn("ssd off, ", daemon.ready)
        self.assertEqual(len(daemon.stderr().splitlines()), 1, daemon.stderr())
        ssd = [t for t in daemon.status()["tiers"] if t["name"] == "ssd"][0]
        self.assertEqual(ssd["state"], "off")
        self.assertIn('kvf_tier_up{tier="ssd"} 0', daemon.get("/metrics"))
        shown = self.cluster.kvf("status")
        self.assert_done(shown)
        for word in words:
            self.assertIn(word, ssd["reason"])
            self.assertIn(word, daemon.stderr())
            self.assertIn(word, shown.stdout)
        self.assertIn(f"{name}: ssd is off: ", shown.stdout)
        self.assertEqual(daemon.get("/healthz"), "ok\n")
        self.assertEqual(daemon.stop(), 0, daemon.stderr())

    def written_area(self, node="refused"):
        first = self.cluster.kvfd(node, ssd_path=self.area, ssd_bytes="8M").await_ready()
        self.assertEqual(first.stop(), 0, first.stderr())

    def mount(self, *options):
        os.mkdir(self.area)
        done = subprocess.run(["mount", "-t", "tmpfs", *options, "kvf-test", self.area], capture_output=True, text=True)
        if done.returncode:
            self.skipTest(f"no mounts here: {done.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", self.area], check=True)

    def test_no_such_place(self):
        self.area = "/proc/nowhere"
        self.check("/proc/nowhere", "ERR_IO")

    def test_path_is_a_file(self):
        open(self.area, "w").close()
        self.check("Not a directory", "ERR_IO")

    def test_area_is_a_directory(self):
        os.makedirs(self.file)
        self.check("Is a directory", "ERR_IO")

    def test_directory_without_permission(self):
        if os.geteuid() == 0:
            self.skipTest("root may write everywhere")
        os.mkdir(self.area, 0o500)
        self.check("Permission denied", "ERR_IO")

    def test_area_of_a_living_process(self):
        living = self.cluster.kvfd("living", ssd_path=self.area, ssd_bytes="8M").await_ready()
        self.check("another process has it", "ERR_BUSY")
        self.assertEqual(living.stop(), 0, living.stderr())

    def test_area_of_another_node(self):
        self.written_area("somebody")
        before = self.bytes_of_area()
        self.check("node of another name", "ERR_CONFIG", code=2)
        self.assertEqual(self.bytes_of_area(), before)

    def test_area_of_a_later_version(self):
        self.written_area()
        with open(self.file, "r+b") as file:
            page = bytearray(file.read(4096))
            page[8:12] = (99).to_bytes(4, "little")
            self.assertEqual(len(page), 4096)
            page[4088:] = xxh3(bytes(page[:4088])).to_bytes(8, "little")
            file.seek(0)
            file.write(page)
        before = self.bytes_of_area()
        self.check("a later version", "ERR_UNSUPPORTED")
        self.assertEqual(self.bytes_of_area(), before)

    def test_read_only_file_system(self):
        self.mount("-o", "ro")
        self.check("Read-only file system", "ERR_IO")

    def test_file_system_too_small(self):
        self.mount("-o", "size=4m")
        self.check("free", "ERR_DISK_FULL")
        self.assertEqual(os.listdir(self.area), [])

    def bytes_of_area(self):
        with open(self.file, "rb") as file:
            return file.read()


def xxh3(data):
    """The checksum of a superblock, by the library that the programs use; its absence skips the test."""
    try:
        library = ctypes.CDLL("libxxhash.so.0")
    except OSError:
        raise unittest.SkipTest("no libxxhash")
    library.XXH3_64bits_withSeed.restype = ctypes.c_uint64
    return library.XXH3_64bits_withSeed(data, ctypes.c_size_t(len(data)), ctypes.c_uint64(0))


class ClusterTest(Case):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster()
        cls.addClassCleanup(cls.cluster.close)

    def test_second_node_of_the_same_name_is_refused(self):
        first = self.cluster.kvfd("twin").await_ready()
        done = run("kvfd", *SMALL, *set_of("node.name", "twin"), *set_of("etcd.endpoints", self.cluster.url))
        self.assert_failed(done, 1, "ERR_EXISTS", "node.name")
        self.assertEqual(first.get("/healthz"), "ok\n")
        self.assertEqual(first.stop(), 0, first.stderr())

    def test_a_name_is_free_again_after_a_clean_stop(self):
        for _ in range(2):
            self.assertEqual(self.cluster.kvfd("again").await_ready().stop(), 0)

    def test_two_nodes_meet_and_leave_nothing_behind(self):
        one = self.cluster.kvfd("one", lend_bytes="8M").await_ready()
        two = self.cluster.kvfd("two", lend_bytes="8M").await_ready()
        deadline = time.monotonic() + cluster.PATIENCE
        sees = lambda daemon, name: any(p["name"] == name and p["up"] for p in daemon.status()["peers"])
        while not (sees(one, "two") and sees(two, "one")):
            self.assertLess(time.monotonic(), deadline, [one.status()["peers"], two.status()["peers"]])
            time.sleep(0.1)
        held = shared_memory_of(one.process.pid) | shared_memory_of(two.process.pid)
        pids = {one.process.pid, two.process.pid}
        self.assertEqual([one.stop(), two.stop()], [0, 0], one.stderr() + two.stderr())
        self.assertEqual([path for path in held if os.path.exists(path)], [])
        self.assertEqual(system_v_segments(pids), [])

    def test_stop_while_etcd_is_gone(self):
        lonely = Cluster()
        self.addCleanup(lonely.close)
        daemon = lonely.kvfd("last").await_ready()
        lonely.stop_etcd()
        begin = time.monotonic()
        self.assertEqual(daemon.stop(), 0, daemon.stderr())
        self.assertLess(time.monotonic() - begin, 15 if cluster.SANITIZED else 5)


def shared_memory_of(pid):
    with open(f"/proc/{pid}/maps") as maps:
        return {line.split(None, 5)[5].strip() for line in maps if "/dev/shm/" in line and "(deleted)" not in line}


def system_v_segments(creators):
    with open("/proc/sysvipc/shm") as table:
        rows = [line.split() for line in table][1:]
    return [row for row in rows if int(row[4]) in creators]


if __name__ == "__main__":
    cluster.need("kvfd", "etcd")
    cluster.main()
