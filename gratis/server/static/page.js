// The status page: one event stream in, the whole page out. All numbers are the server's.

import { element } from "./chart.js";
import { duration } from "./format.js";
import { draw, OVER } from "./parts.js";

const MAX_POINTS = 1500; // points kept; beyond, the older half loses every second one
const get = (id) => document.getElementById(id);
let status = null, intervals = [], received = 0, source = null, due = false, lost = null, missing = false, retryTimer = 0;

function show(which) {
  for (const id of ["login", "empty", "page"]) get(id).hidden = id !== which;
}

function chosen() {
  const name = location.hash.replace(/^#run=|^#/, "");
  try { return decodeURIComponent(name); } catch { return name; } // typed by hand
}

function redraw() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    if (!status) return;
    show("page");
    draw(status, intervals);
    tick();
  });
}

function tick() {
  const notice = get("notice");
  notice.hidden = lost === null && !missing;
  if (missing) {
    notice.textContent = `There is no run “${chosen()}” here: it was deleted, renamed, or never was.` + (status ? " What is shown is from before." : "");
  } else if (lost !== null && status && OVER.includes(status.state)) {
    notice.textContent = "The run has ended and its status server has closed. “gratis status” shows it again.";
  } else if (lost !== null) {
    notice.textContent = `The status server does not answer since ${new Date(lost).toLocaleTimeString()}. What is shown is from before; trying again.`;
  }
  if (!status) return;
  const age = status.age_s + (Date.now() - received) / 1e3;
  get("age").textContent = `newest event ${duration(age)} ago, at ${new Date(status.updated * 1e3).toLocaleTimeString()}`;
}

function addInterval(interval) {
  while (intervals.length && intervals.at(-1).first_step >= interval.first_step) intervals.pop();
  intervals.push(interval);
  if (intervals.length > MAX_POINTS) intervals = intervals.filter((_, i) => i >= intervals.length / 2 || i % 2);
  redraw();
}

function listen() {
  source?.close();
  source = new EventSource(chosen() ? `events?run=${encodeURIComponent(chosen())}` : "events");
  source.addEventListener("open", () => {
    if (lost !== null) list(); // what was shown may be gone
    lost = null;
    tick();
  });
  source.addEventListener("status", (event) => {
    const next = JSON.parse(event.data);
    if (next.name !== status?.name) { intervals = []; list(); }
    status = next;
    received = Date.now();
    redraw();
  });
  source.addEventListener("interval", (event) => addInterval(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    lost ??= Date.now();
    tick();
    if (source.readyState === EventSource.CLOSED) retry();
  });
}

async function list() {
  const answer = await fetch("runs");
  if (!answer.ok) return answer.status;
  const { runs } = await answer.json();
  const option = (value, label) => element("option", value === chosen() ? { value, selected: "" } : { value }, label);
  const newest = option("", runs.length ? `newest (${runs[0].name})` : "newest");
  get("runs").replaceChildren(newest, ...runs.map((one) => option(one.name, `${one.name} · ${one.state}`)));
  missing = chosen() !== "" && !runs.some((one) => one.name === chosen());
  if (!missing && !runs.length) status = null;
  if (!status && !runs.length) { show("empty"); get("age").textContent = ""; document.title = "gratis"; }
  if (!status && (missing || !runs.length)) get("state").textContent = "no run";
  return answer.status;
}

function retry() {
  clearTimeout(retryTimer);
  retryTimer = setTimeout(begin, 3000);
}

async function begin() {
  source?.close();
  try {
    const code = await list();
    if (code === 401) return show("login");
    if (!missing) return listen();
    lost = null; // the server answers
  } catch {
    lost ??= Date.now();
  }
  tick();
  retry();
}

get("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  document.cookie = `gratis_token=${encodeURIComponent(get("token").value)}; path=/; samesite=strict; max-age=2592000`;
  begin();
});
get("runs").addEventListener("change", () => { location.hash = get("runs").value ? `run=${encodeURIComponent(get("runs").value)}` : ""; });
addEventListener("hashchange", () => { status = null; intervals = []; show(null); begin(); });
setInterval(tick, 1000);
begin();
