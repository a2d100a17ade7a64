/** The state of the page, and what can be done with it. Views read it and call it; none knows another. */

import type { Limits, Model } from "./api/answer.ts";
import { Client } from "./api/client.ts";
import { Queue } from "./queue/queue.ts";
import type { Run } from "./queue/run.ts";
import type { Source } from "./queue/source.ts";
import type { Video } from "./queue/video.ts";
import type { RankedLabel } from "./answers/ranking.ts";
import type { Segment } from "./answers/segments.ts";
import { loadSettings, loadToken, saveSettings, saveToken, type Settings } from "./settings.ts";
import { bytes } from "./words.ts";

/** Time between updates that the server causes, as a multiple of what an update takes. */
const QUIET_SHARE = 3;

export class App {
  settings: Settings = loadSettings();
  token = loadToken();
  readonly client = new Client(() => this.token);
  readonly queue = new Queue(this.client, { changed: () => this.changed(), received: () => this.changedByServer() });
  models: Model[] = [];
  limits: Limits = { maxVideoBytes: Infinity, maxSeconds: Infinity };
  /** Name of the model; empty for the server's default. */
  model = "";
  /** Name of a second model, if two are compared. */
  comparedModel: string | undefined;
  selected: Video | undefined;
  /** Label that is marked in the timeline. */
  markedLabel: string | undefined;
  /** What could not be added to the queue, in words. */
  refused = "";
  readonly #views: (() => void)[] = [];
  #scheduled = false;
  #later: ReturnType<typeof setTimeout> | undefined;
  /** What the last update took. */
  #updateMilliseconds = 0;

  /** `update` is called before the next frame whenever something has changed. */
  subscribe(update: () => void): void {
    this.#views.push(update);
  }

  changed(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => this.#update());
  }

  /** As `changed`, for what comes all the time: views of a long video leave the browser time for other things. */
  changedByServer(): void {
    this.#later ??= setTimeout(() => this.changed(), this.#updateMilliseconds * QUIET_SHARE);
  }

  #update(): void {
    const started = performance.now();
    clearTimeout(this.#later);
    this.#later = undefined;
    this.#scheduled = false;
    for (const update of this.#views) update();
    this.#updateMilliseconds = performance.now() - started;
  }

  add(sources: Source[]): void {
    this.refused = "";
    const added = sources.filter((source) => this.#fits(source)).map((source) => this.queue.add(source, this.model));
    if (added[0]) this.select(added[0]);
    this.changed();
  }

  select(video: Video | undefined): void {
    this.selected = video;
    this.markedLabel = undefined;
    this.#ensureRuns();
  }

  /** Selects the video `step` further down the queue. */
  selectNext(step: number): void {
    const { videos } = this.queue;
    const next = videos[videos.indexOf(this.selected!) + step];
    if (next) this.select(next);
  }

  remove(video: Video): void {
    const index = this.queue.videos.indexOf(video);
    this.queue.remove(video);
    if (this.selected === video) this.select(this.queue.videos[index] ?? this.queue.videos.at(-1));
    this.changed();
  }

  setModel(name: string): void {
    this.model = name;
    if (this.comparedModel === name) this.comparedModel = undefined;
    this.#ensureRuns();
  }

  compare(name: string | undefined): void {
    this.comparedModel = name;
    this.#ensureRuns();
  }

  setToken(token: string): void {
    this.token = token;
    saveToken(token);
    this.queue.tokenChanged();
    this.changed();
  }

  set(settings: Partial<Settings>): void {
    this.settings = { ...this.settings, ...settings };
    saveSettings(this.settings);
    this.changed();
  }

  mark(label: string | undefined): void {
    this.markedLabel = this.markedLabel === label ? undefined : label;
    this.changed();
  }

  /** The selected video's run of the model, and of the compared one. */
  get runs(): Run[] {
    if (!this.selected) return [];
    const models = this.comparedModel === undefined ? [this.model] : [this.model, this.comparedModel];
    return models.flatMap((model) => this.selected!.runs.get(model) ?? []);
  }

  get run(): Run | undefined {
    return this.runs[0];
  }

  segments(run: Run): Segment[] {
    return this.#analysis(run).segments;
  }

  /** Best labels of a run. */
  ranking(run: Run): RankedLabel[] {
    return this.#analysis(run).ranking;
  }

  #analysis(run: Run) {
    return run.analysis({
      classes: this.modelNamed(run.model)?.classes ?? 0,
      expectedSeconds: this.settings.smoothingSeconds,
      threshold: this.settings.threshold,
    });
  }

  modelNamed(name: string): Model | undefined {
    return this.models.find((model) => (name === "" ? model.isDefault : model.name === name));
  }

  /** Where two models are compared, the letter of a run before its name. */
  letterOf(run: Run): string {
    const { runs } = this;
    return runs.length > 1 ? "AB"[runs.indexOf(run)]! : "";
  }

  /** The name that people see; of the default model too. */
  titleOf(run: Run): string {
    return run.answer?.model || this.modelNamed(run.model)?.name || run.model || "default model";
  }

  #ensureRuns(): void {
    const video = this.selected;
    if (video) {
      const { state } = this.queue.ensure(video, this.model);
      // What one model can't read, none can.
      if (this.comparedModel !== undefined && state !== "failed") this.queue.ensure(video, this.comparedModel);
    }
    this.changed();
  }

  /** A file that the server will refuse is not uploaded. */
  #fits(source: Source): boolean {
    if (source.kind === "uri" || source.file.size <= this.limits.maxVideoBytes) return true;
    const { name, size } = source.file;
    this.refused = `${name} is too large: it has ${bytes(size)}, and this server takes up to ${bytes(this.limits.maxVideoBytes)}. Cut it, or compress it, and try again.`;
    return false;
  }
}
