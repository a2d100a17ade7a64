import axe from "axe-core";
import { expect, type Page } from "@playwright/test";
import { videos } from "./made-videos.ts";
import { choose, done, plot, tab, test } from "./page.ts";

async function findings(page: Page): Promise<string[]> {
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(() => (window as unknown as { axe: typeof axe }).axe.run());
  return violations.map((rule) => `${rule.id}: ${rule.help} (${rule.nodes.map((node) => node.html.slice(0, 120)).join(" | ")})`);
}

for (const colorScheme of ["light", "dark"] as const) {
  test(`axe finds nothing in ${colorScheme} colours`, async ({ page, open }) => {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    await open();
    expect(await findings(page)).toEqual([]);
    await choose(page, videos.motion, videos.text);
    await done(page, "motion.mp4");
    await page.getByLabel("Compare with").selectOption("camera-motion-small");
    await expect(page.getByText(/Same for/)).toBeVisible();
    for (const name of ["Labels", "Segments", "Details", "Use"]) {
      await tab(page, name).click();
      expect(await findings(page)).toEqual([]);
    }
    await page.locator('.queue-select[title="notes.txt"]').click();
    await expect(page.getByRole("alert").first()).toContainText("This is not a video");
    expect(await findings(page)).toEqual([]);
    for (const name of ["Models and their labels", "Token", "Keyboard (?)"]) {
      await page.getByRole("button", { name, exact: true }).click();
      expect(await findings(page)).toEqual([]);
      await page.keyboard.press("Escape");
    }
  });
}

test("nothing is asked of another server, and the content policy is kept", async ({ page, open }) => {
  const complaints: string[] = [];
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(String(error)));
  const addresses: string[] = [];
  page.on("request", (request) => addresses.push(request.url()));
  const server = await open();
  await choose(page, videos.motion);
  await done(page, "motion.mp4");
  expect(addresses.filter((address) => !/^(blob:|data:)/.test(address) && !address.startsWith(server.url))).toEqual([]);
  expect(complaints).toEqual([]);
});

test("the theme can be chosen and is kept", async ({ page, open }) => {
  await open();
  const ground = () => page.evaluate(() => getComputedStyle(document.body.parentElement!).backgroundColor);
  const light = await ground();
  const button = page.getByRole("button", { name: /^Theme/ });
  await button.click();
  await button.click();
  await expect(button).toHaveAccessibleName("Theme: dark");
  expect(await ground()).not.toBe(light);
  await page.reload();
  await expect(button).toHaveAccessibleName("Theme: dark");
});

test("a phone shows everything without scrolling sideways", async ({ page, open }) => {
  await page.setViewportSize({ width: 390, height: 844 });
  await open();
  const overflow = () => page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  expect(await overflow()).toBeLessThanOrEqual(0);
  await choose(page, videos.motion, videos.avi);
  await done(page, "motion.mp4");
  expect(await overflow()).toBeLessThanOrEqual(0);
  await expect(plot(page)).toBeVisible();
  expect(await findings(page)).toEqual([]);
});
