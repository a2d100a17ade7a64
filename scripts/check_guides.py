"""Runs the commands of guides, for check-guides.sh.

The `sh` blocks of a guide are run by one shell, one after the other, in a directory of their own beside links to the
repository's. A block has to succeed or, if a `text` block follows it, to print those lines in that order: `…` stands for
anything, and other lines may stand between them. Blocks that are indented, or of another kind, are not run. Ports are replaced
by free ones.
"""

import argparse
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.M | re.S)
DEFAULT_PORT = "50051"
# The program with another default for those commands that have one.
PROGRAM = """#!/bin/sh
case $1 in
serve) export KINETOSCOPE_LISTEN="${{KINETOSCOPE_LISTEN:-{address}}}" ;;
health | bench) export KINETOSCOPE_SERVER="${{KINETOSCOPE_SERVER:-{address}}}" ;;
esac
exec "{kinetoscope}" "$@"
"""
# Of which a package index takes most.
TIME_LIMIT = 300


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinetoscope", required=True, type=pathlib.Path)
    parser.add_argument("guides", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    for guide in args.guides:
        with tempfile.TemporaryDirectory() as directory:
            run(guide, args.kinetoscope, pathlib.Path(directory))


def run(guide, kinetoscope, directory):
    ports = {}

    def with_free_ports(text):
        return re.sub(r"((?:127\.0\.0\.1|localhost):)(\d{4,5})\b", lambda found: found[1] + free(found[2]), text)

    def free(port):
        if port not in ports:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                ports[port] = str(listener.getsockname()[1])
        return ports[port]

    text = guide.read_text()
    blocks = [(code, output) for kind, code, output in BLOCK.findall(text) if kind == "sh"]
    for name in ["deploy", "examples", "proto", "weights"]:
        (directory / name).symlink_to(REPOSITORY / name)
    program = directory / "bin/kinetoscope"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(address=f"127.0.0.1:{free(DEFAULT_PORT)}", kinetoscope=kinetoscope))
    program.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KINETOSCOPE_")}
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"

    script = []
    for number, (code, output) in enumerate(blocks):
        script += [f"echo {number} >.block", f"exec >.output-{number} 2>&1", "set +e" if output else "set -e"]
        script += [with_free_ports(code)]
    script += ["echo done >.block"]
    begun = time.monotonic()
    shell = subprocess.Popen(
        ["bash", "-uo", "pipefail", "-c", "\n".join(script)], cwd=directory, env=environment, start_new_session=True
    )
    try:
        shell.wait(TIME_LIMIT)
    except subprocess.TimeoutExpired:
        print(f"{guide}: it takes longer than {TIME_LIMIT} s")
    finally:
        # The servers that the guide started.
        try:
            os.killpg(shell.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        shell.wait()
    ended = (directory / ".block").read_text().strip()
    for number, (code, output) in enumerate(blocks):
        printed = (directory / f".output-{number}").read_text()
        failed = ended == str(number)
        if failed and "pip install" in code:
            print(f"SKIPPED: the rest of {guide}: its packages can't be installed here", flush=True)
            return
        missing = first_missing(with_free_ports(output), printed)
        if failed or missing is not None:
            what = "this fails" if failed else f"this does not print {missing!r}"
            raise SystemExit(f"{guide}: {what}:\n\n{code}\nIt prints:\n\n{printed}")
    print(f"ok  {guide}: {len(blocks)} blocks in {time.monotonic() - begun:.0f} s", flush=True)


def first_missing(expected, printed):
    """The first expected line that is not printed after those before it."""
    lines = iter(printed.splitlines())
    for line in expected.splitlines():
        pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
        if line.strip("…") and not any(pattern.fullmatch(printed.rstrip()) for printed in lines):
            return line
    return None


if __name__ == "__main__":
    main()
