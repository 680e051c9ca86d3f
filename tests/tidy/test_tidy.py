#!/usr/bin/env python3
"""layers.py and sizes.py on planted violations: each is found, with its line, and nothing else is."""
import os
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))


class TidyTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="kvf-tidy-")
        self.addCleanup(folder.cleanup)
        self.root = folder.name

    def write(self, path, text):
        full = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8") as out:
            out.write(text)

    def check(self, script, *expected):
        """The script reports exactly `expected`, each the start of a line."""
        done = subprocess.run([sys.executable, os.path.join(HERE, script), self.root], text=True, timeout=60,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        lines = done.stdout.splitlines()[:-1]
        self.assertEqual(len(lines), len(expected), done.stdout)
        for line, start in zip(sorted(lines), sorted(expected)):
            self.assertTrue(line.startswith(start), f"{line!r} is not {start!r}")
        self.assertEqual(done.returncode, 1 if expected else 0)

    # layers.py

    def test_the_room_graph(self):
        self.write("base/a.c", '#include "base/a.h"\n#include <kvf/kvf.h>\n#include "kernels/dev.h"\n')
        self.write("kernels/a.c", '#include "base/a.h"\n#include "tiers/a.h"\n')
        self.write("fabric/a.c", '#include "tiers/a.h"\n#include "fabric/a.h"\n')
        self.write("tiers/a.c", '#include "kernels/dev.h"\n#include "base/a.h"\n  #  include "fabric/a.h"\n')
        self.write("coordinator/a.c", '#include "node/a.h"\n')
        self.write("node/a.c", '#include "base/a.h"\n#include "fabric/a.h"\n#include "tiers/a.h"\n#include "coordinator/a.h"\n')
        self.write("node/b.c", '#include "tests/sim/sim.h"\n')
        self.check("layers.py", "base/a.c:3: ", "kernels/a.c:2: ", "fabric/a.c:1: ", "tiers/a.c:3: ", "coordinator/a.c:1: ",
                   "node/b.c:1: ")

    def test_headers_beside_the_file_and_relative_paths(self):
        self.write("base/a.h", "")
        self.write("base/a.c", '#include "a.h"\n')
        self.write("kernels/dev.h", "")
        self.write("base/b.c", '#include "../kernels/dev.h"\n#include <kernels/dev.h>\n')
        self.check("layers.py", "base/b.c:1: ", "base/b.c:2: ")

    def test_examples_see_the_public_header_and_the_device_table(self):
        self.write("examples/llm/a.h", "")
        self.write("examples/llm/a.c", '#include "a.h"\n#include <kvf/kvf.h>\n#include "kernels/dev.h"\n#include "base/log.h"\n')
        self.check("layers.py", "examples/llm/a.c:4: ")

    def test_foreign_headers_have_one_place(self):
        self.write("fabric/a_ucx.c", "#include <ucp/api/ucp.h>\n")
        self.write("fabric/b.c", "\n#include <ucs/type/status.h>\n")
        self.write("tiers/a_uring.c", "#include <liburing.h>\n")
        self.write("node/a.c", "#include <liburing.h>\n#include <curl/curl.h>\n")
        self.write("coordinator/http.c", "#include <curl/curl.h>\n")
        self.write("kernels/dev.cu", "#include <cuda_runtime.h>\n")
        self.write("kernels/dev.c", "#include <cuda_runtime.h>\n")
        self.check("layers.py", "fabric/b.c:2: ", "node/a.c:1: ", "node/a.c:2: ", "kernels/dev.c:1: ")

    def test_the_public_header_stands_alone(self):
        self.write("include/kvf/kvf.h", "#include <stdint.h>\n#include <pthread.h>\n")
        self.check("layers.py", "include/kvf/kvf.h:2: ")

    # sizes.py

    def test_lengths(self):
        self.write("base/long.c", "int x;\n" * 801)
        self.write("base/wide.c", "/* " + "ä" * 126 + " */\n/* " + "x" * 127 + " */\n")  # 132 characters, then 133
        self.write("base/function.c", "static int f(int a)\n{\n" + "    a++;\n" * 68 + "}\n\n"  # 71 lines
                   "int g(int a,\n      int b)\n{\n" + "    a++;\n" * 66 + "}\n"  # 70 lines
                   "static const int t[] = {\n" + "    1,\n" * 100 + "};\n")
        self.check("sizes.py", "base/long.c:801: ", "base/wide.c:2: 133", "base/function.c:1: f has 71 lines")

    def test_banned_calls(self):
        self.write("tiers/a.c", 'void f(void)\n{\n    strcpy(a, b); /* sprintf(x) */\n    puts("atoi(x)");\n'
                   "    abort();\n    env->rand(1);\n    my_exit(1);\n    exit (1); // gets(x)\n}\n")
        self.write("node/kvfd.c", "int main(void)\n{\n    exit(1);\n    return rand();\n}\n")
        self.write("tests/base/a.c", "void f(void)\n{\n    abort();\n}\n")
        self.check("sizes.py", "tiers/a.c:3: strcpy", "tiers/a.c:5: abort", "tiers/a.c:8: exit", "node/kvfd.c:4: rand")

    def test_exceptions_are_by_file_and_rule(self):
        self.write("base/a.c", "/* tidy: file one table that belongs together */\n" + "int x;\n" * 900)
        self.write("base/b.c", "/* tidy: length no such rule */\n")
        self.check("sizes.py", "base/b.c:1: 'tidy: length'")


if __name__ == "__main__":
    result = unittest.main(exit=False, verbosity=0).result
    failed = len(result.failures) + len(result.errors)
    print(f"{result.testsRun - failed - len(result.skipped)} passed, {failed} failed, {len(result.skipped)} skipped")
    sys.exit(1 if failed else 0)
