# SPDX-License-Identifier: Apache-2.0
"""
A Debian guest on a root that may not be written. It ends by a panic that pvpanic tells. What it
does to disks is judged in guests of their own, by commands.json.
"""

from machine import Corral
from suite import check, scenario


@scenario("disk", "debian-root", "panic-pvpanic")
def disk(files, report):
    flags = ("--cpus", "2", "--memory", "384M", "--disk", f"{files.debian},readonly=on")
    with Corral(files, "root=/dev/vda ro", flags) as guest:
        with report.case("debian-root"):
            guest.ready()
            system = guest.run(". /etc/os-release; echo $ID; uname -r").split()
            check(system == ["debian", files.version], f"the guest is {system}")
        with report.case("panic-pvpanic"):
            modules = guest.run("cut -d ' ' -f 1 /proc/modules").split()
            check("pvpanic" in modules, f"the guest has no pvpanic: {modules}")
            guest.send("echo c >/proc/sysrq-trigger\n")
            record = guest.end("panic", 4)
            check("sysrq triggered crash" in record["text"],
                  f"the sentence lacks the panic's words: {record['text']}")
