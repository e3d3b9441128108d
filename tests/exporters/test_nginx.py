"""The router of a serving plan: what it is refused for, and a real nginx that shares requests as the simulator does."""

import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from hetsched.catalog import find_model
from hetsched.errors import HetschedError
from hetsched.exporters import SERVING_EXPORTERS
from hetsched.exporters.nginx import export_nginx
from hetsched.plan import Route, ServingPipeline, ServingPlan, Stage
from hetsched.readers import read_serving_plan
from hetsched.simulate.serving.router import Shares
from hetsched.workload import ServingLoad

MODEL = find_model("gpt2")


def plan(shares: tuple[float, ...], node: str = "localhost", role: str = "both") -> ServingPlan:
    assert MODEL is not None
    pipelines = tuple(
        ServingPipeline(f"r{k}", (Stage((0, 12), (f"{node}/{k}",)),), 8, role if k else "both")
        for k in range(len(shares))
    )
    routes = tuple(Route(None, f"r{k}", share) for k, share in enumerate(shares))
    return ServingPlan(MODEL, ServingLoad(), pipelines, routes)


def free_ports(count: int) -> list[int]:
    """So many ports in a row, and one more."""
    for first in range(21000, 30000, 50):
        sockets = []
        try:
            for port in range(first, first + count + 1):
                sockets.append(socket.socket())
                sockets[-1].bind(("127.0.0.1", port))
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
        return list(range(first, first + count + 1))
    raise AssertionError("no ports")


def test_weights_ports_and_files(tmp_path: Path) -> None:
    files = SERVING_EXPORTERS["nginx"](plan((0.5, 0.3, 0.2, 0.0)))
    assert set(files) == {"nginx.conf", "plan.json", "README.txt"}
    for number, state in enumerate(("weight=5", "weight=3", "weight=2", "down")):
        assert f"server localhost:{8000 + number} {state} " in files["nginx.conf"]
        assert f"localhost:{8000 + number}  " in files["README.txt"]
    (tmp_path / "plan.json").write_text(files["plan.json"])
    assert read_serving_plan(tmp_path / "plan.json") == plan((0.5, 0.3, 0.2, 0.0))


def test_a_node_that_is_no_host_is_refused() -> None:
    with pytest.raises(HetschedError, match="'a; return 200'"):
        export_nginx(plan((1.0,), node="a; return 200"))


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_shares_as_the_simulator_does(tmp_path: Path) -> None:
    shares, count = (0.5, 0.3, 0.2), 100
    *ports, listen = free_ports(len(shares))
    counts = dict.fromkeys(ports, 0)

    class Replica(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            counts[self.server.server_address[1]] += 1  # type: ignore[index]
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    servers = [HTTPServer(("127.0.0.1", port), Replica) for port in ports]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    files = export_nginx(plan(shares, node="127.0.0.1"), port=ports[0], listen=listen)
    path = tmp_path / "nginx.conf"
    path.write_text(files["nginx.conf"])
    words = ["nginx", "-p", str(tmp_path), "-c", str(path), "-e", str(tmp_path / "error.log")]
    settings = f"daemon off; pid {tmp_path}/pid;"
    router = subprocess.Popen([*words, "-g", settings])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", listen)) == 0:
                    break
            time.sleep(0.05)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(count):
            opener.open(f"http://127.0.0.1:{listen}/", timeout=10).close()
    finally:
        router.terminate()
        router.wait(10)
        for server in servers:
            server.shutdown()
            server.server_close()
    chosen = Shares(dict(enumerate(shares)))
    simulated = [chosen.choose([0, 0, 0]) for _ in range(count)]
    assert list(counts.values()) == [simulated.count(k) for k in range(3)]
