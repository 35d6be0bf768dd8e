// The dashboard: shows what the public API says, and follows its events to know when to look again.
// Every text goes into the page as text, never as markup: messages may hold anything.

const TOKEN_KEY = "vm-agent-token";
/** Events shown, newest first. */
const EVENTS_SHOWN = 30;
/** Accepted files shown, newest first. */
const REVISIONS_SHOWN = 10;
/** Changes come in bursts: look again at most this often, in milliseconds. */
const REFRESH_PAUSE = 300;
/** Some things change without an event, such as the health of a service: look again this often, in milliseconds. */
const REFRESH_EVERY = 10_000;
/** Ages and remaining times are told to the second, in milliseconds. */
const TICK_EVERY = 1000;
/** The controller says every 15 s that it lives; after three times that, in milliseconds, it is gone. */
const SILENCE_LIMIT = 45_000;
/** Longest wait between two attempts to connect, in milliseconds. */
const RETRY_MAX = 15_000;

const byId = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

// ---------------------------------------------------------------- elements

const present = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined);

/** An element with these attributes and children. Texts become text nodes. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...present(children));
  return made;
}

/** Gives an element these children, and touches only what differs: what a person has selected stays so. */
function fill(parent, ...children) {
  const wanted = present(children).map((child) => (typeof child === "string" ? new Text(child) : child));
  wanted.forEach((child, index) => {
    const old = parent.childNodes[index];
    if (old) mend(old, child);
    else parent.append(child);
  });
  while (parent.childNodes.length > wanted.length) parent.lastChild.remove();
}

/** Makes a node of the page like another one, or puts that in its place. */
function mend(old, wanted) {
  if (old.nodeName !== wanted.nodeName) {
    old.replaceWith(wanted);
  } else if (old instanceof Text) {
    if (old.data !== wanted.data) old.data = wanted.data;
  } else if (!old.isEqualNode(wanted)) {
    for (const name of old.getAttributeNames()) if (!wanted.hasAttribute(name)) old.removeAttribute(name);
    for (const name of wanted.getAttributeNames()) {
      if (old.getAttribute(name) !== wanted.getAttribute(name)) old.setAttribute(name, wanted.getAttribute(name));
    }
    fill(old, [...wanted.childNodes]);
  }
}

const quiet = (...content) => element("div", { class: "quiet" }, content);
const code = (text) => element("code", {}, text);
/** A command to type. It stays in one piece, so that it can be copied. */
const command = (text) => element("code", { class: "command" }, text);
/** What a cell shows that has nothing to say. */
const NONE = "–";
const list = (items) => (items.length ? element("ul", {}, items.map((item) => element("li", {}, item))) : NONE);
const mark = (word) => element("span", { class: "mark" }, word);

/** A state as a word with a colour: the colour adds to the word, it does not replace it. */
const state = (word, tone = "calm") => element("span", { class: `state ${tone}` }, word);

const SYNC_TONES = { Synced: "good", Reconciling: "busy", Drifted: "warn", Blocked: "bad", Unknown: "warn" };
const HEALTH_TONES = { Healthy: "good", Starting: "busy", Degraded: "warn", Offline: "bad", Failed: "bad", Unknown: "warn" };
const SERVICE_TONES = { running: "good", starting: "busy", failing: "bad" };

/** A row of a table: a heading, and cells that say what they are where the table's own headings can't be seen. */
function row(heading, ...cells) {
  return element("tr", { role: "row" }, element("th", { role: "rowheader", scope: "row" }, heading), cells);
}

function cell(label, ...content) {
  const about = content[0] === NONE ? { class: "none" } : {};
  return element("td", { role: "cell", "data-label": label, ...about }, element("div", {}, content));
}

function fact(name, ...content) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, content));
}

// ---------------------------------------------------------------- time

/** How long something is, in one unit. */
function duration(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} d`;
}

/** How long something still is, in two units: to the second in its last hour. */
function remaining(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  const [minutes, hours, days] = [60, 3600, 86_400].map((unit) => Math.floor(seconds / unit));
  if (days > 0) return `${days} d ${hours % 24} h`;
  if (hours > 0) return `${hours} h ${minutes % 60} min`;
  return minutes > 0 ? `${minutes} min ${seconds % 60} s` : `${seconds} s`;
}

/** Times that are told by how far off they are, in milliseconds. */
const DISTANCES = {
  distance: (ahead) => (ahead > 0 ? `in ${duration(ahead)}` : `${duration(-ahead)} ago`),
  left: (ahead) => `${remaining(ahead)} left`,
};

const local = (timestamp) => new Date(timestamp).toLocaleString();
const told = (how, timestamp) => DISTANCES[how](Date.parse(timestamp) - Date.now());

/** A time as far off as it is, which goes on by itself, with the exact time on hover. */
function ticking(how, timestamp) {
  return element("time", { datetime: timestamp, title: local(timestamp), "data-ticks": how }, told(how, timestamp));
}

const moment = (timestamp) => ticking("distance", timestamp);
const timeLeft = (timestamp, otherwise) => (timestamp ? ticking("left", timestamp) : otherwise);
const clock = (timestamp) => element("time", { datetime: timestamp, title: timestamp }, local(timestamp));

function tick() {
  for (const time of document.querySelectorAll("time[data-ticks]")) {
    const text = told(time.dataset.ticks, time.dateTime);
    if (time.textContent !== text) time.textContent = text;
  }
}

// ---------------------------------------------------------------- words

const SIZES = [["G", 2 ** 30], ["M", 2 ** 20], ["K", 2 ** 10], ["", 1]];

/** The shortest exact spelling of a size, as a fleet file has it. */
function size(bytes) {
  const [letter, unit] = SIZES.find(([, unit]) => bytes >= unit && bytes % unit === 0) ?? SIZES.at(-1);
  return `${bytes / unit}${letter}`;
}

/** A size where the last byte does not matter. */
function rounded(bytes) {
  const [letter, unit] = SIZES.find(([, unit]) => bytes >= unit) ?? SIZES.at(-1);
  return `${Number((bytes / unit).toFixed(1))}${letter}`;
}

const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function folders(mounts) {
  const one = ([target, { source, writable }]) => `${source} at ${target}${writable ? ", writable" : ""}`;
  return Object.entries(mounts).map(one).join("; ") || "none";
}

/** A value of a drift. Sizes come in bytes. */
function value(path, raw) {
  if (raw === null || raw === undefined) return "nothing";
  if (typeof raw === "number" && /^(memory|disk)$/.test(path)) return size(raw);
  if (path === "mounts" && typeof raw === "object") return folders(raw);
  if (Array.isArray(raw)) return raw.join("; ");
  return typeof raw === "string" ? raw : JSON.stringify(raw);
}

/** What differs: the value seen, and the one wanted. */
function values({ path, observed, wanted }) {
  // The marks by which configurations are told apart tell people nothing.
  if (path === "env") return [observed === null ? "nothing" : "an earlier one", "the one wanted"];
  return [value(path, observed), value(path, wanted)];
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

function drift(difference) {
  const { path, cost, policy } = difference;
  const left = policy === "warn" ? [" ", element("span", { class: "warn" }, "left as it is: drift says warn")] : null;
  const takes = element("span", { class: "quiet" }, `(${COSTS[cost] ?? cost})`);
  return [code(path), `: ${values(difference).join(" → ")} `, takes, left];
}

const UNTIL = { started: "started", healthy: "Healthy", completed: "done with its tasks" };
const RESOURCES = { cpus: "processors" };

/** What something waits for, as a sentence. */
const WAITS = {
  earlierStep: () => "the step before it",
  operation: ({ action }) => `a ${action} that is under way`,
  dependency: ({ agent, until }) => `agent ${agent}, which is not ${UNTIL[until] ?? until} yet`,
  drain: ({ tasks }) => [String(tasks), tasks === 1 ? " task" : " tasks", " under way in it, to end first"],
  window: ({ opens }) => (opens
    ? ["the next window for disruptive steps, at ", clock(opens), ", ", moment(opens)]
    : "a window for disruptive steps, and none opens any more"),
  capacity: ({ resource, needs, free }) => {
    const amount = resource === "cpus" ? String : rounded;
    return `room on the host: it needs ${amount(needs)} of ${RESOURCES[resource] ?? resource}, and ${amount(free)} is free`;
  },
  lane: ({ driver }) => `a free place in the lane of driver ${driver}`,
  backoff: ({ until, failures, last }) => [
    "the next attempt ", moment(until), ` after ${counted(failures, "failure")}; the last: ${last}`,
  ],
  approval: ({ id }) => ["an approval: ", command(`vm-agent approve ${short(id)}`)],
  paused: ({ fleet }) => `somebody to resume the ${fleet ? "fleet" : "agent"}, which is paused`,
  fuse: () => "the fuse, which is blown: too many agents failed at once",
  driver: ({ driver, since, reason }) => [`driver ${driver}, which has not answered since `, clock(since), `: ${reason}`],
  noDriver: () =>
    "a driver: multipass and qemu are not installed; install one, or write driver: local for processes without isolation",
  driverMissing: ({ driver }) => `driver ${driver}, which this controller does not have`,
  unsupported: ({ what }) => `another driver, or no such wish: its driver can't ${what}`,
  protected: () => "the end of its protection: protect: true refuses every deletion",
  pruneNever: (_, name) => ["a person: with prune: never it is not deleted; use ", command(`vm-agent destroy ${name}`)],
  foreignInstance: ({ instance }) => [
    `somebody to rename or delete instance ${instance}, which has this agent's name and is not ours, or to take it over: `,
    command(`vm-agent import ${instance}`),
  ],
  tombstone: ({ instance }) => [
    `somebody to free the name of the deleted instance ${instance}: `,
    command(`multipass recover ${instance}`),
    " brings it back, ",
    command(`multipass delete --purge ${instance}`),
    " deletes it for good",
  ],
  proof: () => "proof that the instance is ours: its runtime has never said so",
  snapshot: (it) => [`snapshot ${it.name} of agent ${it.agent}, which is being taken`],
  clone: (it) => [`the machine of agent ${it.agent}, which is being made as a copy of it`],
  restartPolicy: (_, name) => ["a person to start it, as its restart policy says: ", command(`vm-agent start ${name}`)],
  transition: ({ state }) => `the instance, which is ${state}`,
  unknownState: () => "the instance's state to become known",
  runtime: () => "the runtime to connect",
  taskRunning: ({ task }) => `task ${task}, which is running`,
  taskFailed: ({ task, outcome, next }) => [
    `somebody to look at task ${task}, which ${outcome}; it runs again `,
    next ? moment(next) : "when its text changes, or when it is replayed",
  ],
  problem: ({ what }) => `somebody to look at it: ${what}`,
};

function waiting(reason, name) {
  const sentence = WAITS[reason.on];
  if (sentence) return sentence(reason, name);
  // A newer controller may wait for things that this page has no sentence for.
  const { on, ...fields } = reason;
  return Object.keys(fields).length ? `${on} ${JSON.stringify(fields)}` : on;
}

/** As much of an id as tells it apart. */
const short = (id) => id.slice(0, 12);

/** What an override says, and what of the file it covers. */
function override({ path, value: said, author, reason, expiresAt }) {
  const byHand = said === "absent" ? "destroyed by hand" : "made by hand";
  const change = path === "presence" ? byHand : `${path}: ${said.wanted} (covers ${said.covers})`;
  return quiet(`${change} by ${author}, `, timeLeft(expiresAt, "until cleared"), reason ? `: ${reason}` : null);
}

/** Why a machine is down although it should run. */
const RESTS = {
  idle: () => "it is idle, and starts when there is work",
  aged: (name) => ["its time to live is over: ", command(`vm-agent start ${name}`)],
};

// ---------------------------------------------------------------- the agents

function service([name, { state: word, restarts, problem }]) {
  const again = restarts > 0 ? `, restarted ${counted(restarts, "time")}` : "";
  return quiet(code(name), " ", state(word, SERVICE_TONES[word]), again, problem ? `: ${problem}` : null);
}

function agentRow(agent) {
  const { name, overrides, rests, session } = agent;
  const services = Object.entries(session?.health?.services ?? {});
  const instance = agent.instance === null ? "no machine" : `machine ${agent.instance}`;
  return row(
    [
      name,
      overrides.length > 0 ? [" ", mark("Overridden")] : null,
      agent.paused ? [" ", mark("Paused")] : null,
      overrides.map(override),
      agent.power === null && agent.instance !== null ? quiet("Should not exist") : null,
    ],
    cell("Driver", agent.driver ?? "no driver", quiet(instance)),
    cell("Sync", state(agent.sync, SYNC_TONES[agent.sync])),
    cell(
      "Health",
      state(agent.health, HEALTH_TONES[agent.health]),
      rests ? quiet(RESTS[rests]?.(name) ?? rests) : null,
      services.map(service),
    ),
    cell("Drift", list(agent.drift.map(drift))),
    cell("Waits for", list(agent.waitsFor.map((reason) => waiting(reason, name)))),
    cell("Last seen", session ? moment(session.lastSeen) : NONE),
  );
}

function showAgents(agents, status) {
  byId("agents").hidden = agents.length === 0;
  fill(byId("agents").tBodies[0], agents.map(agentRow));
  const counts = Object.entries(status.sync).filter(([, count]) => count > 0);
  fill(byId("summary"), counts.map(([word, count]) => `${count} ${word}`).join(", "));
  byId("no-agents").hidden = agents.length > 0;
  fill(byId("no-agents"), status.file.revision === null
    ? [element("p", {}, "No fleet file has been accepted yet. Write one and apply it:"),
       element("pre", {}, code("vm-agent apply -f fleet.yaml"))]
    : [element("p", {}, "The fleet file declares no agent. Add one to it, or make one by hand:"),
       element("pre", {}, code("vm-agent create NAME"))]);
}

function showApprovals(approvals) {
  byId("approvals-section").hidden = approvals.length === 0;
  fill(byId("approvals").tBodies[0], approvals.map(({ id, agent, what }) =>
    row(agent ?? "the file", cell("What", what), cell("To say yes", command(`vm-agent approve ${short(id)}`)))));
}

// ---------------------------------------------------------------- the file

const FILE_STATES = {
  "in-force": ["In force", "good"],
  unwatched: ["Not watched", "calm"],
  invalid: ["Invalid", "bad"],
  missing: ["Missing", "bad"],
  held: ["Held", "warn"],
  guarded: ["Guarded", "warn"],
  "rolled-back": ["Rolled back", "warn"],
};

/** Up to this column a diagnostic has its line from the beginning, and of a longer one so much before its place. */
const SHOWN_FROM_START = 100;
const SHOWN_BEFORE = 60;

/** A line of the file with a caret under the place that is meant. Before the caret stands what stands above it,
 *  unseen: so it is as wide, whatever letters and tabs these are. */
function sourceLine({ line, column }, excerpt) {
  const before = column <= SHOWN_FROM_START ? column - 1 : SHOWN_BEFORE;
  const unseen = element("span", { class: "unseen" }, `${line} | `, [...excerpt].slice(0, before).join(""));
  const under = element("span", { "aria-hidden": "true" }, unseen, element("span", { class: "caret bad" }, "^"));
  return element("pre", {}, element("code", {}, `${line} | ${excerpt}\n`, under));
}

function diagnostic({ file, place, path, message, hint, excerpt }) {
  const where = place ? `${file}:${place.line}:${place.column}` : file;
  return element(
    "li",
    {},
    code(where),
    path ? [" ", code(path)] : null,
    `: ${message}`,
    place && excerpt ? sourceLine(place, excerpt) : null,
    hint ? quiet(`hint: ${hint}`) : null,
  );
}

/** Whether a condition of the fleet is about its file: the file's own words say why. */
const isOfFile = ({ type }) => type.startsWith("File");

function showFile({ roots, revision, appliedAt, author, state: word, message, diagnostics = [] }, conditions) {
  const [name, tone] = FILE_STATES[word] ?? [word, "warn"];
  const errors = `what is on the disk has ${counted(diagnostics.length, "error")}; the accepted file stays in force`;
  // The message has the first diagnostic only.
  fill(byId("file-state"), state(name, tone), `: ${diagnostics.length ? errors : message}`);
  const accepted = [appliedAt ? ["accepted ", moment(appliedAt)] : "accepted", author ? ` by ${author}` : null];
  fill(
    byId("file-facts"),
    revision === null ? null : [
      fact("From", roots.length ? roots.map((root) => element("div", {}, root)) : "stdin"),
      fact("Revision", String(revision), quiet(accepted)),
    ],
    conditions.filter(isOfFile).map(({ type, status, reason, lastTransitionTime }) =>
      fact(type, status, quiet(`${reason}, since `, clock(lastTransitionTime)))),
  );
  byId("diagnostics").hidden = diagnostics.length === 0;
  fill(byId("diagnostics"), diagnostics.map(diagnostic));
}

function showHistory(revisions) {
  byId("history-section").hidden = revisions.length === 0;
  fill(byId("history").tBodies[0], revisions.map(({ revision, at, author, current, summary }) => row(
    String(revision),
    cell("Accepted", moment(at)),
    cell("Author", author),
    cell("Summary", summary),
    cell("To go back", current ? state("In force", "good") : command(`vm-agent rollback ${revision}`)),
  )));
}

// ---------------------------------------------------------------- the controller

function fuseFact({ state: word, since, failed, of }) {
  if (word !== "blown") return fact("Fuse", state("Closed", "good"));
  return fact("Fuse", state("Blown", "bad"), quiet(`${failed} of ${of} agents had failed; since `, clock(since)));
}

function pauseFact({ author, reason, expiresAt }) {
  const about = [`by ${author}, `, timeLeft(expiresAt, "until resumed"), reason ? `: ${reason}` : null];
  return fact("Fleet", state("Paused", "warn"), quiet(about), quiet(command("vm-agent resume")));
}

function driverFact({ name, answering, problem, instances }) {
  const word = answering ? state("answers", "good") : state("does not answer", "bad");
  return fact(`Driver ${name}`, word, quiet(answering ? counted(instances, "instance") : problem ?? ""));
}

function showStatus(status) {
  fill(byId("fleet-name"), status.fleet);
  document.title = `${status.fleet} – VM Agent System`;
  fill(
    byId("facts"),
    fuseFact(status.fuse),
    status.paused ? pauseFact(status.paused) : null,
    status.drivers.map(driverFact),
    fact("Version", status.version, quiet("started ", moment(status.startedAt))),
  );
  const others = status.conditions.filter((condition) => !isOfFile(condition));
  fill(byId("conditions"), others.map(({ type, status: holds, message }) =>
    element("li", {}, element("strong", {}, `${type}: ${holds}`), ` ${message}`)));
  showFile(status.file, status.conditions);
}

/** A kind of event as words: `FileRejected` is "File rejected". */
const words = (kind) => kind.replace(/(?<!^)[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
const TROUBLE = /Failed|TimedOut|Interrupted|Lost|Rejected|Refused|Blown$/;

/** Adds an event on top of the list; the list remembers only the newest. */
function showEvent(event) {
  const line = element(
    "li",
    {},
    clock(event.at),
    element("span", { class: TROUBLE.test(event.kind) ? "kind bad" : "kind", title: event.kind }, words(event.kind)),
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
    /** The file in force when the history was shown. */
    this.revision = undefined;
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
        const [status, approvals, agents] = await Promise.all(["/status", "/approvals", "/agents"].map((path) => this.document(path)));
        // Accepted files stay as they are.
        const history = status.file.revision === this.revision ? null
          : await this.document(`/fleet/revisions?limit=${REVISIONS_SHOWN}`);
        if (this.ended.signal.aborted) return;
        showStatus(status);
        showApprovals(approvals.items);
        showAgents(agents.items, status);
        if (history) showHistory(history.items);
        this.revision = status.file.revision;
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
setInterval(() => { if (!document.hidden) tick(); }, TICK_EVERY);
document.addEventListener("visibilitychange", () => { if (!document.hidden) session?.look(); });

const kept = sessionStorage.getItem(TOKEN_KEY);
if (kept) signIn(kept);
else signOut();
