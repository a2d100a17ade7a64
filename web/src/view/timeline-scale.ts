/** Where times are on a timeline: positions are pixels from the start of the video. */

export interface Scale {
  /** Seconds. */
  duration: number;
  /** Pixels that are visible. */
  width: number;
  /** 1 shows the whole video. */
  zoom: number;
}

/** Closer than this, a timeline shows less than half a second. */
const LEAST_SECONDS = 0.5;
/** Browsers draw nothing wider than some millions of pixels. */
const WIDEST = 4_000_000;

export function totalWidth(scale: Scale): number {
  return scale.width * scale.zoom;
}

export function positionOf(scale: Scale, time: number): number {
  return scale.duration > 0 ? (time / scale.duration) * totalWidth(scale) : 0;
}

export function timeAt(scale: Scale, position: number): number {
  const share = totalWidth(scale) > 0 ? position / totalWidth(scale) : 0;
  return Math.min(1, Math.max(0, share)) * scale.duration;
}

export function clampZoom(scale: Scale, zoom: number): number {
  const most = Math.min(scale.duration / LEAST_SECONDS, WIDEST / Math.max(1, scale.width));
  return Math.min(Math.max(1, zoom), Math.max(1, most));
}

const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400];

/** Round times between `from` and `to`, so far apart that `gap` pixels are between them. */
export function ticks(scale: Scale, from: number, to: number, gap: number): number[] {
  if (scale.duration <= 0 || scale.width <= 0) return [];
  const least = (gap / totalWidth(scale)) * scale.duration;
  const step = STEPS.find((seconds) => seconds >= least) ?? STEPS.at(-1)!;
  const times: number[] = [];
  for (let index = Math.max(0, Math.ceil(from / step - 1e-9)); index * step <= to; index++) times.push(index * step);
  return times;
}
