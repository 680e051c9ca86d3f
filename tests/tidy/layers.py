#!/usr/bin/env python3
"""Checks who includes whom.

    tests/tidy/layers.py [ROOT]

Prints each violation as path:line: text; exit 1 if there is one. The graph below is the rule; the docs explain it.
tests/ may include anything, and so may the tools cli/ and bench/ of our own headers; examples/ show the public header.
"""
import os
import re
import sys

ROOMS = {
    "base": {"base"},
    "kernels": {"base", "kernels"},
    "fabric": {"base", "fabric"},
    "coordinator": {"base", "coordinator"},
    "tiers": {"base", "kernels", "tiers"},
    "node": {"base", "kernels", "fabric", "tiers", "coordinator", "node"},
    "cli": {"base", "kernels", "fabric", "tiers", "coordinator", "node", "cli", "bench"},
    "bench": {"base", "kernels", "fabric", "tiers", "coordinator", "node", "cli", "bench"},
    "examples": {"examples"},
    "include": set(),
}
# Beyond the rooms: single headers that a room may see.
EXTRA = {"examples": {"kernels/dev.h"}}
# Foreign headers: (what matches the name, the room, how many files of it, the files' names).
FOREIGN = [
    (re.compile(r"^(ucp|uct|ucs|ucm)/"), "fabric", 1, re.compile(r"\.c$")),
    (re.compile(r"^liburing(\.h$|/)"), "tiers", 1, re.compile(r"\.c$")),
    (re.compile(r"^curl/"), "coordinator", 1, re.compile(r"\.c$")),
    (re.compile(r"^(cuda|cublas|cooperative_groups|nvml|nvtx|thrust/|cub/|mma\.h)"), "kernels", None, re.compile(r"\.cuh?$")),
]
PUBLIC = "kvf/kvf.h"
PUBLIC_MAY = {"stdbool.h", "stddef.h", "stdint.h", "stdio.h"}
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')


def sources(root):
    for room in sorted(ROOMS):
        for folder, folders, files in os.walk(os.path.join(root, room)):
            folders.sort()
            for name in sorted(files):
                if name.endswith((".c", ".h", ".cu", ".cuh")):
                    yield os.path.relpath(os.path.join(folder, name), root)


def includes(root, path):
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as source:
        for number, line in enumerate(source, 1):
            match = INCLUDE.match(line)
            if match:
                yield number, match.group(1) or match.group(2), match.group(1) is not None


def resolve(root, path, name, quoted):
    """The included file relative to the root when it is ours, else None."""
    if name == PUBLIC:
        return "include/" + PUBLIC
    here = os.path.normpath(os.path.join(os.path.dirname(path), name))
    if quoted and os.path.exists(os.path.join(root, here)):
        return here
    top = os.path.normpath(name)
    if top.split("/")[0] in set(ROOMS) | {"tests"} and (quoted or os.path.exists(os.path.join(root, top))):
        return top
    return here if quoted else None


def check_ours(path, target):
    room, other = path.split("/")[0], target.split("/")[0]
    if target == "include/" + PUBLIC or target in EXTRA.get(room, ()):
        return None
    if other in ROOMS[room]:
        if room == "examples" and os.path.dirname(path) != os.path.dirname(target):
            return f"an example includes another's {target}"
        return None
    return f"{room} may not include {target}"


def check(root):
    problems, foreign = [], {}
    for path in sources(root):
        room = path.split("/")[0]
        for number, name, quoted in includes(root, path):
            target = resolve(root, path, name, quoted)
            if target:
                text = check_ours(path, target)
                if text:
                    problems.append((path, number, text))
            elif room == "include" and name not in PUBLIC_MAY:
                problems.append((path, number, f"the public header may not include <{name}>"))
            for index, (pattern, owner, _, names) in enumerate(FOREIGN):
                if target or not pattern.match(name):
                    continue
                if room != owner or not names.search(path):
                    problems.append((path, number, f"<{name}> belongs to one place in {owner}"))
                else:
                    foreign.setdefault(index, {}).setdefault(path, number)
    for index, files in foreign.items():
        limit = FOREIGN[index][2]
        if limit is not None and len(files) > limit:
            first = sorted(files)[0]
            problems += [(path, files[path], f"a second file of {FOREIGN[index][1]} with this header; {first} has it too")
                         for path in sorted(files)[1:]]
    return sorted(problems)


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    problems = check(root)
    for path, number, text in problems:
        print(f"{path}:{number}: {text}")
    print(f"layers: {sum(1 for _ in sources(root))} files, {len(problems)} violations")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
