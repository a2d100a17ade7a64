/** The page with the real server: what the stand-in can't show. */

import { execFileSync } from "node:child_process";
import axe from "axe-core";
import { expect, test as base } from "@playwright/test";
import { shrinkPicture, videos } from "./made-videos.ts";
import { choose, drop, plot, queueLine, segments, tab, time } from "./page.ts";
import { RealServer } from "./real-server.ts";

interface Fixtures {
  /** Starts a server with these flags, and opens its page. */
  serve: (flags?: string[], token?: string) => Promise<RealServer>;
}

const test = base.extend<Fixtures>({
  serve: async ({ page }, use) => {
    const servers: RealServer[] = [];
    await use(async (flags, token) => {
      const server = await RealServer.start(flags, token);
      servers.push(server);
      await page.goto(server.url);
      return server;
    });
    for (const server of servers) await server.stop();
  },
});

/** A debug build computes slowly. */
const SLOW = { timeout: 60_000 };
test.setTimeout(90_000);

test("a dropped video shows what the camera does, and a click seeks", async ({ page, serve }) => {
  const complaints: string[] = [];
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  await serve();
  await expect(page.getByText("Ready")).toBeVisible();
  await drop(page, videos.motion);
  await expect(queueLine(page, "motion.mp4")).toHaveClass(/done/, SLOW);
  expect(await segments(page)).toEqual(["pan right", "static", "zoom in"]);
  const box = (await plot(page).boundingBox())!;
  await page.mouse.click(box.x + box.width / 2, box.y + 100);
  expect(await time(page)).toBeCloseTo(6, 0);
  await expect(page.locator(".caption")).toHaveText(/static/);
  await tab(page, "Details").click();
  await expect(page.getByText("640 × 360 pixels")).toBeVisible();
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(() => (window as unknown as { axe: typeof axe }).axe.run());
  expect(violations).toEqual([]);
  expect(complaints).toEqual([]);
});

test("a video that the browser can't play has the server's pictures", async ({ page, serve }) => {
  await serve();
  await choose(page, videos.avi);
  await expect(queueLine(page, "motion.avi")).toHaveClass(/done/, SLOW);
  await expect(page.getByText("It shows one picture per clip instead.")).toBeVisible();
  await expect(page.locator(".screen .picture")).toBeVisible();
});

test("a text file is no video", async ({ page, serve }) => {
  await serve();
  await choose(page, videos.text);
  await expect(page.getByRole("alert").filter({ hasText: "This is not a video" })).toContainText("NOT_A_VIDEO");
});

test("a file above the server's limit is not uploaded", async ({ page, serve }) => {
  await serve(["--max-video-bytes", "10kB"]);
  await expect(page.getByText("up to 10 kB")).toBeVisible();
  await choose(page, videos.motion);
  await expect(page.getByText(/motion\.mp4 is too large/)).toBeVisible();
});

test("a missing token is asked for", async ({ page, serve }) => {
  await serve([], "correct");
  await expect(page.getByText("Needs a token")).toBeVisible();
  await choose(page, videos.motion);
  await page.getByRole("alert").getByRole("button", { name: "Enter token" }).click();
  await page.getByLabel("Token", { exact: true }).last().fill("correct");
  await page.getByRole("button", { name: "Use token" }).click();
  await expect(queueLine(page, "motion.mp4")).toHaveClass(/done/, SLOW);
});

test("clips appear while the video is uploaded", async ({ page, serve }) => {
  await serve();
  const network = await page.context().newCDPSession(page);
  const uploadThroughput = 100_000;
  await network.send("Network.emulateNetworkConditions", { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput });
  await choose(page, videos.long);
  await expect(page.locator(".caption")).toHaveText(/pan right/, SLOW);
  await expect(queueLine(page, "long.mp4")).toContainText("Uploading");
  await page.getByRole("button", { name: "Stop long.mp4" }).click();
  await expect(queueLine(page, "long.mp4")).toContainText("Stopped");
});

test("a server that is killed midway leaves what had come", async ({ page, serve }) => {
  const server = await serve();
  await choose(page, videos.long);
  await expect(page.locator(".caption")).toHaveText(/pan right/, SLOW);
  await server.kill();
  await expect(page.getByRole("alert").filter({ hasText: "The server stopped before the video was done" })).toBeVisible();
  expect((await segments(page)).length).toBeGreaterThan(0);
});

test("a recording of the webcam is classified", async ({ page, serve }) => {
  await serve();
  await page.getByRole("button", { name: "Record from webcam" }).click();
  const dialog = page.getByRole("dialog", { name: "Record from webcam" });
  await dialog.getByRole("button", { name: "Record" }).click();
  await expect(dialog.getByText("Recording 0:01")).toBeVisible();
  await dialog.getByRole("button", { name: "Stop and classify" }).click();
  await expect(queueLine(page, "webcam")).toHaveClass(/done/, SLOW);
});

test("the copied curl command works as it stands", async ({ page, serve, context }) => {
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await serve();
  await choose(page, videos.motion);
  await tab(page, "Use").click();
  await page.getByRole("button", { name: "Copy curl" }).click();
  const command = await page.evaluate(() => navigator.clipboard.readText());
  const answer = execFileSync("sh", ["-c", command], { cwd: videos.folder, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
  expect(JSON.parse(answer).classification.segments[0].labels[0].label).toBe("pan right");
});

test("a picture of the page for the documentation", async ({ page, serve }) => {
  await page.setViewportSize({ width: 1280, height: 800 });
  await serve();
  await choose(page, videos.motion, videos.avi);
  for (const name of ["motion.mp4", "motion.avi"]) await expect(queueLine(page, name)).toHaveClass(/done/, SLOW);
  await page.keyboard.press("n");
  await page.keyboard.press("n");
  await expect(page.locator(".caption")).toHaveText(/zoom in/);
  const video = page.locator(".screen video");
  await expect.poll(() => video.evaluate((element: HTMLVideoElement) => !element.seeking && element.readyState > 1)).toBe(true);
  const path = process.env["PAGE_PICTURE"] ?? test.info().outputPath("page.png");
  await page.screenshot({ path });
  shrinkPicture(path);
});
