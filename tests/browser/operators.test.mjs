// The console's pages for operators in a real Chromium: dead letters are listed, filtered, looked into, redriven and
// discarded, and the audit log says so. SCREENSHOTS names a directory for pictures of the pages.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { after, before, describe, test } from "node:test";

import { Server } from "../clients/node/server.mjs";
import { BINARY, Desk, WAIT_MS } from "./desk.mjs";

describe("the console's pages for operators", { concurrency: false, timeout: 120_000 }, () => {
  let server, desk, page;

  before(async () => {
    server = await Server.start();
    await server.pause();
    // What the stage archive cannot read: two records that say they are of `demo`, and one of `globex`.
    for (const [business, values] of [["demo", "garbage <b>one</b>\ngarbage two\n"], ["globex", "garbage three\n"]]) {
      const words = ["topics", "append", "message.status", "--key", "+966501234567", "--lines"];
      words.push("--header", `es-from=${business}`, "--data-dir", server.dataDir);
      execFileSync(BINARY, words, { input: values });
    }
    await server.resume();
    desk = await Desk.open(server);
    page = desk.page;
    await page.getByRole("link", { name: "Dead letters" }).click();
  });

  after(async () => {
    await desk?.close();
    await server?.stop();
  });

  const letters = () => page.locator("ol.letters > li");

  /** Reloads until the list has so many letters: the store follows the log, and a redrive is done in the background. */
  async function shows(count, query = "") {
    const deadline = Date.now() + WAIT_MS;
    do {
      await page.goto(`${server.url}/console/dead-letters${query}`);
    } while ((await letters().count()) !== count && Date.now() < deadline);
    assert.equal(await letters().count(), count, query);
  }

  test("a stranger sees nothing", async () => {
    const stranger = await desk.browser.newContext();
    try {
      const tab = await stranger.newPage();
      for (const path of ["/console/dead-letters", "/console/dead-letters/x", "/console/audit"]) {
        assert.equal((await tab.goto(`${server.url}${path}`)).status(), 401, path);
      }
      const answer = await stranger.request.post(`${server.url}/console/dead-letters/discard`, { form: { which: "all" } });
      assert.equal(answer.status(), 401);
    } finally {
      await stranger.close();
    }
  });

  test("they are listed, and narrowed by a filter", async () => {
    await shows(3);
    await page.getByLabel("Business").fill("globex");
    await page.getByRole("button", { name: "Filter" }).click();
    await letters().first().waitFor();
    assert.equal(await letters().count(), 1);
    await page.getByLabel("From").fill("yesterday");
    await page.getByRole("button", { name: "Filter" }).click();
    await page.getByRole("alert").filter({ hasText: "RFC 3339" }).waitFor();
    desk.complaints.splice(0); // Chromium logs the answer of status 400: it was wanted
    await shows(3);
    await desk.fits("letters");
  });

  test("one is looked into, its content as it is", async () => {
    await shows(2, "?business=demo");
    await letters().last().getByRole("link").click();
    await page.getByText("Cannot be decoded").waitFor();
    const base64 = await page.locator("pre.payload").textContent();
    assert.match(Buffer.from(base64.trim(), "base64").toString(), /^garbage/);
    await desk.fits("letter");
  });

  test("without the page's token nothing is done", async () => {
    for (const form of [{ which: "all" }, { which: "all", csrf: "AAAA" }]) {
      const answer = await desk.context.request.post(`${server.url}/console/dead-letters/discard`, { form });
      assert.equal(answer.status(), 403);
    }
    await shows(3);
  });

  test("nothing is done with none chosen", async () => {
    await page.getByRole("button", { name: "Redrive chosen" }).click();
    await page.getByRole("alert").filter({ hasText: "Choose some" }).waitFor();
    desk.complaints.splice(0);
  });

  test("one that is redriven dies again, with its count", async () => {
    await shows(1, "?business=globex");
    await letters().first().getByRole("checkbox").check();
    await page.getByRole("button", { name: "Redrive chosen" }).click();
    await page.waitForURL(/business=globex/);
    await shows(1, "?business=globex&state=redriven");
    await shows(1, "?business=globex");
    await letters().filter({ hasText: "redriven 1" }).waitFor();
    await page.locator('.tasks li[data-action="redrive"][data-finished="true"]', { hasText: "1 done" }).waitFor();
  });

  test("all that a filter names are discarded", async () => {
    await shows(2, "?business=demo");
    await page.getByText("All open ones that the filter names").click();
    await page.getByRole("button", { name: "Discard all of them" }).click();
    await shows(2, "?business=demo&state=discarded");
    assert.ok(await letters().first().getByRole("checkbox").isDisabled());
    await shows(1);
  });

  test("the audit log says who did what", async () => {
    await page.getByRole("link", { name: "Audit log" }).click();
    const actions = await letters().evaluateAll((entries) => entries.map((entry) => entry.dataset.action));
    assert.deepEqual(actions.slice(0, 5), [
      "dead_letters.discarded", "dead_letters.discard", "dead_letters.redriven", "dead_letters.redrive",
      "dead_letters.show",
    ]);
    await desk.fits("audit");
  });

  test("they break no rule of their own security policy, and log no error", () => {
    assert.deepEqual(desk.complaints, []);
  });
});
