# SPDX-License-Identifier: Apache-2.0
"""
A guest on a virtio console, with its source of random numbers; paused, asked while it is busy, and
ended by SIGTERM.
"""

import re
import signal
import time

from machine import Corral
from suite import check, scenario

CALLS = 100
# An answer has 10 ms; on an emulated CPU that two busy vCPUs share with the VMM, ten times that.
ANSWER_MS = 10
ANSWER_EMULATED_MS = 100


def resize(guest):
    with guest.control() as control:
        for columns, rows in ((132, 43), (80, 25)):
            control.call("resize", {"columns": columns, "rows": rows})
            guest.run(f"n=0; until [ \"$(stty size)\" = '{rows} {columns}' ] || [ $n = 200 ]; "
                      "do usleep 20000; n=$((n + 1)); done")
            size = guest.run("stty size")
            check(size == f"{rows} {columns}", f"the guest has {size}, not {rows} {columns}")


def rng(guest):
    current = guest.run("cat /sys/class/misc/hw_random/rng_current")
    check(current.startswith("virtio_rng"), f"the guest's random numbers are {current}'s")
    words = [guest.run("dd if=/dev/hwrng bs=32 count=1 2>/dev/null | hexdump -ve '1/1 \"%02x\"'")
             for _ in range(2)]
    check(all(len(word) == 64 for word in words), f"too few random numbers: {words}")
    check(words[0] != words[1], f"twice the same random numbers: {words[0]}")


def last_tick(guest):
    return int(re.findall(r"^tick (\d+)$", guest.text, re.M)[-1])


def pause(guest):
    guest.run("{ i=0; while :; do i=$((i + 1)); echo tick $i; usleep 30000; done; } & ticker=$!")
    guest.expect(r"^tick 3$")
    guest.verb("pause")
    with guest.control() as control:
        state = control.call("status")["state"]
        check(state == "paused", f"after \"corral pause\" the state is {state}")
        # What was printed before the pause may still be on its way to us.
        guest.silent_for(0.5)
        check(guest.silent_for(1.5), f"a paused guest prints:\n{guest.tail()}")
        before = last_tick(guest)
        guest.verb("resume")
        guest.expect(rf"^tick {before + 3}$")
        state = control.call("status")["state"]
        check(state == "running", f"after \"corral resume\" the state is {state}")
    guest.run("kill $ticker")
    ticks = [int(n) for n in re.findall(r"^tick (\d+)$", guest.text, re.M)]
    check(ticks == list(range(1, len(ticks) + 1)), "lines of the guest were lost or came twice")


def answers(guest, files, report):
    guest.run("for cpu in 0 1; do { while :; do :; done; } & busy=\"$busy $!\"; done")
    took = []
    with guest.control() as control:
        for _ in range(CALLS):
            start = time.monotonic()
            control.call("status")
            took.append((time.monotonic() - start) * 1000)
    guest.run("kill $busy")
    took.sort()
    report.note(f"status while the guest is busy: median {took[CALLS // 2]:.2f} ms, "
                f"p90 {took[CALLS * 9 // 10]:.2f} ms, p100 {took[-1]:.2f} ms")
    limit = ANSWER_EMULATED_MS if files.emulated else ANSWER_MS
    check(took[-1] < limit, f"an answer took {took[-1]:.1f} ms, the limit is {limit}")


@scenario("console", "virtio-console", "resize", "rng", "pause", "busy-status", "sigterm")
def console(files, report):
    flags = ("--cpus", "2", "--memory", "256M", "--console", "stdio,device=virtio")
    with Corral(files, "", flags) as guest:
        with report.case("virtio-console"):
            guest.ready()
            said = guest.run("cat /sys/class/tty/console/active; tty; uname -r").split()
            check(said[0] == "hvc0", f"the guest's consoles are {said}")
            check(said[-1] == files.version, f"the guest answers {said}")
            guest.run("i=0; while [ $i -lt 200 ]; do echo \"line $i of many\"; i=$((i + 1)); done")
            lines = re.findall(r"^line (\d+) of many$", guest.text, re.M)
            check(lines == [str(i) for i in range(200)], f"of 200 lines {len(lines)} arrived whole")
        with report.case("resize"):
            resize(guest)
        with report.case("rng"):
            rng(guest)
        with report.case("pause"):
            pause(guest)
        with report.case("busy-status"):
            answers(guest, files, report)
        with report.case("sigterm"):
            guest.signal(signal.SIGTERM)
            guest.end("power-off", 0)
            check("the power button was pressed" in guest.text,
                  f"the guest saw no power button:\n{guest.tail()}")
