/** What a model says of a video, clip by clip. Times are seconds from the start of the video; scores are 0 to 1. */

export interface Score {
  label: string;
  score: number;
}

export interface Clip {
  start: number;
  end: number;
  /** Best first. May hold only the best of the model's classes. */
  scores: Score[];
  /** Address of a picture of this clip. */
  preview?: string;
}

export function scoreOf(clip: Clip, label: string): number {
  return clip.scores.find((entry) => entry.label === label)?.score ?? 0;
}

/** The clip that is on at `time`, by binary search; of a gap, the clip before it. */
export function clipAt(clips: readonly Clip[], time: number): Clip | undefined {
  return clips[clipIndexAt(clips, time)];
}

/** Index of the last clip that starts at or before `time`; -1 before the first one. */
export function clipIndexAt(clips: readonly Clip[], time: number): number {
  let low = 0;
  let high = clips.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (clips[middle]!.start <= time) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Where the clips end; 0 if there are none. */
export function endOf(clips: readonly Clip[]): number {
  return clips.at(-1)?.end ?? 0;
}
