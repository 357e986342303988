// What the tests of the console's pages share: a Chromium with a session, what it complains of, and pictures.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";

import { chromium } from "playwright-core";

export const BINARY = process.env.ESHAAR_BIN ?? new URL("../../target/debug/eshaar", import.meta.url).pathname;
/** Longest wait for the page to be as it should. */
export const WAIT_MS = 10_000;

const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"];
const WIDE = { width: 1280, height: 900 };
const NARROW = { width: 360, height: 740 };

/** A browser at the console of a server. */
export class Desk {
  /** What the page logged as an error or a warning. */
  complaints = [];

  static async open(server) {
    const desk = new Desk();
    try {
      await desk.#begin(server);
    } catch (error) {
      await desk.close(); // a browser that is left would keep the tests from ending
      throw error;
    }
    return desk;
  }

  async #begin(server) {
    const { stdout } = await promisify(execFile)(BINARY, ["console", "--data-dir", server.dataDir]);
    const link = new URL(stdout.trim());
    this.browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS });
    this.context = await this.browser.newContext({ viewport: WIDE });
    this.context.setDefaultTimeout(WAIT_MS);
    this.page = await this.context.newPage();
    this.page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) this.complaints.push(message.text());
    });
    this.page.on("pageerror", (error) => this.complaints.push(error.stack));
    await this.page.goto(`${server.url}${link.pathname}${link.search}`);
  }

  /** Fails where the page is wider than a window, narrow or wide, light or dark. SCREENSHOTS names a directory for pictures. */
  async fits(name) {
    const directory = process.env.SCREENSHOTS;
    for (const [width, viewport] of Object.entries({ narrow: NARROW, wide: WIDE })) {
      for (const colorScheme of ["light", "dark"]) {
        await this.page.setViewportSize(viewport);
        await this.page.emulateMedia({ colorScheme });
        if (directory) {
          await this.page.screenshot({ path: join(directory, `${name}-${width}-${colorScheme}.png`), fullPage: true });
        }
        const overflow = await this.page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(overflow <= 0, `${name}, ${width}, ${colorScheme}: ${overflow} px too wide`);
      }
    }
    await this.page.setViewportSize(WIDE);
  }

  async close() {
    await this.browser?.close();
  }
}
