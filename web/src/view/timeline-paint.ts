/** Paints a timeline on a canvas. */

import type { Span } from "../answers/agreement.ts";
import { clipIndexAt, scoreOf, type Clip } from "../answers/clips.ts";
import type { Segment } from "../answers/segments.ts";
import { clock, wholeClock } from "../words.ts";
import type { CanvasColors } from "./colors.ts";
import type { Band } from "./timeline-bands.ts";
import { positionOf, ticks, timeAt, type Scale } from "./timeline-scale.ts";
import type { Run } from "../queue/run.ts";

export interface Painting {
  context: CanvasRenderingContext2D;
  colors: CanvasColors;
  scale: Scale;
  /** Pixels that are scrolled out on the left. */
  left: number;
  bands: readonly Band[];
  font: string;
  threshold: number;
  markedLabel: string | undefined;
  segments: (run: Run) => Segment[];
  pictureOf: (address: string) => CanvasImageSource | undefined;
}

export function paint(painting: Painting): void {
  const { context, scale } = painting;
  context.clearRect(0, 0, scale.width, context.canvas.height);
  context.font = painting.font;
  context.textBaseline = "middle";
  for (const band of painting.bands) paintBand(painting, band);
}

function paintBand(painting: Painting, band: Band): void {
  if (band.kind === "ruler") paintRuler(painting, band);
  else if (band.kind === "pictures") paintPictures(painting, band, band.run.clips);
  else if (band.kind === "segments") paintSegments(painting, band, painting.segments(band.run));
  else if (band.kind === "row") paintRow(painting, band, band.run.clips, band.label);
  else paintDifferences(painting, band, band.spans);
}

/** Pixels from the left edge of the canvas. */
function x(painting: Painting, time: number): number {
  return positionOf(painting.scale, time) - painting.left;
}

function visible(painting: Painting): [from: number, to: number] {
  const { scale, left } = painting;
  return [timeAt(scale, left), timeAt(scale, left + scale.width)];
}

function paintRuler(painting: Painting, band: Band): void {
  const { context, colors, scale } = painting;
  const [from, to] = visible(painting);
  const bottom = painting.bands.at(-1)!;
  const times = ticks(scale, from, to, 84);
  const write = times.every((time) => Number.isInteger(time)) ? wholeClock : clock;
  for (const time of times) {
    const position = Math.round(x(painting, time));
    context.fillStyle = colors.get("line");
    context.fillRect(position, band.top + band.height - 5, 1, bottom.top + bottom.height);
    context.fillStyle = colors.get("muted");
    const text = write(time);
    const width = context.measureText(text).width;
    if (position + 5 + width <= scale.width) context.fillText(text, position + 5, band.top + band.height / 2);
  }
}

/** As many pictures as fit beside each other, each of the clip that is in its middle. */
function paintPictures(painting: Painting, band: Band, clips: readonly Clip[]): void {
  const { context, scale } = painting;
  const size = band.height - 6;
  const step = size + 2;
  for (let tile = Math.floor(painting.left / step); tile * step < painting.left + scale.width; tile++) {
    const time = timeAt(scale, tile * step + size / 2);
    const clip = clips[clipIndexAt(clips, time)];
    if (!clip?.preview || time > clips.at(-1)!.end || tile * step > positionOf(scale, scale.duration)) continue;
    const picture = painting.pictureOf(clip.preview);
    if (picture) context.drawImage(picture, tile * step - painting.left, band.top, size, size);
  }
}

function paintSegments(painting: Painting, band: Band, segments: readonly Segment[]): void {
  const { context, colors } = painting;
  const [from, to] = visible(painting);
  for (const segment of segments) {
    if (segment.end < from || segment.start > to) continue;
    const start = x(painting, segment.start);
    const width = Math.max(1, x(painting, segment.end) - start - 1);
    const marked = painting.markedLabel === undefined || painting.markedLabel === segment.label;
    context.globalAlpha = marked ? 1 : 0.3;
    context.fillStyle = segment.label === undefined ? colors.get("empty") : colors.label(segment.label);
    roundRect(context, start, band.top + 3, width, band.height - 8, 3);
    if (segment.label !== undefined) paintSegmentText(painting, band, segment.label, start, width);
    context.globalAlpha = 1;
  }
}

function roundRect(context: CanvasRenderingContext2D, left: number, top: number, width: number, height: number, radius: number) {
  context.beginPath();
  context.roundRect(left, top, width, height, Math.min(radius, width / 2));
  context.fill();
}

/** The text stays in view while its segment is. */
function paintSegmentText(painting: Painting, band: Band, label: string, start: number, width: number): void {
  const { context, colors, scale } = painting;
  const left = Math.max(start, 0) + 7;
  const room = Math.min(start + width, scale.width) - left - 5;
  const text = shorten(context, label, room);
  if (text === "") return;
  context.fillStyle = colors.get("on-label");
  context.fillText(text, left, band.top + band.height / 2 - 1);
}

function shorten(context: CanvasRenderingContext2D, text: string, room: number): string {
  if (room < 18) return "";
  if (context.measureText(text).width <= room) return text;
  let kept = text.length - 1;
  while (kept > 1 && context.measureText(`${text.slice(0, kept)}…`).width > room) kept--;
  return kept > 1 ? `${text.slice(0, kept).trimEnd()}…` : "";
}

/** Height and shade tell the score. Several clips in one pixel show their best. */
function paintRow(painting: Painting, band: Band, clips: readonly Clip[], label: string): void {
  const { context, colors } = painting;
  const [from, to] = visible(painting);
  const base = band.top + band.height - 4;
  const full = band.height - 7;
  context.fillStyle = colors.get("empty");
  context.fillRect(0, base, Math.min(painting.scale.width, x(painting, painting.scale.duration)), 1);
  context.fillStyle = colors.label(label);
  const dimmed = painting.markedLabel !== undefined && painting.markedLabel !== label ? 0.35 : 1;
  let pixel = -1;
  let best = 0;
  for (let index = Math.max(0, clipIndexAt(clips, from)); index < clips.length && clips[index]!.start <= to; index++) {
    const clip = clips[index]!;
    const left = x(painting, clip.start);
    const score = scoreOf(clip, label);
    const samePixel = Math.floor(left) === pixel;
    if (samePixel && score <= best) continue;
    pixel = Math.floor(left);
    best = score;
    const width = x(painting, clip.end) - left;
    const height = Math.max(score > 0.01 ? 1 : 0, score * full);
    context.globalAlpha = dimmed * (score < painting.threshold ? 0.3 : 0.45 + 0.55 * score);
    context.fillRect(left, base - height, Math.max(1, width > 4 ? width - 1 : width), height);
  }
  context.globalAlpha = 1;
}

function paintDifferences(painting: Painting, band: Band, spans: readonly Span[]): void {
  const { context, colors } = painting;
  context.fillStyle = colors.get("warn");
  for (const { start, end } of spans) {
    const left = x(painting, start);
    roundRect(context, left, band.top + 7, Math.max(2, x(painting, end) - left - 1), 5, 2);
  }
}
