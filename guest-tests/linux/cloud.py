# SPDX-License-Identifier: Apache-2.0
"""
First boot of a stock disk image, as a user has it: one command, with neither kernel nor firmware
named; cloud-init takes name, user, key and network from the seed disk; ssh through the forwarded
port; Debian's own guest agent; power button.
"""

import json
import os
import re
import subprocess
import time

import firmware
from agent import told
from machine import Console, Failure
from net import USER_HOST, USER_ROUTER, Namespace
from suite import check, scenario

MEMORY = "512M"
PORT = 2222
MAC = "52:54:00:c0:44:a2"
HOST = "first-boot"
USER = "alice"
CARD = "lan0"

# Keys of one kind, for an emulated CPU is long about those of RSA. No locale, for the image has none.
USER_DATA = """#cloud-config
users:
  - name: {user}
    shell: /bin/sh
    ssh_authorized_keys: ["{key}"]
ssh_genkeytypes: [ed25519]
locale: false
write_files:
  - path: /etc/first-boot
    content: written by cloud-init
runcmd:
  - [sh, -c, "tr a-z A-Z </etc/first-boot >/var/lib/first-boot"]
final_message: "first boot is done: $datasource"
"""
META_DATA = f"instance-id: {HOST}-1\nlocal-hostname: {HOST}\n"
NETWORK = f"""version: 2
ethernets:
  card:
    match: {{macaddress: "{MAC}"}}
    set-name: {CARD}
    dhcp4: true
"""


class Stock(firmware.Firmware):
    """A guest of a disk image and nothing else of ours."""

    def __init__(self, files, flags):  # pylint: disable=super-init-not-called # it names a firmware
        firmware.Corral.count += 1
        self.name = f"linux-{os.getpid()}-{firmware.Corral.count}"
        self.files = files
        self.user = None
        self.env = files.environment() | {"CORRAL_FIRMWARE": files.firmware}
        self.record_fd = -1
        self.start = time.monotonic()
        Console.__init__(self, [files.corral, "run", "--name", self.name, *flags], self.env)

    def ssh(self, key, command, data=b""):
        return subprocess.run([self.files.corral, "ssh", f"{USER}@{self.name}", "-i", key, "--",
                               command], env=self.env, input=data, capture_output=True,
                              timeout=firmware.STAGE_LIMIT, check=False)

    def first_answer(self, key):
        """The login prompt does not wait for sshd. 255 is ssh's own: nobody is there yet."""
        end = self.start + firmware.LOGIN_LIMIT
        while ((done := self.ssh(key, "true")).returncode == 255
               and b"Permission denied" not in done.stderr and time.monotonic() < end):
            pass
        check(done.returncode == 0, f"corral ssh ended with {done.returncode}: {done.stderr}")
        return time.monotonic() - self.start


def make_key(files):
    path = os.path.join(files.directory, "key")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path],
                   check=True)
    with open(path + ".pub", encoding="utf-8") as file:
        return path, file.read().strip()


def seed(files, public):
    texts = {"user-data": USER_DATA.format(user=USER, key=public), "meta-data": META_DATA,
             "network": NETWORK}
    return ",".join(f"{name}={files.new(name, text.encode())}" for name, text in texts.items())


def check_ssh(guest, key):
    done = guest.ssh(key, "id -un; cat; echo err >&2; exit 7", b"from the host\n")
    check((done.returncode, done.stdout) == (7, f"{USER}\nfrom the host\n".encode())
          and b"err\n" in done.stderr, f"a command over ssh: {done}")


def asked(guest, key, command):
    done = guest.ssh(key, command)
    if done.returncode:
        raise Failure(f"\"{command}\" ended with {done.returncode}: {done.stderr.decode()}")
    return done.stdout.decode().strip()


def check_seed(guest, key):
    """All of it was obeyed, with nothing else asked than the seed disk."""
    guest.expect(r"first boot is done: DataSourceNoCloud.*/dev/vdb", firmware.STAGE_LIMIT)
    result = json.loads(asked(guest, key, "cat /run/cloud-init/result.json"))["v1"]
    check(not result["errors"], f"cloud-init's errors are {result['errors']}")
    name = asked(guest, key, "hostname")
    check(name == HOST, f"the guest's name is {name}, not {HOST}")
    texts = asked(guest, key, "cat /etc/first-boot /var/lib/first-boot")
    check(texts == "written by cloud-initWRITTEN BY CLOUD-INIT", f"the files hold \"{texts}\"")
    card = asked(guest, key, f"cat /sys/class/net/{CARD}/address; ip -4 route show default")
    check(card.startswith(f"{MAC}\ndefault via {USER_ROUTER} dev {CARD} "), f"its card is: {card}")


def check_ps(guest):
    told_json = subprocess.run([guest.files.corral, "ps", "--json"], env=guest.env,
                               capture_output=True, check=True).stdout
    vm = next(vm for vm in json.loads(told_json) if vm["name"] == guest.name)
    check(vm.get("address") == USER_HOST, f"ps says that its address is {vm.get('address')}")
    text = subprocess.run([guest.files.corral, "ps"], env=guest.env, capture_output=True,
                          text=True, check=True).stdout
    line = next(line for line in text.splitlines() if line.startswith(guest.name))
    check(USER_HOST in line and f"tcp {PORT}:22" in line, f"ps says:\n{text}")


def check_agent(guest, files, key):
    """As Debian starts it; and filesystems that services write to are frozen and thawed."""
    text = told(guest, "info")
    for part in (f"host     {HOST}", f"kernel   {files.version}", USER_HOST):
        check(part in text, f"\"{part}\" is not in:\n{text}")
    for verb, done in ("freeze", "frozen"), ("thaw", "thawed"):
        text = told(guest, verb)
        check(re.match(rf"[1-9]\d* filesystems? of .* {done}$", text), f"{verb} says \"{text}\"")
    asked(guest, key, "echo thawed >thawed && sync")


@scenario("cloud", "cloud-boot", "cloud-name", "cloud-ssh", "cloud-seed", "cloud-ps",
          "cloud-agent", "cloud-shutdown")
def cloud(files, report):
    firmware.slow_timer(files)
    disk = firmware.own_copy(files, files.cloud, "first-boot.img")
    key, public = make_key(files)
    with Namespace(files) as namespace:
        # passt takes the guest's address and routes from an interface with a default route.
        namespace.bridge(address=USER_HOST)
        namespace.ip(f"route add default via {USER_ROUTER}")
        flags = ("--disk", disk, "--memory", MEMORY, "--cloud-init", seed(files, public),
                 "--net", f"user,forward=tcp:{PORT}:22,mac={MAC}")
        with Stock(namespace.files, flags) as guest:
            with report.case("cloud-boot"):
                guest.booted()
                guest.expect(firmware.KERNEL, firmware.STAGE_LIMIT)
            with report.case("cloud-name"):
                guest.expect(rf"(?<![\w-]){HOST} login: ", firmware.LOGIN_LIMIT)
            with report.case("cloud-ssh"):
                seconds = guest.first_answer(key)
                report.note(f"from corral run to the first answer over ssh: {seconds:.0f} s")
                check_ssh(guest, key)
            with report.case("cloud-seed"):
                check_seed(guest, key)
            with report.case("cloud-ps"):
                check_ps(guest)
            with report.case("cloud-agent"):
                check_agent(guest, files, key)
            with report.case("cloud-shutdown"):
                guest.verb("shutdown")
                guest.end("power-off", 0, firmware.STAGE_LIMIT)
    os.remove(disk)
