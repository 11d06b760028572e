"""What the tests against a real API server have in common."""

import argparse
import os
import sys
import unittest

from apiserver import NoBinaries, find_binaries

SKIPPED = 77


def program(name):
    folder = os.environ.get("TRAFFICMIRROR_BIN", "")
    path = os.path.join(os.path.abspath(folder), name)
    if not folder or not os.access(path, os.X_OK):
        sys.exit(f"{path} is missing: build first, and name its folder with --bin")
    return path


def main(*finders):
    """Runs the tests of the file where all is there that they need; an API server if it is not
    said."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--bin", help="the folder of the programs")
    options, rest = parser.parse_known_args()
    if options.bin:
        os.environ["TRAFFICMIRROR_BIN"] = options.bin
    try:
        for find in finders or (find_binaries,):
            find()
    except NoBinaries as error:
        print(f"SKIPPED: {error}")
        sys.exit(SKIPPED)
    unittest.main(argv=[sys.argv[0], *rest], verbosity=2)
