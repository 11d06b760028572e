"""docs/from-tcpcopy.md says which flag stands for an option of TCPCopy's: each is in a program's --help."""

import os
import re
import subprocess
import sys
import unittest

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs", "from-tcpcopy.md")
PROGRAMS = ("trafficmirror-sidecar", "trafficmirror-intercept")


def flags_of(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


class FromTcpcopy(unittest.TestCase):
    def test_each_flag_that_is_named_is_in_help(self):
        named = set()
        with open(PAGE) as file:
            rows = [line for line in file if line.startswith("| `")]
        for row in rows:
            cells = row.strip().strip("|").split(" | ")
            self.assertEqual(len(cells), 3, row)
            named |= flags_of(cells[2])
        self.assertGreater(len(named), 20)
        known = set()
        for program in PROGRAMS:
            known |= flags_of(
                subprocess.run(
                    [os.path.join(FOLDER, program), "--help"], capture_output=True, text=True, check=True
                ).stdout
            )
        self.assertEqual(named - known, set())


if __name__ == "__main__":
    FOLDER = sys.argv.pop(1)  # of the programs
    unittest.main(verbosity=2)
