// The dashboard: shows what the public API says, and follows its events to know when to look again.
// Every text goes into the page as text, never as markup: messages may hold anything.

const TOKEN_KEY = "vm-agent-token";
/** Events shown, newest first. */
const EVENTS_SHOWN = 30;
/** Changes come in bursts: look again at most this often, in milliseconds. */
const REFRESH_PAUSE = 300;
/** Ages and remaining times change without an event: look again this often, in milliseconds. */
const REFRESH_EVERY = 10_000;
/** The controller says every 15 s that it lives; after three times that, in milliseconds, it is gone. */
const SILENCE_LIMIT = 45_000;
/** Longest wait between two attempts to connect, in milliseconds. */
const RETRY_MAX = 15_000;

const byId = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

// ---------------------------------------------------------------- elements

/** An element with these attributes and children. Texts become text nodes. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const quiet = (text) => element("div", { class: "quiet" }, text);
/** What a cell shows that has nothing to say. */
const NONE = "–";
const list = (items) => (items.length ? element("ul", {}, items.map((item) => element("li", {}, item))) : NONE);

/** A state as a word with a colour: the colour adds to the word, it does not replace it. */
function state(word, tones) {
  return element("span", { class: `state ${tones[word] ?? "calm"}` }, word);
}

const SYNC_TONES = { Synced: "good", Reconciling: "busy", Drifted: "warn", Blocked: "bad", Unknown: "warn" };
const HEALTH_TONES = { Healthy: "good", Starting: "busy", Degraded: "warn", Offline: "bad", Failed: "bad", Unknown: "warn" };

// ---------------------------------------------------------------- words

/** How long something is, in one unit. */
function duration(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} d`;
}

/** A moment relative to now, with the exact time on hover. */
function moment(timestamp) {
  const distance = Date.now() - Date.parse(timestamp);
  const text = distance >= 0 ? `${duration(distance)} ago` : `in ${duration(-distance)}`;
  return element("time", { datetime: timestamp, title: timestamp }, text);
}

const clock = (timestamp) =>
  element("time", { datetime: timestamp, title: timestamp }, new Date(timestamp).toLocaleString());

function size(bytes) {
  for (const [unit, letter] of [[2 ** 30, "G"], [2 ** 20, "M"], [2 ** 10, "K"]]) {
    if (bytes >= unit) return `${Number((bytes / unit).toFixed(1))}${letter}`;
  }
  return String(bytes);
}

/** A value of a drift. Sizes come in bytes. */
function value(path, raw) {
  if (raw === null || raw === undefined) return "nothing";
  if (typeof raw === "number" && /^(memory|disk)$/.test(path)) return size(raw);
  return typeof raw === "string" ? raw : JSON.stringify(raw);
}

const COSTS = {
  live: "in place",
  start: "starts the machine",
  stop: "stops the machine",
  restart: "needs a stop",
  create: "makes a machine",
  destroy: "deletes the machine and its data",
  replace: "deletes the machine and its data, and makes a new one",
  wait: "waits",
};

function drift({ path, observed, wanted, cost }) {
  return [
    element("code", {}, path),
    `: ${value(path, observed)} → ${value(path, wanted)} `,
    element("span", { class: "quiet" }, `(${COSTS[cost] ?? cost})`),
  ];
}

/** What something waits for, as a sentence. */
const WAITS = {
  earlierStep: () => "the step before it",
  operation: ({ action }) => `a ${action} that is under way`,
  dependency: ({ agent }) => `agent ${agent}, which is not Healthy yet`,
  lane: ({ driver }) => `a free place in the lane of driver ${driver}`,
  backoff: ({ until, failures, last }) => [
    "the next attempt ", moment(until), ` after ${failures} failure${failures === 1 ? "" : "s"}; the last: ${last}`,
  ],
  approval: ({ id }) => ["an approval: ", element("code", {}, `vm-agent approve ${id.slice(0, 12)}`)],
  paused: ({ fleet }) => `somebody to resume the ${fleet ? "fleet" : "agent"}, which is paused`,
  fuse: () => "the fuse, which is blown: too many agents failed at once",
  driver: ({ driver, since, reason }) => [`driver ${driver}, which has not answered since `, clock(since), `: ${reason}`],
  noDriver: () =>
    "a driver: multipass and qemu are not installed; install one, or write driver: local for processes without isolation",
  driverMissing: ({ driver }) => `driver ${driver}, which this controller does not have`,
  protected: () => "the end of its protection: protect: true refuses every deletion",
  pruneNever: (_, name) => ["a person: with prune: never it is not deleted; use ", element("code", {}, `vm-agent destroy ${name}`)],
  foreignInstance: ({ instance }) =>
    `somebody to rename or delete instance ${instance}, which has this agent's name and is not ours`,
  tombstone: ({ instance }) => `somebody to purge the deleted instance ${instance}, which still holds the name`,
  proof: () => "proof that the instance is ours: its runtime has never said so",
  restartPolicy: (_, name) => ["a person to start it, as its restart policy says: ", element("code", {}, `vm-agent start ${name}`)],
  transition: ({ state }) => `the instance, which is ${state}`,
  unknownState: () => "the instance's state to become known",
  runtime: () => "the runtime to connect",
  taskRunning: ({ task }) => `task ${task}, which is running`,
  taskFailed: ({ task, outcome }) =>
    `somebody to look at task ${task}, which ${outcome}; it runs again when its text changes`,
};

function waiting(reason, name) {
  const sentence = WAITS[reason.on];
  if (sentence) return sentence(reason, name);
  // A newer controller may wait for things that this page has no sentence for.
  const { on, ...fields } = reason;
  return Object.keys(fields).length ? `${on} ${JSON.stringify(fields)}` : on;
}

function override({ path, author, reason, expiresAt }) {
  const end = expiresAt ? [", ends ", moment(expiresAt)] : [", until cleared"];
  return element("div", { class: "quiet" }, `Overridden: ${path} by ${author}`, end, reason ? `: ${reason}` : null);
}

// ---------------------------------------------------------------- the page

function cell(label, ...content) {
  const about = content[0] === NONE ? { class: "none" } : {};
  return element("td", { role: "cell", "data-label": label, ...about }, element("div", {}, content));
}

function agentRow(agent) {
  const heading = element(
    "th",
    { role: "rowheader", scope: "row" },
    agent.name,
    agent.overrides.map(override),
    agent.power === null && agent.instance !== null ? quiet("Should not exist") : null,
  );
  const instance = agent.instance === null ? "no machine" : `machine ${agent.instance}`;
  return element(
    "tr",
    { role: "row" },
    heading,
    cell("Driver", agent.driver ?? "no driver", quiet(instance)),
    cell("Sync", state(agent.sync, SYNC_TONES)),
    cell("Health", state(agent.health, HEALTH_TONES)),
    cell("Drift", list(agent.drift.map(drift))),
    cell("Waits for", list(agent.waitsFor.map((reason) => waiting(reason, agent.name)))),
    cell("Last seen", agent.session ? moment(agent.session.lastSeen) : NONE),
  );
}

function showAgents(agents, status) {
  byId("agents").hidden = agents.length === 0;
  byId("agents").tBodies[0].replaceChildren(...agents.map(agentRow));
  const counts = Object.entries(status.sync).filter(([, count]) => count > 0);
  byId("summary").textContent = counts.map(([word, count]) => `${count} ${word}`).join(", ");
  byId("no-agents").hidden = agents.length > 0;
  byId("no-agents").replaceChildren(...(status.file.revision === null
    ? [element("p", {}, "No fleet file has been accepted yet. Write one and apply it:"),
       element("pre", {}, element("code", {}, "vm-agent apply -f fleet.yaml"))]
    : [element("p", {}, "The fleet file declares no agent. Add one to it, or make one by hand:"),
       element("pre", {}, element("code", {}, "vm-agent create NAME"))]));
}

function fact(name, ...content) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, content));
}

function fuseFact({ state: word, since, failed, of }) {
  if (word !== "blown") return fact("Fuse", state("Closed", { Closed: "good" }));
  return fact("Fuse", state("Blown", { Blown: "bad" }), quiet([`${failed} of ${of} agents had failed; since `, clock(since)]));
}

function driverFact({ name, answering, problem, instances }) {
  const word = answering ? "answers" : "does not answer";
  const about = answering ? `${instances} instance${instances === 1 ? "" : "s"}` : problem ?? "";
  return fact(`Driver ${name}`, state(word, { answers: "good", "does not answer": "bad" }), quiet(about));
}

function fileFact({ path, revision, appliedAt }) {
  if (revision === null) return fact("Fleet file", "none accepted yet");
  const accepted = appliedAt ? [`revision ${revision}, accepted `, moment(appliedAt)] : [`revision ${revision}`];
  return fact("Fleet file", path ?? "from stdin", element("div", { class: "quiet" }, accepted));
}

function showStatus(status) {
  byId("fleet-name").textContent = status.fleet;
  document.title = `${status.fleet} – VM Agent System`;
  byId("facts").replaceChildren(
    fuseFact(status.fuse),
    fileFact(status.file),
    ...status.drivers.map(driverFact),
    fact("Version", status.version, element("div", { class: "quiet" }, "started ", moment(status.startedAt))),
  );
  byId("conditions").replaceChildren(...status.conditions.map((condition) =>
    element("li", {}, element("strong", {}, `${condition.type}: ${condition.status}`), ` ${condition.message}`)));
}

/** Adds an event on top of the list; the list remembers only the newest. */
function showEvent(event) {
  const line = element(
    "li",
    {},
    clock(event.at),
    element("span", { class: "kind" }, event.kind),
    element("span", { class: "message" }, event.agent ? `${event.agent}: ` : "", event.message),
  );
  const events = byId("events");
  events.prepend(line);
  while (events.childElementCount > EVENTS_SHOWN) events.lastElementChild.remove();
  byId("no-events").hidden = true;
}

function connection(word, text) {
  const line = byId("connection");
  if (line.textContent === text) return;
  line.dataset.state = word;
  line.textContent = text;
}

// ---------------------------------------------------------------- the API

class Unauthorized extends Error {}

/** The session of one token: ends when it is refused or forgotten. */
class Session {
  constructor(token) {
    this.token = token;
    this.ended = new AbortController();
    this.lastEvent = null;
    this.live = false;
    this.looking = false;
    this.lookAgain = false;
  }

  async get(path, { headers = {}, signal = this.ended.signal } = {}) {
    const response = await fetch(path, { headers: { authorization: `Bearer ${this.token}`, ...headers }, signal });
    if (response.ok) return response;
    const problem = await response.json().catch(() => ({}));
    const text = [problem.reason ?? `the controller answered ${response.status}`, problem.remediation].filter(Boolean).join(". ");
    throw response.status === 401 ? new Unauthorized(text) : new Error(text);
  }

  async document(path) {
    const limit = AbortSignal.any([this.ended.signal, AbortSignal.timeout(SILENCE_LIMIT)]);
    return (await this.get(path, { signal: limit })).json();
  }

  /** Looks at the whole once, and once more if something changed meanwhile; never twice at a time. */
  async look() {
    this.lookAgain = true;
    if (this.looking) return;
    this.looking = true;
    try {
      while (this.lookAgain && !this.ended.signal.aborted) {
        this.lookAgain = false;
        const [status, agents] = await Promise.all([this.document("/status"), this.document("/agents")]);
        if (this.ended.signal.aborted) return;
        showStatus(status);
        showAgents(agents.items, status);
        byId("dashboard").hidden = false;
        if (this.live) connection("live", "Live");
        await pause(REFRESH_PAUSE);
      }
    } catch (error) {
      this.failed(error);
    } finally {
      this.looking = false;
    }
  }

  /** Follows the events until the session ends, coming back after every break. */
  async follow() {
    let retry = 1000;
    while (!this.ended.signal.aborted) {
      try {
        await this.listen(() => { retry = 1000; });
        connection("lost", "The controller closed the connection; trying again");
      } catch (error) {
        this.failed(error);
      }
      await pause(retry);
      retry = Math.min(retry * 2, RETRY_MAX);
    }
  }

  /** Follows the events over one connection. */
  async listen(connected) {
    const silence = new AbortController();
    let timer = setTimeout(() => silence.abort(), SILENCE_LIMIT);
    try {
      const headers = this.lastEvent === null ? {} : { "last-event-id": this.lastEvent };
      const signal = AbortSignal.any([this.ended.signal, silence.signal]);
      const response = await this.get(`/events?follow=true&limit=${EVENTS_SHOWN}`, { headers, signal });
      connected();
      this.live = true;
      connection("live", "Live");
      this.look();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { done, value: piece } = await reader.read();
        if (done) return;
        clearTimeout(timer);
        timer = setTimeout(() => silence.abort(), SILENCE_LIMIT);
        const messages = (text + piece).split("\n\n");
        text = messages.pop();
        messages.forEach((message) => this.heard(message));
      }
    } finally {
      this.live = false;
      clearTimeout(timer);
    }
  }

  /** One server-sent event. Comments only say that the controller lives. */
  heard(message) {
    const fields = message.split("\n").map((line) => /^(\w*): ?(.*)$/s.exec(line)).filter(Boolean);
    const field = (name) => fields.filter(([, key]) => key === name).map(([, , text]) => text).join("\n");
    if (!field("data")) return;
    this.lastEvent = field("id");
    showEvent(JSON.parse(field("data")));
    this.look();
  }

  failed(error) {
    if (this.ended.signal.aborted) return;
    if (error instanceof Unauthorized) signOut(error.message);
    else connection("lost", `Not connected, trying again: ${error.message}`);
  }
}

// ---------------------------------------------------------------- the token

let session = null;

function signIn(token) {
  sessionStorage.setItem(TOKEN_KEY, token);
  byId("sign-in").hidden = true;
  byId("sign-out").hidden = false;
  byId("events").replaceChildren();
  byId("no-events").hidden = false;
  connection("connecting", "Connecting");
  session = new Session(token);
  session.follow();
}

function signOut(problem = "") {
  session?.ended.abort();
  session = null;
  sessionStorage.removeItem(TOKEN_KEY);
  byId("dashboard").hidden = true;
  byId("sign-out").hidden = true;
  byId("sign-in").hidden = false;
  byId("sign-in-problem").textContent = problem;
  connection("none", "");
  byId("token").focus();
}

byId("sign-in-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  const token = byId("token").value.trim();
  byId("token").value = "";
  // A header carries visible ASCII only, and so does every token.
  if (/^[\x21-\x7e]+$/.test(token)) signIn(token);
  else byId("sign-in-problem").textContent = "This is not a token.";
});
byId("sign-out").addEventListener("click", () => signOut());
setInterval(() => { if (!document.hidden) session?.look(); }, REFRESH_EVERY);
document.addEventListener("visibilitychange", () => { if (!document.hidden) session?.look(); });

const kept = sessionStorage.getItem(TOKEN_KEY);
if (kept) signIn(kept);
else signOut();
