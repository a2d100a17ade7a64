#!/usr/bin/env python3
"""Stops `kinetoscope prepare` at random moments, in every way there is, runs it again, and counts all frames.

    scripts/prepare_drill.py [PROGRAM] [ROUNDS]

Needs ffmpeg and ffprobe. Each round sends one of INT (to the process, and to its whole group as a terminal's Ctrl-C does), TERM and
KILL at a random moment, begins the next run at once, and then holds every output against its source.
"""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile

FRAMES = 300
WAYS = {
    "INT": lambda pid: os.kill(pid, signal.SIGINT),
    "Ctrl-C": lambda pid: os.killpg(pid, signal.SIGINT),
    "TERM": lambda pid: os.kill(pid, signal.SIGTERM),
    "KILL": lambda pid: os.kill(pid, signal.SIGKILL),
}


def make(path, frames, grain):
    path.parent.mkdir(parents=True, exist_ok=True)
    source = f"testsrc2=size=320x180:rate=25,noise=alls={grain}:allf=t"
    command = ["ffmpeg", "-loglevel", "error", "-y", "-f", "lavfi", "-i", source, "-frames:v", str(frames)]
    subprocess.run([*command, "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", path], check=True)


def decoded_frames(path):
    command = ["ffprobe", "-v", "error", "-select_streams", "v", "-count_frames", "-show_entries", "stream=nb_read_frames"]
    output = subprocess.run([*command, "-of", "csv=p=0", path], capture_output=True, text=True, check=False)
    return output.stdout.strip() + output.stderr.strip()


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else "target/release/kinetoscope"
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    seed = int(os.environ.get("SEED", "1"))
    draws = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        names = [f"{label}/{number}.mp4" for label in "ab" for number in range(2)]
        for number, name in enumerate(names):
            make(folder / "data" / name, FRAMES, 5 + number)
        bad = 0
        for number in range(rounds):
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            command = [program, "prepare", "--jobs", "2", "--data", folder / "data", "--out", out]
            way = list(WAYS)[number % len(WAYS)]
            run = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            moment = draws.uniform(0.05, 4.0)
            try:
                run.wait(moment)
            except subprocess.TimeoutExpired:
                WAYS[way](run.pid)
            again = subprocess.run(command, capture_output=True, text=True, check=False)
            _, words = run.communicate()
            problems = [f"{name}: {frames}" for name in names if (frames := decoded_frames(out / name)) != str(FRAMES)]
            problems += [f"left behind: {path}" for path in out.rglob(".*.part")]
            problems += [f"blamed: {line}" for line in words.splitlines() if line.startswith("kinetoscope: ") and ".mp4" in line]
            if again.returncode != 0:
                problems.append(again.stderr)
            bad += bool(problems)
            print(f"{number + 1:3} {way:7} after {moment:.2f} s: {'; '.join(problems) or 'all whole'}", flush=True)
        print(f"{rounds - bad} of {rounds} rounds left whole videos (SEED={seed})")
        return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
