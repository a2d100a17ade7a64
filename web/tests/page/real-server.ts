/** The server of the program that KINETOSCOPE names. */

import { spawn, type ChildProcess } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

export class RealServer {
  readonly url: string;
  readonly #process: ChildProcess;
  readonly #folder: string;

  private constructor(process: ChildProcess, folder: string, address: string) {
    this.#process = process;
    this.#folder = folder;
    this.url = `http://${address}/`;
  }

  /** Listens on a free port. Callers need `token` if there is one. */
  static async start(flags: string[] = [], token?: string): Promise<RealServer> {
    const folder = mkdtempSync(join(tmpdir(), "kinetoscope-page-server-"));
    const all = ["serve", "--listen", "127.0.0.1:0", "--log-format", "json", ...flags];
    if (token !== undefined) {
      const tokens = join(folder, "tokens");
      writeFileSync(tokens, `tester ${createHash("sha256").update(token).digest("hex")}\n`, { mode: 0o600 });
      all.push("--tokens", tokens);
    }
    const child = spawn(process.env["KINETOSCOPE"]!, all, { stdio: ["ignore", "ignore", "pipe"] });
    return new RealServer(child, folder, await addressOf(child));
  }

  /** As when the machine fails. */
  async kill(): Promise<void> {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return;
    const ended = new Promise((resolve) => this.#process.once("exit", resolve));
    this.#process.kill("SIGKILL");
    await ended;
  }

  async stop(): Promise<void> {
    await this.kill();
    rmSync(this.#folder, { recursive: true });
  }
}

/** From the line of the log that says where the server listens. */
async function addressOf(child: ChildProcess): Promise<string> {
  const log: string[] = [];
  for await (const line of createInterface(child.stderr!)) {
    log.push(line);
    const address = /"listening".*"address":"([^"]*)"/.exec(line)?.[1];
    if (address) {
      child.stderr!.resume();
      return address;
    }
  }
  throw new Error(`the server did not start:\n${log.join("\n")}`);
}
