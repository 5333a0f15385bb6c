// The status page: one event stream in, the whole page out. All numbers are the server's.

import { element } from "./chart.js";
import { drawCharts } from "./curves.js";
import { duration, get, OVER } from "./format.js";
import { recall, remember } from "./memory.js";
import { draw } from "./parts.js";

const MAX_POINTS = 1500; // points kept; beyond, the older half loses every second one
const empty = () => ({ status: null, intervals: [] });
let shown = empty(), other = empty();
let run = "", compare = "", received = 0, source = null, due = false, lost = null, missing = false, retryTimer = 0, askTimer = 0;

function show(which) {
  for (const id of ["login", "empty", "page"]) get(id).hidden = id !== which;
}

// The address holds the choice: #run=NAME&compare=NAME; a bare name, typed by hand, is a run's.
function chosen(key) {
  const parts = location.hash.slice(1).split("&"), part = parts.find((one) => one.startsWith(`${key}=`));
  const name = part?.slice(key.length + 1) ?? (key === "run" && !parts[0].includes("=") ? parts[0] : "");
  try { return decodeURIComponent(name); } catch { return name; }
}

function choose(choice) {
  const parts = Object.entries({ run, compare, ...choice }).filter(([, name]) => name);
  location.hash = parts.map(([key, name]) => `${key}=${encodeURIComponent(name)}`).join("&");
}

const axis = () => document.querySelector("[name=axis]:checked").value;
const charts = () => drawCharts(shown, other.status ? other : null, axis());

function redraw() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    if (!shown.status) return;
    show("page");
    draw(shown.status);
    charts();
    tick();
  });
}

function tick() {
  const notice = get("notice"), status = shown.status;
  notice.hidden = lost === null && !missing;
  if (missing) {
    notice.textContent = `There is no run “${run}” here: it was deleted, renamed, or never was.` + (status ? " What is shown is from before." : "");
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
  const list = shown.intervals;
  while (list.length && list.at(-1).first_step >= interval.first_step) list.pop();
  list.push(interval);
  if (list.length > MAX_POINTS) shown.intervals = list.filter((_, i) => i >= list.length / 2 || i % 2);
  redraw();
}

function listen() {
  source?.close();
  source = new EventSource(run ? `events?run=${encodeURIComponent(run)}` : "events");
  source.addEventListener("open", () => {
    if (lost !== null) list(); // what was shown may be gone
    lost = null;
    tick();
  });
  source.addEventListener("status", (event) => {
    const next = JSON.parse(event.data);
    if (next.name !== shown.status?.name) { shown.intervals = []; list(); }
    shown.status = next;
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

// The other run is asked for now and then: a browser opens six connections to a server at most, and each stream holds one.
async function ask() {
  clearTimeout(askTimer);
  const name = compare, path = `status/${encodeURIComponent(name)}`;
  if (!name) return;
  let words = "", next = null;
  try {
    const [status, curves] = await Promise.all([fetch(path), fetch(`${path}/intervals`)]);
    if (status.ok && curves.ok) next = { status: await status.json(), ...(await curves.json()) };
    words = next ? `dashed, and in brackets: ${name} (${next.status.state})` : `${name} is not here`;
  } catch {
    next = other; // the server does not answer: what was here stays
    words = get("compare-words").textContent;
  }
  if (name !== compare) return;
  other = next ?? empty();
  get("compare-words").textContent = words;
  askTimer = setTimeout(ask, OVER.includes(other.status?.state) ? 60000 : 5000);
  redraw();
}

function compareAnew() {
  clearTimeout(askTimer);
  other = empty();
  get("compare-words").textContent = "";
  get("compare").value = compare;
  redraw();
  ask();
}

function offer(select, first, runs, value) {
  const option = (name, label) => element("option", name === value ? { value: name, selected: "" } : { value: name }, label);
  select.replaceChildren(option("", first), ...runs.map((one) => option(one.name, `${one.name} · ${one.state}`)));
}

async function list() {
  const answer = await fetch("runs");
  if (!answer.ok) return answer.status;
  const { runs } = await answer.json();
  offer(get("runs"), runs.length ? `newest (${runs[0].name})` : "newest", runs, run);
  offer(get("compare"), "nothing", runs.filter((one) => one.name !== (run || runs[0]?.name) || one.name === compare), compare);
  missing = run !== "" && !runs.some((one) => one.name === run);
  if (!missing && !runs.length) shown.status = null;
  if (!shown.status && !runs.length) { show("empty"); get("age").textContent = ""; document.title = "gratis"; }
  if (!shown.status && (missing || !runs.length)) get("state").textContent = "no run";
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

// What the address names, and what of that has changed.
function follow(first) {
  const [oldRun, oldCompare] = [run, compare];
  [run, compare] = [chosen("run"), chosen("compare")];
  if (first || run !== oldRun) { shown = empty(); show(null); begin(); }
  if (compare !== oldCompare) compareAnew();
}

get("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  document.cookie = `gratis_token=${encodeURIComponent(get("token").value)}; path=/; samesite=strict; max-age=2592000`;
  begin();
  ask();
});
get("runs").addEventListener("change", () => choose({ run: get("runs").value }));
get("compare").addEventListener("change", () => choose({ compare: get("compare").value }));
get("chart-choices").addEventListener("change", (event) => {
  if (event.target.name !== "axis") return;
  remember("axis", axis());
  if (shown.status) charts();
});
const axisBefore = document.querySelector(`[name=axis][value="${recall("axis") ?? "steps"}"]`);
if (axisBefore) axisBefore.checked = true;
addEventListener("hashchange", () => follow(false));
addEventListener("pagehide", () => source?.close()); // a page that the browser keeps for going back holds no connection
addEventListener("pageshow", (event) => event.persisted && begin());
setInterval(tick, 1000);
follow(true);
