/** Videos for the tests, made by FFmpeg. */

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A camera that moves over a fractal: 4 seconds to the right, 4 not at all, 4 into it. 30 frames a second. */
const MOTION =
  "mandelbrot=size=1280x720:rate=30:start_scale=2.2:end_scale=2.2:maxiter=200," +
  "trim=end_frame=1,loop=loop=-1:size=1,setpts=N/30/TB," +
  "colorize=hue=212:saturation=0.35:lightness=0.42,gblur=sigma=0.8,format=yuv420p," +
  "zoompan=z='if(lt(on,240),1.6,1.6*pow(1.012,on-240))'" +
  ":x='if(lt(on,120),on*3,if(lt(on,240),360,360+(iw-iw/zoom)/2-240))':y='ih/2-ih/zoom/2':d=1:s=640x360:fps=30";

/** Videos are kept between runs, until this file changes. */
const version = createHash("sha256").update(readFileSync(import.meta.filename)).digest("hex").slice(0, 8);
const folder = join(tmpdir(), `kinetoscope-page-${version}`);

export const videos = {
  folder,
  motion: join(folder, "motion.mp4"),
  /** Of a kind that browsers don't play. */
  avi: join(folder, "motion.avi"),
  /** The motion again and again, for two minutes. */
  long: join(folder, "long.mp4"),
  text: join(folder, "notes.txt"),
};

export function makeVideos(): void {
  mkdirSync(folder, { recursive: true });
  writeFileSync(videos.text, "This is no video.\n".repeat(100));
  if (!existsSync(videos.motion)) ffmpeg("-f", "lavfi", "-i", MOTION, "-t", "12", "-c:v", "libx264", videos.motion);
  if (!existsSync(videos.long)) ffmpeg("-stream_loop", "9", "-i", videos.motion, "-c", "copy", "-movflags", "+faststart", videos.long);
  if (!existsSync(videos.avi)) ffmpeg("-i", videos.motion, "-t", "4", "-c:v", "mpeg4", "-q:v", "6", videos.avi);
}

/** One JPEG for each clip of 16 frames of the motion video, in base64. */
export function previews(): string[] {
  const pattern = join(folder, "preview-%02d.jpg");
  if (!existsSync(join(folder, "preview-01.jpg"))) {
    ffmpeg("-i", videos.motion, "-vf", "select='eq(mod(n,16),8)',crop=ih:ih,scale=112:112", "-fps_mode", "vfr", pattern);
  }
  const names = readdirSync(folder).filter((name) => name.startsWith("preview-")).sort();
  return names.map((name) => readFileSync(join(folder, name), "base64"));
}

/** Fewer colours make a smaller file. */
export function shrinkPicture(path: string): void {
  const full = `${path}.full.png`;
  renameSync(path, full);
  ffmpeg("-i", full, "-vf", "split[a][b];[a]palettegen=max_colors=128[p];[b][p]paletteuse=dither=none", path);
  rmSync(full);
}

function ffmpeg(...args: string[]): void {
  execFileSync("ffmpeg", ["-loglevel", "error", "-y", ...args]);
}
