import { defineConfig } from "@playwright/test";

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  // A webcam that shows a test picture, and a person who allows it.
  "--use-fake-device-for-media-stream",
  "--use-fake-ui-for-media-stream",
];

export default defineConfig({
  testDir: "tests/page",
  projects: [
    { name: "stand-in", testIgnore: "server.spec.ts" },
    // Against the program that KINETOSCOPE names.
    ...(process.env["KINETOSCOPE"] ? [{ name: "server", testMatch: "server.spec.ts" }] : []),
  ],
  globalSetup: "./tests/page/setup.ts",
  fullyParallel: true,
  workers: 2,
  forbidOnly: true,
  // On a busy machine a browser may take its time.
  timeout: 60_000,
  expect: { timeout: 15_000 },
  retries: 2,
  reporter: "list",
  use: {
    browserName: "chromium",
    viewport: { width: 1440, height: 900 },
    launchOptions: { executablePath: process.env["CHROMIUM"] ?? "/usr/bin/chromium", args: FLAGS },
  },
});
