/** What the page saves. */

import type { Clip, Score } from "./clips.ts";
import type { Segment } from "./segments.ts";

export interface Report {
  video: string;
  model: string;
  labels: readonly Score[];
  segments: readonly Segment[];
  clips: readonly Clip[];
  /** How the segments were made. */
  threshold: number;
  smoothingSeconds: number;
}

/** Seconds to the millisecond, scores to six digits: more than either is exact to. */
export function toJson(report: Report): string {
  const scores = (entries: readonly Score[]) => entries.map(({ label, score }) => ({ label, score: digits(score, 6) }));
  return `${JSON.stringify(
    {
      video: report.video,
      model: report.model,
      threshold: report.threshold,
      smoothing_seconds: report.smoothingSeconds,
      labels: scores(report.labels),
      segments: report.segments.map((segment) => ({
        start: digits(segment.start, 3),
        end: digits(segment.end, 3),
        label: segment.label ?? null,
        score: digits(segment.score, 6),
        clips: segment.clips,
      })),
      clips: report.clips.map((clip) => ({
        start: digits(clip.start, 3),
        end: digits(clip.end, 3),
        labels: scores(clip.scores),
      })),
    },
    null,
    1,
  )}\n`;
}

/** One line a segment (RFC 4180). */
export function toCsv(report: Report): string {
  const lines = report.segments.map((segment) =>
    [segment.start.toFixed(3), segment.end.toFixed(3), segment.label ?? "", digits(segment.score, 6)].map(csvField).join(","),
  );
  return ["start_seconds,end_seconds,label,score", ...lines].map((line) => `${line}\r\n`).join("");
}

/** Text that spreadsheets would take for a formula is marked as text. */
function csvField(value: string | number): string {
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** A WebVTT file with one cue for each segment that has a label. */
export function toVtt(report: Report): string {
  const cues = report.segments
    .filter((segment) => segment.label !== undefined)
    .map((segment) => `${vttTime(segment.start)} --> ${vttTime(segment.end)}\n${vttText(segment)}\n`);
  return ["WEBVTT\n", ...cues].join("\n");
}

function vttText(segment: Segment): string {
  const label = segment.label!.replace(/\s+/g, " ").replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  return `${label} (${Math.round(segment.score * 100)}%)`;
}

function vttTime(seconds: number): string {
  const milliseconds = Math.round(seconds * 1000);
  const part = (divisor: number, modulus: number, width: number) =>
    String(Math.floor(milliseconds / divisor) % modulus).padStart(width, "0");
  const hours = String(Math.floor(milliseconds / 3_600_000)).padStart(2, "0");
  return `${hours}:${part(60_000, 60, 2)}:${part(1000, 60, 2)}.${part(1, 1000, 3)}`;
}

function digits(value: number, count: number): number {
  return Number(value.toFixed(count));
}
