/** What the tests do on the page. */

import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { expect, test as base, type Locator, type Page } from "@playwright/test";
import { FakeServer, type Behaviour } from "./fake-server.ts";

interface Fixtures {
  /** Starts a server that behaves like this and opens its page. */
  open: (behaviour?: Behaviour) => Promise<FakeServer>;
}

export const test = base.extend<Fixtures>({
  open: async ({ page }, use) => {
    const servers: FakeServer[] = [];
    await use(async (behaviour) => {
      const server = await FakeServer.start(behaviour);
      servers.push(server);
      await page.goto(server.url);
      return server;
    });
    for (const server of servers) await server.stop();
  },
});

export async function choose(page: Page, ...files: string[]): Promise<void> {
  await page.setInputFiles("input[type=file]", files);
}

/** As a person drops a file from another window. */
export async function drop(page: Page, file: string): Promise<void> {
  const bytes = readFileSync(file).toString("base64");
  const transfer = await page.evaluateHandle(
    ({ bytes, name }) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([Uint8Array.from(atob(bytes), (character) => character.charCodeAt(0))], name));
      return transfer;
    },
    { bytes, name: basename(file) },
  );
  await page.dispatchEvent("body", "dragenter", { dataTransfer: transfer });
  await expect(page.getByText("Drop to classify")).toBeVisible();
  await page.dispatchEvent("body", "drop", { dataTransfer: transfer });
}

export function plot(page: Page): Locator {
  return page.getByRole("slider", { name: "Position in the video" });
}

/** Seconds at which the playhead is. */
export async function time(page: Page): Promise<number> {
  return Number(await plot(page).getAttribute("aria-valuenow"));
}

export function tab(page: Page, name: string): Locator {
  return page.getByRole("tab", { name });
}

/** The list of segments, each as its text. */
export async function segments(page: Page): Promise<string[]> {
  await tab(page, "Segments").click();
  return page.locator(".segment .name-text").allTextContents();
}

export function queueLine(page: Page, name: string): Locator {
  return page.locator(".queue-line").filter({ hasText: name });
}

/** The answer for the whole video is there. */
export async function done(page: Page, name: string): Promise<void> {
  await expect(queueLine(page, name)).toHaveClass(/done/);
}
