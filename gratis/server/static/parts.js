// The parts of the page, each drawn anew from a run's status; charts, ranks and picture are in files of their own.

import { element } from "./chart.js";
import { briefBytes, bytes, count, duration, get, OVER, percent, rate, short, times, write } from "./format.js";
import { drawPicture } from "./picture.js";
import { drawRanks } from "./ranks.js";

const TONES = { running: "good", finished: "good", stalled: "warn", preempted: "warn", crashed: "bad", diverged: "bad" };
const VERDICT_TONES = { "compute-bound": "good", "input-bound": "bad", straggler: "warn", stalled: "bad", starting: "" };
const capital = (word) => word[0].toUpperCase() + word.slice(1);

export function draw(status) {
  document.title = `${status.state} · ${status.name} · gratis`;
  get("state").className = `pill ${TONES[status.state] ?? ""}`;
  write("state", status.state);
  drawVerdict(status);
  drawBars(status);
  drawTiles(status);
  drawShards(status.shards);
  drawPicture(status);
  drawRanks(status);
  drawFacts(status);
}

function drawVerdict({ state, verdict, reason, ranks, shards, startup }) {
  const troubled = ["crashed", "diverged", "stalled"].includes(state), over = OVER.includes(state), starting = verdict.kind === "starting";
  get("verdict").className = `card verdict ${troubled ? "bad" : verdict.pauses ? "warn" : VERDICT_TONES[verdict.kind]}`;
  let question = troubled ? "What happened" : over ? "What held training back" : "What holds training back";
  let title = troubled ? capital(state) : verdict.title;
  if (shards && !ranks.length && !troubled) {
    question = "Before training";
    title = { starting: "Making shards", finished: "The shards are made" }[state] ?? capital(state);
  }
  write("question", question);
  write("kind", title);
  write("words", (over && !starting ? `Over the whole attempt${troubled ? ` (${verdict.kind})` : ""}: ` : "") + verdict.text);
  write("startup", startup && !starting ? `Start-up, in no rate: ${startup.text}.` : "");
  write("reason", state === "running" && reason === "events arrive" ? "" : `${capital(state)}: ${reason}.`);
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
  const newest = status.evaluations.findLast((one) => one.views === 1) ?? status.evaluations.at(-1), best = status.best;
  const room = status.headroom, over = OVER.includes(status.state), { epochs, total_steps: steps, steps_per_epoch: per } = status;
  const tile = (label, value, tone = "") => element("div", { class: `tile ${tone}` }, element("b", {}, value), element("span", {}, label));
  const progress = (label, value, done, total, what, note) => {
    const filled = total ? percent(done / total, 0) : "–";
    const bar = element("progress", { max: total || 1, value: total ? done : 0, "aria-label": `${what}: ${filled}` });
    return element("div", { class: "tile progress" }, element("b", {}, value), element("span", {}, label), element("small", {}, note(filled)), bar);
  };
  const gpu = status.gpu_busy !== null || status.gpu_memory_bytes !== null;
  const used = status.gpu_memory_total_bytes === null ? "" : ` of ${briefBytes(status.gpu_memory_total_bytes)}`;
  get("tiles").replaceChildren(
    progress(`epoch of ${epochs ?? "?"}`, count(Math.min(status.epoch + 1, epochs ?? Infinity)), status.epoch_step, per, "steps of the epoch",
      (filled) => (per ? `${count(status.epoch_step)} of ${count(per)} steps, ${filled}` : "")),
    progress(steps ? `step of ${count(steps)}` : "step", count(status.step), status.step, steps, "steps of the run",
      (filled) => (over || status.remaining_s === null ? filled : `${filled}, ${duration(status.remaining_s)} of training to go`)),
    tile("loader headroom", times(room), room === null ? "" : room >= 1.2 && status.verdict.kind !== "input-bound" ? "good" : "warn"),
    gpu ? tile("GPU use", percent(status.gpu_busy, 0)) : tile("CPU cores at work", count(status.ranks.reduce((sum, one) => sum + one.cpu_cores, 0), 1)),
    gpu ? tile(`GPU memory${used}`, bytes(status.gpu_memory_bytes)) : tile("images trained on", short(status.images_trained)),
    tile("process memory", bytes(status.rss_bytes)),
    tile("loss", count(status.loss, 3)),
    tile("training top-1 error", percent(status.train_error)),
    tile("validation top-1 error", percent(newest?.top1_error)),
    tile(best ? `best epoch: ${percent(best.top1_error)} top-1 error` : "best epoch", count(best?.epoch)),
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

function drawFacts(status) {
  const { receipt, native_images: native, fallback_images: fallback } = status;
  const when = (t) => (t ? new Date(t * 1e3).toLocaleString() : "–");
  const facts = {
    recipe: status.recipe, dataset: status.dataset?.slice(0, 12), classes: count(status.classes), "training images": count(status.train_images),
    "validation images": count(status.val_images), "global batch": count(status.batch_size),
    mesh: Object.entries(status.mesh).map(([axis, size]) => `${axis} ${size}`).join(", "), ranks: status.world, attempt: status.attempt,
    "images kept decoded": status.decoded_bytes === null ? status.decoded : `${bytes(status.decoded_bytes)} on each rank's ${status.decoded}`,
    "decoded by the engine": native || fallback ? `${count(native)}, by another decoder ${count(fallback)}` : "none",
    "attempt began": when(status.started), "images trained on": count(status.images_trained),
    "newest checkpoint": status.checkpoint_step === null ? "none" : `step ${count(status.checkpoint_step)}`,
    "newest epoch's receipt": receipt ? `${count(receipt.seen)} seen, ${receipt.missing} missing, ${receipt.duplicates} twice, ${receipt.dropped} dropped` : "none yet",
  };
  get("facts").replaceChildren(...Object.entries(facts).map(([term, fact]) =>
    element("div", {}, element("dt", {}, term), element("dd", {}, String(fact ?? "–") || "–"))));
  write("folder", status.folder);
  write("command", status.command ?? "not recorded");
  get("copy").hidden = status.command === null || !navigator.clipboard;
  get("json").setAttribute("href", `status/${encodeURIComponent(status.name)}`);
  get("warnings").hidden = !status.warnings.length;
  get("warning-list").replaceChildren(...status.warnings.map((one) => element("li", {}, one)));
}

get("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(get("command").textContent);
  write("copy", "copied");
  setTimeout(() => write("copy", "copy"), 2000);
});
