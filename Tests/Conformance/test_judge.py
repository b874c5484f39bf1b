"""The judge itself: what holds of an event, and how settings and scores are read. Run by scripts/conformance."""
import unittest

import conformance
import network
import settings


class Stand:
    """A case with only what `settings.translate` looks at."""

    def __init__(self, options, effective=None):
        self.options, self.effective = options, effective or {}

    def expand(self, text):
        return text.replace("${TEST_DIR}", "/t")


class JudgeTests(unittest.TestCase):
    event = {
        "event_type": "alert", "alert": {"signature_id": 7, "gid": 1}, "vlan": [5, 6], "flag": True,
        "drop": {"reason": "flow drop"}, "empty": None,
    }

    def test_paths(self):
        self.assertEqual(network.lookup(self.event, "vlan[1]"), 6)
        self.assertEqual(network.lookup(self.event, "vlan.__len"), 2)
        for path in ("vlan[2]", "drop.none", "alert.gid.deeper", "alert[0]"):
            self.assertIs(network.lookup(self.event, path), network.MISSING, path)

    def test_comparisons(self):
        right = [
            ("alert.gid", 1), ("alert.signature_id.__gt", 6), ("alert.signature_id.__lte", 7), ("flag", True),
            ("drop.reason.__startswith", "flow"), ("drop.reason.__endswith", "drop"), ("vlan.__contains", 5),
            ("has-key", "alert.gid"), ("not-has-key", ["a", "b.c"]), ("vlan.__len", 2), ("absent", None),
        ]
        wrong = [
            ("alert.gid", True), ("flag", 1), ("flag.__gt", 0), ("alert.gid", None), ("alert.signature_id.__lt", 7),
            ("drop.reason.__find", "x"), ("has-key", ["alert.gid", "x"]), ("not-has-key", "flag"),
        ]
        for key, value in right:
            self.assertTrue(network.holds(self.event, key, value), (key, value))
        for key, value in wrong:
            self.assertFalse(network.holds(self.event, key, value), (key, value))

    def test_checks(self):
        self.assertTrue(network.matches(self.event, {"kind": "alert", "sid": 7, "match": {"vlan[0]": 5}}))
        self.assertFalse(network.matches(self.event, {"kind": "drop", "match": {}}))
        self.assertFalse(network.matches(self.event, {"kind": "alert", "sid": 8}))

    def test_settings(self):
        case = Stand(
            {"checksum": "none", "simulate_ips": True, "set": {"mpm-algo": "hs", "not.known": "1"}},
            {"yaml": {"vars": {"address-groups": {"NET": "[10.0.0.0/8]"}}}})
        options, unknown = settings.translate(case)
        self.assertEqual(options, [
            "--var", "NET=[10.0.0.0/8]", "--set", "exception-policy=auto", "--ignore-checksums", "--inline"])
        self.assertEqual(unknown, ["not.known=1"])

    def test_baseline(self):
        self.assertEqual(conformance.below({"a": (3, 5), "b": (2, 2)}, {"a": 3, "c": 9}), [])
        self.assertEqual(len(conformance.below({"a": (3, 5)}, {"a": 4})), 1)


if __name__ == "__main__":
    unittest.main()
