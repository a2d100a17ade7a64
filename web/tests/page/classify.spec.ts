import { readFileSync } from "node:fs";
import { expect } from "@playwright/test";
import { videos } from "./made-videos.ts";
import { choose, done, drop, plot, queueLine, segments, tab, test, time } from "./page.ts";

test("a dropped video shows its segments", async ({ page, open }) => {
  await open();
  await drop(page, videos.motion);
  await done(page, "motion.mp4");
  expect(await segments(page)).toEqual(["pan right", "static", "zoom in"]);
  await tab(page, "Labels").click();
  await expect(page.getByRole("row", { name: /zoom in/ })).toContainText("4.0 s");
});

test("clips appear while the video is uploaded", async ({ page, open }) => {
  const server = await open({ holdAfter: 6 });
  await choose(page, videos.motion);
  await expect(queueLine(page, "motion.mp4")).toContainText("Uploading");
  expect(await segments(page)).toEqual(["pan right"]);
  server.release();
  await done(page, "motion.mp4");
});

test("a click on the timeline seeks, and the video plays on from there", async ({ page, open }) => {
  await open();
  await choose(page, videos.motion);
  await done(page, "motion.mp4");
  const box = (await plot(page).boundingBox())!;
  await page.mouse.click(box.x + box.width / 2, box.y + 100);
  expect(await time(page)).toBeCloseTo(6, 0);
  await expect(page.locator(".caption")).toHaveText(/static/);
  await expect.poll(() => page.locator(".screen video").evaluate((video: HTMLVideoElement) => video.currentTime)).toBeCloseTo(6, 0);
  await page.getByRole("button", { name: "Play (space)" }).click();
  await expect.poll(() => time(page)).toBeGreaterThan(6.3);
});

test("zoom shows a part of the video around the playhead", async ({ page, open }) => {
  await open();
  await choose(page, videos.motion);
  await done(page, "motion.mp4");
  const width = () => page.locator(".plot-inner").evaluate((element) => element.clientWidth);
  const whole = await width();
  await page.getByRole("button", { name: "Zoom in (+)" }).click();
  expect(await width()).toBeCloseTo(whole * 1.6, -1);
  await page.getByRole("button", { name: "Show the whole video (0)" }).click();
  expect(await width()).toBe(whole);
});

test("the pointer shows the scores below it", async ({ page, open }) => {
  await open();
  await choose(page, videos.motion);
  await done(page, "motion.mp4");
  const box = (await plot(page).boundingBox())!;
  await page.mouse.move(box.x + box.width * 0.95, box.y + 100);
  const tooltip = page.getByRole("tooltip");
  await expect(tooltip).toContainText("0:11");
  await expect(tooltip.locator(".tooltip-line").first()).toContainText("zoom in");
});

test("threshold and smoothing act at once on what is there", async ({ page, open }) => {
  const server = await open();
  await choose(page, videos.motion);
  await done(page, "motion.mp4");
  const calls = server.calls.filter((call) => call.startsWith("POST")).length;
  await page.getByLabel("Smoothing").fill("0");
  expect(await segments(page)).toEqual(["pan right", "shake", "pan right", "static", "zoom in"]);
  await page.getByLabel("Threshold").fill("99");
  expect(await segments(page)).toEqual(["no label"]);
  expect(server.calls.filter((call) => call.startsWith("POST"))).toHaveLength(calls);
});

test("a label of the table is marked and seen at its best", async ({ page, open }) => {
  await open();
  await choose(page, videos.motion);
  await done(page, "motion.mp4");
  const label = page.getByRole("rowheader", { name: "zoom in" }).getByRole("button");
  await label.click();
  await expect(label).toHaveAttribute("aria-pressed", "true");
  expect(await time(page)).toBeGreaterThan(7.9);
});

test("two models are compared on one video", async ({ page, open }) => {
  const server = await open();
  await choose(page, videos.motion);
  await done(page, "motion.mp4");
  await page.getByLabel("Compare with").selectOption("camera-motion-small");
  await expect(page.getByText(/Same for 8\d%/)).toBeVisible();
  expect(await segments(page)).toEqual(["pan right", "static", "zoom in", "pan right", "static", "roll", "zoom in"]);
  expect(server.calls.some((call) => call.includes("model=camera-motion-small"))).toBe(true);
});

test("another model classifies the video anew, and the first answer is kept", async ({ page, open }) => {
  const server = await open();
  await choose(page, videos.motion);
  await done(page, "motion.mp4");
  await page.getByLabel("Model", { exact: true }).selectOption("camera-motion-small");
  await done(page, "motion.mp4");
  expect(await segments(page)).toContain("roll");
  await page.getByLabel("Model", { exact: true }).selectOption("camera-motion");
  expect(await segments(page)).not.toContain("roll");
  expect(server.calls.filter((call) => call.startsWith("POST"))).toHaveLength(2);
});

test("several videos wait in a queue and are removed from it", async ({ page, open }) => {
  const server = await open({ holdAfter: 3 });
  await choose(page, videos.motion, videos.avi, videos.text);
  await expect(queueLine(page, "notes.txt")).toContainText("Queued");
  server.release();
  await done(page, "motion.mp4");
  await done(page, "motion.avi");
  await expect(queueLine(page, "notes.txt")).toContainText("This is not a video");
  await page.getByRole("button", { name: "Remove notes.txt" }).click();
  await expect(page.locator(".queue-line")).toHaveCount(2);
});

test("a video can be stopped and started again", async ({ page, open }) => {
  const server = await open({ holdAfter: 3 });
  await choose(page, videos.motion);
  expect(await segments(page)).toEqual(["pan right"]);
  await page.getByRole("button", { name: "Stop motion.mp4" }).click();
  await expect(queueLine(page, "motion.mp4")).toContainText("Stopped");
  server.release();
  await page.getByRole("button", { name: "Start again" }).click();
  await done(page, "motion.mp4");
});

test("a video that the browser can't play is shown by the server's pictures", async ({ page, open }) => {
  await open();
  await choose(page, videos.avi);
  await done(page, "motion.avi");
  await expect(page.getByText("This browser can't play this kind of video. It shows one picture per clip instead.")).toBeVisible();
  const picture = page.locator(".screen .picture");
  const first = await picture.getAttribute("src");
  await page.keyboard.press("n");
  expect(await picture.getAttribute("src")).not.toBe(first);
  await page.keyboard.press(" ");
  const before = await time(page);
  await expect.poll(() => time(page)).toBeGreaterThan(before + 0.3);
});

test("the server reads a video at a URI", async ({ page, open }) => {
  const server = await open();
  const field = page.getByLabel("Address of a video").first();
  await field.fill("video.mp4");
  await field.press("Enter");
  await expect(page.getByText("Enter an address that begins with https://")).toBeVisible();
  await field.fill("https://example.org/films/dance.mp4");
  await field.press("Enter");
  await done(page, "dance.mp4");
  await expect(page.getByText("Only the server has this video.")).toBeVisible();
  expect(server.calls.some((call) => call.startsWith("POST") && !call.includes("events="))).toBe(true);
});

test("answers are saved as JSON, CSV and WebVTT", async ({ page, open }) => {
  await open();
  await choose(page, videos.motion);
  await done(page, "motion.mp4");
  const saved = async (name: string) => {
    await page.getByRole("button", { name: "Save" }).click();
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("menuitem", { name }).click()]);
    return { name: download.suggestedFilename(), text: readFileSync(await download.path(), "utf8") };
  };
  const json = await saved("JSON");
  expect(json.name).toBe("motion.json");
  expect(JSON.parse(json.text).segments).toHaveLength(3);
  expect((await saved("CSV")).text).toMatch(/^start_seconds,end_seconds,label,score\r\n0\.000,4\.267,pan right,/);
  expect((await saved("WebVTT")).text).toMatch(/^WEBVTT\n\n00:00:00\.000 --> 00:00:04\.267\npan right/);
});

test("the call is copied as a command with this server's address", async ({ page, open, context }) => {
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  const server = await open();
  await choose(page, videos.motion);
  await tab(page, "Use").click();
  const copied = async (name: string) => {
    await page.getByRole("button", { name: `Copy ${name}` }).click();
    await expect(page.locator(".command").filter({ hasText: name }).getByText("Copied")).toBeVisible();
    return page.evaluate(() => navigator.clipboard.readText());
  };
  expect(await copied("curl")).toContain(`${server.url}v1/videos:classify`);
  expect(await copied("Python")).toContain('open("motion.mp4", "rb")');
  expect(await copied("Command line")).toBe(
    `kinetoscope classify motion.mp4 --server ${new URL(server.url).host} --segments`,
  );
});

test("models and their labels are listed and searched", async ({ page, open }) => {
  await open();
  await page.getByRole("button", { name: "Models and their labels" }).click();
  const dialog = page.getByRole("dialog", { name: "Models" });
  await expect(dialog).toContainText("3D ResNet-10, 16 filters");
  await dialog.getByText("9 labels").first().click();
  await dialog.getByRole("searchbox").first().fill("pan");
  await expect(dialog.locator(".label-list li")).toHaveText(["pan left", "pan right"]);
});

test("a recording of the webcam is classified", async ({ page, open }) => {
  await open();
  await page.getByRole("button", { name: "Record from webcam" }).click();
  const dialog = page.getByRole("dialog", { name: "Record from webcam" });
  await dialog.getByRole("button", { name: "Record" }).click();
  await expect(dialog.getByText("Recording 0:01")).toBeVisible();
  await dialog.getByRole("button", { name: "Stop and classify" }).click();
  await done(page, "webcam");
  await expect(page.locator(".screen video")).toBeVisible();
});
