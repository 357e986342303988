// The try-it console in a real Chromium: what a new user does with it, and what it must never do.
//
// Against a server that runs, if ESHAAR_CONSOLE_URL (a fresh link, token included) and ESHAAR_URL name one; otherwise
// against one of its own. SCREENSHOTS names a directory for pictures of the page.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { join } from "node:path";
import { after, before, beforeEach, describe, test } from "node:test";
import { promisify } from "node:util";

import { chromium } from "playwright-core";

import { Server } from "../clients/node/server.mjs";

const BINARY = process.env.ESHAAR_BIN ?? new URL("../../target/debug/eshaar", import.meta.url).pathname;
const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"];
const WIDE = { width: 1280, height: 900 };
const NARROW = { width: 360, height: 740 };
const WAIT_MS = 10_000;

describe("the console", { concurrency: false, timeout: 120_000 }, () => {
  let server, browser, context, page, url;
  const complaints = [];

  before(async () => {
    url = process.env.ESHAAR_URL;
    let link = process.env.ESHAAR_CONSOLE_URL;
    if (!link) {
      server = await Server.start();
      url = server.url;
      const { stdout } = await promisify(execFile)(BINARY, ["console", "--data-dir", server.dataDir]);
      link = new URL(stdout.trim());
      link = `${url}${link.pathname}${link.search}`;
    }
    browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS });
    context = await browser.newContext({ viewport: WIDE });
    context.setDefaultTimeout(WAIT_MS);
    page = await context.newPage();
    page.on("console", (message) => {
      const complains = ["error", "warning"].includes(message.type());
      if (complains) complaints.push(`${message.text()} ${message.location().url}`);
    });
    page.on("pageerror", (error) => complaints.push(error.stack));
    page.on("requestfailed", (request) => {
      const { errorText } = request.failure();
      if (errorText !== "net::ERR_ABORTED") complaints.push(`${request.url()}: ${errorText}`); // aborted: by a reload
    });
    await page.goto(link);
    await page.waitForURL(`${url}/console`); // the token has left the address
  });

  after(async () => {
    await browser?.close();
    await server?.stop();
  });

  beforeEach(async () => {
    for (const name of ["A", "B"]) {
      await phone(name).getByLabel("Connected", { exact: true }).check();
      await phone(name).getByLabel("Acknowledge at once").check();
      await state(name, "Online");
    }
  });

  const phone = (name) => page.getByRole("region", { name: `Phone ${name}` });
  const state = (name, text) => phone(name).locator(".state", { hasText: text }).waitFor();
  const contents = (name) => phone(name).locator(".content").allTextContents();
  const message = (name, text) => phone(name).locator(".message", { hasText: text });
  const followed = (text) => page.locator("#timeline > li", { hasText: text });
  const reached = (text, step) => followed(text).locator(`li.done[data-step="${step}"]`).waitFor();

  async function send(name, text, priority = "Normal") {
    await page.getByText(`Phone ${name}`, { exact: true }).first().click();
    await page.getByLabel("Message", { exact: true }).fill(text);
    await page.getByLabel("Priority").selectOption(priority);
    await page.locator("#sender").getByRole("button", { name: "Send", exact: true }).click();
    await followed(text).waitFor();
    await page.locator('#outcome[data-kind="good"]').waitFor();
  }

  async function picture(name) {
    const directory = process.env.SCREENSHOTS;
    if (directory) await page.screenshot({ path: join(directory, `${name}.png`), fullPage: true });
  }

  test("is locked without a session, and says how to open it", async () => {
    const stranger = await browser.newContext();
    try {
      const tab = await stranger.newPage();
      const answer = await tab.goto(`${url}/console`);
      assert.equal(answer.status(), 401);
      await tab.getByText("eshaar serve").waitFor();
    } finally {
      await stranger.close();
    }
  });

  test("a message arrives, is delivered, and is read when it is opened", async () => {
    await picture("empty");
    await send("A", "رمز التحقق 4711");
    await message("A", "رمز التحقق 4711").waitFor();
    await reached("رمز التحقق 4711", "delivered");
    assert.deepEqual(await contents("B"), []);
    assert.equal(await phone("A").locator(".content").evaluate((node) => getComputedStyle(node).direction), "rtl");
    await message("A", "رمز التحقق 4711").click();
    await reached("رمز التحقق 4711", "read");
    await message("A", "رمز التحقق 4711").getByRole("img", { name: "read" }).waitFor();
  });

  test("what was sent while a phone was away arrives in order when it comes back", async () => {
    await phone("B").getByLabel("Connected", { exact: true }).uncheck();
    await state("B", "Offline");
    const sent = ["first of three", "second of three", "third of three"];
    for (const text of sent) await send("B", text);
    assert.deepEqual(await contents("B"), []);
    await phone("B").getByLabel("Connected", { exact: true }).check();
    for (const text of sent) await reached(text, "delivered");
    assert.deepEqual(await contents("B"), sent);
  });

  test("a message is delivered only once it is acknowledged", async () => {
    await phone("A").getByLabel("Acknowledge at once").uncheck();
    await send("A", "hold this one", "High");
    await message("A", "hold this one").waitFor();
    assert.equal(await followed("hold this one").locator('li.done[data-step="delivered"]').count(), 0);
    await phone("A").getByRole("button", { name: "Acknowledge 1" }).click();
    await reached("hold this one", "delivered");
    await phone("A").getByRole("button", { name: "Acknowledge", exact: true }).waitFor();
  });

  test("the same key again is the same message", async () => {
    await send("A", "only once");
    await message("A", "only once").waitFor();
    await page.getByRole("button", { name: "Repeat with same key" }).click();
    await page.locator("#outcome", { hasText: "still the one message" }).waitFor();
    await send("A", "the one after it");
    await message("A", "the one after it").waitFor();
    assert.equal(await message("A", "only once").count(), 1);
  });

  test("a phone keeps its messages and its place over a reload", async () => {
    const kept = await contents("B");
    assert.equal(kept.length, 3);
    await page.reload();
    await state("B", "Online");
    await send("B", "after the reload");
    await message("B", "after the reload").waitFor();
    assert.deepEqual(await contents("B"), [...kept, "after the reload"]);
    // one that an earlier connection brought can still be read
    await message("B", kept[0]).click();
    await message("B", kept[0]).getByRole("img", { name: "read" }).waitFor();
    const id = await phone("B").locator("li", { hasText: kept[0] }).getAttribute("data-id");
    const deadline = Date.now() + WAIT_MS;
    let status;
    do {
      status = (await (await context.request.get(`${url}/console/messages/${id}`)).json()).status;
    } while (status !== "read" && Date.now() < deadline);
    assert.equal(status, "read");
  });

  test("a flood is taken in steps: all of it arrives, in order", async () => {
    await phone("B").getByLabel("Connected", { exact: true }).uncheck();
    const texts = Array.from({ length: 60 }, (_, index) => `flood ${index}`);
    for (const text of texts) {
      const csrf = await page.locator('meta[name="csrf-token"]').getAttribute("content");
      const headers = { "x-csrf-token": csrf, "content-type": "application/json" };
      const data = { to: "+966500000002", type: "one_way", content: text, priority: "normal" };
      const answer = await context.request.post(`${url}/console/messages`, { headers, data });
      assert.equal(answer.status(), 202);
    }
    await phone("B").getByLabel("Connected", { exact: true }).check();
    await message("B", texts.at(-1)).waitFor();
    assert.deepEqual((await contents("B")).slice(-texts.length), texts);
    await state("B", "Online");
  });

  test("markup in a message is text", async () => {
    await send("A", "<img src=x onerror=alert(1)> 1 < 2");
    await message("A", "1").last().waitFor();
    assert.equal(await page.locator("img[src]").count(), 0);
  });

  test("what the API refuses is explained, and nothing is followed", async () => {
    const before = await page.locator("#timeline > li").count();
    await page.getByLabel("Message", { exact: true }).fill("never sent");
    await page.getByLabel("Lifetime").fill("999999999");
    await page.locator("#sender").getByRole("button", { name: "Send", exact: true }).click();
    await page.locator('#outcome[data-kind="bad"]', { hasText: "ttl_s" }).waitFor();
    assert.equal(await page.locator("#timeline > li").count(), before);
    await page.getByLabel("Lifetime").fill("");
    // Chromium logs every answer of status 400: this one was wanted
    const index = complaints.findIndex((text) => text.includes("400"));
    if (index >= 0) complaints.splice(index, 1);
  });

  test("it fits narrow and wide windows, in light and dark", async () => {
    for (const [width, viewport] of Object.entries({ narrow: NARROW, wide: WIDE })) {
      for (const colorScheme of ["light", "dark"]) {
        await page.setViewportSize(viewport);
        await page.emulateMedia({ colorScheme });
        await picture(`${width}-${colorScheme}`);
        const tooWide = await page.evaluate(() =>
          [...document.querySelectorAll("body, body *")]
            .filter((node) => node.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
            .map((node) => `${node.tagName}.${node.className}`),
        );
        assert.deepEqual(tooWide, [], `${width}, ${colorScheme}`);
        const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(overflow <= 0, `${width}, ${colorScheme}: ${overflow} px too wide`);
      }
    }
  });

  test("it breaks no rule of its own security policy, and logs no error", () => {
    assert.deepEqual(complaints, []);
  });
});
