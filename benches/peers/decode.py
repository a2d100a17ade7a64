#!/usr/bin/env python3
"""Times decoding to 112x112 RGB frames in Kinetoscope, PyAV, decord, OpenCV and the ffmpeg command; see decode.sh.

Every engine does the same: all frames of a video in order, the short side resized to 112 with the engine's antialiased
filter, cropped in the middle, 8-bit RGB in memory (Kinetoscope also puts them into clips). Each uses one decoder thread.
Counted is the CPU time, user and system, of the process and all its children: that of a process that decodes the video
several times, less that of one that decodes it once, so starting and loading count for nobody. Engines take turns
(A B C D A B C D ...), so that a machine that slows down slows all of them; the table shows medians over turns.

"decoding alone" is the ffmpeg command that throws the frames away: what no engine with the same FFmpeg can beat. PyAV,
decord and OpenCV bring their own, Kinetoscope and the command use the system's.

"apart" is the mean distance, in levels of 0-255, between the engine's pixels and Kinetoscope's: a filter that is fast
because it is not antialiased, or a crop that is not the middle, shows there.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZE = 112
OURS = ["isolated", "in-process"]
PEERS = ["pyav", "decord", "opencv", "ffmpeg"]
ALONE = "decoding alone"
# Frames of each engine that are compared: four clips.
COMPARED = 64
# Name, size, bits a second of the H.264 stream (as video sites serve them), passes beside the first.
VIDEOS = [("240p", 426, 240, "350k", 8), ("340x256", 340, 256, "400k", 8), ("360p", 640, 360, "700k", 5),
          ("720p", 1280, 720, "2500k", 2), ("1080p", 1920, 1080, "5000k", 1)]


def resized(width, height):
    """The size before the crop, and the crop's left and top edge (the authors' Scale and CenterCrop)."""
    short = min(width, height)
    w, h = SIZE * width // short, SIZE * height // short
    return w, h, round((w - SIZE) / 2), round((h - SIZE) / 2)


# ---- Peers. Each decodes the video `passes` times and gives each frame's pixels to `take` ----


def pyav(video, passes, take):
    import av
    for _ in range(passes):
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            w, h, left, top = resized(stream.width, stream.height)
            for frame in container.decode(stream):
                rgb = frame.reformat(width=w, height=h, format="rgb24", interpolation="BILINEAR").to_ndarray()
                take(rgb[top:top + SIZE, left:left + SIZE])


def decord(video, passes, take):
    import decord
    width, height = probe(video)
    w, h, left, top = resized(width, height)
    for _ in range(passes):
        reader = decord.VideoReader(str(video), ctx=decord.cpu(0), width=w, height=h, num_threads=1)
        for _ in range(len(reader)):
            take(reader.next().asnumpy()[top:top + SIZE, left:left + SIZE])


def opencv(video, passes, take):
    import cv2
    cv2.setNumThreads(1)
    for _ in range(passes):
        capture = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        place = None
        while True:
            read, bgr = capture.read()
            if not read:
                break
            w, h, left, top = place = place or resized(bgr.shape[1], bgr.shape[0])
            small = cv2.resize(bgr, (w, h), interpolation=cv2.INTER_AREA)
            take(cv2.cvtColor(small[top:top + SIZE, left:left + SIZE], cv2.COLOR_BGR2RGB))
        capture.release()


def ffmpeg_command(video, passes, out):
    width, height = probe(video)
    w, h, left, top = resized(width, height)
    chain = f"scale={w}:{h}:flags=bilinear+accurate_rnd+full_chroma_int,crop={SIZE}:{SIZE}:{left}:{top}"
    return ["ffmpeg", "-v", "error", "-nostdin", "-y", "-threads", "1", "-filter_threads", "1", "-stream_loop",
            str(passes - 1), "-i", video, "-map", "0:v:0", "-fps_mode", "passthrough", "-vf", chain, "-pix_fmt",
            "rgb24", "-f", "rawvideo", out]


def probe(video):
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "stream=width,height", "-of",
               "csv=p=0", video]
    width, height = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().split(",")[:2]
    return int(width), int(height)


def run_peer(engine, video, passes, pixels):
    """What the process of a Python peer does."""
    frames = 0
    out = open(pixels, "wb") if pixels else None

    def take(rgb):
        nonlocal frames
        assert rgb.shape == (SIZE, SIZE, 3), rgb.shape
        frames += 1
        if out and frames <= COMPARED:
            out.write(rgb.tobytes())
    {"pyav": pyav, "decord": decord, "opencv": opencv}[engine](video, passes, take)
    if out:
        out.close()
    print(frames)


# ---- Measuring ----


def command_of(args, engine, video, passes, pixels=None, threads=1):
    if engine in OURS:
        command = [args.decode_clips, video, "--isolation", "process" if engine == "isolated" else "none",
                   "--threads", str(threads)]
        return command + (["--pixels", pixels] if pixels else ["--passes", str(passes)])
    if engine == "ffmpeg":
        return ffmpeg_command(video, passes, pixels or "/dev/null")
    if engine == ALONE:
        return ["ffmpeg", "-v", "error", "-nostdin", "-threads", "1", "-stream_loop", str(passes - 1), "-i", video,
                "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "null", "-"]
    command = [sys.executable, __file__, "--run", engine, "--passes", str(passes), video]
    return command + (["--pixels", pixels] if pixels else [])


def run_at_once(commands):
    """Wall-clock seconds until all commands have ended, and their CPU seconds together."""
    begin = time.perf_counter()
    processes = [subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL) for command in commands]
    cpu = 0
    for process in processes:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"failed: {' '.join(process.args)}")
        cpu += usage.ru_utime + usage.ru_stime
    return time.perf_counter() - begin, cpu


def frames_of(args, video):
    command = list(map(str, command_of(args, "in-process", video, 1)))
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def distance(args, engine, video, work):
    import numpy as np
    pixels = {}
    for name in ("in-process", engine):
        out = work / f"{name}.rgb"
        subprocess.run(list(map(str, command_of(args, name, video, 1, out))), check=True, stdout=subprocess.DEVNULL)
        raw = np.frombuffer(out.read_bytes()[:COMPARED * SIZE * SIZE * 3], np.uint8)
        pixels[name] = raw.astype(np.int16)
        out.unlink()
    n = min(map(len, pixels.values()))
    assert n > 0, f"{engine} gives no frames"
    return float(np.abs(pixels["in-process"][:n] - pixels[engine][:n]).mean())


def make_videos(directory):
    """300 frames each: a slow zoom into a fractal with a moving test pattern over it and grain, like a camera's."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, width, height, rate, _ in VIDEOS:
        path = directory / f"{name}.mp4"
        if path.exists():
            continue
        print(f"making {path}", file=sys.stderr)
        sources = ["-f", "lavfi", "-i", "mandelbrot=size=480x360:rate=30:maxiter=800:end_scale=0.02:end_pts=300",
                   "-f", "lavfi", "-i", "testsrc2=size=160x120:rate=30",
                   "-f", "lavfi", "-i", "life=size=120x90:rate=30:mold=10:ratio=0.2:death_color=#c83232:seed=1"]
        chain = (f"[0]scale={width}:{height}:force_original_aspect_ratio=increase,crop={width}:{height}[back];"
                 f"[1]scale={width // 3}:-2[left];[2]scale={width // 4}:-2[right];"
                 f"[back][left]overlay=x='(W-w)*(0.5+0.4*sin(t))':y='H*0.1'[both];"
                 f"[both][right]overlay=x='W*0.6':y='(H-h)*(0.5+0.4*cos(t))',noise=alls=10:allf=t,format=yuv420p")
        part = path.with_suffix(".part.mp4")
        subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-y", *sources, "-filter_complex", chain, "-frames:v",
                        "300", "-c:v", "libx264", "-preset", "medium", "-b:v", rate, "-maxrate", rate, "-bufsize",
                        rate, part], check=True)
        part.rename(path)


def table_of_times(args, videos, work):
    """CPU time a frame; `videos` are (name, path, passes)."""
    frames = {video: frames_of(args, video) for _, video, _ in videos}
    seconds = {}
    for turn in range(args.rounds):
        for name, video, passes in videos:
            for engine in args.engines:
                _, once = run_at_once([command_of(args, engine, video, 1)])
                _, often = run_at_once([command_of(args, engine, video, 1 + passes)])
                seconds.setdefault((video, engine), []).append((often - once) / passes)
            print(f"turn {turn + 1} of {args.rounds}: {name}", file=sys.stderr)
    print("| video | engine | ms CPU a frame | frames a CPU second | isolated Kinetoscope is faster by | in-process | apart |")
    print("|---|---|---|---|---|---|---|")
    for name, video, _ in videos:
        for engine in args.engines:
            times = seconds[video, engine]
            median = statistics.median(times)
            # Of the same turn, so that what slows a turn slows both.
            ratios = [f"{statistics.median(mine / ours for mine, ours in zip(times, seconds[video, our])):.2f}"
                      if our in args.engines else "" for our in OURS]
            apart = "" if engine == ALONE else f"{distance(args, engine, video, work):.2f}"
            print(f"| {name} | {engine} | {1e3 * median / frames[video]:.3f} | {frames[video] / median:.0f} "
                  f"| {ratios[0]} | {ratios[1]} | {apart} |", flush=True)


def table_of_two_cores(args, videos):
    """Frames a second of wall-clock time with one and with two videos at a time."""
    engines = [engine for engine in args.engines if engine != ALONE]
    print("\n| video | engine | frames/s, one | frames/s, two | two by one | CPU time a frame, two by one |"
          "\n|---|---|---|---|---|---|")
    for name, video, passes in videos:
        frames = frames_of(args, video)
        walls, cpus = {}, {}
        for _ in range(args.rounds):
            for engine in engines:
                for at_a_time in (1, 2):
                    # Kinetoscope is one process with one or two threads, a peer is one or two processes.
                    ours = engine in OURS
                    (once, once_cpu), (often, often_cpu) = (
                        run_at_once([command_of(args, engine, video, count * at_a_time, threads=at_a_time)] if ours else
                                    [command_of(args, engine, video, count)] * at_a_time)
                        for count in (1, 1 + passes))
                    decoded = frames * passes * at_a_time
                    walls.setdefault((engine, at_a_time), []).append((often - once) / decoded)
                    cpus.setdefault((engine, at_a_time), []).append((often_cpu - once_cpu) / decoded)
        for engine in engines:
            # Other load only ever slows: the best turn is nearest to what the machine can do.
            one, two = (1 / min(walls[engine, at_a_time]) for at_a_time in (1, 2))
            cpu = statistics.median(b / a for a, b in zip(cpus[engine, 1], cpus[engine, 2]))
            print(f"| {name} | {engine} | {one:.0f} | {two:.0f} | {two / one:.2f} | {cpu:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decode-clips", type=Path, help="the example `decode_clips`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", nargs="+", choices=[*OURS, *PEERS, ALONE],
                        default=[*OURS, *PEERS, ALONE])
    parser.add_argument("--sizes", nargs="*", choices=[video[0] for video in VIDEOS],
                        default=[video[0] for video in VIDEOS], help="of the videos that are made here")
    parser.add_argument("--work", type=Path, default=Path("target/decode-peers"), help="where those are kept")
    parser.add_argument("--two-cores", nargs="*", choices=[video[0] for video in VIDEOS], default=["360p"],
                        help="sizes to decode two at a time as well")
    parser.add_argument("--passes", type=int, default=4, help="beside the first, of videos that are given")
    parser.add_argument("--run", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--pixels", help=argparse.SUPPRESS)
    parser.add_argument("videos", nargs="*", type=Path, help="further videos")
    args = parser.parse_args()
    if args.run:
        return run_peer(args.run, args.videos[0], args.passes, args.pixels)
    make_videos(args.work)
    made = {name: (name, args.work / f"{name}.mp4", passes) for name, _, _, _, passes in VIDEOS}
    videos = [made[name] for name in args.sizes] + [(video.name, video, args.passes) for video in args.videos]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as work:
        table_of_times(args, videos, Path(work))
    if args.two_cores:
        table_of_two_cores(args, [made[name] for name in args.two_cores])
    print(f"\n{args.rounds} turns; load average {load:.1f} before, {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
