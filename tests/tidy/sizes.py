#!/usr/bin/env python3
"""Checks what can be counted: lengths of files, functions and lines, and calls that are not to be used.

    tests/tidy/sizes.py [ROOT]

Prints each violation as path:line: text; exit 1 if there is one. A file excepts itself from a rule (file, function,
column, call) by a comment of the form "tidy: <rule> <reason>".
"""
import os
import re
import sys

FOLDERS = ["base", "kernels", "fabric", "tiers", "coordinator", "node", "cli", "bench", "examples", "include", "tests"]
LIBRARY = {"base", "kernels", "fabric", "tiers", "coordinator", "node"}
DAEMONS = {"kvfd.c", "kvfcoord.c"}  # programs, which may end themselves
FILE_LINES = 800
FUNCTION_LINES = 70
COLUMNS = 132
RULES = {"file", "function", "column", "call"}

BANNED = {
    "strcpy": "use snprintf or memcpy with a known size",
    "strcat": "use snprintf",
    "sprintf": "use snprintf",
    "vsprintf": "use vsnprintf",
    "gets": "use fgets",
    "strtok": "use strcspn or a parser that keeps its state",
    "atoi": "use strtoull and test its end",
    "rand": "ask the env for randomness",
    "srand": "ask the env for randomness",
}
BANNED_IN_LIBRARY = {"exit": "return a status", "abort": "return a status", "_exit": "return a status"}
# Comments, strings and character constants, to be blanked; the first alternatives win inside the others.
LITERALS = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.S)
EXCEPTION = re.compile(r"tidy:[ \t]+(\w+)[ \t]+([^\s*][^\n]*)")
CALL = re.compile(r"(?<![\w.>])(\w+)\s*\(")


def blank(text):
    return LITERALS.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def name_of(signature):
    match = re.search(r"(\w+)\s*\(", signature)
    return match.group(1) if match else "?"


def functions(lines):
    """(first line, last line, name) of each function whose body opens and closes at column 0, lines counted from 1."""
    start = None  # first line of what may be a signature
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip() or line.startswith("#") or line.startswith("}"):
            start = None
        elif start is None and re.match(r"[A-Za-z_]", line):
            start = at
        if start is not None:
            text = "\n".join(lines[start:at + 1])
            opens = line.rstrip() == "{" or (re.search(r"\)[^;={}]*\{\s*$", line) and "=" not in text)
            if opens and "(" in text:
                end = at + 1
                while end < len(lines) and not lines[end].startswith("}"):
                    end += 1
                yield start + 1, min(end + 1, len(lines)), name_of(text)
                at, start = end, None
            elif line.rstrip().endswith((";", "}")) or re.search(r"\{\s*$", line):
                start = None
        at += 1


def check_file(path, text):
    problems, excepted = [], set()
    for match in EXCEPTION.finditer(text):
        if match.group(1) in RULES:
            excepted.add(match.group(1))
        else:
            problems.append((text[:match.start()].count("\n") + 1, f"'tidy: {match.group(1)}' is no rule"))
    raw = text.split("\n")
    if raw and not raw[-1]:
        raw.pop()
    code = blank(text).split("\n")
    if "file" not in excepted and len(raw) > FILE_LINES:
        problems.append((FILE_LINES + 1, f"{len(raw)} lines, {FILE_LINES} are the limit"))
    if "column" not in excepted:
        problems += [(n, f"{len(line)} columns, {COLUMNS} are the limit") for n, line in enumerate(raw, 1) if len(line) > COLUMNS]
    if "function" not in excepted:
        problems += [(first, f"{name} has {last - first + 1} lines, {FUNCTION_LINES} are the limit")
                     for first, last, name in functions(code) if last - first + 1 > FUNCTION_LINES]
    if "call" not in excepted:
        banned = dict(BANNED)
        if path.split("/")[0] in LIBRARY and os.path.basename(path) not in DAEMONS:
            banned.update(BANNED_IN_LIBRARY)
        problems += [(n, f"{call}() is banned: {banned[call]}")
                     for n, line in enumerate(code, 1) for call in CALL.findall(line) if call in banned]
    return [(path, number, what) for number, what in sorted(problems)]


def sources(root):
    for top in FOLDERS:
        for folder, folders, files in os.walk(os.path.join(root, top)):
            folders.sort()
            for name in sorted(files):
                if name.endswith((".c", ".h", ".cu", ".cuh")):
                    yield os.path.relpath(os.path.join(folder, name), root)


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    problems, files = [], 0
    for path in sources(root):
        files += 1
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as source:
            problems += check_file(path, source.read())
    for path, number, text in problems:
        print(f"{path}:{number}: {text}")
    print(f"sizes: {files} files, {len(problems)} violations")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
