import { describe, expect, it } from "vitest";
import { toCsv, toJson, toVtt, type Report } from "../../src/answers/formats.ts";
import { clipsOf } from "./clips.ts";

const report: Report = {
  video: "a.mp4",
  model: "motion",
  labels: [{ label: "run", score: 0.123456789 }],
  segments: [
    { start: 0, end: 3661.5, label: 'say "hi", <b>', score: 0.5, clips: 2 },
    { start: 3661.5, end: 3662, score: 0.1, clips: 1 },
  ],
  clips: clipsOf([{ run: 0.9 }]),
  threshold: 0.3,
  smoothingSeconds: 3,
};

describe("saved files", () => {
  it("JSON has segments, clips and how they were made", () => {
    const json = JSON.parse(toJson(report));
    expect(json).toMatchObject({ video: "a.mp4", threshold: 0.3, smoothing_seconds: 3 });
    expect(json.labels).toEqual([{ label: "run", score: 0.123457 }]);
    expect(json.segments[1].label).toBeNull();
    expect(json.clips[0].end).toBe(0.5);
  });

  it("CSV quotes commas and quotes", () => {
    expect(toCsv(report).split("\r\n")).toEqual([
      "start_seconds,end_seconds,label,score",
      '0.000,3661.500,"say ""hi"", <b>",0.5',
      "3661.500,3662.000,,0.1",
      "",
    ]);
  });

  it("CSV holds no formula that a spreadsheet would compute", () => {
    const segments = [{ start: 0, end: 1, label: "=1+1", score: 1, clips: 1 }];
    expect(toCsv({ ...report, segments })).toContain(",'=1+1,");
  });

  it("WebVTT has a cue for each labelled segment", () => {
    expect(toVtt(report)).toBe('WEBVTT\n\n00:00:00.000 --> 01:01:01.500\nsay "hi", &lt;b&gt; (50%)\n');
  });
});
