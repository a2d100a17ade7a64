import { expect } from "@playwright/test";
import { videos } from "./made-videos.ts";
import { choose, done, queueLine, segments, test } from "./page.ts";

test("a text file is no video", async ({ page, open }) => {
  await open();
  await choose(page, videos.text);
  const alert = page.getByRole("alert").filter({ hasText: "This is not a video" });
  await expect(alert).toContainText("Choose a file such as MP4");
  await expect(alert).toContainText("NOT_A_VIDEO");
  await expect(alert.getByRole("button")).toHaveCount(0);
});

test("a file that is too large is not uploaded", async ({ page, open }) => {
  const server = await open({ maxVideoBytes: 1000 });
  await expect(page.getByText("up to 1 kB")).toBeVisible();
  await choose(page, videos.motion);
  await expect(page.getByText(/motion\.mp4 is too large: it has .* and this server takes up to 1 kB/)).toBeVisible();
  expect(server.calls.filter((call) => call.startsWith("POST"))).toEqual([]);
});

test("a missing token is asked for, and the video classified with it", async ({ page, open }) => {
  await open({ token: "correct" });
  await expect(page.getByText("Needs a token")).toBeVisible();
  await choose(page, videos.motion);
  await page.getByRole("alert").getByRole("button", { name: "Enter token" }).click();
  await page.getByLabel("Token", { exact: true }).last().fill("correct");
  await page.getByRole("button", { name: "Use token" }).click();
  await done(page, "motion.mp4");
  await expect(page.getByText("Ready")).toBeVisible();
  await expect(page.getByRole("alert").filter({ hasText: "token" })).toHaveCount(0);
});

test("a server that stops midway leaves what had come, and the video is tried again", async ({ page, open }) => {
  const server = await open({ holdAfter: 4, stopAfter: 4 });
  await choose(page, videos.motion);
  await expect(page.locator(".caption")).toHaveText(/pan right/);
  server.release();
  const alert = page.getByRole("alert").filter({ hasText: "The server stopped before the video was done" });
  await expect(alert).toBeVisible();
  expect(await segments(page)).toEqual(["pan right"]);
  delete server.behaviour.stopAfter;
  await page.getByRole("button", { name: "Try again" }).click();
  await done(page, "motion.mp4");
  await expect(alert).toBeHidden();
});

test("a full server is tried again by itself", async ({ page, open }) => {
  await open({ busy: 1 });
  await choose(page, videos.motion);
  await expect(page.getByRole("alert").filter({ hasText: "The server is full" })).toBeVisible();
  await expect(queueLine(page, "motion.mp4")).toContainText("Server full, retry in 1 s");
  await done(page, "motion.mp4");
});

test("an answer that rests on a part of the video says so", async ({ page, open }) => {
  await open({ partialDetail: "12 of 360 packets could not be decoded" });
  await choose(page, videos.motion);
  await done(page, "motion.mp4");
  await expect(page.getByRole("alert")).toContainText("12 of 360 packets could not be decoded");
});

test("a server that is away is told apart from one that refuses", async ({ page, open }) => {
  const server = await open();
  await expect(page.getByText("Ready")).toBeVisible();
  await server.stop();
  await choose(page, videos.motion);
  const alert = page.getByRole("alert").filter({ hasText: "The server does not answer" });
  await expect(alert).toContainText("Check that kinetoscope serve still runs at this address");
});
