// The console's pages of conversations in a real Chromium: listed, filtered, read as a chat, archived and closed.
// SCREENSHOTS names a directory for pictures of the pages.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { Server } from "../clients/node/server.mjs";
import { Desk, WAIT_MS } from "./desk.mjs";
const [FIRST, SECOND] = ["+966500000011", "+966500000012"];
const HOSTILE = `1 < 2 & "quoted" 'x' {}`;
const TAGS = `<script>document.title = "taken"</script><img src="x" onerror="alert(1)">`;

describe("the console's pages of conversations", { concurrency: false, timeout: 120_000 }, () => {
  let server, desk, page;
  const conversations = {};

  async function call(credential, method, path, body) {
    const answer = await fetch(`${server.url}/v1${path}`, {
      method,
      headers: { authorization: `Bearer ${credential}`, "content-type": "application/json" },
      body: body && JSON.stringify(body),
    });
    assert.ok(answer.ok, `${path}: ${answer.status}`);
    return answer.json();
  }

  const say = (credential, conversation, content) =>
    call(credential, "POST", "/messages", { type: "chat", conversation_id: conversation, content });

  before(async () => {
    server = await Server.start();
    desk = await Desk.open(server);
    page = desk.page;
  });

  after(async () => {
    await desk?.close();
    await server?.stop();
  });

  const lines = () => page.locator("ol.conversations > li");
  const bubbles = () => page.locator("ol.chat > li:not(.empty)");

  /** Reloads until the page is as it should be: history follows the log. */
  async function eventually(path, what, isSo) {
    const deadline = Date.now() + WAIT_MS;
    do {
      await page.goto(`${server.url}/console/conversations${path}`);
      if (await isSo()) return;
    } while (Date.now() < deadline);
    assert.fail(`${path}: ${what} not after ${WAIT_MS} ms:\n${await page.locator("main").innerText()}`);
  }

  const shows = (query, ...ids) =>
    eventually(query, `shows ${ids}`, async () => {
      const shown = await lines().evaluateAll((all) => all.map((line) => line.dataset.id));
      return shown.join() === ids.join();
    });

  const has = (id, count) => eventually(`/${id}`, `has ${count}`, async () => (await bubbles().count()) === count);

  test("a stranger sees nothing, and changes nothing", async () => {
    const stranger = await desk.browser.newContext();
    try {
      const tab = await stranger.newPage();
      for (const path of ["", "/x"]) {
        assert.equal((await tab.goto(`${server.url}/console/conversations${path}`)).status(), 401, path);
      }
      const answer = await stranger.request.post(`${server.url}/console/conversations/x/close`, { form: { csrf: "x" } });
      assert.equal(answer.status(), 401);
    } finally {
      await stranger.close();
    }
  });

  test("before anything was said the page says what to do", async () => {
    await page.getByRole("link", { name: "Conversations" }).click();
    await page.getByText("No conversations yet").waitFor();
    await page.getByRole("main").getByRole("link", { name: "try-it page" }).waitFor();
  });

  test("conversations are listed, newest activity first, with what is unread", async () => {
    for (const phone of [FIRST, SECOND]) {
      conversations[phone] = (await call(server.demoKey, "POST", "/conversations", { with: phone })).id;
    }
    await say(server.demoKey, conversations[SECOND], "Good morning");
    const phone = server.token(FIRST);
    await say(phone, conversations[FIRST], "هل فُقدت بطاقتي؟");
    await say(phone, conversations[FIRST], TAGS + HOSTILE);
    await shows("", conversations[FIRST], conversations[SECOND]);
    await eventually("", "counts 2 unread", async () => (await lines().first().locator(".badge").allTextContents()).includes("2 unread"));
    assert.match(await lines().first().textContent(), /\+966500000011 active 2 unread/);
    await desk.fits("conversations");
  });

  test("one is shown as a chat, both sides, with what became of each message", async () => {
    await say(server.demoKey, conversations[FIRST], "It is not.");
    await has(conversations[FIRST], 3);
    const sides = await bubbles().evaluateAll((all) => all.map((one) => one.classList.contains("own")));
    assert.deepEqual(sides, [false, false, true]);
    assert.deepEqual(await bubbles().locator(".content").allTextContents(), ["هل فُقدت بطاقتي؟", TAGS + HOSTILE, "It is not."]);
    assert.deepEqual(await bubbles().locator(".status").allTextContents(), ["sent", "sent", "sent"]);
    assert.equal(await page.title(), "eshaar console");
    assert.equal(await page.locator("script, img").count(), 0, "what was said is text");
    await call(server.token(FIRST), "POST", `/conversations/${conversations[FIRST]}/read`, {});
    await call(server.demoKey, "POST", `/conversations/${conversations[FIRST]}/read`, {});
    await eventually(`/${conversations[FIRST]}`, "all are read", async () =>
      (await bubbles().locator(".status").allTextContents()).every((status) => status === "read"));
    await desk.fits("conversation");
  });

  test("a long one is read part by part", async () => {
    for (let number = 0; number < 60; number += 1) await say(server.demoKey, conversations[SECOND], `Number ${number}`);
    await has(conversations[SECOND], 50);
    await eventually(`/${conversations[SECOND]}`, "the last is there", async () => (await bubbles().last().innerText()).includes("Number 59"));
    await page.getByRole("link", { name: "Earlier messages" }).click();
    await bubbles().filter({ hasText: "Good morning" }).waitFor();
    assert.equal(await bubbles().count(), 11);
    await page.getByRole("link", { name: "Newest messages" }).click();
    await bubbles().filter({ hasText: "Number 59" }).waitFor();
  });

  test("without the page's token nothing is done", async () => {
    for (const action of ["archive", "close"]) {
      const path = `${server.url}/console/conversations/${conversations[FIRST]}/${action}`;
      assert.equal((await desk.context.request.post(path, { form: { csrf: "AAAA" } })).status(), 403);
    }
    await shows("?status=active", conversations[SECOND], conversations[FIRST]);
  });

  test("an archived one is under archived, until somebody writes in it", async () => {
    await page.goto(`${server.url}/console/conversations/${conversations[FIRST]}`);
    await page.getByRole("button", { name: "Archive" }).click();
    await page.locator("h2 .standing", { hasText: "archived" }).waitFor();
    assert.equal(await page.getByRole("button", { name: "Archive" }).count(), 0);
    await shows("?status=active", conversations[SECOND]);
    await page.getByLabel("Status").selectOption("archived");
    await page.getByRole("button", { name: "Filter" }).click();
    await page.waitForURL(/status=archived/);
    assert.equal(await lines().getAttribute("data-id"), conversations[FIRST]);
    await say(server.token(FIRST), conversations[FIRST], "One more thing");
    await shows("?status=active", conversations[FIRST], conversations[SECOND]);
  });

  test("a closed one is closed for good, after a second step", async () => {
    await page.goto(`${server.url}/console/conversations/${conversations[FIRST]}`);
    assert.ok(!(await page.getByRole("button", { name: "Close for good" }).isVisible()));
    await page.getByText("Close it for good").click();
    await page.getByRole("button", { name: "Close for good" }).click();
    await page.locator("h2 .standing", { hasText: "closed" }).waitFor();
    assert.equal(await page.getByRole("button").count(), 0);
    await shows("?status=closed", conversations[FIRST]);
    await shows("?status=active", conversations[SECOND]);
    await shows("?status=archived");
    await page.getByText("No conversation is archived").waitFor();
  });

  test("what there is not is said", async () => {
    assert.deepEqual(desk.complaints, []);
    const answer = await page.goto(`${server.url}/console/conversations/00000000-0000-7000-8000-000000000000`);
    assert.equal(answer.status(), 404);
    await page.getByRole("alert").filter({ hasText: "conversation_not_found" }).waitFor();
    for (const query of ["?status=lost", "?cursor=x"]) {
      assert.equal((await page.goto(`${server.url}/console/conversations${query}`)).status(), 400, query);
    }
  });
});
