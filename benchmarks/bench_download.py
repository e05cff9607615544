"""Downloads: torture by servers and by kill -9, and throughput compared with curl.

    python -m benchmarks.bench_download [faults] [kills] [throughput] [--seed N]

faults: each fault of servers alone, then random sequences of them; every download must
end in the right file or in a DownloadError. kills: processes, alone or two on one URL,
killed at random moments while a server with a limited rate sends; counted are wrong
files and the bytes that the server sent beyond the size of the files. throughput: 2 GB
over the loopback interface, a fresh process per download, taking turns with curl.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.server
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.faulty_server import BODY, FAULTS, serve
from tiny_llm.download import Patience, download
from tiny_llm.errors import DownloadError

PATIENCE = Patience(connect_s=2, read_s=0.2, stall_s=0.5, backoff_s=0.001)
FETCH = (
    "import sys\nfrom tiny_llm.download import download\n"
    "from tiny_llm.pins import Pin\n"
    "download(Pin(sys.argv[1], int(sys.argv[2]), sys.argv[3]), sys.argv[4])\n"
)


def torture_by_faults(num_rounds: int, choose: random.Random) -> None:
    plans = [[fault] for fault in FAULTS] + [[fault] * 20 for fault in FAULTS]
    plans += [choose.choices(FAULTS, k=choose.randint(2, 5)) for _ in range(num_rounds)]
    num_bad = num_right = num_refused = num_faults = 0
    for plan in plans:
        with tempfile.TemporaryDirectory() as cache, serve() as server:
            server.etag = choose.choice([None, '"v1"'])
            server.faults = list(plan)
            try:
                path = download(server.pin(), cache, patience=PATIENCE)
                num_right += path.read_bytes() == BODY
            except DownloadError:
                num_refused += 1
            left = Path(cache) / f"{server.pin().sha256}.txt"
            num_bad += left.exists() and left.read_bytes() != BODY
            num_faults += len(plan) - len(server.faults)
            server.errors.clear()  # A server that flips faults may trip over itself.
    print(
        f"faults: {len(FAULTS)} kinds, {len(plans)} downloads, {num_faults} faults: "
        f"{num_right} right files, {num_refused} DownloadErrors, "
        f"{len(plans) - num_right - num_refused + num_bad} bad downloads accepted"
    )


def torture_by_kills(num_kills: int, choose: random.Random) -> None:
    body = choose.randbytes(6 << 20)
    num_bad = num_files = killed = 0
    with tempfile.TemporaryDirectory() as cache, serve(body, etag='"v1"') as server:
        server.rate = 8 << 20
        pin = server.pin()
        target = Path(cache) / f"{pin.sha256}.txt"
        command = [
            sys.executable,
            "-c",
            FETCH,
            pin.url,
            str(pin.size),
            pin.sha256,
            cache,
        ]
        while killed < num_kills or not target.exists():
            group = [subprocess.Popen(command) for _ in range(choose.choice([1, 1, 2]))]
            victims = group[: choose.randint(1, len(group))]
            time.sleep(choose.uniform(0.1, 0.9))
            for process in victims if killed < num_kills else ():
                if process.poll() is None:
                    process.kill()
                    killed += 1
            statuses = [process.wait() for process in group]
            if target.exists():
                num_files += 1
                num_bad += target.read_bytes() != body
                target.unlink()
                if killed >= num_kills:
                    break
            else:
                num_bad += 0 in statuses
        beyond = server.num_sent - num_files * len(body)
        server.errors.clear()
    print(
        f"kills: {killed} of processes that downloaded {num_files} files of "
        f"{len(body):,} bytes: {num_bad} bad files, {beyond:,} bytes fetched beyond "
        f"the files' size, {beyond / killed:,.0f} a kill"
    )


class BigHandler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        with open(self.server.path, "rb") as file, contextlib.suppress(ConnectionError):
            size = os.fstat(file.fileno()).st_size
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.flush()
            self.connection.sendfile(file)


def measure_throughput(num_rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.bin", Path(folder) / "target.bin"
        digest = hashlib.sha256()
        with open(source, "wb") as file:
            for _ in range(2000):
                block = os.urandom(1_000_000)
                digest.update(block)
                file.write(block)
        size = source.stat().st_size
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), BigHandler) as server:
            server.path = source
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/source.bin"
            sha256 = digest.hexdigest()
            ours = [sys.executable, "-c", FETCH, url, str(size), sha256, folder]
            commands = {
                "curl": ["curl", "-s", "-o", str(target), url],
                # What curl leaves to its user.
                "curl, sha256sum": [
                    "sh",
                    "-c",
                    f"curl -s -o {target} {url} && sha256sum {target}",
                ],
                "tiny_llm": ours,
            }
            seconds = {name: [] for name in commands}
            for _ in range(num_rounds):
                for name, command in commands.items():
                    begin = time.perf_counter()
                    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                    seconds[name].append(time.perf_counter() - begin)
                    target.unlink(missing_ok=True)
                    (Path(folder) / f"{sha256}.bin").unlink(missing_ok=True)
                    os.sync()
            server.shutdown()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in median.items():
        ratios = [
            theirs / mine
            for theirs, mine in zip(seconds[name], seconds["tiny_llm"], strict=True)
        ]
        print(
            f"throughput: {name}: {size / value / 1e6:,.0f} MB/s; tiny_llm has "
            f"{statistics.median(ratios):.2f} times that"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = ["faults", "kills", "throughput"]
    parser.add_argument("what", nargs="*", help=f"by default {', '.join(names)}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--plans", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    choose = random.Random(options.seed)
    what = options.what or names
    if "faults" in what:
        torture_by_faults(options.plans, choose)
    if "kills" in what:
        torture_by_kills(options.kills, choose)
    if "throughput" in what:
        measure_throughput(options.rounds)


if __name__ == "__main__":
    main()
