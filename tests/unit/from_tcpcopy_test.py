"""docs/from-tcpcopy.md says which flag stands for an option of TCPCopy's, and which field of a TrafficMirror:
each flag is in a program's --help, each field in the CRD."""

import os
import re
import subprocess
import sys
import unittest

import yaml

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
PAGE = os.path.join(TOP, "docs", "from-tcpcopy.md")
CRD = os.path.join(TOP, "deploy", "manifests", "crd.yaml")
PROGRAMS = ("trafficmirror-sidecar", "trafficmirror-intercept")


def flags_of(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def fields_of(schema, path=""):
    for name, field in schema.get("properties", {}).items():
        yield path + name
        yield from fields_of(field, f"{path}{name}.")


class FromTcpcopy(unittest.TestCase):
    def answers(self):
        """What each row says is here."""
        with open(PAGE) as file:
            rows = [line for line in file if line.startswith("| `")]
        for row in rows:
            cells = row.strip().strip("|").split(" | ")
            self.assertEqual(len(cells), 3, row)
            yield cells[2]

    def test_each_field_that_is_named_is_in_the_crd(self):
        with open(CRD) as file:
            version = yaml.safe_load(file)["spec"]["versions"][0]
        known = set(fields_of(version["schema"]["openAPIV3Schema"]["properties"]["spec"]))
        named = set(re.findall(r"`([a-z]+\.[A-Za-z]+)`", " ".join(self.answers())))
        self.assertGreater(len(named), 10)
        self.assertEqual(named - known, set())

    def test_each_flag_that_is_named_is_in_help(self):
        named = set()
        for answer in self.answers():
            named |= flags_of(answer)
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
