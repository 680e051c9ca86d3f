#!/usr/bin/env python3
"""The demo: a language model's long session on a cluster of four nodes on this machine, and proof that nothing changed.

    examples/llm/demo.py --build BUILD [--kill] [options]

One etcd, two lenders (kvfd), engine A with the session's first home, engine B with its second. A reads a text and generates
half of the tokens; the session moves; B generates the rest. A also does all of it with its K and V in plain memory: the
tokens must be the same. Node memory is so small that most of the session lies with the lenders and on SSD. --kill kills
one lender on the way: what it held is computed again.

Leaves build/demo.json (and the model in build/model); no process and no other file. Exit: 0 done, 1 failed, 2 wrong usage.
"""
import argparse
import ctypes
import json
import os
import platform
import queue
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.dont_write_bytecode = True
sys.path.insert(0, HERE)
import gguf_info

START_SECONDS = 60    # for a process to say that it is ready
STALL_SECONDS = 300   # without a word from an engine
STOP_SECONDS = 15
BLOCK_TOKENS = 64     # of the engine
TIERS = ("dram", "remote", "ssd", "peer")
TIER_TEXT = {"dram": "own DRAM", "remote": "lenders' DRAM", "ssd": "SSD", "peer": "earlier home"}


class Failed(Exception):
    """One line for people."""


def stop_on_signal(number, _frame):
    raise Failed(f"stopped by {signal.Signals(number).name}")


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


class Progress:
    """One line that changes on a terminal, a line every few seconds elsewhere."""

    def __init__(self):
        self.terminal = sys.stdout.isatty()
        self.begin = time.monotonic()
        self.last = 0.0
        self.width = 0

    def show(self, text, final=False):
        line = f"[{time.monotonic() - self.begin:5.1f} s] {text}"
        if self.terminal:
            line = line[:max(20, shutil.get_terminal_size().columns - 1)]
            print("\r" + line.ljust(self.width), end="\n" if final else "", flush=True)
            self.width = 0 if final else len(line)
        elif final or time.monotonic() - self.last > 5:
            print(line, flush=True)
            self.last = time.monotonic()


class Process:
    """A child whose lines come by queue and go to a log in the demo's folder."""

    def __init__(self, name, command, folder):
        self.name = name
        self.log = os.path.join(folder, f"{name}.log")
        self.lines = queue.Queue()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        start_new_session=True, preexec_fn=die_with_parent, env=environment())
        with open(self.log, "w") as log:
            log.write("$ " + " ".join(command) + "\n")
        self.threads = [threading.Thread(target=self.read, args=(pipe, name), daemon=True)
                        for pipe, name in ((self.process.stdout, "out"), (self.process.stderr, "err"))]
        for thread in self.threads:
            thread.start()

    def read(self, pipe, which):
        with open(self.log, "ab", buffering=0) as log:
            for line in pipe:
                log.write(line)
                self.lines.put((which, line.decode("utf-8", "replace").rstrip()))
        self.lines.put((which, None))

    def line(self, seconds):
        """The next (pipe, line), or (None, None) when there is none in time; a Failed when the process has ended."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                which, line = self.lines.get(timeout=max(0.0, min(0.2, deadline - time.monotonic())))
                if line is not None:
                    return which, line
            except queue.Empty:
                if self.process.poll() is not None and self.lines.empty():
                    raise Failed(f"{self.name} ended early ({describe_exit(self.process.returncode)})")
                if time.monotonic() >= deadline:
                    return None, None

    def expect(self, pattern, seconds, doing):
        """The match of the first line of its stdout that fits."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            which, line = self.line(deadline - time.monotonic())
            match = re.search(pattern, line) if which == "out" else None
            if match:
                return match
        raise Failed(f"{self.name} was not ready after {seconds} s ({doing})")

    def say(self, word):
        try:
            self.process.stdin.write(word.encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            pass

    def stop(self, patience=STOP_SECONDS):
        """Asks, then insists. The exit code."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.finish(patience)

    def finish(self, patience):
        try:
            self.process.stdin.close()
        except OSError:
            pass
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} did not end within {patience} s")
        for thread in self.threads:
            thread.join(2)
        return code


def describe_exit(code):
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def environment():
    """Settings of somebody's shell must not change the demo."""
    return {k: v for k, v in os.environ.items() if not k.startswith("KVF_") or k == "KVF_CPU"}


def free_ports(count):
    held = [socket.socket() for _ in range(count)]
    for s in held:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


def shared_memory_of(pid):
    try:
        with open(f"/proc/{pid}/maps") as maps:
            return {line.split(None, 5)[5].strip() for line in maps if "/dev/shm/" in line and "(deleted)" not in line}
    except OSError:
        return set()


class Demo:
    def __init__(self, options):
        self.options = options
        self.progress = Progress()
        self.processes = []
        self.folder = None
        self.killed = None
        self.shared = set()
        self.reports = {}

    # ------------------------------------------------------------------ what is needed

    def program(self, name):
        path = os.path.join(self.options.build, name)
        if not os.path.exists(path):
            raise Failed(f"{path} is missing; run make first")
        return path

    def model(self):
        if self.options.model:
            if not os.path.exists(self.options.model):
                raise Failed(f"no model file {self.options.model}")
            return self.options.model
        place = os.path.join(ROOT, "build", "model")
        os.makedirs(place, exist_ok=True)
        fetched = subprocess.run([sys.executable, os.path.join(HERE, "fetch_model.py"), "--dir", place], cwd=ROOT,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        words = fetched.stdout.strip().splitlines()
        if fetched.returncode == 0 and words and os.path.exists(words[-1]):
            return words[-1]
        path = os.path.join(place, "random.gguf")
        print("demo: the model cannot be had; the same job runs on a model with random weights", flush=True)
        if not os.path.exists(path):
            subprocess.run([self.program("llm"), "--make-random", path], check=True, stdin=subprocess.DEVNULL)
        return path

    def sizes(self, model):
        """Budgets in bytes. Own memory, staging included, is under a quarter of the session."""
        tokens = self.options.prompt_tokens + self.options.generate
        self.session_bytes = tokens * gguf_info.kv_bytes_per_token(model)
        mib = 1 << 20
        part = lambda share, least: max(least, int(self.session_bytes * share) // 4096 * 4096)
        self.dram, self.staging = part(0.15, mib), part(0.08, mib)
        self.lend, self.ssd = part(0.3, mib), max(64 * mib, 2 * self.session_bytes)
        per_token = self.session_bytes // tokens
        self.batch = max(1, min(256, self.dram // 2 // per_token - 2 * BLOCK_TOKENS))
        if self.dram + self.staging > self.session_bytes // 4:
            raise Failed(f"a session of {self.session_bytes >> 10} KiB is too short to show anything; give more --prompt-tokens")

    # ------------------------------------------------------------------ the cluster

    def start(self, name, command):
        process = Process(name, command, self.folder)
        self.processes.append(process)
        return process

    def start_etcd(self):
        client, peer = (f"http://127.0.0.1:{port}" for port in free_ports(2))
        self.etcd = client
        if not shutil.which("etcd"):
            raise Failed("etcd is missing; deploy/deps.sh installs it")
        process = self.start("etcd", ["etcd", "--name", "demo", "--unsafe-no-fsync",
                                      "--data-dir", os.path.join(self.folder, "etcd"),
                                      "--listen-client-urls", client, "--advertise-client-urls", client,
                                      "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                                      "--initial-cluster", f"demo={peer}"])
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{client}/health", timeout=2) as answer:
                    if json.load(answer).get("health") == "true":
                        return
            except OSError:
                time.sleep(0.1)
        raise Failed("etcd does not start")

    def settings(self, name, **more):
        values = {"node.name": name, "etcd.endpoints": self.etcd, "fabric.transport": self.options.transport,
                  "block.count_max": max(20000, self.session_bytes // 4096 * 2), "log.level": "info"}
        values.update({key.replace("_", ".", 1): value for key, value in more.items()})
        return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]

    def start_lenders(self):
        lenders = [self.start(name, [self.program("kvfd")] + self.settings(name, dram_bytes=1 << 20, fetch_staging=1 << 20,
                                                                          lend_bytes=self.lend))
                   for name in ("lender1", "lender2")]
        for lender in lenders:
            lender.expect("^kvfd: .* ready", START_SECONDS, "starting a lender")
        return lenders

    def engine(self, name, model, *arguments):
        area = os.path.join(self.folder, f"ssd-{name}")
        os.mkdir(area)
        out = os.path.join(self.folder, f"{name}.json")
        return self.start(f"engine-{name}", [self.program("llm"), "--model", model, "--session", "1", "--out", out,
                                             "--generate", str(self.options.generate), *arguments]
                          + self.settings(name, dram_bytes=self.dram, fetch_staging=self.staging, ssd_path=area,
                                          ssd_bytes=self.ssd, workers=min(2, os.cpu_count() or 1)))

    def await_members(self, names):
        """Until every node answers and sees all others up."""
        deadline = time.monotonic() + START_SECONDS
        seen = "nothing yet"
        while time.monotonic() < deadline:
            done = subprocess.run([self.program("kvf"), "status", "--json", "--etcd", self.etcd], stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, env=environment(), stdin=subprocess.DEVNULL)
            if done.returncode == 0:
                nodes = {n["name"]: n.get("status") for n in json.loads(done.stdout)["nodes"]}
                up = {name: sorted(p["name"] for p in (status or {}).get("peers", []) if p["up"]) for name, status in nodes.items()}
                seen = str(up)
                if set(names) <= set(up) and all(set(names) - {name} <= set(up[name]) for name in names):
                    return
            else:
                seen = done.stderr.strip()
            for process in self.processes:
                if process.process.poll() is not None:
                    raise Failed(f"{process.name} ended early ({describe_exit(process.process.returncode)})")
            time.sleep(0.3)
        raise Failed(f"the nodes do not find each other: {seen}")

    # ------------------------------------------------------------------ the job

    def kill(self, lender):
        self.shared |= shared_memory_of(lender.process.pid)
        lender.process.kill()
        lender.process.wait()
        self.killed = lender.name
        self.progress.show(f"{lender.name} killed", final=True)

    def follow(self, engine, until, doing, lender=None):
        """Shows the engine's progress until it prints the word `until`; kills the lender a quarter on its way."""
        generate = self.options.generate
        last = time.monotonic()
        while True:
            which, line = engine.line(2.0)
            if line is None:
                if time.monotonic() - last > STALL_SECONDS:
                    raise Failed(f"{engine.name} said nothing for {STALL_SECONDS} s while {doing}")
                continue
            last = time.monotonic()
            if which == "out" and line == until:
                return
            read = re.search(r"read (\d+) of (\d+) tokens", line)
            made = re.search(r"generated (\d+) of (\d+) tokens", line)
            if read or made:
                self.progress.show(f"{doing}: {line}")
            # Short runs report too seldom to tell a quarter: there the end of the text does.
            quarter = made and int(made[1]) >= generate // 4 if generate >= 64 else read and read[1] == read[2]
            if lender and quarter and not self.killed:
                self.kill(lender)

    def load(self, name):
        with open(os.path.join(self.folder, f"{name}.json")) as report:
            self.reports[name] = json.load(report)
        return self.reports[name]

    def run_move(self, model):
        options = self.options
        self.progress.show("etcd is up; starting two lenders and two engines")
        lenders = self.start_lenders()
        b = self.engine("b", model, "--role", "next")
        b.expect("^ready$", START_SECONDS, "opening node b")
        a = self.engine("a", model, "--role", "home", "--prompt-file", options.prompt,
                        "--prompt-tokens", str(options.prompt_tokens), "--batch", str(self.batch),
                        "--move-to", "b", "--move-after", str(max(1, options.generate // 2)))
        self.await_members(["a", "b", "lender1", "lender2"])
        self.progress.show("four nodes see each other: a, b, lender1, lender2", final=True)
        self.follow(a, "moved", "engine a", lenders[0] if options.kill else None)
        self.progress.show("the session moved from a to b", final=True)
        self.follow(b, "done", "engine b")
        for engine in (b, a):
            engine.say("stop")
            code = engine.finish(START_SECONDS)
            if code:
                raise Failed(f"{engine.name} failed ({describe_exit(code)})")
        return self.summarise(self.load("a"), self.load("b"), model)

    def run_budget(self, model):
        self.progress.show("etcd is up; starting two lenders and one engine")
        self.start_lenders()
        a = self.engine("a", model, "--budget", str(self.options.budget), "--prompt-file", self.options.prompt,
                        "--prompt-tokens", str(self.options.prompt_tokens), "--batch", str(self.batch))
        while a.process.poll() is None or not a.lines.empty():
            try:
                _, line = a.line(2.0)
            except Failed:
                break
            if line:
                self.progress.show(f"engine a: {line}")
        if a.finish(START_SECONDS):
            raise Failed(f"engine-a failed ({describe_exit(a.process.returncode)})")
        report = self.load("a")
        self.progress.show("done", final=True)
        print(f"\nbudget {self.options.budget} % of the chunks, {report['positions']} positions, teacher-forced:\n"
              f"  top-1 agreement with full attention  {100 * report['top1_agreement']:.1f} %\n"
              f"  mean KL(full || budget)              {report['mean_kl']:.5f} nats\n"
              f"  time per token                       {report['ms_per_token']:.1f} ms "
              f"(full attention in plain memory: {report['ms_per_token_plain']:.1f} ms)")
        return dict(self.about(model), job="budget", budget_percent=self.options.budget, positions=report["positions"],
                    top1_agreement=report["top1_agreement"], mean_kl=report["mean_kl"], ms_per_token=report["ms_per_token"],
                    ms_per_token_plain=report["ms_per_token_plain"]), True

    # ------------------------------------------------------------------ the summary

    def about(self, model):
        return {"schema": "kvf-demo/1", "commit": commit(), "machine": machine(), "model": os.path.basename(model),
                "transport": self.options.transport, "session_bytes": self.session_bytes, "home_dram_bytes": self.dram,
                "home_staging_bytes": self.staging, "lend_bytes_each": self.lend, "seconds": time.monotonic() - self.progress.begin}

    def summarise(self, a, b, model):
        generate = self.options.generate
        tokens = a["tokens"] + b["tokens"]
        equal = a["tokens_equal"] and tokens == a["expected_tokens"] and len(tokens) == generate
        before, after = a["info_before_move"], b["info_at_end"]
        away = min(before["share_away_from_home_dram"], after["share_away_from_home_dram"])
        tiers = {}
        for name in TIERS:
            reads = [r["stats"]["tiers"][name] for r in (a, b)]
            tiers[name] = {"blocks": before["blocks"][name], "blocks_at_end": after["blocks"][name],
                           "chunks_read": sum(r["chunks_read"] for r in reads), "bytes_read": sum(r["bytes_read"] for r in reads)}
        all_bytes = sum(t["bytes_read"] for t in tiers.values())
        for tier in tiers.values():
            tier["share"] = tier["bytes_read"] / all_bytes if all_bytes else 0.0
        stats = [r["stats"] for r in (a, b)]
        result = dict(
            self.about(model), job="move", tokens_equal=equal, generated_tokens=len(tokens), prompt_tokens=a["prompt_tokens"],
            share_away_from_home_dram=away, share_away_before_move=before["share_away_from_home_dram"],
            share_away_at_end=after["share_away_from_home_dram"],
            ms_per_token=statistics.median(a["ms_per_token_list"] + b["ms_per_token_list"]),
            ms_per_token_home=a["ms_per_token"], ms_per_token_next=b["ms_per_token"], ms_per_token_plain=a["ms_per_token_plain"],
            prefill_ms=a["prefill_ms"], prefill_ms_plain=a["prefill_ms_plain"],
            logits_compared=a["logits_compared"], logits_equal=a["logits_equal"],
            move_stop_ms=a["move"]["stop_ms"], move_bytes_before_switch=a["move"]["bytes_before_switch"],
            move_bytes_after_switch=a["move"]["bytes_after_switch"],
            blocks_verified=sum(s["blocks_verified"] for s in stats), wrong_blocks=sum(s["blocks_corrupt"] for s in stats),
            killed=self.killed, blocks_lost=sum(s["blocks_lost"] for s in stats),
            recomputed_tokens=a["recomputed_tokens"] + b["recomputed_tokens"],
            attend_deadlines=a["attend_deadlines"] + b["attend_deadlines"], tiers=tiers, text=a["text"] + b["text"])
        self.print_summary(result)
        return result, equal and away >= 0.75 and len(tokens) == generate

    def print_summary(self, r):
        rows = [("tier", "blocks before", "at the end", "chunks read", "bytes read", "share")]
        for name in TIERS:
            t = r["tiers"][name]
            rows.append((TIER_TEXT[name], str(t["blocks"]), str(t["blocks_at_end"]), str(t["chunks_read"]),
                         human(t["bytes_read"]), f"{100 * t['share']:.1f} %"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        print()
        for row in rows:
            print("  " + "  ".join(cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))))
        ratio = r["ms_per_token"] / r["ms_per_token_plain"] if r["ms_per_token_plain"] else 0.0
        killed = f"{r['killed']} was killed; " if r["killed"] else ""
        tokens = f"all {r['generated_tokens']} equal" if r["tokens_equal"] else "DIFFER from"
        print()
        for name, text in (
                ("session", f"{r['prompt_tokens']} tokens read + {r['generated_tokens']} generated, "
                            f"{human(r['session_bytes'])} of K and V ({r['model']})"),
                ("home's memory", f"{human(r['home_dram_bytes'])} + {human(r['home_staging_bytes'])} for reads; "
                                  f"{100 * r['share_away_from_home_dram']:.1f} % of the session was elsewhere"),
                ("time per token", f"{r['ms_per_token']:.1f} ms, in plain memory {r['ms_per_token_plain']:.1f} ms "
                                   f"({ratio:.2f} times)"),
                ("move", f"stopped for {r['move_stop_ms']:.1f} ms; {human(r['move_bytes_before_switch'])} before the switch, "
                         f"{human(r['move_bytes_after_switch'])} after"),
                ("blocks", f"{r['blocks_verified']} verified, {r['wrong_blocks']} wrong"),
                ("losses", f"{killed}{r['blocks_lost']} blocks lost, {r['recomputed_tokens']} tokens computed again"),
                ("tokens", f"{tokens} those of plain memory; logits the same bits in {r['logits_equal']} of {r['logits_compared']} steps")):
            print(f"  {name:15}{text}")
        print(flush=True)

    # ------------------------------------------------------------------ begin and end

    def run(self):
        os.makedirs(self.options.work, exist_ok=True)
        model = self.model()
        self.sizes(model)
        self.folder = tempfile.mkdtemp(prefix="demo-", dir=self.options.work)
        self.start_etcd()
        result, good = self.run_budget(model) if self.options.budget else self.run_move(model)
        for process in reversed(self.processes):
            code = process.stop()
            if process.name.startswith("lender") and code and process.name != self.killed:
                raise Failed(f"{process.name} did not end cleanly ({describe_exit(code)})")
        part = self.options.json + ".part"
        with open(part, "w") as out:
            json.dump(result, out, indent=1)
            out.write("\n")
        os.replace(part, self.options.json)
        return good

    def tails(self):
        for process in self.processes:
            try:
                with open(process.log, errors="replace") as log:
                    lines = log.read().splitlines()[-15:]
            except OSError:
                continue
            if process.name != "etcd" or len(self.processes) == 1:
                print(f"--- {process.name}", *lines, sep="\n    ", file=sys.stderr)

    def clean(self):
        """Nothing stays, whatever happened before."""
        for process in reversed(self.processes):
            try:
                process.stop(3)
            except Failed:
                pass
            if process.process.poll() is None:
                process.process.kill()
                process.process.wait()
        for path in self.shared:
            try:
                os.unlink(path)
            except OSError:
                pass
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def human(size):
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.1f} {unit}" if unit != "B" else f"{size} B"


def commit():
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          stdin=subprocess.DEVNULL, text=True) if shutil.which("git") else None
    return done.stdout.strip() if done and done.returncode == 0 else "unknown"


def machine():
    cpu = "unknown"
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    return {"cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release(),
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")}


def parse_options():
    parser = argparse.ArgumentParser(prog="demo.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True, help="folder of the programs")
    parser.add_argument("--kill", action="store_true", help="kill one lender on the way")
    parser.add_argument("--model", help="a GGUF file of the Llama architecture (default: fetched)")
    parser.add_argument("--prompt", default="/usr/share/common-licenses/GPL-3", help="text to read")
    parser.add_argument("--prompt-tokens", type=int, default=4200)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--budget", type=int, default=0, help="PERCENT: measure the quality of a selection instead")
    parser.add_argument("--transport", default="auto", choices=("auto", "tcp", "shm"))
    parser.add_argument("--json", default=os.path.join(ROOT, "build", "demo.json"), help="where the summary goes")
    parser.add_argument("--work", default=os.path.join(ROOT, "build"), help="folder for temporary files; a real file system")
    options = parser.parse_args()
    if options.prompt_tokens < 1 or options.generate < 2 or not 0 <= options.budget <= 100:
        parser.error("--prompt-tokens is at least 1, --generate at least 2, --budget 0..100")
    options.build = os.path.abspath(options.build)
    return options


def main():
    options = parse_options()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop_on_signal)
    needs_peers = not options.budget
    version = subprocess.run([os.path.join(options.build, "kvf"), "--version"], capture_output=True, text=True).stdout
    if needs_peers and "ucx0" in version:
        print("demo: this build is without UCX, so its nodes have no peers to keep blocks at or to move to; install libucx-dev, "
              "or run `make demo DEMO='--budget 12'`, which needs none", file=sys.stderr)
        return 1
    demo = Demo(options)
    code = 1
    try:
        good = demo.run()
        code = 0 if good else 1
        print(f"demo: {'done' if good else 'FAILED: tokens differ or too little lay elsewhere'}; the summary is in "
              f"{os.path.relpath(options.json)}")
    except KeyboardInterrupt:
        print("\ndemo: stopped", file=sys.stderr)
    except (Failed, subprocess.CalledProcessError, OSError, ValueError, KeyError) as error:
        print(f"\ndemo: {error if str(error) else repr(error)}", file=sys.stderr)
        demo.tails()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # what follows is short and must not be cut
        demo.clean()
    return code


if __name__ == "__main__":
    sys.exit(main())
