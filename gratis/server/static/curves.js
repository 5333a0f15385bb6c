// The charts: a run's intervals and evaluations over steps, epochs or time, and those of a run to compare with.

import { Chart } from "./chart.js";
import { briefBytes, count, get, short, significant } from "./format.js";

const share = (value) => `${significant(value * 100)} %`;
const charts = {
  speed: new Chart(get("chart-speed"), "Throughput, images per second, on a logarithmic scale", [
    { label: "loader could deliver", colour: "a", area: true }, { label: "handed over", colour: "d" },
    { label: "training takes", colour: "b", area: true },
  ], { format: short, log: true }),
  wait: new Chart(get("chart-wait"), "Share of time training waits for data", [{ label: "waiting", colour: "d", area: true }], { format: share, max: 1 }),
  error: new Chart(get("chart-error"), "Error", [
    { label: "training top-1", colour: "b" }, { label: "validation top-1, 1 view", colour: "a", dots: true },
    { label: "10 views", colour: "d", dots: true, optional: true }, { label: "top-5, 10 views", colour: "c", dots: true, optional: true }, { label: "best epoch", colour: "a", ring: true, optional: true },
  ], { format: share, max: 1 }),
  loss: new Chart(get("chart-loss"), "Training loss, nats per image", [{ label: "loss", colour: "b" }], { format: (value) => count(value, 2) }),
  lr: new Chart(get("chart-lr"), "Learning rate", [{ label: "of the weights", colour: "c" }], { format: significant }),
  gpu: new Chart(get("chart-gpu"), "GPU use", [{ label: "mean of the GPUs", colour: "c", area: true }], { format: share, max: 1 }),
  cpu: new Chart(get("chart-cpu"), "CPU cores at work", [{ label: "of all ranks", colour: "c", area: true }], { format: (value) => significant(value) }),
  memory: new Chart(get("chart-memory"), "Memory", [{ label: "processes of all ranks", colour: "a" }, { label: "fullest GPU", colour: "b", optional: true }], { format: briefBytes }),
};

// Intervals far shorter than usual, as at an epoch's end, hold a step or two: their rates are noise on a chart.
function ofUsualLength(intervals) {
  const steps = intervals.map((one, i) => one.step - (i ? intervals[i - 1].step : 0));
  const usual = [...steps].sort((a, b) => a - b)[steps.length >> 1];
  return intervals.filter((one, i) => steps[i] * 2 >= usual && !one.startup);
}

const UNITS = [["s", 1, 180], ["min", 60, 10800], ["h", 3600, 345600], ["days", 86400, Infinity]];

// What is to the right: a point of a series to x, and how the chart names it.
function axes(chosen, all) {
  const spans = all.map(({ intervals }) => (intervals.length ? intervals.at(-1).t - intervals[0].t : 0));
  const [unit, seconds] = UNITS.find(([, , most]) => Math.max(...spans) < most) ?? UNITS.at(-1);
  return {
    steps: { name: "step", whole: true, at: (x) => `at step ${count(x)}`, x: () => (one) => one.step },
    epochs: { name: "epoch", whole: false, at: (x) => `at epoch ${count(x, 2)}`, x: ({ status }) => (one) => (status.steps_per_epoch ? one.step / status.steps_per_epoch : one.epoch) },
    time: { name: unit, whole: false, at: (x) => `after ${count(x, 1)} ${unit}`, x: ({ intervals }) => (one) => (one.t === null || !intervals.length ? null : (one.t - intervals[0].t) / seconds) },
  }[chosen];
}

function points({ status, intervals }, axis) {
  const x = axis.x({ status, intervals }), steady = intervals.filter((one) => !one.startup);
  const line = (pick, of = intervals) => of.map((one) => [x(one), pick(one)]).filter(([at]) => at !== null);
  const evals = (views, key) => line((one) => one[key], status.evaluations.filter((one) => one.views === views));
  return {
    speed: ["loader", "delivered", "trainer"].map((key) => line((one) => one.images_per_s[key], ofUsualLength(intervals))),
    wait: [line((one) => one.data_wait_fraction, steady)],
    error: [line((one) => one.train_error), evals(1, "top1_error"), evals(10, "top1_error"), evals(10, "top5_error"), line((one) => one.top1_error, status.best ? [status.best] : [])],
    loss: [line((one) => one.loss)],
    lr: [line((one) => one.learning_rate)],
    gpu: [line((one) => one.gpu_busy, steady)],
    cpu: [line((one) => one.cpu_cores, steady)],
    memory: [line((one) => one.rss_bytes), line((one) => one.gpu_memory_bytes)],
  };
}

// shown, other: {status, intervals}; other: a run to compare with, or null. chosen: "steps", "epochs" or "time".
export function drawCharts(shown, other, chosen) {
  const axis = axes(chosen, other ? [shown, other] : [shown]);
  const own = points(shown, axis), others = other && points(other, axis);
  get("chart-gpu").hidden = ![shown, other].some((one) => one?.intervals.some((interval) => interval.gpu_busy !== null));
  get("chart-cpu").hidden = !get("chart-gpu").hidden;
  for (const [name, chart] of Object.entries(charts)) chart.show(own[name], others && others[name], axis);
}
