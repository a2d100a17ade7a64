/** The picture of the selected video with its controls. */

import { clipAt } from "../answers/clips.ts";
import { nextSegment, previousSegment, segmentAt } from "../answers/segments.ts";
import type { App } from "../app.ts";
import type { Video } from "../queue/video.ts";
import { clock, percent } from "../words.ts";
import { h, setText } from "./element.ts";
import { icon, type IconName } from "./icons.ts";
import { statusText } from "./run-status.ts";
import { PicturePlayback, VideoPlayback, type Playback } from "./playback.ts";

const RATES = [0.25, 0.5, 1, 1.5, 2, 4];

export class Player {
  readonly element: HTMLElement;
  readonly #app: App;
  readonly #onTime: (() => void)[] = [];
  readonly #video = h("video", { playsInline: true, preload: "auto", "aria-label": "Video", tabIndex: -1 });
  readonly #picture = h("img", { class: "picture", alt: "", hidden: true });
  readonly #notice = h("p", { class: "player-notice", hidden: true });
  readonly #caption = h("div", { class: "caption", hidden: true });
  readonly #time = h("span", { class: "time" });
  readonly #play = button("play", "Play (space)", () => this.toggle());
  readonly #mute = button("sound", "Mute (m)", () => this.toggleSound());
  #playback: Playback = new PicturePlayback(() => this.duration);
  #shown: Video | undefined;
  #playsVideo = false;
  #rate = 1;

  constructor(app: App) {
    this.#app = app;
    const screen = h("div", { class: "screen", onclick: () => this.toggle() }, this.#video, this.#picture, this.#notice, this.#caption);
    this.element = h("section", { class: "player", "aria-label": "Player" }, screen, this.#controls(screen));
    for (const event of ["timeupdate", "seeked", "play", "pause", "ended"]) this.#video.addEventListener(event, () => this.#tick());
    this.#video.addEventListener("error", () => this.#showPictures(this.#video.currentTime));
    this.#video.addEventListener("loadedmetadata", () => this.#videoLoaded());
    app.subscribe(() => this.#update());
  }

  /** `update` is called whenever the time has changed. */
  onTime(update: () => void): void {
    this.#onTime.push(update);
  }

  get time(): number {
    return this.#playback.time;
  }

  /** Seconds. The server's figure counts: recordings of webcams have none of their own. */
  get duration(): number {
    const own = this.#playsVideo && Number.isFinite(this.#video.duration) ? this.#video.duration : 0;
    return Math.max(own, ...this.#app.runs.map((run) => run.duration));
  }

  toggle(): void {
    if (this.#playback.isPlaying) this.#playback.pause();
    else this.#playback.play();
    this.#tick();
  }

  seek(time: number): void {
    this.#playback.seek(Math.min(Math.max(0, time), this.duration));
    this.#tick();
  }

  /** To the clip before or after the one that is on. */
  step(clips: number): void {
    const all = this.#app.run?.clips ?? [];
    const here = clipAt(all, this.time);
    const index = here ? all.indexOf(here) : 0;
    const target = all[index + clips];
    if (target) this.seek(target.start);
  }

  toNextSegment(): void {
    const segment = this.#app.run && nextSegment(this.#app.segments(this.#app.run), this.time);
    if (segment) this.seek(segment.start);
  }

  toPreviousSegment(): void {
    const segment = this.#app.run && previousSegment(this.#app.segments(this.#app.run), this.time);
    if (segment) this.seek(segment.start);
  }

  toggleSound(): void {
    this.#video.muted = !this.#video.muted;
    this.#mute.replaceChildren(icon(this.#video.muted ? "silent" : "sound"));
    this.#mute.setAttribute("aria-pressed", String(this.#video.muted));
  }

  toggleFullScreen(): void {
    if (!document.fullscreenEnabled) return;
    if (document.fullscreenElement) void document.exitFullscreen();
    else this.element.querySelector(".screen")!.requestFullscreen().catch(() => undefined);
  }

  #controls(screen: HTMLElement): HTMLElement {
    const rate = h("select", {
      "aria-label": "Speed",
      onchange: () => {
        this.#rate = Number(rate.value);
        this.#playback.setRate(this.#rate);
      },
    });
    rate.append(...RATES.map((value) => h("option", { value: String(value), selected: value === 1 }, `${value}×`)));
    screen.addEventListener("dblclick", () => this.toggleFullScreen());
    return h(
      "div",
      { class: "player-controls" },
      this.#play,
      button("previous", "Previous segment (p)", () => this.toPreviousSegment()),
      button("next", "Next segment (n)", () => this.toNextSegment()),
      this.#time,
      h("span", { class: "space" }),
      rate,
      this.#mute,
      document.fullscreenEnabled && button("full", "Full screen (f)", () => this.toggleFullScreen()),
    );
  }

  #update(): void {
    if (this.#shown !== this.#app.selected) this.#load(this.#app.selected);
    this.#tick();
  }

  #load(video: Video | undefined): void {
    this.#playback.pause();
    this.#shown = video;
    this.#notice.hidden = true;
    if (video?.url) {
      this.#playsVideo = true;
      this.#video.src = video.url;
      this.#setPlayback(new VideoPlayback(this.#video));
    } else {
      this.#showPictures(0);
    }
    this.#showSurface();
  }

  #setPlayback(playback: Playback): void {
    this.#playback = playback;
    playback.setRate(this.#rate);
  }

  /** Some files have a picture that the browser can't decode, and sound that it can. */
  #videoLoaded(): void {
    if (this.#video.videoWidth === 0) this.#showPictures(0);
    else this.#app.changed();
  }

  #showPictures(time: number): void {
    if (this.#video.hasAttribute("src")) this.#video.removeAttribute("src");
    this.#playsVideo = false;
    this.#setPlayback(new PicturePlayback(() => this.duration));
    this.#playback.seek(time);
    this.#showSurface();
    this.#app.changed();
  }

  #showSurface(): void {
    this.#video.hidden = !this.#playsVideo;
    this.#picture.hidden = this.#playsVideo;
    this.#mute.disabled = !this.#playsVideo;
  }

  /** Shows the time; again at the next frame while it passes. */
  #tick(): void {
    const { time, isPlaying } = this.#playback;
    setText(this.#time, `${clock(time)} / ${clock(this.duration)}`);
    const label = isPlaying ? "Pause (space)" : "Play (space)";
    if (this.#play.title !== label) {
      this.#play.replaceChildren(icon(isPlaying ? "pause" : "play"));
      this.#play.title = label;
      this.#play.setAttribute("aria-label", label);
    }
    this.#showClip(time);
    for (const update of this.#onTime) update();
    if (isPlaying) this.#nextFrame();
  }

  #frame = 0;
  #nextFrame(): void {
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(() => this.#tick());
  }

  #showClip(time: number): void {
    const run = this.#app.run;
    const clip = run && clipAt(run.clips, time);
    const segment = run && segmentAt(this.#app.segments(run), time);
    this.#caption.hidden = segment?.label === undefined;
    if (segment?.label !== undefined) setText(this.#caption, `${segment.label} ${percent(segment.score)}`);
    if (this.#playsVideo) return;
    this.#picture.hidden = clip?.preview === undefined;
    if (clip?.preview && this.#picture.src !== clip.preview) this.#picture.src = clip.preview;
    this.#notice.hidden = false;
    this.#notice.classList.toggle("alone", this.#picture.hidden);
    setText(this.#notice, this.#pictureNotice(clip?.preview !== undefined));
  }

  #pictureNotice(hasPreview: boolean): string {
    const run = this.#app.run;
    if (run && run.clips.length === 0) return statusText(run, this.#shown?.size);
    const why = this.#shown?.url ? "This browser can't play this kind of video." : "Only the server has this video.";
    if (hasPreview) return `${why} It shows one picture per clip instead.`;
    return `${why} The timeline works without the picture.`;
  }
}

function button(name: IconName, label: string, onclick: () => void): HTMLButtonElement {
  return h("button", { type: "button", class: "icon-button", title: label, "aria-label": label, onclick }, icon(name));
}
