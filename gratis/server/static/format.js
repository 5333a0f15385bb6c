// Numbers as people read them, – for an unknown value; and the elements of the page that they are written to.

export const OVER = ["finished", "preempted", "crashed", "diverged"]; // states of a run
export const get = (id) => document.getElementById(id);
export const write = (id, text) => { if (get(id).textContent !== text) get(id).textContent = text; }; // what is set anew is read aloud anew

const missing = (value) => value === null || value === undefined;

export function count(value, digits = 0) {
  return missing(value) ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
}

export function percent(share, digits = 1) {
  return missing(share) ? "–" : `${(share * 100).toFixed(digits)} %`;
}

export function rate(value) {
  return missing(value) ? "–" : count(value, value < 100 ? 1 : 0);
}

export function times(ratio) {
  return missing(ratio) ? "–" : `${count(ratio, 1)} ×`;
}

export function short(value) {
  if (value >= 1e4) return `${count(value / 1e3, value % 1e3 ? 1 : 0)}k`;
  return count(value, value < 10 && value % 1 ? (value < 0.1 ? 4 : 2) : 0);
}

export function significant(value, digits = 3) {
  return String(Number(value.toPrecision(digits)));
}

export function bytes(value) {
  if (missing(value)) return "–";
  return value < 1e9 ? `${count(value / 1e6, 1)} MB` : `${count(value / 1e9, 2)} GB`;
}

export function briefBytes(value) {
  return value ? `${significant(value / (value < 1e9 ? 1e6 : 1e9))} ${value < 1e9 ? "MB" : "GB"}` : "0";
}

export function duration(seconds) {
  if (missing(seconds)) return "–";
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}
