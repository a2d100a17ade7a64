import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { CallEvents } from "../../src/api/client.ts";
import { CallError } from "../../src/api/failure.ts";
import { Queue, type Classifier } from "../../src/queue/queue.ts";
import { isUri, nameOf, type Source } from "../../src/queue/source.ts";
import { statusText } from "../../src/view/run-status.ts";

interface Call {
  source: Source;
  model: string;
  events: CallEvents;
  signal: AbortSignal;
  end: () => void;
  fail: (error: CallError) => void;
}

/** Calls that the test ends. */
class Calls implements Classifier {
  readonly all: Call[] = [];

  classify(source: Source, model: string, events: CallEvents, signal: AbortSignal): Promise<void> {
    return new Promise((end, fail) => {
      signal.addEventListener("abort", () => fail(signal.reason));
      this.all.push({ source, model, events, signal, end, fail });
    });
  }
}

const uri = (name: string): Source => ({ kind: "uri", uri: `https://example.org/${name}` });
const full = new CallError({ code: "RESOURCE_EXHAUSTED", reason: "TOO_MANY_REQUESTS", message: "full", retryAfter: 3 });
const clip = { start: 0, end: 0.5, scores: [{ label: "run", score: 0.9 }] };

let calls: Calls;
let queue: Queue;
/** Lets promises that are settled call what waits for them. */
const settle = () => vi.advanceTimersByTimeAsync(0);

beforeEach(() => {
  vi.useFakeTimers();
  calls = new Calls();
  queue = new Queue(calls, { changed: () => undefined, received: () => undefined });
});
afterEach(() => void vi.useRealTimers());

describe("queue", () => {
  it("classifies two videos at a time, in order", async () => {
    for (const name of ["a", "b", "c"]) queue.add(uri(name), "");
    expect(calls.all.map(({ source }) => nameOf(source))).toEqual(["a", "b"]);
    calls.all[0]!.end();
    await settle();
    expect(calls.all.map(({ source }) => nameOf(source))).toEqual(["a", "b", "c"]);
  });

  it("asks for a model once a video", () => {
    const video = queue.add(uri("a"), "");
    queue.ensure(video, "");
    queue.ensure(video, "other");
    expect(calls.all.map(({ model }) => model)).toEqual(["", "other"]);
  });

  it("tries a full server again after the delay that it names", async () => {
    const run = queue.add(uri("a"), "").run("");
    calls.all[0]!.fail(full);
    await settle();
    expect(statusText(run, undefined)).toBe("Server full, retry in 3 s");
    await vi.advanceTimersByTimeAsync(2999);
    expect(calls.all).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(1);
    expect(calls.all).toHaveLength(2);
    calls.all[1]!.end();
    await settle();
    expect(run.state).toBe("done");
    expect(run.failure).toBeUndefined();
  });

  it("gives up a server that stays full", async () => {
    const run = queue.add(uri("a"), "").run("");
    while (run.state !== "failed") {
      calls.all.at(-1)!.fail(full);
      await vi.advanceTimersByTimeAsync(3000);
    }
    expect(calls.all).toHaveLength(20);
  });

  it("leaves a failed video's clips, and starts anew when it is retried", async () => {
    const run = queue.add(uri("a"), "").run("");
    calls.all[0]!.events.clip(clip);
    calls.all[0]!.fail(new CallError({ code: "UNAVAILABLE", reason: "STOPPING", message: "" }));
    await settle();
    expect(run).toMatchObject({ state: "failed", clips: [clip] });
    queue.retry(run);
    expect(run).toMatchObject({ state: "uploading", clips: [], failure: undefined });
  });

  it("ends the call of a video that is stopped or removed", async () => {
    const video = queue.add(uri("a"), "");
    queue.cancel(video.run(""));
    expect(calls.all[0]!.signal.aborted).toBe(true);
    await settle();
    expect(video.run("").state).toBe("cancelled");
    const other = queue.add(uri("b"), "");
    queue.remove(other);
    expect(calls.all[1]!.signal.aborted).toBe(true);
    expect(queue.videos).toEqual([video]);
  });

  it("takes no events of a call that was stopped", async () => {
    const run = queue.add(uri("a"), "").run("");
    queue.cancel(run);
    calls.all[0]!.events.clip(clip);
    await settle();
    expect(run).toMatchObject({ state: "cancelled", clips: [] });
  });

  it("tries videos again that lacked a token", async () => {
    const run = queue.add(uri("a"), "").run("");
    calls.all[0]!.fail(new CallError({ code: "UNAUTHENTICATED", reason: "TOKEN_MISSING", message: "" }));
    await settle();
    queue.tokenChanged();
    expect(run.state).toBe("uploading");
  });
});

describe("sources", () => {
  it("have the name of their file", () => {
    expect(nameOf(uri("films/dance.mp4?version=2#t=1"))).toBe("dance.mp4");
    expect(nameOf({ kind: "uri", uri: "https://example.org" })).toBe("example.org");
  });

  it("are URIs that the server knows", () => {
    expect(["https://a.org/b.mp4", "s3://bucket/a.mp4", " gs://b/c "].every(isUri)).toBe(true);
    expect(["a.mp4", "javascript:alert(1)", "https://", "ftp://a/b"].some(isUri)).toBe(false);
  });
});
