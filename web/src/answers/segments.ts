/** Parts of a video with one label each. */

import { scoreOf, type Clip } from "./clips.ts";
import { smooth } from "./smoothing.ts";

export interface Segment {
  start: number;
  end: number;
  /** Absent where no label scores as much as the threshold. */
  label?: string;
  /** Mean over its clips of the label's score. */
  score: number;
  clips: number;
}

export interface SegmentOptions {
  /** How many classes the model has. */
  classes: number;
  /** How long a label lasts on average, in seconds; 0 for no smoothing. */
  expectedSeconds: number;
  /** Segments that score less have no label. */
  threshold: number;
}

/** Neighbouring clips with the same smoothed label are one segment. */
export function segmentsOf(clips: readonly Clip[], options: SegmentOptions): Segment[] {
  const labels = smooth(clips, options.classes, options.expectedSeconds);
  const segments: Segment[] = [];
  for (let first = 0; first < clips.length; ) {
    let last = first;
    while (labels[last + 1] === labels[first]) last++;
    segments.push(segmentOf(clips.slice(first, last + 1), labels[first]!, options.threshold));
    first = last + 1;
  }
  return joinUnlabelled(segments);
}

function segmentOf(clips: readonly Clip[], label: string, threshold: number): Segment {
  const score = clips.reduce((sum, clip) => sum + scoreOf(clip, label), 0) / clips.length;
  const part = { start: clips[0]!.start, end: clips.at(-1)!.end, score, clips: clips.length };
  return score >= threshold && label !== "" ? { ...part, label } : part;
}

function joinUnlabelled(segments: Segment[]): Segment[] {
  const joined: Segment[] = [];
  for (const segment of segments) {
    const before = joined.at(-1);
    if (before && before.label === undefined && segment.label === undefined) {
      const clips = before.clips + segment.clips;
      before.score = (before.score * before.clips + segment.score * segment.clips) / clips;
      before.clips = clips;
      before.end = segment.end;
    } else joined.push({ ...segment });
  }
  return joined;
}

/** The labelled segment after `time`, or undefined. */
export function nextSegment(segments: readonly Segment[], time: number): Segment | undefined {
  return segments.find((segment) => segment.label !== undefined && segment.start > time + 1e-3);
}

/** The start of the segment that is on, or of the one before it if `time` is within its first half second. */
export function previousSegment(segments: readonly Segment[], time: number): Segment | undefined {
  return segments.findLast((segment) => segment.label !== undefined && segment.start < time - 0.5);
}

export function segmentAt(segments: readonly Segment[], time: number): Segment | undefined {
  return segments.find((segment) => segment.start <= time && time < segment.end);
}
