# SPDX-License-Identifier: Apache-2.0
"""
Linux's vsock and `corral vsock`: streams both ways, each with a megabyte there and back, half-closed
ends, and ports where nobody listens.
"""

import base64
import os
import socket
import subprocess
import threading

from agent import debian_below
from machine import Corral, Failure
from suite import check, scenario

AMOUNT = 1 << 20
GUEST_PORT = 5000
HOST_PORT = 7000

# Takes two connections and gives each back what it sends, up to its end.
GUEST_ECHO = f"""
import socket
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
s.bind((socket.VMADDR_CID_ANY, {GUEST_PORT}))
s.listen()
print("@listening", flush=True)
for i in range(2):
    c, peer = s.accept()
    print("@peer", peer[0], flush=True)
    while data := c.recv(65536):
        c.sendall(data)
    c.close()
"""

GUEST_CLIENT = f"""
import os, socket, threading
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
s.connect((2, {HOST_PORT}))
there, back = os.urandom({AMOUNT}), b""
def send():
    s.sendall(there)
    s.shutdown(socket.SHUT_WR)
thread = threading.Thread(target=send)
thread.start()
while data := s.recv(65536):
    back += data
thread.join()
print("@same" if back == there else "@other", len(back), flush=True)
try:
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).connect((2, {HOST_PORT + 1}))
except OSError as error:
    print("@refused", type(error).__name__, flush=True)
"""


def write_script(guest, name, text):
    words = base64.b64encode(text.encode()).decode()
    guest.run(f"echo {words} | base64 -d >/mnt/tmp/{name}")


def relay(guest, *words):
    return [guest.files.corral, "vsock", guest.name, *words]


def connect_and_echo(guest):
    data = os.urandom(AMOUNT)
    try:
        done = subprocess.run(relay(guest, "connect", str(GUEST_PORT)), env=guest.env, input=data,
                              capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired as stuck:
        with guest.control() as control:
            counted = control.call("counters")["devices"]["vsock"]
        raise Failure(f"{len(stuck.stdout or b'')} bytes came back, then no more: the device has "
                      f"{counted}\n{guest.tail()}") from None
    check(done.returncode == 0, f"connect ended with {done.returncode}: {done.stderr.decode()}")
    check(done.stdout == data, f"{len(done.stdout)} bytes came back, or others")


def echo_server(path):
    """A UNIX socket of the host's where each gets back what it sends."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(path)
    server.listen()

    def serve():
        while True:
            stream, _ = server.accept()
            with stream:
                while data := stream.recv(65536):
                    stream.sendall(data)
                stream.shutdown(socket.SHUT_WR)

    threading.Thread(target=serve, daemon=True).start()


@scenario("vsock", "vsock-nobody", "vsock-connect", "vsock-listen", "vsock-end")
def vsock(files, report):
    disk = files.copy(files.busybox, "vsock.img")
    flags = ("--memory", "512M", "--vsock", "42", "--disk", disk,
             "--disk", f"{files.cloud},readonly=on")
    with Corral(files, "root=/dev/vda", flags) as guest:
        guest.ready()
        debian_below(guest)
        with report.case("vsock-nobody"):
            done = subprocess.run(relay(guest, "connect", "1"), env=guest.env, timeout=60,
                                  capture_output=True, check=False)
            check(done.returncode == 1 and b"no driver" in done.stderr, f"no driver: {done}")
            guest.run("chroot /mnt modprobe vmw_vsock_virtio_transport")
            done = subprocess.run(relay(guest, "connect", "1"), env=guest.env, timeout=60,
                                  capture_output=True, check=False)
            check(done.returncode == 1 and b"nobody" in done.stderr, f"no listener: {done}")
        with report.case("vsock-connect"):
            write_script(guest, "echo.py", GUEST_ECHO)
            guest.run("chroot /mnt python3 /tmp/echo.py >/dev/console 2>&1 &")
            guest.expect(r"^@listening")
            connect_and_echo(guest)
            guest.expect(r"^@peer 2$")
            connect_and_echo(guest)
        with report.case("vsock-listen"):
            path = os.path.join(files.directory, "echo.sock")
            echo_server(path)
            write_script(guest, "client.py", GUEST_CLIENT)
            with subprocess.Popen(relay(guest, "listen", str(HOST_PORT), path), env=guest.env,
                                  stderr=subprocess.PIPE) as listener:
                # It listens once its line was answered: until then the guest is refused.
                text = ""
                for _ in range(20):
                    text = guest.run("chroot /mnt python3 /tmp/client.py", status=None)
                    if "@same" in text:
                        break
                listener.terminate()
            check(f"@same {AMOUNT}" in text, f"the guest says: {text}")
            check("@refused ConnectionResetError" in text, f"the guest says: {text}")
        with report.case("vsock-end"):
            guest.send("sync; poweroff -f\n")
            guest.end("power-off", 0)
