// What genai.mjs and openai.mjs have in common: a command comes as one line of JSON, and goes back as another.
import { createInterface } from "node:readline";

// What is under way; the command "leave" ends it.
const running = new Set();

// The milliseconds for which an SDK would have slept before it tried again: it does not wait for them.
const slept = [];
const wait = globalThis.setTimeout;
globalThis.setTimeout = (call, delay, ...given) => {
  const isBetweenTries = /\/(sleep\.mjs|retry_operation\.js)/.test(new Error().stack);
  if (isBetweenTries) slept.push(delay);
  return wait(call, isBetweenTries ? 0 : delay, ...given);
};

// Reads a stream: all of it, with pauses, its beginning only, or until somebody leaves.
export async function read(stream, { most = Infinity, pausing = 0, stuck = false }, signal, pieces) {
  for await (const piece of stream) {
    pieces.push(piece);
    if (pieces.length >= most) break;
    if (stuck) await new Promise((resolve) => signal.addEventListener("abort", resolve));
    if (pausing) await new Promise((resolve) => wait(resolve, pausing));
  }
}

const describe = (error) => ({
  error: error.constructor.name,
  status: error.status ?? null,
  code: error.code ?? null,
  type: error.type ?? null,
  message: error.message,
  retryAfter: error.headers?.get?.("retry-after") ?? null,
});

// Runs commands until there are no more; a function gets what is given, where to put pieces, and a signal.
export function serve(commands) {
  createInterface({ input: process.stdin }).on("line", async (line) => {
    const { id, name, ...given } = JSON.parse(line);
    if (name === "leave") {
      for (const each of running) each.abort();
      return;
    }
    const controller = new AbortController();
    running.add(controller);
    const pieces = [];
    slept.length = 0;
    let told;
    try {
      told = { value: (await commands[name](given, pieces, controller.signal)) ?? null };
    } catch (error) {
      told = describe(error);
    }
    running.delete(controller);
    console.log(JSON.stringify({ id, ...told, pieces, slept: [...slept] }));
  });
}
