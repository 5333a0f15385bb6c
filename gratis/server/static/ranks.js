// The table of the ranks, and the choice of its columns.

import { element } from "./chart.js";
import { bytes, count, get, percent, rate } from "./format.js";
import { recall, remember } from "./memory.js";

// name, cell, and where it is shown unasked: "all" screens, those "wide" enough (the rule), or "none"
const COLUMNS = [
  ["rank", (one) => one.rank, "all"], ["state", (one) => one.state, "all"], ["device", (one) => [one.device, one.device_name].filter(Boolean).join(" · ")],
  ["step", (one) => count(one.step)], ["loader, images/s", (one) => rate(one.images_per_s.loader)],
  ["trained, images/s", (one) => rate(one.images_per_s.trainer), "all"], ["waits", (one) => percent(one.data_wait_fraction), "all"],
  ["ms a step", (one) => (one.step_s === null ? "–" : count(one.step_s * 1e3, 1))],
  ...["read", "decode", "finish", "transfer"].map((stage) => [stage, (one) => percent(one.stages[stage], 0)]),
  ["queue", (one) => (one.queue_depth === null ? "–" : `${one.queue_depth}/${one.queue_capacity}`)],
  ["reads", (one) => (one.read_bytes_per_s === null ? "–" : `${bytes(one.read_bytes_per_s)}/s`)],
  ["decoder fallback", (one) => count(one.fallback_images), "none"],
  ["CPU cores", (one) => count(one.cpu_cores, 1)], ["memory", (one) => bytes(one.rss_bytes)],
];
const GPU_COLUMNS = [
  ["GPU use", (one) => percent(one.gpu?.busy, 0), "all"], ["JPEG engine", (one) => percent(one.gpu?.nvjpg_busy, 0), "none"],
  ["GPU memory", (one) => bytes(one.gpu?.memory_bytes)], ["power", (one) => (one.gpu?.power_w ? `${count(one.gpu.power_w)} W` : "–"), "none"],
];
const NARROW = matchMedia("(max-width: 720px)");
const choices = new Map(Object.entries(recall("columns") ?? {})); // column -> whether it is shown, of those chosen by hand
let newestStatus = null;

function isShown([label, , where = "wide"]) {
  return choices.get(label) ?? (where === "all" || (where === "wide" && !NARROW.matches));
}

// The boxes are made anew only if there are others: who is about to press one keeps it.
function drawChoices(columns) {
  const boxes = get("column-choices");
  const labels = columns.map(([label]) => label).join("|");
  if (boxes.dataset.labels !== labels) {
    boxes.dataset.labels = labels;
    boxes.replaceChildren(boxes.querySelector("legend"), ...columns.map(([label]) =>
      element("label", {}, element("input", { type: "checkbox", value: label }), ` ${label}`)));
  }
  for (const box of boxes.querySelectorAll("input")) box.checked = isShown(columns.find(([label]) => label === box.value));
}

get("column-choices").addEventListener("change", ({ target }) => {
  choices.set(target.value, target.checked);
  remember("columns", Object.fromEntries(choices));
  drawRanks(newestStatus);
});
NARROW.addEventListener("change", () => newestStatus && drawRanks(newestStatus));

export function drawRanks(status) {
  newestStatus = status;
  const { ranks, verdict } = status;
  const all = ranks.some((one) => one.gpu) ? [...COLUMNS, ...GPU_COLUMNS] : COLUMNS;
  drawChoices(all);
  const columns = all.filter(isShown), kind = (label) => (["rank", "state", "device"].includes(label) ? { class: "words" } : {});
  get("rank-head").replaceChildren(element("tr", {}, ...columns.map(([label]) => element("th", { scope: "col", ...kind(label) }, label))));
  get("rank-rows").replaceChildren(...ranks.map((one) => {
    const held = one.rank === verdict.rank || one.state === "gone";
    return element("tr", held ? { class: "held" } : {}, ...columns.map(([label, cell]) => element("td", kind(label), String(cell(one)))));
  }));
}
