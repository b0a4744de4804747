// Shows the frames that the gateway sends. Whatever comes from names is set as text, never as markup.

const METRICS = {
  rpm: "requests a minute", rpd: "requests a day", tpm: "tokens a minute", tpd: "tokens a day",
};
const TILES = {
  calls: "calls", failed: "failed", limited: "429s", waiting: "waiting now",
  input_tokens: "tokens in", output_tokens: "tokens out", usable: "keys usable",
};
const RETRY_MS = [250, 1000, 2000, 5000];
const LOOK_MS = 5000;
const STALE_MS = 15000;

const $ = (id) => document.getElementById(id);
const numbers = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

let source = null;
let last = null; // the last frame that had the keys
let heard = 0; // when a frame came
let retry = 0; // a timer
let tries = 0; // how often it was tried in vain

function make(tag, classes = "", text = "") {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  node.textContent = text;
  return node;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function show(node, is) {
  if (node.hidden === is) node.hidden = !is;
}

function span(seconds) {
  if (seconds === null) return "good";
  if (seconds < 100) return `${Math.ceil(seconds)}\u00a0s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)}\u00a0min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)}\u00a0h` : `${Math.round(seconds / 86400)}\u00a0days`;
}

// Keep one node for each item, so that the focus stays where it is while numbers change.
function reconcile(parent, known, items, name, create) {
  const present = new Set();
  items.forEach((item, place) => {
    const key = name(item);
    present.add(key);
    if (!known.has(key)) known.set(key, create(item));
    const view = known.get(key);
    if (parent.children[place] !== view.node) parent.insertBefore(view.node, parent.children[place] ?? null);
    view.update(item);
  });
  for (const [key, view] of known) {
    if (!present.has(key)) {
      view.node.remove();
      known.delete(key);
    }
  }
}

// --- asking the gateway ---------------------------------------------------------------------------------

async function ask(verb, path, body) {
  const headers = { "x-llm-router-page": "1" };
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await fetch(path, {
    method: verb, headers, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store",
  });
  const found = await answer.json().catch(() => ({}));
  if (answer.ok) return found;
  const error = new Error(found.error?.message ?? `The gateway answered ${answer.status}.`);
  error.status = answer.status;
  throw error;
}

async function change(what, row, model, reason) {
  const name = model === null ? row.key_id : `${model} on ${row.project || row.key_id}`;
  try {
    const body = { key_id: row.key_id, model };
    if (reason) body.reason = reason;
    await ask("POST", `/page/keys/${what}`, body);
    tell(`${{ disable: "Disabled", enable: "Enabled", lift: "Lifted" }[what]}: ${name}`);
  } catch (error) {
    if (error.status === 401) return begin();
    tell(`${name}: ${error.message ?? error}`, true);
  }
}

let said = 0;
function tell(text, isBad = false) {
  const node = $("said");
  node.classList.toggle("bad", isBad);
  say(node, text);
  show(node, true);
  clearTimeout(said);
  said = setTimeout(() => show(node, false), 10000);
}

function askReason(row, model) {
  const name = model === null ? `the key ${row.key_id}` : `${model} in the project of ${row.key_id}`;
  say($("ask-title"), `Disable ${name}?`);
  say($("ask-text"), "No process that shares the store will use it until it is enabled again.");
  $("reason").value = "";
  const dialog = $("ask");
  $("ask-form").onsubmit = (event) => {
    event.preventDefault();
    dialog.close();
    change("disable", row, model, $("reason").value.trim());
  };
  dialog.showModal();
}

// --- keys and quotas ------------------------------------------------------------------------------------

function stateOf(row) {
  if (row.disabled) return [row.reason ?? "disabled", "warn"];
  if (!row.active) return ["inactive", "muted"];
  if (row.quarantined) {
    const again = row.cooldown_remaining === null ? "" : `, tried again in ${span(row.cooldown_remaining)}`;
    return [`quarantined${again}: ${row.reason}`, "bad"];
  }
  if (row.in_cooldown) return [`cools down for ${span(row.cooldown_remaining)}: ${row.reason}`, "warn"];
  if (row.spent.length) {
    const room = row.room_in === null ? "for good" : `room in ${span(row.room_in)}`;
    return [`${row.spent.join(", ")} spent, ${room}`, "warn"];
  }
  if (row.state === "paced") return [`paced for ${span(row.usable_in_seconds)}: ${row.reason}`, "warn"];
  return ["ready", "good"];
}

function cannotBeUsed(row) {
  return row.disabled || row.in_cooldown || row.spent.length > 0 || row.state === "paced";
}

function timeOf(at) {
  return new Date(at * 1000).toLocaleTimeString([], { hour12: false });
}

function quotaView([metric]) {
  const node = make("div", "quota");
  const words = make("div", "words");
  const [name, count] = [make("span", "", metric), make("span")];
  const track = make("div", "track");
  const fill = make("div", "fill");
  track.append(fill);
  const about = make("div", "muted");
  words.append(name, count, track, about);
  node.append(words);
  track.setAttribute("role", "meter");
  track.setAttribute("aria-label", METRICS[metric] ?? metric);
  track.setAttribute("aria-valuemin", "0");
  function update([, limit]) {
    const most = limit.limit;
    const full = limit.full_until !== null;
    const share = full ? 1 : most === null ? 0 : most === 0 ? 1 : Math.min(limit.used / most, 1);
    const since = limit.counted_since === null ? "" : `, counted since ${timeOf(limit.counted_since)} only`;
    const text = `${full ? "full, counted " : since ? "at least " : ""}${numbers.format(limit.used)} of ${most === null ? "no known limit" : numbers.format(most)}`;
    say(count, text);
    fill.style.width = `${100 * share}%`;
    fill.className = `fill${share >= 1 ? " full" : share >= 0.8 ? " high" : ""}`;
    track.setAttribute("aria-valuemax", String(most ?? Math.max(limit.used, 1)));
    track.setAttribute("aria-valuenow", String(most === null ? limit.used : Math.min(limit.used, most)));
    track.setAttribute("aria-valuetext", text);
    const instead = limit.source !== "configured" && limit.configured ? `, configured ${limit.configured}` : "";
    const back = limit.used > 0 && limit.resets_in > 0 ? `, back in ${span(limit.resets_in)}` : "";
    say(about, `${limit.source}${instead}${back}${since}`);
  }
  return { node, update };
}

function button(text, label, press) {
  const node = make("button", "", text);
  node.type = "button";
  node.setAttribute("aria-label", label);
  node.addEventListener("click", press);
  return node;
}

function buttonsView(parent, model, name) {
  let row = null;
  const buttons = {
    Lift: button("Lift", `Lift what keeps ${name} out of use`, () => press("lift")),
    Enable: button("Enable", `Enable ${name}`, () => press("enable")),
    Disable: button("Disable", `Disable ${name}`, () => askReason(row, model)),
  };
  parent.append(...Object.values(buttons));
  async function press(what) {
    await change(what, row, model);
  }
  return (now, offered) => {
    row = now;
    const focused = Object.values(buttons).find((node) => document.activeElement === node);
    for (const [each, node] of Object.entries(buttons)) show(node, offered.includes(each));
    if (focused?.hidden) parent.querySelector("button:not([hidden])")?.focus();
  };
}

function modelView(first) {
  const node = make("li");
  const name = make("div");
  const workload = make("div", "muted");
  name.append(make("strong", "", first.model), workload);
  const state = make("div");
  const quotas = make("div", "quotas");
  const buttons = make("div", "buttons");
  node.append(name, state, quotas, buttons);
  const known = new Map();
  const offer = buttonsView(buttons, first.model, `${first.model} on ${first.key_id}`);
  function update(row) {
    say(workload, row.workload);
    const [words, tone] = stateOf(row);
    say(state, words);
    state.className = `state ${tone}`;
    reconcile(quotas, known, Object.entries(row.limits), ([metric]) => metric, quotaView);
    const offered = [];
    if (row.disabled && row.scope === "model") offered.push("Enable");
    if (!row.disabled && row.in_cooldown && row.scope !== "key" && row.scope !== "project") offered.push("Lift");
    if (!row.disabled) offered.push("Disable");
    offer(row, offered);
  }
  return { node, update };
}

function keyView([first]) {
  const node = make("article");
  const title = make("div", "title");
  const name = make("h3", "", first.key_id);
  const project = make("p", "muted");
  const buttons = make("div", "buttons");
  const models = make("ul", "models");
  title.append(name, project, buttons);
  node.append(title, models);
  node.setAttribute("aria-label", `key ${first.key_id}`);
  const known = new Map();
  const offer = buttonsView(buttons, null, `key ${first.key_id}`);
  function update(rows) {
    const [row] = rows;
    say(project, `project ${row.project}${row.provider === "gemini" ? "" : `, ${row.provider}`}`);
    const isDisabled = rows.some((each) => each.disabled && each.scope === "key");
    const isOut = rows.some((each) => !each.disabled && each.in_cooldown && each.scope !== "model");
    offer(row, [...(isOut ? ["Lift"] : []), isDisabled ? "Enable" : "Disable"]);
    reconcile(models, known, rows, (each) => each.model, modelView);
  }
  return { node, update };
}

const keyViews = new Map();

function showKeys() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const only = $("only").checked;
  const rows = last.keys.filter((row) => {
    const text = `${row.key_id} ${row.project} ${row.model} ${row.workload}`.toLowerCase();
    return words.every((word) => text.includes(word)) && (!only || cannotBeUsed(row));
  });
  const byKey = new Map();
  for (const row of rows) {
    const name = JSON.stringify([row.provider, row.key_id]);
    if (!byKey.has(name)) byKey.set(name, []);
    byKey.get(name).push(row);
  }
  const nameOf = ([row]) => JSON.stringify([row.provider, row.key_id]);
  reconcile($("keys"), keyViews, [...byKey.values()], nameOf, keyView);
  const total = last.keys.length + last.not_shown;
  say($("shown"), rows.length === total ? `${total} key × model` : `${rows.length} of ${total} key × model`);
}

// --- what has happened ----------------------------------------------------------------------------------

const tiles = {};

function showRates(frame) {
  const counts = last?.counts;
  const usable = counts ? `${counts.usable} of ${counts.active}` : "–";
  const found = { ...frame.rates, waiting: frame.waiting, usable };
  for (const [name, title] of Object.entries(TILES)) {
    if (!tiles[name]) {
      const tile = make("div");
      tiles[name] = make("dd");
      tile.append(make("dt", "", title), tiles[name]);
      $("rates").append(tile);
    }
    const value = found[name];
    say(tiles[name], typeof value === "number" ? numbers.format(value) : value);
    tiles[name].className = (name === "failed" || name === "limited") && value > 0 ? "bad" : "";
  }
  say($("whose"), frame.process === null ? "" : `of process ${frame.process}; each counts its own`);
  showHistory(frame.rates.history);
}

function showHistory(history) {
  const svg = $("history");
  const most = Math.max(...history, 1);
  history.forEach((calls, place) => {
    let bar = svg.children[place];
    if (!bar) {
      bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      bar.setAttribute("x", place + 0.1);
      bar.setAttribute("width", 0.8);
      bar.setAttribute("fill", "currentColor");
      svg.append(bar);
    }
    const height = calls === 0 ? 0.4 : Math.max((20 * calls) / most, 1);
    bar.setAttribute("height", height);
    bar.setAttribute("y", 20 - height);
    bar.setAttribute("opacity", calls === 0 ? 0.25 : 1);
  });
}

const lineViews = new Map();

function groupView() {
  const node = make("li");
  const [count, about] = [make("strong"), make("span", "about")];
  node.append(count, about);
  function update(group) {
    say(count, numbers.format(group.count));
    const tenant = group.tenant ? `, tenant ${group.tenant}` : "";
    const workload = group.workload ? `workload ${group.workload}` : "any workload";
    say(about, `for ${group.reason}: ${workload}${tenant}; the longest for ${span(group.longest)}`);
  }
  return { node, update };
}

const decisionViews = new Map();

function decisionView(decision) {
  const node = make("li");
  const date = new Date(decision.at * 1000);
  const time = make("time", "", timeOf(decision.at));
  time.dateTime = date.toISOString();
  const tone = { good: "good", bad: "bad" }[decision.tone] ?? "";
  const what = make("span", tone);
  node.append(time, what, make("span", "about", decision.about));
  return { node, update: (now) => say(what, now.times > 1 ? `${now.what} (${now.times} times)` : now.what) };
}

function showFrame(frame) {
  heard = Date.now();
  tries = 0;
  if (frame.keys) last = frame;
  say($("link"), "live");
  $("link").className = "pill good";
  say($("setting"), frame.store);
  say($("trouble"), frame.trouble ? `The store is in trouble: ${frame.trouble}` : "");
  show($("trouble"), Boolean(frame.trouble));
  showRates(frame);
  reconcile($("line"), lineViews, frame.line, (each) => JSON.stringify([each.workload, each.tenant, each.reason]), groupView);
  show($("line-empty"), frame.line.length === 0);
  if (last) showKeys();
  reconcile($("decisions"), decisionViews, frame.decisions, (each) => each.number, decisionView);
  show($("decisions-empty"), frame.decisions.length === 0);
}

// --- connecting -----------------------------------------------------------------------------------------

function tryAgain() {
  say($("link"), "not connected");
  $("link").className = "pill bad";
  retry = setTimeout(begin, RETRY_MS[Math.min(tries, RETRY_MS.length - 1)]);
  tries += 1;
}

function close() {
  clearTimeout(retry);
  source?.close();
  source = null;
}

function watch() {
  close();
  heard = Date.now();
  source = new EventSource("/page/events");
  source.onmessage = (event) => showFrame(JSON.parse(event.data));
  source.onerror = () => {
    close();
    tryAgain(); // it may be that one has to sign in again
  };
}

function signIn(isNeeded) {
  if (isNeeded && last) return location.reload(); // nothing that was shown may stay
  show($("sign-in"), isNeeded);
  show($("view"), !isNeeded);
  if (isNeeded) {
    say($("link"), "signed out");
    $("link").className = "pill";
    say($("setting"), "");
    if ($("ask").open) $("ask").close();
    if (document.activeElement === document.body) $("token").focus();
  }
}

async function begin() {
  close();
  try {
    const session = await ask("GET", "/page/session");
    show($("sign-out"), session.needs_token && session.signed_in);
    signIn(!session.signed_in);
    if (session.signed_in && !document.hidden) watch();
  } catch {
    tryAgain();
  }
}

$("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const error = $("sign-in-error");
  show(error, false);
  try {
    await ask("POST", "/page/session", { token: $("token").value.trim() });
    $("token").value = "";
    await begin();
    $("main").focus();
  } catch (problem) {
    say(error, problem.message ?? String(problem));
    show(error, true);
    $("token").select();
  }
});

$("sign-out").addEventListener("click", async () => {
  await ask("DELETE", "/page/session").catch((problem) => tell(problem.message, true));
  await begin();
});

$("ask-no").addEventListener("click", () => $("ask").close());
$("filter").addEventListener("input", () => last && showKeys());
$("only").addEventListener("change", () => last && showKeys());
document.addEventListener("visibilitychange", () => (document.hidden ? close() : begin()));
setInterval(() => {
  if (source && Date.now() - heard > STALE_MS) begin();
}, LOOK_MS);

begin();
