# SPDX-License-Identifier: Apache-2.0
"""Exits to user space in a virtqueue round trip: the guest test `exits` does a few and many, and the
VMM's own counters are read between."""

import os
import re

from core import Group, Unavailable, built, corral, guest, need_kvm, run

NAME = "round-trips"
ABOUT = "exits to user space per virtqueue round trip"
RUNS = 3

WHAT = "exits per round trip"
LINE = re.compile(r"^exits: (\d+) for (\d+) round trips, (\d+) for (\d+)$", re.M)


def measure(runs, _directory):
    need_kvm()
    group = Group(NAME, "Virtqueues: exits to user space per round trip")
    group.method = ["Reads of a virtio disk, each with its own kick and interrupt; the counters of corral-vmm "
                    "before and after a few and many of them. The difference leaves out what talking about it costs."]
    test, elf = built("guest-tests/guest-exits"), guest("exits")
    environment = {**os.environ, "CORRAL": corral()}
    environment.pop("GUEST_TEST_VMM", None)
    for i in range(runs):
        group.progress(i, runs)
        found = LINE.search(run([test, elf], env=environment))
        if not found:
            raise Unavailable("the guest test \"exits\" printed no counts")
        few_exits, few, many_exits, many = map(int, found.groups())
        group.add(WHAT, "", "corral-vmm", (many_exits - few_exits) / (many - few))
    worst = max(group.figure(WHAT, "", "corral-vmm").values)
    # A character more or less of talk is an exit in some hundreds of round trips.
    group.bar("exits to user space in a round trip, rounded", "<=", 0, max(0, round(worst, 1)))
    return group
