// The status page: shows /status.json, then each event of /events. All text is set as text.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let token = "";
let operators = "none";
let interval = 6;
let samples = [];
const states = new Map();

// --- Figures as text ---

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const count = (n) => whole.format(n);
const rate = (n) => (n >= 100 ? whole.format(n) : n.toFixed(n >= 10 || n === 0 ? 0 : 1));
const percent = (n) => (n === null ? "–" : `${(100 * n).toFixed(n === 1 || n === 0 ? 0 : 1)} %`);

function duration(s) {
  if (s === null) return "–";
  if (s < 0.001) return `${Math.round(s * 1e6)} µs`;
  if (s < 1) return `${(s * 1e3).toFixed(s < 0.01 ? 1 : 0)} ms`;
  if (s < 60) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return s % 3600 < 60 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function bytes(n) {
  if (n < 1024) return `${n} B`;
  return n < 1024 * 1024 ? `${(n / 1024).toFixed(1)} KiB` : `${(n / 1024 / 1024).toFixed(1)} MiB`;
}

const clock = (s) => new Date(s * 1000).toLocaleTimeString("en-GB");

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function add(parent, name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  parent.appendChild(element);
  return element;
}

// --- Tables: cells are kept and only their texts change, so that nothing loses its focus ---

function fill(id, rows, empty) {
  const body = $(id).tBodies[0];
  if (rows.length === 0) {
    body.replaceChildren();
    const cell = add(add(body, "tr"), "td", "empty", empty || "none");
    cell.colSpan = $(id).tHead.rows[0].cells.length;
    return;
  }
  if (body.querySelector(".empty")) body.replaceChildren();
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, nth) => {
    const row = body.rows[nth] || body.insertRow();
    cells.forEach((cell, at) => {
      const is = typeof cell === "object" ? cell : { text: cell };
      let element = row.cells[at];
      if (!element) {
        element = add(row, at === 0 ? "th" : "td");
        if (at === 0) element.scope = "row";
      }
      const name = is.className || "";
      if (element.className !== name) element.className = name;
      if (is.button) button(element, is.button);
      else setText(element, String(is.text));
    });
  });
}

function button(cell, is) {
  const element = cell.querySelector("button") || add(cell, "button");
  element.type = "button";
  element.dataset.server = is.server;
  element.dataset.drain = String(is.drain);
  setText(element, is.drain ? "Drain" : "Undrain");
  element.setAttribute("aria-label", `${is.drain ? "Drain" : "Undrain"} ${is.server}`);
  element.disabled = is.disabled;
}

// --- Charts ---

const CHARTS = [
  { title: "Requests", unit: (n) => `${rate(n)}/s`, lines: [["requests", "all"], ["hits", "from memory"]] },
  { title: "Hit ratio", unit: percent, lines: [["hit_ratio", "hits"]], max: 1 },
  { title: "Errors", unit: (n) => `${rate(n)}/s`, lines: [["errors", "5xx"], ["refused", "ended here"]] },
  { title: "Latency from memory", unit: duration, lines: [["hit_p50", "p50"], ["hit_p99", "p99"]] },
  { title: "Latency of Rails", unit: duration, lines: [["rails_p50", "p50"], ["rails_p99", "p99"]] },
  { title: "Queue", unit: count, lines: [["waiting", "waiting"], ["connections", "connections"]] },
];
const WIDTH = 300;
const HEIGHT = 90;
const SECONDS = 900;

function makeCharts() {
  for (const chart of CHARTS) {
    const figure = add($("charts"), "figure");
    const caption = add(figure, "figcaption");
    add(caption, "strong", "", chart.title);
    const legend = add(caption, "span", "legend");
    chart.values = chart.lines.map(([, name], nth) => {
      if (nth > 0) legend.append(" · ");
      add(legend, "span", nth === 0 ? "key-one" : "key-two", nth === 0 ? "━ " : "╍ ").setAttribute("aria-hidden", "true");
      legend.append(`${name} `);
      return add(legend, "span");
    });
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("class", "chart");
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    const path = (name) => {
      const element = document.createElementNS(SVG, "path");
      element.setAttribute("class", name);
      svg.appendChild(element);
      return element;
    };
    path("axis").setAttribute("d", `M0 ${HEIGHT - 1}H${WIDTH}M0 1H${WIDTH}`);
    // The first line is drawn last, above the other.
    chart.paths = chart.lines.map((_, nth) => `line ${nth === 0 ? "one" : "two"}`).reverse().map(path).reverse();
    figure.appendChild(svg);
    chart.svg = svg;
    const scale = add(figure, "div", "scale");
    add(scale, "span", "", "15 min ago");
    chart.top = add(scale, "span");
    add(scale, "span", "", "now");
  }
}

function draw() {
  const end = samples.length ? samples[samples.length - 1].at : 0;
  for (const chart of CHARTS) {
    const values = samples.flatMap((sample) => chart.lines.map(([key]) => sample[key]).filter((n) => n !== null));
    const max = chart.max || Math.max(0, ...values);
    const texts = chart.lines.map(([key, name], nth) => {
      let path = "";
      let last = null;
      for (const sample of samples) {
        const value = sample[key];
        const isGap = last === null || sample.at - last > 3 * interval;
        last = value === null ? null : sample.at;
        if (value === null) continue;
        const x = WIDTH * (1 - (end - sample.at) / SECONDS);
        const y = HEIGHT - 2 - (max > 0 ? value / max : 0) * (HEIGHT - 4);
        path += `${isGap ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
      }
      chart.paths[nth].setAttribute("d", path);
      const now = samples.length ? samples[samples.length - 1][key] : null;
      const text = now === null ? "–" : chart.unit(now);
      setText(chart.values[nth], text);
      return `${name} now ${text}`;
    });
    const highest = values.length ? chart.unit(max) : "–";
    setText(chart.top, `top ${highest}`);
    chart.svg.setAttribute("aria-label", `${chart.title}, last 15 minutes: ${texts.join(", ")}, highest ${highest}`);
  }
}

// --- The whole page ---

const FLEET_STATES = {
  joining: "Has not heard the fleet yet",
  untold: "Cannot tell the fleet: other gateways may give old answers",
  alone: "Does not hear the fleet: answers are kept for a short time only",
};

function showState(status) {
  const up = status.servers.filter((server) => ["up", "slow_start"].includes(server.state)).length;
  let [text, kind] = [`Rails answers: ${up} of ${status.servers.length} servers in rotation`, "good"];
  if (up < status.servers.length) kind = "warn";
  if (up === 0) [text, kind] = ["No server of Rails is up", "bad"];
  if (status.rails.away) [text, kind] = [`Rails cannot be reached: ${status.rails.cause || "cause unknown"}`, "bad"];
  if (status.rails.outages.length) [text, kind] = [`Rails fails: ${status.rails.outages.join(", ")} answered stale`, "bad"];
  if (status.fleet && kind !== "bad" && FLEET_STATES[status.fleet.state]) [text, kind] = [`${text}. ${FLEET_STATES[status.fleet.state]}`, "warn"];
  const hanging = status.threads.filter((thread) => thread.silent_s >= 10).map((thread) => thread.thread);
  if (hanging.length) [text, kind] = [`A thread hangs: ${hanging.join(", ")}`, "bad"];
  setText($("state"), text);
  $("state").className = `state ${kind}`;
  for (const server of status.servers) {
    const before = states.get(server.server);
    if (before && before !== server.state) setText($("announce"), `${server.server} is now ${server.state}`);
    states.set(server.server, server.state);
  }
}

function showNow(status) {
  const last = samples.length ? samples[samples.length - 1] : {};
  const or = (value, unit) => (value === undefined || value === null ? "–" : unit(value));
  const tiles = [
    ["Requests per second", or(last.requests, rate)],
    ["Hit ratio since the start", percent(status.hit_ratio)],
    ["p99 from memory", or(last.hit_p99, duration)],
    ["p99 of Rails", or(last.rails_p99, duration)],
    ["In flight", count(status.in_flight)],
    ["Waiting", count(status.queue.reduce((sum, one) => sum + one.waiting, status.held))],
    ["5xx per second", or(last.errors, rate)],
    ["Connections", count(status.connections)],
  ];
  const list = $("now");
  tiles.forEach(([name, text], nth) => {
    const tile = list.children[nth] || add(list, "div");
    const [dt, dd] = tile.children.length ? tile.children : [add(tile, "dt"), add(tile, "dd")];
    setText(dt, name);
    setText(dd, text);
  });
}

const wide = (text) => ({ text, className: "wide" });

function showTables(status) {
  const sum = (route, names) => names.reduce((all, name) => all + (route.cache[name] || 0), 0);
  fill("routes", status.routes.map((route) => [
    route.route, count(route.requests), count(sum(route, ["hit", "fleet"])),
    count(sum(route, ["stale_while_revalidate", "stale_if_error"])),
    count(sum(route, ["miss_stored", "miss_unstored", "shared", "alone", "bypass", "never"])),
    count(sum(route, ["none"])), count(route.errors),
  ]), "no requests yet");
  fill("latency", status.latency.map((one) => [
    one.answers === "memory" ? "from memory" : `of Rails: ${one.answers}`, count(one.count), duration(one.p50), duration(one.p90), duration(one.p99),
  ]), "no answers yet");
  fill("server-table", status.servers.map((server) => [
    server.server + (server.backup ? " (backup)" : ""),
    { text: server.state, className: ["up", "slow_start"].includes(server.state) ? "wide up" : "wide down" },
    { text: server.why || "–", className: "wide text" }, count(server.requests), count(server.connections), count(server.failures_in_a_row),
    { button: { server: server.server, drain: server.state !== "drained", disabled: operators === "none" || (operators === "token" && !token) } },
  ]));
  fill("queue", status.queue.map((one) => [one.class, count(one.in_flight), count(one.limit), count(one.waiting), count(one.shed)])
    .concat([["Rails is away", "–", "–", count(status.held), "–"]]));
  fill("last", status.last_failed.map((one) => [
    clock(one.at), wide(one.route), one.status === null ? "–" : String(one.status), wide(one.failure), wide(one.reason || "–"), wide(one.correlation_id),
  ]), "nothing was refused yet");
  const pairs = (counts) => Object.entries(counts).map(([name, n]) => [name, count(n)]);
  fill("failures", pairs(status.failures), "none yet");
  fill("rejections", pairs(status.auth_refusals), "none yet");
  fill("stores", status.stores.map((one) => [one.store, count(one.entries), bytes(one.bytes), count(one.kept), count(one.evicted), count(one.expired)]));
  fill("ages", status.ages.map((one) => [one.up_to_s === null ? "older" : duration(one.up_to_s), count(one.positive), count(one.negative)]), "not counted yet");
  fill("hooks", pairs(status.hooks.events).map(([name, n]) => [name.replaceAll("_", " "), n])
    .concat([["refused: wrong token", count(status.hooks.refused)], ["not read: too many", count(status.hooks.shed)]]));
  showFleet(status.fleet);
  fill("listeners", status.listeners.map((one) => [one.listener, count(one.open), count(one.limit), count(one.evicted), count(one.turned_away)]));
  fill("health", [["log lines lost", count(status.log.dropped)], ["log lines counted instead of written", count(status.log.suppressed)]]
    .concat(status.threads.map((one) => [`${one.thread}: silent for`, `${count(one.silent_s)} s`])));
}

function showFleet(fleet) {
  $("fleet").hidden = $("fleet-link").hidden = !fleet;
  if (!fleet) return;
  const some = (counts) => Object.entries(counts).filter(([, n]) => n > 0).map(([name, n]) => `${name} ${count(n)}`).join(", ") || "none";
  const isGood = fleet.state === "following";
  fill("fleet-table", [
    ["fleet", wide(fleet.fleet)], ["this process", wide(fleet.process)],
    ["state", { text: fleet.state, className: isGood ? "wide up" : "wide down" }],
    ["all was heard", wide(fleet.silent_s === null ? "never" : `${duration(fleet.silent_s)} ago`)],
    ["purges that wait for Valkey", wide(fleet.untold_s === null ? count(fleet.outbox) : `${count(fleet.outbox)}, for ${duration(fleet.untold_s)}`)],
    ["purges told", wide(some(fleet.told))], ["purges heard", wide(count(fleet.heard))],
    ["after, p50 and p99", wide(`${duration(fleet.delay.p50)}, ${duration(fleet.delay.p99)}`)],
    ["told again", wide(count(fleet.again))], ["doubts", wide(some(fleet.doubts))],
    ["unreadable entries", wide(some(fleet.unreadable))], ["connections", wide(some(fleet.connections))],
  ]);
  fill("members", fleet.members.map((one) => [one.process, `${duration(one.heard_s)} ago`, count(one.purges)]), "no other gateway was heard");
}

let shown = null;

function show(status) {
  shown = status;
  setText($("version"), status.version);
  setText($("uptime"), `up ${duration(status.uptime_s)}`);
  showState(status);
  showNow(status);
  showTables(status);
}

function live(text) {
  setText($("live"), text);
}

async function load() {
  const response = await fetch("/status.json", { cache: "no-store" });
  if (!response.ok) throw new Error(String(response.status));
  const status = await response.json();
  ({ operators, interval_s: interval, history: samples } = status);
  $("token-form").hidden = operators !== "token";
  if (operators === "none") setText($("outcome"), "Servers can be drained here only if there is an admin.token_file.");
  draw();
  show(status);
}

function listen() {
  const events = new EventSource("/events");
  events.onmessage = (event) => {
    const status = JSON.parse(event.data);
    const last = samples.length ? samples[samples.length - 1].at : 0;
    if (status.sample && status.sample.at > last) {
      samples.push(status.sample);
      samples = samples.filter((sample) => sample.at > status.sample.at - SECONDS);
      draw();
    }
    live("live");
    show(status);
  };
  events.onerror = () => {
    events.close();
    live("not live: trying again");
    setTimeout(start, 5000);
  };
}

async function start() {
  try {
    await load();
    listen();
  } catch {
    live("not live: the gateway does not answer");
    setTimeout(start, 5000);
  }
}

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  setText($("token-note"), token ? "kept until this page is closed" : "");
  if (shown) showTables(shown);
});

$("server-table").addEventListener("click", async (event) => {
  const { server, drain } = event.target.dataset;
  if (!server) return;
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  try {
    const body = JSON.stringify({ server, drain: drain === "true" });
    const response = await fetch("/servers", { method: "POST", headers, body });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.message);
    setText($("outcome"), `${server} is ${drain === "true" ? "drained" : "no longer drained"}.`);
    if (shown) show({ ...shown, servers: answer.servers });
  } catch (error) {
    setText($("outcome"), `${server} was not changed: ${error.message}`);
  }
});

makeCharts();
start();
