import { describe, expect, it } from "vitest";
import { clampZoom, positionOf, ticks, timeAt } from "../../src/view/timeline-scale.ts";

const scale = { duration: 60, width: 600, zoom: 2 };

describe("timeline scale", () => {
  it("turns times into positions and back", () => {
    expect(positionOf(scale, 30)).toBe(600);
    expect(timeAt(scale, 600)).toBe(30);
    expect(timeAt(scale, -5)).toBe(0);
    expect(timeAt(scale, 9999)).toBe(60);
  });

  it("zooms from the whole video to half a second", () => {
    expect(clampZoom(scale, 0.2)).toBe(1);
    expect(clampZoom(scale, 1e9)).toBe(120);
    expect(clampZoom({ ...scale, duration: 0 }, 5)).toBe(1);
  });

  it("has round ticks with room between them", () => {
    expect(ticks(scale, 0, 30, 80)).toEqual([0, 5, 10, 15, 20, 25, 30]);
    expect(ticks({ ...scale, duration: 0 }, 0, 0, 80)).toEqual([]);
  });
});
