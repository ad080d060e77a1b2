# SPDX-License-Identifier: Apache-2.0
"""
Commands in guests of their own: `corral run --rootfs … -- COMMAND` and `corral ci`. What counts is
what the command printed, on which stream, and the status that comes out; and that nothing is left.
"""

import json
import os
import subprocess
import xml.etree.ElementTree

from machine import LIMIT
from suite import check, scenario

SCRIPT = r"""
echo "out: $1|$2|$3"
echo "err: $WORD" >&2
pwd
echo written >/etc/written && cat /etc/written
test -c /dev/null && test -d /proc/self && test -w /tmp && test -e /dev/pts/ptmx && echo mounted
exit 3
"""


def corral(files, *words):
    done = subprocess.run([files.corral, *words], env=files.environment(), timeout=4 * LIMIT,
                          stdin=subprocess.DEVNULL, capture_output=True, check=False)
    left = [name for name in os.listdir(files.run_directory()) if not name.startswith(".")]
    check(not left, f"{words[0]} left {left} in the run directory")
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def run(files, flags, *command, root=None):
    return corral(files, "run", "--kernel", files.kernel, "--memory", "256M", "--rootfs",
                  root or files.busybox, *flags, "--", *command)


def command_and_words(files):
    status, out, err = run(files, ("--env", "WORD=größer als \"nichts\"", "--cwd", "/etc"),
                           "sh", "-c", SCRIPT, "name", "two  words", "", "é*$HOME")
    check(status == 3, f"the status is {status}, not 3: {err}")
    lines = out.splitlines()
    check(lines[:1] == ["out: two  words||é*$HOME"], f"the arguments came as {lines}")
    check("err: größer als \"nichts\"" in err and "err:" not in out,
          f"standard error is {err!r}, standard output {out!r}")
    check(lines[1:] == ["/etc", "written", "mounted"], f"the guest's root is not whole: {lines}")
    check(err.splitlines()[-1] == "corral: \"sh\" ended with status 3 in the guest",
          f"the last sentence is {err!r}")


def daemon_and_full_disk(files):
    status, out, err = run(files, (), "sh", "-c",
                           "(trap '' TERM HUP; while :; do sleep 1; done) & "
                           "dd if=/dev/zero of=/full bs=1M 2>&1; rm /full; echo done")
    check(status == 0 and out.endswith("done\n"), f"status {status}: {out} {err}")
    check("No space left" in out, f"the overlay took all that was written: {out}")


def panicked(files):
    status, out, err = run(files, (), "sh", "-c", "echo before; echo c >/proc/sysrq-trigger")
    check(status == 121, f"a panic gives {status}: {err}")
    check(out == "before\n", f"what came before the panic is {out!r}")
    check("sysrq triggered crash" in err and "Call Trace" in err and "panic+0x" in err,
          f"the trace is missing: {err}")


def times_out(files):
    status, out, err = run(files, ("--timeout", "40s"), "sh", "-c",
                           "echo started; echo words >/dev/ttyS0; sleep 100000")
    check(status == 124 and out == "started\n", f"status {status}: {out!r} {err}")
    check("did not end within 40 s" in err and "  | words" in err, f"it says {err}")


def others(files):
    status, _, err = run(files, (), "sh", "-c", "kill -SEGV $$")
    check(status == 139 and "signal 11" in err, f"a signal gives {status}: {err}")
    status, _, err = run(files, (), "no-such-command")
    check(status == 127 and "No such file" in err, f"no command gives {status}: {err}")
    status, _, err = run(files, (), "reboot", "-f")
    check(status == 122 and "was reset" in err, f"a reset gives {status}: {err}")


def many_bytes(files):
    status, out, err = run(files, (), "sh", "-c",
                           "seq 1 200000; echo middle >&2; seq 1 200000 >&2; echo end")
    check(status == 0, f"it ended with {status}: {err[-300:]}")
    want = "".join(f"{n}\n" for n in range(1, 200001))
    check(out == want + "end\n", f"{len(out)} of {len(want) + 4} bytes came out as they should")
    check(err == "middle\n" + want, f"{len(err)} of {len(want) + 7} bytes came on standard error")


def tests_list(files):
    root = os.path.join(files.directory, "tree")
    os.mkdir(root)
    subprocess.run(["debugfs", "-R", f"rdump / {root}", files.busybox], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    content = {
        "defaults": {"rootfs": "tree", "kernel": files.kernel, "memory": "256M", "timeout": "5m",
                     "env": {"A": "one"}},
        "tests": [
            {"name": "passes", "command": ["sh", "-c", "test $A$B = onetwo"], "env": {"B": "two"}},
            {"name": "fails <&>", "command": ["sh", "-c", "echo some\u0007thing; echo else >&2; false"]},
            {"name": "expects 5", "command": ["sh", "-c", "exit 5"], "expect-status": 5},
            {"name": "debian", "rootfs": files.debian, "command": ["perl", "-e", "exit 0"]}]}
    path = files.new("list.json", json.dumps(content).encode())
    junit = os.path.join(files.directory, "list.xml")
    status, out, err = corral(files, "ci", path, "--jobs", "2", "--junit", junit)
    check(status == 1, f"the list ends with {status}: {out} {err}")
    check("3 passed, 1 failed, 0 not run" in out, f"the sum is missing: {out}")
    check("  | some?thing\n" in out and "  | else\n" in out, f"its output is not shown: {out}")
    suite = xml.etree.ElementTree.parse(junit).getroot()
    check((suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "0"),
          f"the report says {suite.attrib}")
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    check(failed == ["fails <&>"], f"the report has {failed} failed")


@scenario("ci", "ci-command", "ci-daemon-full-disk", "ci-panic", "ci-timeout", "ci-other-ends",
          "ci-much-output", "ci-list")
def ci(files, report):
    for name, case in (("command", command_and_words), ("daemon-full-disk", daemon_and_full_disk),
                       ("panic", panicked), ("timeout", times_out), ("other-ends", others),
                       ("much-output", many_bytes), ("list", tests_list)):
        with report.case("ci-" + name):
            case(files)
