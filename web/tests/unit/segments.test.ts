import { describe, expect, it } from "vitest";
import { agreement } from "../../src/answers/agreement.ts";
import { clipAt, clipIndexAt } from "../../src/answers/clips.ts";
import { rank, rows } from "../../src/answers/ranking.ts";
import { nextSegment, previousSegment, segmentAt, segmentsOf } from "../../src/answers/segments.ts";
import { clipsOf } from "./clips.ts";

const clips = clipsOf([{ run: 0.9, walk: 0.1 }, { run: 0.7, walk: 0.3 }, { walk: 0.6, run: 0.4 }, { walk: 0.4, run: 0.3 }]);
const raw = { classes: 2, expectedSeconds: 0, threshold: 0 };

describe("segments", () => {
  it("join neighbours with the same label and have the mean of their scores", () => {
    expect(segmentsOf(clips, raw)).toEqual([
      { start: 0, end: 1, label: "run", score: 0.8, clips: 2 },
      { start: 1, end: 2, label: "walk", score: 0.5, clips: 2 },
    ]);
  });

  it("have no label below the threshold, and such neighbours become one", () => {
    const weak = clipsOf([{ run: 0.3 }, { walk: 0.5 }, { jump: 0.9 }]);
    expect(segmentsOf(weak, { ...raw, threshold: 0.6 })).toEqual([
      { start: 0, end: 1, score: 0.4, clips: 2 },
      { start: 1, end: 1.5, label: "jump", score: 0.9, clips: 1 },
    ]);
  });

  it("are found by time, and stepped through without those that have no label", () => {
    const segments = segmentsOf(clipsOf([{ run: 0.9 }, { walk: 0.2 }, { jump: 0.9 }]), { ...raw, threshold: 0.5 });
    expect(segmentAt(segments, 0.7)?.label).toBeUndefined();
    expect(nextSegment(segments, 0)?.label).toBe("jump");
    expect(nextSegment(segments, 1)).toBeUndefined();
    expect(previousSegment(segments, 1.2)?.label).toBe("run");
    expect(previousSegment(segments, 0.2)).toBeUndefined();
  });
});

describe("clips", () => {
  it("are found by time", () => {
    expect(clipAt(clips, 0.6)).toBe(clips[1]);
    expect(clipAt(clips, 99)).toBe(clips[3]);
    expect(clipIndexAt(clips, -1)).toBe(-1);
  });
});

describe("ranking", () => {
  it("orders labels by their mean score and tells where each is best", () => {
    const ranked = rank(clips, segmentsOf(clips, raw));
    expect(ranked.map((entry) => entry.label)).toEqual(["run", "walk"]);
    expect(ranked[1]).toMatchObject({ peak: 0.6, peakTime: 1, time: 1 });
    expect(ranked[0]!.mean).toBeCloseTo(0.575);
  });

  it("takes the mean scores of the server where there are some", () => {
    const ranked = rank(clips, [], [{ label: "walk", score: 0.8 }]);
    expect(ranked[0]).toMatchObject({ label: "walk", mean: 0.8 });
  });

  it("gives the first rows to labels of segments", () => {
    const ranked = rank(clips, segmentsOf(clips.slice(2), raw));
    expect(rows(ranked, 1)[0]!.label).toBe("walk");
  });
});

describe("agreement", () => {
  const segment = (start: number, end: number, label: string) => ({ start, end, label, score: 1, clips: 1 });

  it("is the share of time with the same label, and says where it differs", () => {
    const first = [segment(0, 4, "run"), segment(4, 8, "walk")];
    const second = [segment(0, 2, "run"), segment(2, 3, "jump"), segment(3, 8, "walk")];
    expect(agreement(first, second)).toEqual({ share: 0.75, differences: [{ start: 2, end: 4 }] });
  });

  it("counts only the time that both have classified", () => {
    expect(agreement([segment(0, 2, "run")], [segment(0, 8, "run")])?.share).toBe(1);
    expect(agreement([], [segment(0, 8, "run")])).toBeUndefined();
  });
});
