# SPDX-License-Identifier: Apache-2.0
"""
Guests on the network: on a bridge through a tap, served by the VMM and by the kernel's vhost, and
in user mode through passt. The host's side is a network namespace of the scenario's own, so nothing
of the host's is touched and nothing is left; the test's own sockets are made in it.
"""

import base64
import copy
import ctypes
import hashlib
import os
import re
import select
import shlex
import socket
import struct
import subprocess
import threading
import time

from machine import LIMIT, Corral, Failure
from suite import check, scenario

MIB = 1 << 20
SIZE = 20 * MIB
# busybox's nc sends a kilobyte a call, which an emulated CPU does not like: 14 to 52 s seen.
TRANSFER_LIMIT = 300
HOST = "10.80.0.1"
GUEST = "10.80.0.2"
MAC = "52:54:00:c0:44:a1"
# In user mode the guest has the host's own address and router; beyond that is the world.
USER_HOST = "192.0.2.10"
USER_ROUTER = "192.0.2.1"
WORLD = "198.51.100.1"
FORWARDED = 2222

ETH_P_ARP = 0x0806
CLONE_NEWNET = 0x40000000
# virtio 1.2, 5.1.3 and 6: what a card on a tap must have agreed on with Debian's driver.
FEATURES = {"CSUM": 0, "GUEST_CSUM": 1, "MAC": 5, "GUEST_TSO4": 7, "GUEST_TSO6": 8,
            "HOST_TSO4": 11, "HOST_TSO6": 12, "MRG_RXBUF": 15, "STATUS": 16, "CTRL_VQ": 17,
            "EVENT_IDX": 29, "VERSION_1": 32}
FEATURE_MQ = 22

# What udhcpc calls when it has an address.
LEASE = """#!/bin/busybox sh
[ "$1" != bound ] || {
	ip addr add $ip/$subnet dev $interface
	ip route add default via $router
	echo $ip $subnet $router >/tmp/lease
}
"""


def command(*words):
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"\"{' '.join(words)}\" ended with {done.returncode}: {done.stderr.strip()}")


class Namespace:
    """A network namespace, and in `files` a corral that runs in it."""

    def __init__(self, files):
        self.name = f"corral-{os.getpid()}"
        script = (f"#!/bin/sh\nexec ip netns exec {self.name} {shlex.quote(files.corral)} "
                  "\"$@\"\n")
        self.files = copy.copy(files)
        self.files.corral = files.new("corral-in-namespace", script.encode())
        os.chmod(self.files.corral, 0o755)

    def ip(self, words):
        command("ip", "-n", self.name, *words.split())

    def bridge(self, tap="", address=HOST):
        """A bridge with the host's address; the tap is made by `ip tuntap`, with these words."""
        self.ip("link add bridge0 type bridge")
        self.ip(f"addr add {address}/24 dev bridge0")
        self.ip("link set bridge0 up")
        if tap:
            self.ip(f"tuntap add {tap}")
            self.ip("link set tap0 master bridge0 up")

    def socket(self, family, kind, protocol=0):
        """A socket is in the namespace that its thread was in when it was made."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net", "rb") as back, \
                open(f"/run/netns/{self.name}", "rb") as there:
            if libc.setns(there.fileno(), CLONE_NEWNET):
                raise Failure(f"cannot enter {self.name}: {os.strerror(ctypes.get_errno())}")
            try:
                made = socket.socket(family, kind, protocol)
            finally:
                if libc.setns(back.fileno(), CLONE_NEWNET):
                    raise Failure(f"cannot leave {self.name}")
        made.settimeout(LIMIT)
        return made

    def __enter__(self):
        command("ip", "netns", "add", self.name)
        self.ip("link set lo up")
        return self

    def __exit__(self, *_):
        command("ip", "netns", "delete", self.name)


# The peer says something first, as most servers do. Debian 12's passt counts what it sends at the
# start of a connection as never acknowledged until the peer has sent something, too, and resets the
# connection after 24 s.
GREETING = b"\n"


class Peer:
    """Takes one connection in the namespace and all that comes, or sends `data`."""

    def __init__(self, namespace, address, data=None):
        self.listener = namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.listener.bind((address, 0))
        self.listener.listen(1)
        self.port = self.listener.getsockname()[1]
        self.data = data
        self.sum = hashlib.md5(data or b"")
        self.size = 0
        self.seconds = 0.0
        self.trouble = None
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        try:
            with self.listener, self.listener.accept()[0] as connection:
                connection.settimeout(LIMIT)
                start = time.monotonic()
                connection.sendall(self.data or GREETING)
                if self.data:
                    connection.shutdown(socket.SHUT_WR)
                while received := connection.recv(MIB):
                    self.sum.update(received)
                    self.size += len(received)
                self.seconds = time.monotonic() - start
        except OSError as error:
            self.trouble = error

    def finish(self):
        self.thread.join(LIMIT)
        check(not self.thread.is_alive(), "the guest does not end its connection")
        check(not self.trouble, f"the connection broke: {self.trouble}")


def until(guest, condition):
    """Asks in the guest until it is so, 30 s at most."""
    guest.run(f"n=0; until {condition}; do n=$((n + 1)); [ $n -lt 1500 ] || break; usleep 20000; "
              f"done; {condition}")


def configure(guest):
    guest.run(f"ip addr add {GUEST}/24 dev eth0 && ip link set eth0 up")
    until(guest, "[ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]")


def ping(guest, address=HOST):
    text = guest.run(f"ping -c 3 -W 10 {address}", status=None)
    check(" 0% packet loss" in text, f"the guest reaches nobody: {text}")


def send(guest, namespace, address, pin=""):
    """From the guest: 20 MiB of random numbers. Returns the seconds it took."""
    with_sum = guest.run("md5sum /tmp/data").split()[0]
    peer = Peer(namespace, address)
    guest.run(f"{pin} nc {address} {peer.port} </tmp/data >/dev/null", TRANSFER_LIMIT)
    peer.finish()
    check(peer.size == SIZE, f"{peer.size} of {SIZE} bytes came from the guest")
    check(peer.sum.hexdigest() == with_sum, "what came from the guest is not what it sent")
    return peer.seconds


def receive(guest, namespace, address, pin=""):
    """To the guest. Its nc hears nothing to send, but no end either: passt (of Debian 12, under
    QEMU too) forgets a connection that the guest has closed its half of."""
    guest.run("[ -p /tmp/silence ] || mkfifo /tmp/silence")
    peer = Peer(namespace, address, os.urandom(SIZE))
    got = guest.run(f"{pin} nc {address} {peer.port} <>/tmp/silence | md5sum",
                    TRANSFER_LIMIT).split()[0]
    peer.finish()
    check(got == peer.sum.hexdigest(), "what came to the guest is not what was sent")
    return peer.seconds


def make_data(guest):
    guest.run(f"dd if=/dev/urandom of=/tmp/data bs=64k count={SIZE >> 16} 2>/dev/null")


def transfer(guest, report, what, *words, **more):
    times = send(guest, *words, **more), receive(guest, *words, **more)
    report.note(f"{what}: 20 MiB out in {times[0]:.2f} s, in in {times[1]:.2f} s")


def features(guest):
    bits = guest.run("cat /sys/class/net/eth0/device/features")
    return {n for n, bit in enumerate(bits) if bit == "1"}


def interrupts(guest, name):
    """Of all vectors of this kind: "input.0" counts what came in on the first pair."""
    total = 0
    for line in guest.run("cat /proc/interrupts").splitlines():
        if re.search(rf"virtio\d+-{re.escape(name)}$", line):
            total += sum(int(word) for word in line.split(":")[1].split() if word.isdigit())
    return total


def queues(guest, namespace):
    """Each CPU has its pair, and each pair carries its own CPU's connection."""
    check(FEATURE_MQ in features(guest), "the guest knows of one pair only")
    listed = sorted(guest.run("ls /sys/class/net/eth0/queues").split())
    check(listed == ["rx-0", "rx-1", "tx-0", "tx-1"], f"the guest's queues are {listed}")
    for cpu in 0, 1:
        before = interrupts(guest, f"input.{cpu}")
        receive(guest, namespace, HOST, pin=f"taskset {1 << cpu}")
        came = interrupts(guest, f"input.{cpu}") - before
        check(came > 0, f"a connection on CPU {cpu} does not use pair {cpu}")


def link(guest):
    with guest.control() as control:
        control.call("link", {"device": "net0", "up": False})
        until(guest, "[ \"$(cat /sys/class/net/eth0/carrier)\" = 0 ]")
        guest.run(f"ping -c 1 -W 1 {HOST}", status=None)
        text = guest.run(f"ping -c 1 -W 2 {HOST} 2>&1", status=None)
        check("1 packets received" not in text, f"an unplugged card answers: {text}")
        control.call("link", {"device": "net0", "up": True})
        until(guest, "[ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]")
    ping(guest)


def announce(guest, namespace):
    """The guest tells the network where it is: ARP from its address, for its address."""
    with namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP)) as heard:
        heard.bind(("bridge0", ETH_P_ARP))
        with guest.control() as control:
            control.call("announce")
        end = time.monotonic() + 30
        while (left := end - time.monotonic()) > 0:
            if not select.select([heard], [], [], left)[0]:
                break
            frame = heard.recv(2048)
            sender, target = struct.unpack_from("!4s6x4s", frame, 28)
            if sender == target == socket.inet_aton(GUEST):
                return
    raise Failure("the guest was asked to announce itself and does not")


def address(guest):
    with guest.control() as control:
        said = control.call("status").get("address")
    check(said == GUEST, f"the guest's address is said to be {said}, not {GUEST}")


def counters(guest):
    with guest.control() as control:
        return control.call("counters")["devices"]["net0"]


def vhost_threads(guest):
    """The kernel's threads that serve this VMM; it names them after it, alone or among its own."""
    with guest.control() as control:
        pid = control.call("status")["pid"]
    found = 0
    for process in filter(str.isdigit, os.listdir("/proc")):
        for path in (f"/proc/{process}/comm",) if process != str(pid) else [
                f"/proc/{pid}/task/{task}/comm" for task in os.listdir(f"/proc/{pid}/task")]:
            try:
                with open(path, encoding="utf-8") as file:
                    found += file.read().strip() == f"vhost-{pid}"
            except OSError:
                pass  # it has ended meanwhile
    return found


@scenario("net-tap", "tap-features", "tap-ping", "tap-address", "tap-transfer", "tap-queues",
          "tap-link", "tap-announce", "tap-reboot")
def tap(files, report):
    with Namespace(files) as namespace:
        namespace.bridge("dev tap0 mode tap vnet_hdr multi_queue")
        flags = ("--cpus", "2", "--memory", "256M", "--net",
                 f"tap=tap0,vhost=off,queues=2,mac={MAC}")
        with Corral(namespace.files, "", flags) as guest:
            with report.case("tap-features"):
                guest.ready()
                missing = [name for name, bit in FEATURES.items() if bit not in features(guest)]
                check(not missing, f"guest and card have not agreed on {missing}")
                mac = guest.run("cat /sys/class/net/eth0/address")
                check(mac == MAC, f"the guest's card has the address {mac}, not {MAC}")
            with report.case("tap-ping"):
                configure(guest)
                ping(guest)
                check(not vhost_threads(guest), "vhost serves a card that has vhost=off")
            with report.case("tap-address"):
                address(guest)
            with report.case("tap-transfer"):
                make_data(guest)
                transfer(guest, report, "tap", namespace, HOST)
            with report.case("tap-queues"):
                queues(guest, namespace)
            with report.case("tap-link"):
                link(guest)
            with report.case("tap-announce"):
                announce(guest, namespace)
            with report.case("tap-reboot"):
                guest.send("reboot -f\n")
                guest.ready()
                configure(guest)
                ping(guest)


def pause(guest, namespace):
    """Stops the card in the middle of a transfer; not a byte is lost."""
    peer = Peer(namespace, HOST)
    guest.send(f"nc {HOST} {peer.port} </tmp/data >/dev/null; echo $?\n")
    for _ in range(3):
        guest.verb("pause")
        guest.verb("resume")
    guest.expect(r"^@status 0$")
    peer.finish()
    check(peer.size == SIZE, f"{peer.size} of {SIZE} bytes came from the guest")
    with_sum = guest.run("md5sum /tmp/data").split()[0]
    check(peer.sum.hexdigest() == with_sum, "what came from the guest is not what it sent")
    ping(guest)


@scenario("net-vhost", "vhost-ping", "vhost-transfer", "vhost-kernel", "vhost-queues",
          "vhost-pause", "vhost-link", "vhost-reboot")
def vhost(files, report):
    with Namespace(files) as namespace:
        namespace.bridge("dev tap0 mode tap vnet_hdr multi_queue")
        flags = ("--cpus", "2", "--memory", "256M", "--net",
                 f"tap=tap0,vhost=on,queues=2,mac={MAC}")
        with Corral(namespace.files, "", flags) as guest:
            with report.case("vhost-ping"):
                guest.ready()
                configure(guest)
                ping(guest)
            with report.case("vhost-transfer"):
                make_data(guest)
                before = counters(guest)
                transfer(guest, report, "vhost", namespace, HOST)
            with report.case("vhost-kernel"):
                check(vhost_threads(guest) > 0, "no vhost thread of the kernel serves this guest")
                kicks = counters(guest)["kicks"] - before["kicks"]
                check(kicks == 0, f"{kicks} kicks of a transfer came to the VMM")
            with report.case("vhost-queues"):
                queues(guest, namespace)
            with report.case("vhost-pause"):
                pause(guest, namespace)
            with report.case("vhost-link"):
                link(guest)
            with report.case("vhost-reboot"):
                guest.send("reboot -f\n")
                guest.ready()
                configure(guest)
                ping(guest)


def dhcp(guest):
    script = base64.b64encode(LEASE.encode()).decode()
    guest.run(f"echo {script} | base64 -d >/tmp/on-lease")
    text = guest.run("chmod 755 /tmp/on-lease && ip link set eth0 up && "
                     "udhcpc -i eth0 -n -q -t 10 -s /tmp/on-lease 2>&1 && cat /tmp/lease",
                     status=None)
    check(text.endswith(f"{USER_HOST} 255.255.255.0 {USER_ROUTER}"),
          f"there is another lease than passt's: {text}")


def forward(guest, namespace):
    guest.run("echo from the guest >/tmp/answer; nc -l -p 22 </tmp/answer >/tmp/heard & peer=$!")
    until(guest, "grep -q ':0016 ' /proc/net/tcp /proc/net/tcp6")
    with namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.connect(("127.0.0.1", FORWARDED))
        client.sendall(b"from the host\n")
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while received := client.recv(4096):
            answer += received
    guest.run("wait $peer")
    heard = guest.run("cat /tmp/heard")
    check(heard == "from the host", f"the guest heard \"{heard}\" through the forwarded port")
    check(answer == b"from the guest\n", f"the forwarded port answers {answer}")


@scenario("net-user", "user-dhcp", "user-forward", "user-transfer", "user-end")
def user(files, report):
    with Namespace(files) as namespace:
        # passt takes the guest's address and routes from an interface with a default route.
        namespace.bridge(address=USER_HOST)
        namespace.ip(f"route add default via {USER_ROUTER}")
        namespace.ip(f"addr add {WORLD}/32 dev lo")
        flags = ("--memory", "256M", "--net", f"user,forward=tcp:{FORWARDED}:22")
        with Corral(namespace.files, "", flags) as guest:
            with report.case("user-dhcp"):
                guest.ready()
                dhcp(guest)
            with report.case("user-forward"):
                forward(guest, namespace)
            with report.case("user-transfer"):
                make_data(guest)
                transfer(guest, report, "user", namespace, WORLD)
            with report.case("user-end"):
                guest.send("poweroff -f\n")
                guest.end("power-off", 0)
