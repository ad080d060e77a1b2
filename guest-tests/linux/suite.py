# SPDX-License-Identifier: Apache-2.0
"""
Scenarios and cases. A scenario boots a guest and shows several cases with it, because a boot is
what costs; it names them beforehand, so that none is lost when the guest dies early. Out: a line
"ok NAME (N.N s)" or "not ok NAME" with the reason in lines that begin with "# ".
"""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
import traceback

from machine import Failure

NOBODY = 65534

SCENARIOS = {}


def scenario(name, *cases):
    def add(function):
        SCENARIOS[name] = (function, cases)
        return function
    return add


class Files:
    """What guests are made of, and a place for the files of this run."""

    def __init__(self, options):
        for name in ("corral", "vmm", "kernel", "vmlinux", "initrd", "busybox", "debian",
                     "known"):
            setattr(self, name, getattr(options, name))
        self.version = re.sub(r"^vmlinuz-", "", os.path.basename(self.kernel))
        self.emulated = os.path.exists("/run/lab/control/started")
        self.directory = tempfile.mkdtemp(prefix="corral-linux.")
        os.chmod(self.directory, 0o755)
        # The tree may lie in a home that an ordinary user cannot enter.
        shutil.copy(os.path.join(os.path.dirname(self.corral), "corral-disk"), self.directory)
        self.corral = shutil.copy(self.corral, os.path.join(self.directory, "corral"))
        self.vmm = shutil.copy(self.vmm, os.path.join(self.directory, "corral-vmm"))
        for user in (None, NOBODY):
            os.mkdir(self.user_directory(user), 0o700)
            if user:
                os.chown(self.user_directory(user), user, user)

    def user_directory(self, user):
        return os.path.join(self.directory, "nobody" if user else "root")

    def run_directory(self, user=None):
        return os.path.join(self.user_directory(user), "corral")

    def environment(self, user=None):
        env = {key: os.environ[key] for key in ("PATH", "LANG", "HOME") if key in os.environ}
        env["CORRAL_VMM"] = self.vmm
        if user:
            env["XDG_RUNTIME_DIR"] = self.user_directory(user)
        else:
            os.makedirs(self.run_directory(), exist_ok=True)
            env["CORRAL_RUN_DIRECTORY"] = self.run_directory()
        return env

    def copy(self, image, name, user=None):
        """A private copy of an image, which a guest may write."""
        path = os.path.join(self.user_directory(user), name)
        subprocess.run(["cp", "--sparse=always", image, path], check=True)
        os.chmod(path, 0o600)
        if user:
            os.chown(path, user, user)
        return path

    def new(self, name, data):
        path = os.path.join(self.directory, name)
        with open(path, "wb") as file:
            file.write(data)
        return path

    def remove(self):
        shutil.rmtree(self.directory, ignore_errors=True)


class Report:
    def __init__(self):
        self.failed = 0
        self.said = set()

    def say(self, good, name, text=""):
        self.said.add(name)
        self.failed += not good
        lines = [("ok " if good else "not ok ") + name]
        if good:
            lines[0] += text
        else:
            lines += ["# " + line for line in text.splitlines()]
        print("\n".join(lines), flush=True)

    @contextlib.contextmanager
    def case(self, name):
        start = time.monotonic()
        try:
            yield
        except Failure as failure:
            self.say(False, name, str(failure))
        except Exception:  # pylint: disable=broad-except # a fault of the test is a failure too
            self.say(False, name, traceback.format_exc())
        else:
            self.say(True, name, f" ({time.monotonic() - start:.1f} s)")

    @staticmethod
    def note(text):
        print("\n".join("# " + line for line in text.splitlines()), flush=True)


def check(condition, text):
    if not condition:
        raise Failure(text)


def run_scenario(name, files, report):
    function, cases = SCENARIOS[name]
    why = "it was not reached: an earlier case of its guest failed"
    try:
        function(files, report)
    except Failure as failure:
        why = str(failure)
    except Exception:  # pylint: disable=broad-except
        why = traceback.format_exc()
    for case in cases:
        if case not in report.said:
            report.say(False, case, why)
