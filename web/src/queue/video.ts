/** A video of the queue with what each model said of it. */

import { Run } from "./run.ts";
import { nameOf, type Source } from "./source.ts";

let videos = 0;

export class Video {
  readonly id = ++videos;
  readonly source: Source;
  readonly name: string;
  /** Where the browser can play it from; a URI's bytes are with the server only. */
  readonly url: string | undefined;
  readonly runs = new Map<string, Run>();

  constructor(source: Source) {
    this.source = source;
    this.name = nameOf(source);
    this.url = source.kind === "file" ? URL.createObjectURL(source.file) : undefined;
  }

  /** Bytes, if they are known. */
  get size(): number | undefined {
    return this.source.kind === "file" ? this.source.file.size : undefined;
  }

  run(model: string): Run {
    const run = this.runs.get(model) ?? new Run(model);
    this.runs.set(model, run);
    return run;
  }

  release(): void {
    if (this.url) URL.revokeObjectURL(this.url);
  }
}
