/** From the API's JSON to what the page works with. */

import type { Clip, Score } from "../answers/clips.ts";
import type { ClassificationJson, ClipJson, LabelScoreJson, LimitsJson, ModelJson } from "./contract.ts";
import { seconds } from "./duration.ts";

export interface Answer {
  model: string;
  version: string;
  /** Of the whole video, best first. */
  labels: Score[];
  /** Facts about the video, in words. */
  facts: [name: string, value: string][];
  duration: number;
  /** Why the answer rests on a part of the video; empty if it does not. */
  partial: string;
  warnings: string[];
}

export interface Model {
  name: string;
  version: string;
  isDefault: boolean;
  trained: boolean;
  architecture: string;
  classes: number;
  clipFrames: number;
  clipSize: number;
  license: string;
  origin: string;
}

export interface Limits {
  /** Infinity if the server names none. */
  maxVideoBytes: number;
  maxSeconds: number;
}

export function scoresOf(labels: LabelScoreJson[] | undefined): Score[] {
  return (labels ?? []).map((entry) => ({ label: entry.label ?? `class ${entry.index ?? 0}`, score: entry.score ?? 0 }));
}

export function clipOf(clip: ClipJson): Clip {
  const part = { start: seconds(clip.start), end: seconds(clip.end), scores: scoresOf(clip.labels) };
  return clip.preview ? { ...part, preview: `data:image/jpeg;base64,${clip.preview}` } : part;
}

export function answerOf(json: ClassificationJson): Answer {
  const video = json.video ?? {};
  const facts: [string, string | undefined][] = [
    ["Size", video.width ? `${video.width} × ${video.height} pixels` : undefined],
    ["Frames", video.frames],
    ["Clips", video.clips],
    ["Codec", video.codec],
    ["Container", video.container],
    ["Damaged packets", video.corruptPackets === "0" ? undefined : video.corruptPackets],
  ];
  return {
    model: json.model?.name ?? "",
    version: json.model?.version ?? "",
    labels: scoresOf(json.labels),
    facts: facts.filter((fact): fact is [string, string] => fact[1] !== undefined),
    duration: seconds(video.duration),
    partial: json.partial ? json.partialDetail || "The answer rests on a part of the video." : "",
    warnings: json.warnings ?? [],
  };
}

export function modelOf(json: ModelJson): Model {
  return {
    name: json.name ?? "",
    version: json.version ?? "",
    isDefault: json.default ?? false,
    trained: json.trained ?? false,
    architecture: json.architecture ?? "",
    classes: json.classes ?? 0,
    clipFrames: json.clip?.frames ?? 0,
    clipSize: json.clip?.size ?? 0,
    license: json.license ?? "",
    origin: json.origin ?? "",
  };
}

export function limitsOf(json: LimitsJson | undefined): Limits {
  const limit = (value: number) => (value > 0 ? value : Infinity);
  return {
    maxVideoBytes: limit(Number(json?.maxVideoBytes ?? 0)),
    maxSeconds: limit(seconds(json?.maxDuration)),
  };
}
