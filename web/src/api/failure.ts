/** Why a call failed, and what a person can do about it. */

import type { ErrorJson } from "./contract.ts";
import { seconds } from "./duration.ts";

export interface Failure {
  /** Name of a gRPC status code, such as `INVALID_ARGUMENT`. */
  code: string;
  /** Stable reason, such as `VIDEO_TOO_LARGE`. */
  reason: string;
  message: string;
  /** After how many seconds the server may take the same call. */
  retryAfter?: number;
}

export class CallError extends Error {
  readonly failure: Failure;
  constructor(failure: Failure) {
    super(failure.message);
    this.failure = failure;
  }
}

/** What the page does about a failure when its button is pressed. */
export type Remedy = "retry" | "token" | "none";

export interface Advice {
  title: string;
  /** What to do. */
  advice: string;
  remedy: Remedy;
}

/** Reasons of the page itself: no server is there to give one. */
export const UNREACHABLE = "SERVER_UNREACHABLE";
export const CUT_OFF = "ANSWER_CUT_OFF";

const retry = (title: string, advice: string): Advice => ({ title, advice, remedy: "retry" });
const final = (title: string, advice: string): Advice => ({ title, advice, remedy: "none" });
const token = (title: string, advice: string): Advice => ({ title, advice, remedy: "token" });

const NOT_A_VIDEO = final("This is not a video", "Choose a file such as MP4, MOV, MKV, WebM, AVI or GIF.");
const BUSY = retry("The server is full", "It is working on as many videos as it can. The page tries again by itself.");
const OPERATOR_LIMIT = "Send a smaller or shorter one, or ask the operator to raise the limit of kinetoscope serve.";

const ADVICE: Record<string, Advice> = {
  [UNREACHABLE]: retry("The server does not answer", "Check that kinetoscope serve still runs at this address, then try again."),
  [CUT_OFF]: retry(
    "The server stopped before the video was done",
    "What had come until then is shown. Check that kinetoscope serve still runs, then try again.",
  ),
  STOPPING: retry("The server is stopping", "Try again when it has started again."),
  NOT_A_VIDEO,
  IMAGE_NOT_VIDEO: final("This is a picture", "Choose a video: it takes several frames to see an action."),
  NO_VIDEO_STREAM: final("This file has sound but no picture", "Choose a file with a video stream."),
  ONLY_ATTACHED_PICTURE: final("This is sound with a cover picture", "Choose a file with a video stream."),
  CONTAINER_NOT_ACCEPTED: final("Files of this kind are not accepted", "Playlists name other files. Choose the video itself."),
  UNSUPPORTED_CODEC: final("The server can't decode this video", "Convert it, for example: ffmpeg -i INPUT -c:v libx264 output.mp4"),
  NO_FRAMES: final("No frame of this video could be decoded", "The file is damaged. Choose another copy."),
  VIDEO_EMPTY: final("This file is empty", "Choose another copy of it."),
  DECODER_CRASHED: final("This video breaks the decoder", "The file is damaged. Convert it with FFmpeg and try that one."),
  DECODER_OUT_OF_MEMORY: final("This video takes too much memory to decode", OPERATOR_LIMIT),
  VIDEO_TOO_LARGE: final("This file is too large", OPERATOR_LIMIT),
  VIDEO_TOO_LONG: final("This video is too long", OPERATOR_LIMIT),
  TOO_MANY_FRAMES: final("This video has too many frames", OPERATOR_LIMIT),
  TOO_MANY_CLIPS: final("This video has too many clips", OPERATOR_LIMIT),
  TOO_MANY_PIXELS: final("The frames of this video are too large", OPERATOR_LIMIT),
  TOO_MUCH_DECODE_TIME: final("This video takes too long to decode", OPERATOR_LIMIT),
  DEADLINE_EXCEEDED: retry("The server took too long", "Try again when it has less to do."),
  TOKEN_MISSING: token("This server needs a token", "Enter the token that its operator gave you."),
  TOKEN_UNKNOWN: token("The server does not know this token", "Check it with the server's operator, and enter it again."),
  MODEL_NOT_FOUND: final("The server no longer has this model", "Choose another model at the top."),
  MODEL_HAS_NO_WORKER: retry("The model is not running", "Its device may have failed. The server's log says more."),
  URI_INVALID: final("This is not an address of a video", "Give one such as https://example.org/video.mp4."),
  URI_NOT_ALLOWED: final(
    "The server may not fetch videos from there",
    "Its operator can allow the address with serve --allow-uri. Or download the video and drop the file here.",
  ),
  VIDEO_NOT_FOUND: final("There is no video at this address", "Check it for typing errors."),
  SOURCE_DENIED: final("The address does not give the video to this server", "Download it yourself and drop the file here."),
  SOURCE_REJECTED: final("The address refuses the server's request", "Download the video yourself and drop the file here."),
  SOURCE_UNAVAILABLE: retry("The address does not answer", "Try again in a while."),
  CLIENT_TOO_SLOW: retry("The upload was too slow", "Check the connection to the server, then try again."),
  CLIENT_IDLE: retry("The upload stood still", "Check the connection to the server, then try again."),
  NO_DISK_SPACE: retry("The server's disk is full", "Its operator must free space for uploads."),
  INTERNAL: retry("The server made an error", "Its log has the details. Try again, or another video."),
};

export function adviceFor(failure: Failure): Advice {
  const known = ADVICE[failure.reason];
  if (known) return known;
  if (isBusy(failure)) return BUSY;
  if (failure.code === "UNAVAILABLE") return retry("The server can't do this now", "Try again in a while.");
  return final("The server refused this video", "The message below says why.");
}

/** Whether the same call will be taken when others have ended. */
export function isBusy(failure: Failure): boolean {
  return failure.code === "RESOURCE_EXHAUSTED" && !(failure.reason in ADVICE);
}

export function needsToken(failure: Failure): boolean {
  return failure.code === "UNAUTHENTICATED";
}

/** Of the error in an answer's body, or what stands in for it if the answer is not one of this server. */
export function failureOf(error: ErrorJson | undefined, status: number, retryAfter: string | null): Failure {
  const delay = error?.retryDelay ? seconds(error.retryDelay) : Number(retryAfter ?? Number.NaN);
  return {
    code: error?.code ?? CODES[status] ?? "UNKNOWN",
    reason: error?.reason ?? REASONS[status] ?? "",
    message: error?.message ?? `The server answered with HTTP status ${status}.`,
    ...(Number.isFinite(delay) && { retryAfter: delay }),
  };
}

/** A proxy before the server gives a status alone. */
const CODES: Record<number, string> = {
  401: "UNAUTHENTICATED",
  403: "PERMISSION_DENIED",
  404: "NOT_FOUND",
  429: "RESOURCE_EXHAUSTED",
  502: "UNAVAILABLE",
  503: "UNAVAILABLE",
  504: "DEADLINE_EXCEEDED",
};
const REASONS: Record<number, string> = { 401: "TOKEN_MISSING", 413: "VIDEO_TOO_LARGE", 504: "DEADLINE_EXCEEDED" };
