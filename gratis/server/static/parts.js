// The parts of the page, each drawn anew from a run's status and its intervals.

import { Chart, element } from "./chart.js";
import { bytes, count, duration, percent, rate, short, significant, times } from "./format.js";

export const OVER = ["finished", "preempted", "crashed", "diverged"];
const TONES = { running: "good", finished: "good", stalled: "warn", preempted: "warn", crashed: "bad", diverged: "bad" };
const VERDICT_TONES = { "compute-bound": "good", "input-bound": "bad", straggler: "warn", stalled: "bad", starting: "" };
const get = (id) => document.getElementById(id);
const capital = (word) => word[0].toUpperCase() + word.slice(1);

const share = (value) => `${significant(value * 100)} %`;
const charts = {
  speed: new Chart(get("chart-speed"), "Throughput, images per second, on a logarithmic scale", [
    { label: "loader could deliver", colour: "a", area: true }, { label: "handed over", colour: "d" },
    { label: "training takes", colour: "b", area: true },
  ], { format: short, log: true }),
  wait: new Chart(get("chart-wait"), "Share of time training waits for data", [{ label: "waiting", colour: "d", area: true }], { format: share, max: 1 }),
  error: new Chart(get("chart-error"), "Error", [
    { label: "training top-1", colour: "b" }, { label: "validation top-1, 1 view", colour: "a", dots: true },
    { label: "10 views", colour: "d", dots: true }, { label: "top-5, 10 views", colour: "c", dots: true },
  ], { format: share, max: 1 }),
  loss: new Chart(get("chart-loss"), "Training loss, nats per image", [{ label: "loss", colour: "b" }], { format: (value) => count(value, 2) }),
  lr: new Chart(get("chart-lr"), "Learning rate", [{ label: "of the weights", colour: "c" }], { format: significant }),
};

export function draw(status, intervals) {
  document.title = `${status.state} · ${status.name} · gratis`;
  get("state").className = `pill ${TONES[status.state] ?? ""}`;
  get("state").textContent = status.state;
  drawVerdict(status);
  drawBars(status);
  drawTiles(status);
  drawShards(status.shards);
  drawCharts(status, intervals);
  drawPicture(status);
  drawRanks(status);
  drawFacts(status);
}

function drawVerdict({ state, verdict, reason, ranks, shards }) {
  const troubled = ["crashed", "diverged", "stalled"].includes(state);
  get("verdict").className = `card verdict ${troubled ? "bad" : VERDICT_TONES[verdict.kind]}`;
  get("question").textContent = troubled ? "What happened" : OVER.includes(state) ? "What held training back" : "What holds training back";
  get("kind").textContent = troubled ? capital(state) : verdict.title;
  if (shards && !ranks.length && !troubled) {
    get("question").textContent = "Before training";
    get("kind").textContent = { starting: "Making shards", finished: "The shards are made" }[state] ?? capital(state);
  }
  const before = OVER.includes(state) ? `Over the whole attempt${troubled ? ` (${verdict.kind})` : ""}: ` : "";
  get("words").textContent = before + verdict.text;
  get("reason").textContent = state === "running" && reason === "events arrive" ? "" : `${capital(state)}: ${reason}.`;
}

function drawBars({ images_per_s: speed, data_wait_fraction: wait }) {
  const most = Math.max(speed.loader ?? 0, speed.trainer ?? 0) || 1;
  const bar = (label, value, width, colour) => {
    const fill = element("div", { class: `fill ${colour}` });
    fill.style.width = `${Math.min(width, 1) * 100}%`;
    const words = element("p", {}, element("span", {}, label), element("b", {}, value));
    return element("div", { class: "bar" }, words, element("div", { class: "track" }, fill));
  };
  get("bars").replaceChildren(
    bar("The loader could deliver", `${rate(speed.loader)} images/s`, (speed.loader ?? 0) / most, "a"),
    bar("Training takes", `${rate(speed.trainer)} images/s`, (speed.trainer ?? 0) / most, "b"),
    bar("Training waits for data", percent(wait), wait ?? 0, "d"),
  );
}

function drawTiles(status) {
  const best = status.evaluations.findLast((one) => one.views === 1) ?? status.evaluations.at(-1);
  const room = status.headroom, steps = status.epochs * status.steps_per_epoch, over = OVER.includes(status.state);
  const gpus = status.ranks.map((one) => one.gpu?.busy).filter((busy) => Number.isFinite(busy));
  const tile = (label, value, tone = "") => element("div", { class: `tile ${tone}` }, element("b", {}, value), element("span", {}, label));
  get("tiles").replaceChildren(
    tile("loader headroom", times(room), room === null ? "" : room >= 1.2 ? "good" : "warn"),
    gpus.length ? tile("GPU busy", percent(gpus.reduce((sum, busy) => sum + busy, 0) / gpus.length, 0))
      : tile("CPU cores at work", count(status.ranks.reduce((sum, one) => sum + one.cpu_cores, 0), 1)),
    tile(`epoch of ${status.epochs ?? "?"}`, count(Math.min(status.epoch + 1, status.epochs ?? Infinity))),
    tile(steps ? `step of ${count(steps)}` : "step", count(status.step)),
    over ? tile("images trained on", short(status.images_trained)) : tile("training to go", duration(status.remaining_s)),
    tile("loss", count(status.loss, 3)),
    tile("training top-1 error", percent(status.train_error)),
    tile("validation top-1 error", percent(best?.top1_error)),
  );
}

function drawShards(shards) {
  get("shards").hidden = !shards;
  if (!shards) return;
  get("shard-bar").max = Math.max(shards.total, 1);
  get("shard-bar").value = shards.done;
  const left = shards.remaining_s === null ? "" : `, ${duration(shards.remaining_s)} to go`;
  get("shard-words").textContent = `${shards.state}: ${count(shards.done)} of ${count(shards.total)} images, ${count(shards.rejects)} left out, ` +
    `${rate(shards.images_per_s)} images/s, in ${bytes(shards.bytes_in_per_s)}/s, out ${bytes(shards.bytes_out_per_s)}/s${left}`;
}

// Intervals far shorter than usual, as at an epoch's end, hold a step or two: their rates are noise on a chart.
function ofUsualLength(intervals) {
  const steps = intervals.map((one, i) => one.step - (i ? intervals[i - 1].step : 0));
  const usual = [...steps].sort((a, b) => a - b)[steps.length >> 1];
  return intervals.filter((_, i) => steps[i] * 2 >= usual);
}

function drawCharts({ evaluations }, intervals) {
  const line = (pick, of = intervals) => of.map((one) => [one.step, pick(one)]);
  const evals = (views, key) => evaluations.filter((one) => one.views === views).map((one) => [one.step, one[key]]);
  charts.speed.show(["loader", "delivered", "trainer"].map((key) => line((one) => one.images_per_s[key], ofUsualLength(intervals))));
  charts.wait.show([line((one) => one.data_wait_fraction)]);
  charts.error.show([line((one) => one.train_error), evals(1, "top1_error"), evals(10, "top1_error"), evals(10, "top5_error")]);
  charts.loss.show([line((one) => one.loss)]);
  charts.lr.show([line((one) => one.learning_rate)]);
}

function drawPicture({ name, picture_t }) {
  get("augmented").hidden = picture_t === null;
  if (picture_t === null) return;
  const source = `status/${encodeURIComponent(name)}/picture?t=${picture_t}`;
  if (get("picture").getAttribute("src") !== source) get("picture").src = source;
  get("picture-words").textContent = `As training saw them at ${new Date(picture_t * 1e3).toLocaleTimeString()}: cropped, mirrored, recoloured at random.`;
}

const COLUMNS = [
  ["rank", (one) => one.rank], ["state", (one) => one.state], ["device", (one) => [one.device, one.device_name].filter(Boolean).join(" · ")],
  ["step", (one) => count(one.step)], ["loader, images/s", (one) => rate(one.images_per_s.loader)],
  ["trained, images/s", (one) => rate(one.images_per_s.trainer)], ["waits", (one) => percent(one.data_wait_fraction)],
  ["ms a step", (one) => (one.step_s === null ? "–" : count(one.step_s * 1e3, 1))],
  ...["read", "decode", "finish", "transfer"].map((stage) => [stage, (one) => percent(one.stages[stage], 0)]),
  ["queue", (one) => (one.queue_depth === null ? "–" : `${one.queue_depth}/${one.queue_capacity}`)],
  ["reads", (one) => (one.read_bytes_per_s === null ? "–" : `${bytes(one.read_bytes_per_s)}/s`)],
  ["CPU cores", (one) => count(one.cpu_cores, 1)], ["memory", (one) => bytes(one.rss_bytes)],
];
const GPU_COLUMNS = [
  ["GPU busy", (one) => percent(one.gpu?.busy, 0)], ["NVJPG busy", (one) => percent(one.gpu?.nvjpg_busy, 0)],
  ["GPU memory", (one) => bytes(one.gpu?.memory_bytes)], ["power", (one) => (one.gpu?.power_w ? `${count(one.gpu.power_w)} W` : "–")],
];

function drawRanks({ ranks, verdict }) {
  const columns = ranks.some((one) => one.gpu) ? [...COLUMNS, ...GPU_COLUMNS] : COLUMNS;
  get("rank-head").replaceChildren(element("tr", {}, ...columns.map(([label]) => element("th", { scope: "col" }, label))));
  get("rank-rows").replaceChildren(...ranks.map((one) => {
    const held = one.rank === verdict.rank || one.state === "gone";
    return element("tr", held ? { class: "held" } : {}, ...columns.map(([, cell]) => element("td", {}, String(cell(one)))));
  }));
}

function drawFacts(status) {
  const receipt = status.receipt, when = (t) => (t ? new Date(t * 1e3).toLocaleString() : "–");
  const facts = {
    recipe: status.recipe, dataset: status.dataset?.slice(0, 12), classes: count(status.classes), "training images": count(status.train_images),
    "validation images": count(status.val_images), "global batch": count(status.batch_size),
    mesh: Object.entries(status.mesh).map(([axis, size]) => `${axis} ${size}`).join(", "), ranks: status.world, attempt: status.attempt,
    "images kept decoded": status.decoded_bytes === null ? status.decoded : `${bytes(status.decoded_bytes)} on each rank's ${status.decoded}`,
    "attempt began": when(status.started), "images trained on": count(status.images_trained),
    "newest checkpoint": status.checkpoint_step === null ? "none" : `step ${count(status.checkpoint_step)}`,
    "newest epoch's receipt": receipt ? `${count(receipt.seen)} seen, ${receipt.missing} missing, ${receipt.duplicates} twice, ${receipt.dropped} dropped` : "none yet",
  };
  get("facts").replaceChildren(...Object.entries(facts).map(([term, fact]) =>
    element("div", {}, element("dt", {}, term), element("dd", {}, String(fact ?? "–") || "–"))));
  get("warnings").hidden = !status.warnings.length;
  get("warning-list").replaceChildren(...status.warnings.map((one) => element("li", {}, one)));
}
