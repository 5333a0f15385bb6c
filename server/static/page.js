// The status page: one event stream in, the whole page out. It holds no truth of its own.

import { Chart, element } from "./chart.js";

const MOST = 1500; // points kept; beyond, the older half loses every second one
const TONES = { running: "good", finished: "good", stalled: "warn", preempted: "warn", crashed: "bad", diverged: "bad" };
const OVER = ["finished", "preempted", "crashed", "diverged"];
const HOLDS = { "compute-bound": "good", "input-bound": "bad", straggler: "warn", stalled: "bad", starting: "" };
const get = (id) => document.getElementById(id);
const count = (value, digits = 0) => (value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits }));
const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : `${(value * 100).toFixed(digits)} %`);
const rate = (value) => (value === null || value === undefined ? "–" : count(value, value < 100 ? 1 : 0));
const short = (value) => (value >= 1e4 ? `${count(value / 1e3, value % 1e3 ? 1 : 0)}k` : count(value, value < 10 && value % 1 ? (value < 0.1 ? 4 : 2) : 0));
const bytes = (value) => (value === null || value === undefined ? "–" : value < 1e9 ? `${count(value / 1e6, 1)} MB` : `${count(value / 1e9, 2)} GB`);

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}

const charts = {
  speed: new Chart(get("chart-speed"), "Throughput, images per second", [
    { label: "loader could deliver", colour: "a", area: true }, { label: "handed over", colour: "d" }, { label: "training takes", colour: "b", area: true },
  ], { format: short }),
  wait: new Chart(get("chart-wait"), "Share of time training waits for data", [{ label: "waiting", colour: "d", area: true }], { format: (value) => `${Number((value * 100).toPrecision(3))} %`, max: 1 }),
  error: new Chart(get("chart-error"), "Error", [
    { label: "training top-1", colour: "b" }, { label: "validation top-1, 1 view", colour: "a", dots: true }, { label: "10 views", colour: "d", dots: true }, { label: "top-5, 10 views", colour: "c", dots: true },
  ], { format: (value) => `${Number((value * 100).toPrecision(3))} %`, max: 1 }),
  loss: new Chart(get("chart-loss"), "Training loss, nats per image", [{ label: "loss", colour: "b" }], { format: (value) => count(value, 2) }),
  lr: new Chart(get("chart-lr"), "Learning rate", [{ label: "of the weights", colour: "c" }], { format: (value) => String(Number(value.toPrecision(3))) }),
};

let status = null, intervals = [], received = 0, source = null, due = false, lost = null;

function show(which) {
  for (const id of ["login", "empty", "page"]) get(id).hidden = id !== which;
}

function chosen() {
  return decodeURIComponent(location.hash.replace(/^#run=|^#/, ""));
}

function redraw() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => { due = false; draw(); });
}

function draw() {
  if (!status) return;
  show("page");
  drawVerdict();
  drawTiles();
  drawShards();
  drawCharts();
  drawRanks();
  drawFacts();
  tick();
}

function drawVerdict() {
  const over = OVER.includes(status.state), verdict = status.verdict;
  const troubled = ["crashed", "diverged"].includes(status.state);
  document.title = `${status.state} · ${status.name} · gratis`;
  get("state").className = `pill ${TONES[status.state] ?? ""}`;
  get("state").textContent = status.state;
  get("verdict").className = `card verdict ${troubled ? "bad" : HOLDS[verdict.kind]}`;
  const where = verdict.kind === "straggler" ? ` on rank ${verdict.rank}` : verdict.stage ? `: ${verdict.stage}` : "";
  const kind = verdict.kind[0].toUpperCase() + verdict.kind.slice(1) + where;
  get("question").textContent = troubled ? "What happened" : "What holds training back";
  get("kind").textContent = troubled ? status.state[0].toUpperCase() + status.state.slice(1) : kind;
  get("words").textContent = (over ? `Over the whole attempt (${verdict.kind}${where}): ` : "") + verdict.text;
  get("reason").textContent = status.state === "running" ? "" : `Why ${status.state}: ${status.reason}.`;
  const speed = status.images_per_s, most = Math.max(speed.loader ?? 0, speed.trainer ?? 0) || 1;
  const bar = (label, value, width, colour) => {
    const fill = element("div", { class: `fill ${colour}` });
    fill.style.width = `${Math.min(width, 1) * 100}%`;
    return element("div", { class: "bar" }, element("p", {}, element("span", {}, label), element("b", {}, value)), element("div", { class: "track" }, fill));
  };
  get("bars").replaceChildren(
    bar("The loader could deliver", `${rate(speed.loader)} images/s`, (speed.loader ?? 0) / most, "a"),
    bar("Training takes", `${rate(speed.trainer)} images/s`, (speed.trainer ?? 0) / most, "b"),
    bar("Training waits for data", percent(status.data_wait_fraction), status.data_wait_fraction ?? 0, "d"),
  );
}

function drawTiles() {
  const best = status.evaluations.findLast((one) => one.views === 1) ?? status.evaluations.at(-1);
  const room = status.headroom, wait = status.data_wait_fraction;
  const tile = (label, value, tone = "") => element("div", { class: `tile ${tone}` }, element("b", {}, value), element("span", {}, label));
  get("tiles").replaceChildren(
    tile("loader headroom", room === null ? "–" : `${room.toFixed(1)} ×`, room === null ? "" : room >= 1.2 ? "good" : "warn"),
    tile("data wait", percent(wait), wait === null ? "" : wait < 0.05 ? "good" : "bad"),
    tile(`epoch of ${status.epochs ?? "?"}`, count(Math.min(status.epoch + 1, status.epochs ?? Infinity))),
    tile(status.epochs && status.steps_per_epoch ? `step of ${count(status.epochs * status.steps_per_epoch)}` : "step", count(status.step)),
    tile("training to go", duration(status.remaining_s)),
    tile("loss", count(status.loss, 3)),
    tile("training top-1 error", percent(status.train_error)),
    tile("validation top-1 error", percent(best?.top1_error)),
  );
}

function drawShards() {
  const shards = status.shards;
  get("shards").hidden = !shards;
  if (!shards) return;
  get("shard-bar").max = Math.max(shards.total, 1);
  get("shard-bar").value = shards.done;
  const left = shards.remaining_s === null ? "" : `, ${duration(shards.remaining_s)} to go`;
  get("shard-words").textContent = `${shards.state}: ${count(shards.done)} of ${count(shards.total)} images, ${count(shards.rejects)} left out, ` +
    `${rate(shards.images_per_s)} images/s, in ${bytes(shards.bytes_in_per_s)}/s, out ${bytes(shards.bytes_out_per_s)}/s${left}`;
}

function drawCharts() {
  const line = (pick) => intervals.map((one) => [one.step, pick(one)]);
  const evals = (views, key) => status.evaluations.filter((one) => one.views === views).map((one) => [one.step, one[key]]);
  charts.speed.show([line((one) => one.images_per_s.loader), line((one) => one.images_per_s.delivered), line((one) => one.images_per_s.trainer)]);
  charts.wait.show([line((one) => one.data_wait_fraction)]);
  charts.error.show([line((one) => one.train_error), evals(1, "top1_error"), evals(10, "top1_error"), evals(10, "top5_error")]);
  charts.loss.show([line((one) => one.loss)]);
  charts.lr.show([line((one) => one.learning_rate)]);
}

function drawRanks() {
  const columns = [
    ["rank", (one) => one.rank], ["state", (one) => one.state], ["device", (one) => [one.device, one.device_name].filter(Boolean).join(" · ")],
    ["step", (one) => count(one.step)], ["loader, images/s", (one) => rate(one.images_per_s.loader)], ["trained, images/s", (one) => rate(one.images_per_s.trainer)],
    ["waits", (one) => percent(one.data_wait_fraction)], ["ms a step", (one) => (one.step_s === null ? "–" : count(one.step_s * 1e3, 1))],
    ["read", (one) => percent(one.stages.read, 0)], ["decode", (one) => percent(one.stages.decode, 0)], ["finish", (one) => percent(one.stages.finish, 0)], ["transfer", (one) => percent(one.stages.transfer, 0)],
    ["queue", (one) => (one.queue_depth === null ? "–" : `${one.queue_depth}/${one.queue_capacity}`)], ["reads", (one) => (one.read_bytes_per_s === null ? "–" : `${bytes(one.read_bytes_per_s)}/s`)],
    ["CPU cores", (one) => count(one.cpu_cores, 1)], ["memory", (one) => bytes(one.rss_bytes)],
  ];
  get("rank-head").replaceChildren(element("tr", {}, ...columns.map(([label]) => element("th", { scope: "col" }, label))));
  get("rank-rows").replaceChildren(...status.ranks.map((one) => element("tr", one.rank === status.verdict.rank || one.state === "gone" ? { class: "held" } : {}, ...columns.map(([, cell]) => element("td", {}, String(cell(one)))))));
}

function drawFacts() {
  const receipt = status.receipt, when = (t) => (t ? new Date(t * 1e3).toLocaleString() : "–");
  const facts = {
    recipe: status.recipe, dataset: status.dataset, classes: count(status.classes), "training images": count(status.train_images), "validation images": count(status.val_images),
    "global batch": count(status.batch_size), mesh: Object.entries(status.mesh).map(([axis, size]) => `${axis} ${size}`).join(", "), ranks: status.world, attempt: status.attempt, "attempt began": when(status.started),
    "images trained on": count(status.images_trained), "newest checkpoint": status.checkpoint_step === null ? "none" : `step ${count(status.checkpoint_step)}`,
    "newest epoch's receipt": receipt ? `${count(receipt.seen)} seen, ${receipt.missing} missing, ${receipt.duplicates} twice, ${receipt.dropped} dropped` : "none yet",
  };
  get("facts").replaceChildren(...Object.entries(facts).map(([term, fact]) => element("div", {}, element("dt", {}, term), element("dd", {}, String(fact ?? "–") || "–"))));
  get("warnings").hidden = !status.warnings.length;
  get("warning-list").replaceChildren(...status.warnings.map((one) => element("li", {}, one)));
}

function tick() {
  const notice = get("notice");
  notice.hidden = lost === null;
  if (lost !== null && status && OVER.includes(status.state)) notice.textContent = `The run has ${status.state === "finished" ? "finished" : "ended"} and its status server has closed. “make serve” shows it again.`;
  else if (lost !== null) notice.textContent = `The status server does not answer since ${new Date(lost).toLocaleTimeString()}. What is shown is from before; trying again.`;
  if (!status) return;
  const age = status.age_s + (Date.now() - received) / 1e3;
  get("age").textContent = `newest event ${duration(age)} ago, at ${new Date(status.updated * 1e3).toLocaleTimeString()}`;
}

function take(interval) {
  while (intervals.length && intervals.at(-1).first_step >= interval.first_step) intervals.pop();
  intervals.push(interval);
  if (intervals.length > MOST) intervals = intervals.filter((_, i) => i >= intervals.length / 2 || i % 2);
  redraw();
}

function listen() {
  source?.close();
  source = new EventSource(chosen() ? `events?run=${encodeURIComponent(chosen())}` : "events");
  source.addEventListener("open", () => { lost = null; tick(); });
  source.addEventListener("status", (event) => {
    const next = JSON.parse(event.data);
    if (next.name !== status?.name) { intervals = []; list(); }
    status = next;
    received = Date.now();
    redraw();
  });
  source.addEventListener("interval", (event) => take(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    lost ??= Date.now();
    tick();
    if (source.readyState === EventSource.CLOSED) setTimeout(begin, 3000);
  });
}

async function list() {
  const answer = await fetch("runs");
  if (!answer.ok) return answer.status;
  const { runs } = await answer.json();
  const option = (value, label) => element("option", value === chosen() ? { value, selected: "" } : { value }, label);
  get("runs").replaceChildren(option("", runs.length ? `newest (${runs[0].name})` : "newest"), ...runs.map((one) => option(one.name, `${one.name} · ${one.state}`)));
  if (!runs.length && !status) { show("empty"); get("state").textContent = "no run"; }
  return answer.status;
}

async function begin() {
  source?.close();
  try {
    const code = await list();
    if (code === 401) return show("login");
    listen();
  } catch {
    lost ??= Date.now();
    tick();
    setTimeout(begin, 3000);
  }
}

get("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  document.cookie = `gratis_token=${encodeURIComponent(get("token").value)}; path=/; samesite=strict; max-age=2592000`;
  begin();
});
get("runs").addEventListener("change", () => { location.hash = get("runs").value ? `run=${encodeURIComponent(get("runs").value)}` : ""; });
addEventListener("hashchange", () => { status = null; intervals = []; begin(); });
setInterval(tick, 1000);
begin();
