"""Runs tests of tempest. usage: run_tempest.py CHOICE, a JSON object: the names below tempest.api.volume of the "modules" that are
run, and of their tests that are "leftOut". Tempest's configuration is in $TEMPEST_CONFIG_DIR.
Prints one JSON object a line: {"test", "outcome": "passed" | "skipped" | "failed", "why"}.
"""
import json
import re
import sys
import unittest


def name_of(test):
    """Without the tags behind it; a class that is skipped or fails as a whole has no method."""
    name = re.sub(r"\[.*\]$", "", test.id())
    return re.sub(r"^setUpClass \((.*)\)$", r"\1", name)


class Report(unittest.TestResult):
    def tell(self, test, outcome, why=""):
        print(json.dumps({"test": name_of(test), "outcome": outcome, "why": why}), flush=True)

    def addSuccess(self, test, details=None):
        self.tell(test, "passed")

    def addSkip(self, test, reason=None, details=None):
        self.tell(test, "skipped", reason or details["reason"].as_text())

    def addFailure(self, test, err=None, details=None):
        why = self._exc_info_to_string(err, test) if err else "\n".join(part.as_text() for part in details.values())
        self.tell(test, "failed", why)

    addError = addFailure


def without(suite, names):
    """The suite without tests of these names."""
    for part in suite:
        if not isinstance(part, unittest.TestSuite):
            return unittest.TestSuite(test for test in suite if name_of(test) not in names)
    return unittest.TestSuite(without(part, names) for part in suite)


choice = json.loads(sys.argv[1])
# Tempest reads the command line for options of its own.
sys.argv = sys.argv[:1]
full = "tempest.api.volume.".__add__
suite = unittest.TestLoader().loadTestsFromNames([full(name) for name in choice["modules"]])
without(suite, {full(name) for name in choice["leftOut"]}).run(Report())
