import { expect, type Page } from "@playwright/test";
import { videos } from "./made-videos.ts";
import { choose, done, queueLine, segments, test, time } from "./page.ts";

async function press(page: Page, ...keys: string[]): Promise<void> {
  for (const key of keys) await page.keyboard.press(key);
}

test("a video is chosen, played and searched with the keyboard only", async ({ page, open }) => {
  await open();
  const chooser = page.waitForEvent("filechooser");
  await expect(page.getByText("Ready")).toBeVisible();
  await press(page, "o");
  await (await chooser).setFiles(videos.motion);
  await done(page, "motion.mp4");

  await press(page, "n");
  expect(await time(page)).toBeCloseTo(4.3, 1);
  await press(page, "n");
  expect(await time(page)).toBeCloseTo(8, 1);
  await press(page, "p");
  expect(await time(page)).toBeCloseTo(4.3, 1);
  await press(page, "ArrowRight", "ArrowRight", "ArrowLeft");
  expect(await time(page)).toBeCloseTo(4.8, 1);
  await press(page, "Shift+ArrowRight");
  expect(await time(page)).toBeCloseTo(9.8, 1);
  await press(page, "Home");
  expect(await time(page)).toBe(0);
  await press(page, "End");
  expect(await time(page)).toBeCloseTo(12, 1);

  await press(page, "Home", " ");
  await expect.poll(() => time(page)).toBeGreaterThan(0.2);
  await press(page, " ");
  await expect(page.getByRole("button", { name: "Play (space)" })).toBeVisible();
});

test("threshold, smoothing, zoom and marks have keys", async ({ page, open }) => {
  await open();
  await choose(page, videos.motion);
  await done(page, "motion.mp4");
  await press(page, "s");
  expect(await segments(page)).toContain("shake");
  await press(page, "s", "]", "]", "[");
  await expect(page.getByLabel("Threshold")).toHaveValue("25");
  const width = () => page.locator(".plot-inner").evaluate((element) => element.clientWidth);
  const whole = await width();
  await press(page, "+", "+");
  expect(await width()).toBeGreaterThan(whole * 2);
  await press(page, "0");
  expect(await width()).toBe(whole);
  await press(page, "2");
  await expect(page.locator("button.name[aria-pressed=true]")).toHaveCount(1);
});

test("keys that a field or a button uses are left to it", async ({ page, open }) => {
  await open();
  await choose(page, videos.motion);
  await done(page, "motion.mp4");
  const field = page.locator(".queue").getByLabel("Address of a video");
  await field.focus();
  await page.keyboard.type("no space");
  await expect(field).toHaveValue("no space");
  expect(await time(page)).toBe(0);
  await expect(page.getByRole("button", { name: "Play (space)" })).toBeVisible();
  await page.getByRole("tab", { name: "Labels" }).focus();
  await press(page, "ArrowRight");
  await expect(page.getByRole("tab", { name: "Segments" })).toHaveAttribute("aria-selected", "true");
  expect(await time(page)).toBe(0);
});

test("the next and the previous video of the queue have keys, and help lists all of them", async ({ page, open }) => {
  await open();
  await choose(page, videos.motion, videos.avi);
  await press(page, "PageDown");
  await expect(queueLine(page, "motion.avi")).toHaveClass(/selected/);
  await press(page, "PageUp");
  await expect(queueLine(page, "motion.mp4")).toHaveClass(/selected/);
  await press(page, "?");
  await expect(page.getByRole("dialog", { name: "Keyboard" })).toContainText("Segment before or after");
  await press(page, "Escape");
  await expect(page.getByRole("dialog", { name: "Keyboard" })).toBeHidden();
});
