/**
 * Stands in for `kinetoscope serve` where a test needs what a real server does only by chance: to be full, to stop midway,
 * to be slow. It speaks the HTTP API, looks at no video, and answers each one with the same clips.
 */

import { createReadStream, existsSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { extname, join } from "node:path";
import { clipsFor, MODELS, modelNamed } from "./fake-answers.ts";

const DIST = join(import.meta.dirname, "../../dist");
const TYPES: Record<string, string> = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml" };
const POLICY = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:";

export interface Behaviour {
  /** Calls need this token. */
  token?: string;
  /** So many videos are refused because the server is full. */
  busy?: number;
  /** Connections are cut after so many clips. */
  stopAfter?: number;
  /** Clips after this many wait for `release`; the body is not read to its end before that. */
  holdAfter?: number;
  maxVideoBytes?: number;
  /** Why answers rest on a part of the video. */
  partialDetail?: string;
}

export class FakeServer {
  readonly behaviour: Behaviour;
  /** Addresses of the API that were asked for. */
  readonly calls: string[] = [];
  release: () => void = () => undefined;
  readonly #released = new Promise<void>((resolve) => (this.release = resolve));
  readonly #server: Server;
  readonly #events = new Map<string, ServerResponse>();

  private constructor(behaviour: Behaviour) {
    this.behaviour = behaviour;
    this.#server = createServer((request, response) => void this.#answer(request, response));
  }

  static async start(behaviour: Behaviour = {}): Promise<FakeServer> {
    const server = new FakeServer(behaviour);
    await new Promise<void>((resolve) => server.#server.listen(0, "127.0.0.1", resolve));
    return server;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/`;
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url!, this.url);
    if (!url.pathname.startsWith("/v")) return sendFile(url.pathname, response);
    this.calls.push(`${request.method} ${url.pathname}${url.search}`);
    if (url.pathname === "/v2/health/ready") return send(response, 200, {});
    if (!this.#isAllowed(request)) return fail(response, 401, "UNAUTHENTICATED", "TOKEN_MISSING", "the call has no token");
    if (url.pathname === "/v2/models/stats") return send(response, 200, { model_stats: [] });
    if (url.pathname === "/v1/models") return send(response, 200, this.#models());
    if (url.pathname.startsWith("/v1/models/")) return send(response, 200, { model: modelNamed(url.pathname.slice(11)) });
    if (url.pathname.startsWith("/v1/uploads/")) return this.#listen(url.pathname.split("/")[3]!, response);
    if (url.pathname === "/v1/videos:classify") return this.#classify(url, request, response);
    fail(response, 404, "NOT_FOUND", "", "no such path");
  }

  #isAllowed(request: IncomingMessage): boolean {
    const { token } = this.behaviour;
    return token === undefined || request.headers.authorization === `Bearer ${token}`;
  }

  #models() {
    const models = MODELS.map(({ labels: _, ...model }) => model);
    return { models, limits: { maxVideoBytes: String(this.behaviour.maxVideoBytes ?? 2e9), maxDuration: "3600s" } };
  }

  #listen(key: string, response: ServerResponse): void {
    response.writeHead(200, { "Content-Type": "application/x-ndjson" });
    response.write("\n");
    this.#events.set(key, response);
  }

  async #classify(url: URL, request: IncomingMessage, response: ServerResponse): Promise<void> {
    if ((this.behaviour.busy ?? 0) > 0) {
      this.behaviour.busy!--;
      response.setHeader("Retry-After", "1");
      return this.#refuse(url, response, 429, "RESOURCE_EXHAUSTED", "TOO_MANY_REQUESTS", "32 videos are being worked on; no more may be");
    }
    request.pause();
    await new Promise((resolve) => request.once("readable", resolve));
    const first: Buffer = request.read() ?? Buffer.alloc(0);
    if (first.toString("latin1").startsWith("This is no video")) {
      return this.#refuse(url, response, 415, "INVALID_ARGUMENT", "NOT_A_VIDEO", "the bytes are not a video");
    }
    const key = url.searchParams.get("events");
    const events = key ? this.#events.get(key)! : response;
    if (!key) response.writeHead(200, { "Content-Type": "application/x-ndjson" });
    await this.#sendClips(url.searchParams.get("model") ?? "", events, first.length, request);
    if (key) send(response, 200, {});
  }

  /** The upload's events end with the same error. */
  #refuse(url: URL, response: ServerResponse, status: number, code: string, reason: string, message: string): void {
    const events = this.#events.get(url.searchParams.get("events") ?? "");
    events?.end(`${JSON.stringify({ error: { code, reason, message } })}\n`);
    fail(response, status, code, reason, message);
  }

  async #sendClips(model: string, events: ServerResponse, received: number, request: IncomingMessage): Promise<void> {
    const { clips, classification } = clipsFor(model);
    const write = (event: unknown) => events.write(`${JSON.stringify(event)}\n`);
    write({ progress: { receivedBytes: String(received), clips: "0", position: "0s" } });
    for (const [index, clip] of clips.entries()) {
      if (index === this.behaviour.holdAfter) await this.#released;
      if (index === this.behaviour.stopAfter) {
        request.socket.destroy();
        events.socket?.destroy();
        return;
      }
      write({ clip });
    }
    for await (const _ of request.resume());
    const { partialDetail } = this.behaviour;
    write({ classification: { ...classification, ...(partialDetail && { partial: true, partialDetail }) } });
    events.end();
  }
}

function sendFile(path: string, response: ServerResponse): void {
  const file = join(DIST, path === "/" ? "index.html" : path);
  if (!existsSync(file)) return void response.writeHead(404).end();
  response.writeHead(200, { "Content-Type": TYPES[extname(file)] ?? "application/octet-stream", "Content-Security-Policy": POLICY });
  createReadStream(file).pipe(response);
}

function send(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(body));
}

function fail(response: ServerResponse, status: number, code: string, reason: string, message: string): void {
  send(response, status, { error: { code, reason, message } });
}
