import { describe, expect, it } from "vitest";
import { answerOf, clipOf, limitsOf } from "../../src/api/answer.ts";
import { seconds } from "../../src/api/duration.ts";
import { jsonLines } from "../../src/api/events.ts";
import { adviceFor, failureOf, isBusy } from "../../src/api/failure.ts";
import { loadBetween, workOf } from "../../src/api/load.ts";

describe("durations", () => {
  it("are read with and without a fraction", () => {
    expect(seconds("1.500s")).toBe(1.5);
    expect(seconds("90s")).toBe(90);
    expect(seconds(undefined)).toBe(0);
    expect(() => seconds("soon")).toThrow('"soon" is no duration');
  });
});

describe("events", () => {
  const collect = async (pieces: Uint8Array[]) => {
    const values = [];
    for await (const value of jsonLines((async function* () { yield* pieces; })())) values.push(value);
    return values;
  };

  it("may be cut anywhere, within a character too", async () => {
    const all = new TextEncoder().encode('\n{"a":"ü"}\n\n{"b":2}');
    for (let cut = 0; cut <= all.length; cut++) {
      expect(await collect([all.slice(0, cut), all.slice(cut)])).toEqual([{ a: "ü" }, { b: 2 }]);
    }
  });

  it("that are no JSON are an error", async () => {
    await expect(collect([new TextEncoder().encode("<html>\n")])).rejects.toThrow();
  });
});

describe("answers", () => {
  it("have their defaults where fields are absent", () => {
    expect(answerOf({})).toMatchObject({ labels: [], duration: 0, partial: "", warnings: [], facts: [] });
    expect(clipOf({ labels: [{ label: "run" }] })).toEqual({ start: 0, end: 0, scores: [{ label: "run", score: 0 }] });
    expect(limitsOf(undefined)).toEqual({ maxVideoBytes: Infinity, maxSeconds: Infinity });
  });

  it("tell of damage only where there is some", () => {
    const facts = (corruptPackets: string) => answerOf({ video: { corruptPackets } }).facts.map(([name]) => name);
    expect(facts("0")).toEqual([]);
    expect(facts("3")).toEqual(["Damaged packets"]);
  });
});

describe("failures", () => {
  it("take the server's reason and delay", () => {
    const failure = failureOf({ code: "RESOURCE_EXHAUSTED", reason: "TOO_MANY_REQUESTS", retryDelay: "1.5s" }, 429, "2");
    expect(failure).toMatchObject({ reason: "TOO_MANY_REQUESTS", retryAfter: 1.5 });
    expect(isBusy(failure)).toBe(true);
  });

  it("of a proxy are known by their status", () => {
    expect(adviceFor(failureOf(undefined, 413, null)).title).toBe("This file is too large");
    expect(adviceFor(failureOf(undefined, 401, null)).remedy).toBe("token");
    expect(adviceFor(failureOf(undefined, 429, "3"))).toMatchObject({ title: "The server is full", remedy: "retry" });
  });

  it("that are a limit of the operator are not retried", () => {
    expect(isBusy({ code: "RESOURCE_EXHAUSTED", reason: "DECODER_OUT_OF_MEMORY", message: "" })).toBe(false);
  });

  it("with a new reason have the server's message", () => {
    expect(adviceFor({ code: "INVALID_ARGUMENT", reason: "NEW", message: "x" }).remedy).toBe("none");
  });
});

describe("load", () => {
  const statistics = (clips: number, ns: number) =>
    workOf({ model_stats: [{ inference_count: String(clips), inference_stats: { queue: { count: clips, ns } } }] });

  it("is what was done between two readings", () => {
    expect(loadBetween(statistics(10, 1e9), statistics(30, 3e9), 4)).toEqual({ clipsPerSecond: 5, queueSeconds: 0.1 });
    expect(loadBetween(statistics(10, 0), statistics(10, 0), 4)).toEqual({ clipsPerSecond: 0, queueSeconds: 0 });
  });

  it("is unknown across a restart of the server", () => {
    expect(loadBetween(statistics(30, 0), statistics(10, 0), 4)).toBeUndefined();
  });
});
