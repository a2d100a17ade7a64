/** Models and answers of the stand-in server: what a camera does in the motion video. */

import { previews } from "./made-videos.ts";

const LABELS = ["static", "pan left", "pan right", "tilt up", "tilt down", "zoom in", "zoom out", "roll", "shake"];
const CLIP_SECONDS = 16 / 30;
const CLIPS = 23;

export const MODELS = [
  { ...model("camera-motion", "3D ResNet-10, 16 filters"), default: true },
  { ...model("camera-motion-small", "3D ResNet-10, 8 filters"), default: false },
];

function model(name: string, architecture: string) {
  const clip = { frames: 16, size: 112, temporalStride: 1 };
  return { name, version: "2", trained: true, architecture, classes: LABELS.length, labels: LABELS, clip, license: "MIT", origin: "" };
}

export function modelNamed(name: string) {
  return MODELS.find((known) => known.name === decodeURIComponent(name));
}

/** The small model takes the last zoom for a roll for a while. */
export function clipsFor(name: string) {
  const isSmall = name === "camera-motion-small";
  const pictures = previews();
  const clips = Array.from({ length: CLIPS }, (_, index) => ({
    start: time(index),
    end: time(index + 1),
    labels: scores(bestLabel(index, isSmall), index),
    preview: pictures[index] ?? "",
  }));
  const mean = LABELS.map((label, index) => ({
    index,
    label,
    score: clips.reduce((sum, clip) => sum + clip.labels.find((entry) => entry.label === label)!.score, 0) / CLIPS,
  })).sort((a, b) => b.score - a.score);
  const video = { frames: "360", clips: String(CLIPS), duration: time(CLIPS), width: 640, height: 360, codec: "h264", container: "mov,mp4,m4a,3gp,3g2,mj2", streamIndex: 0, corruptPackets: "0" };
  const classification = { model: { name: isSmall ? name : "camera-motion", version: "2" }, labels: mean, video, partial: false, warnings: [] };
  return { clips, classification };
}

function time(clip: number): string {
  return `${Math.min(12, clip * CLIP_SECONDS).toFixed(3)}s`;
}

function bestLabel(clip: number, isSmall: boolean): string {
  if (clip === 4) return "shake";
  if (clip < 8) return "pan right";
  if (clip < 15) return "static";
  return isSmall && clip < 18 ? "roll" : "zoom in";
}

function scores(best: string, clip: number) {
  const top = 0.7 + 0.25 * Math.abs(Math.sin(clip * 1.7));
  const weights = LABELS.map((label, index) => (label === best ? 0 : 0.2 + Math.abs(Math.sin(index * 5 + clip * 0.9))));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return LABELS.map((label, index) => ({ index, label, score: label === best ? top : ((1 - top) * weights[index]!) / sum })).sort(
    (a, b) => b.score - a.score,
  );
}
