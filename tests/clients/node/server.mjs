// A real `eshaar serve` on a temporary data directory and a free port.

import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { mkdtemp, open, readFile, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { setTimeout as sleep } from "node:timers/promises";

const BINARY =
  process.env.ESHAAR_BIN ?? fileURLToPath(new URL("../../../target/debug/eshaar", import.meta.url));
// Without `ESHAAR_…`, which would configure the server under test.
const ENVIRONMENT = Object.fromEntries(
  Object.entries(process.env).filter(([name]) => !name.startsWith("ESHAAR_")),
);
const START_LIMIT_MS = 20_000;

/** A port that was free a moment ago. */
function freePort() {
  return new Promise((resolve, reject) => {
    const probe = createServer().once("error", reject);
    probe.listen(0, "127.0.0.1", () => {
      const { port } = probe.address();
      probe.close(() => resolve(port));
    });
  });
}

export class Server {
  #process;

  /** Starts a server of its own and waits until it serves. */
  static async start(...settings) {
    const server = new Server();
    server.directory = await mkdtemp(join(tmpdir(), "eshaar-node-"));
    server.dataDir = join(server.directory, "data");
    server.port = await freePort();
    server.url = `http://127.0.0.1:${server.port}`;
    await server.#spawn(settings);
    server.demoKey = (await readFile(join(server.dataDir, "demo-key"), "utf8")).trim();
    const secret = await readFile(join(server.dataDir, "secrets", "jwt-secret"), "utf8");
    server.secret = secret.replace(/[\r\n]+$/, "");
    return server;
  }

  async #spawn(settings) {
    const log = await open(logOf(this), "a");
    const words = ["serve", "--data-dir", this.dataDir, "--listen", `127.0.0.1:${this.port}`];
    words.push(...settings.flatMap((setting) => ["--set", setting]));
    this.#process = spawn(BINARY, words, { stdio: ["ignore", log.fd, log.fd], env: ENVIRONMENT });
    await log.close();
    const deadline = Date.now() + START_LIMIT_MS;
    while (Date.now() < deadline) {
      if (this.#process.exitCode !== null) break;
      const answer = await fetch(`${this.url}/health`).catch(() => null);
      if (answer?.status === 200) return;
      await sleep(20);
    }
    throw new Error(`the server does not serve:\n${await readFile(logOf(this), "utf8")}`);
  }

  /** A mobile user's token: HS256, made here as a business's identity service would. */
  token(phone, ttlSeconds = 3600) {
    const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const claims = { sub: phone, exp: Math.floor(Date.now() / 1000) + ttlSeconds };
    const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part(claims)}`;
    return `${signed}.${createHmac("sha256", this.secret).update(signed).digest("base64url")}`;
  }

  /** Ends the process as an init system does. */
  async pause() {
    if (this.#process?.exitCode === null) {
      const ended = new Promise((resolve) => this.#process.once("exit", resolve));
      this.#process.kill("SIGTERM");
      await ended;
    }
  }

  /** Starts the process again, on the same data and port. */
  async resume(...settings) {
    await this.#spawn(settings);
  }

  /** Ends the process, and removes its data. */
  async stop() {
    await this.pause();
    await rm(this.directory, { recursive: true, force: true });
    return this.#process.exitCode;
  }
}

function logOf(server) {
  return join(server.directory, "server.log");
}
