/** Plays a video, or where the browser can't, lets time pass so that pictures of the clips can be shown. */

export interface Playback {
  /** Seconds from the start. */
  readonly time: number;
  readonly isPlaying: boolean;
  play(): void;
  pause(): void;
  seek(time: number): void;
  setRate(rate: number): void;
}

export class VideoPlayback implements Playback {
  readonly #video: HTMLVideoElement;

  constructor(video: HTMLVideoElement) {
    this.#video = video;
  }

  get time(): number {
    return this.#video.currentTime;
  }

  get isPlaying(): boolean {
    return !this.#video.paused && !this.#video.ended;
  }

  play(): void {
    // Browsers refuse to play while the page is being left or another source is set.
    this.#video.play().catch(() => undefined);
  }

  pause(): void {
    this.#video.pause();
  }

  seek(time: number): void {
    this.#video.currentTime = time;
  }

  setRate(rate: number): void {
    // Loading a video sets the rate to the default one.
    this.#video.defaultPlaybackRate = rate;
    this.#video.playbackRate = rate;
  }
}

export class PicturePlayback implements Playback {
  readonly #duration: () => number;
  #time = 0;
  #rate = 1;
  /** When time began to pass, as `performance.now()` counts. */
  #since: number | undefined;

  constructor(duration: () => number) {
    this.#duration = duration;
  }

  get time(): number {
    const passed = this.#since === undefined ? 0 : ((performance.now() - this.#since) / 1000) * this.#rate;
    const time = Math.min(this.#time + passed, this.#duration());
    if (this.#since !== undefined && time >= this.#duration()) this.#stopAt(time);
    return time;
  }

  get isPlaying(): boolean {
    return this.#since !== undefined;
  }

  play(): void {
    if (this.time >= this.#duration()) this.#time = 0;
    this.#since ??= performance.now();
  }

  pause(): void {
    this.#stopAt(this.time);
  }

  seek(time: number): void {
    this.#time = time;
    if (this.#since !== undefined) this.#since = performance.now();
  }

  setRate(rate: number): void {
    const playing = this.isPlaying;
    this.pause();
    this.#rate = rate;
    if (playing) this.play();
  }

  #stopAt(time: number): void {
    this.#time = time;
    this.#since = undefined;
  }
}
