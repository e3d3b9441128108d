"""A wide-area network on one machine: a network namespace a node, and a router that delays and paces their packets.

Each namespace has a TUN device. The router reads the packets of all of them; between each ordered pair of nodes there
is a link: a packet leaves when the link is free, occupies it for its size over the bandwidth, and arrives the latency
later. Needs root, Linux and /dev/net/tun. Only addresses of 10.213.0.0/24 inside the namespaces are ever used.
"""

import ctypes
import fcntl
import heapq
import os
import select
import signal
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MTU = 9000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
LONGEST_QUEUE_S = 1.0  # of a link; what would wait longer is lost
DEVICE = "tun0"
PRIORITY = 20  # real-time: its packets are few, and late ones would be a slower network
# Iterations pause; and BBR, where that is the default, lets a link idle for 0.2 s every 10 s to see its delay alone.
TCP = ("tcp_slow_start_after_idle=0", "tcp_no_metrics_save=1", "tcp_congestion_control=reno")

Matrix = Sequence[Sequence[float]]


def missing() -> str | None:
    """Why there can be no emulated network here; None where there can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "it needs root, to make network namespaces"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except PermissionError:
        return "processes can't have a real-time priority"
    return None


def namespace(node: int) -> str:
    """The namespace of a node."""
    return f"hetsched-{os.getppid() if 'WAN_OWNER' not in os.environ else os.environ['WAN_OWNER']}-{node}"


def address(node: int) -> str:
    """Its address."""
    return f"10.213.0.{node + 1}"


@contextmanager
def emulated(bytes_per_s: Matrix, latency_s: Matrix) -> Iterator[None]:
    """The network while the block runs; both matrices are (nodes, nodes), [i][j] from i to j."""
    os.environ["WAN_OWNER"] = str(os.getpid())
    names = [namespace(node) for node in range(len(bytes_per_s))]
    handles: list[int] = []
    router = 0
    try:
        for node, name in enumerate(names):
            _ip("netns", "add", name)
            handles.append(_tun(name))
            inside = ("netns", "exec", name)
            _ip(*inside, "ip", "addr", "add", f"{address(node)}/24", "dev", DEVICE)
            _ip(*inside, "ip", "link", "set", DEVICE, "mtu", str(MTU), "txqueuelen", "10000", "up")
            _ip(*inside, "ip", "link", "set", "lo", "up")
            for option in TCP:  # where the kernel lets namespaces have their own
                subprocess.run(["ip", *inside, "sysctl", "-qw", f"net.ipv4.{option}"], check=False, capture_output=True)
        router = os.fork()
        if not router:
            try:
                _route(handles, bytes_per_s, latency_s)
            finally:
                os._exit(1)  # the rest is the parent's
        yield
    finally:
        if router:
            os.kill(router, signal.SIGKILL)
            os.waitpid(router, 0)
        for handle in handles:
            os.close(handle)
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _tun(name: str) -> int:
    """A handle of a TUN device made inside a namespace; it goes on to work from outside."""
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    other = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        if libc.setns(other, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"can't enter {name}")
        handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(handle, TUNSETIFF, struct.pack("16sH14x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    finally:
        libc.setns(own, CLONE_NEWNET)
        os.close(own)
        os.close(other)
    return handle


def _route(handles: Sequence[int], bytes_per_s: Matrix, latency_s: Matrix) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    numbers = {handle: node for node, handle in enumerate(handles)}
    free = [[0.0] * len(handles) for _ in handles]
    waiting: list[tuple[float, int, int, bytes]] = []
    poll, count, clock = select.epoll(), 0, time.perf_counter
    for handle in handles:
        poll.register(handle, select.EPOLLIN)
    while True:
        until_next = max(waiting[0][0] - clock(), 0.0) if waiting else 1.0
        for handle, _ in poll.poll(until_next if until_next > 5e-4 else 0):
            i = numbers[handle]
            for _ in range(64):
                try:
                    packet = os.read(handle, MTU)
                except BlockingIOError:
                    break
                if packet[0] >> 4 != 4 or packet[16:19] != b"\n\xd5\x00" or not 0 < packet[19] <= len(handles):
                    continue
                j, now = packet[19] - 1, clock()
                start = max(free[i][j], now)
                if start - now > LONGEST_QUEUE_S:
                    continue
                free[i][j] = start + len(packet) / bytes_per_s[i][j]
                count += 1
                heapq.heappush(waiting, (free[i][j] + latency_s[i][j], count, j, packet))
        now = clock()
        while waiting and waiting[0][0] <= now:
            _, _, j, packet = heapq.heappop(waiting)
            try:
                os.write(handles[j], packet)
            except BlockingIOError:
                break
