// A line chart in SVG: axes from round numbers, linear or logarithmic in y, a legend that follows the pointer or the arrow keys, redrawn when its box changes.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 56, RIGHT = 12, TOP = 10, BOTTOM = 22;

export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function shape(name, attributes, content) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (content !== undefined) node.textContent = content;
  return node;
}

function roundStep(span, count) {
  const raw = span / count, power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 2.5, 5, 10].find((one) => one * power >= raw) * power;
}

function ticks(low, high, count) {
  const step = roundStep(high - low || 1, count), values = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) values.push(Math.abs(at) < step / 1e6 ? 0 : at);
  return values;
}

// y axes: from a value to a share of the height in [0, 1], and the values to mark.
function linear(values, max) {
  const most = Math.max(...values, 0) * 1.06 || 1, top = max === null ? most : Math.min(most, max);
  return { place: (value) => Math.min(Math.max(value, 0), top) / top, marks: ticks(0, top, 4) };
}

function logarithmic(values) {
  const known = values.filter((value) => value > 0).sort((a, b) => a - b);
  const low = Math.floor(Math.log10(known[Math.floor(known.length / 20)] ?? 1)); // single low points fall off the edge
  const high = Math.max(Math.ceil(Math.log10(known.at(-1) ?? 10)), low + 1), marks = [];
  for (let power = low; power <= high; power++) for (const one of high - low < 3 && power < high ? [1, 2, 5] : [1]) marks.push(one * 10 ** power);
  return { place: (value) => Math.min(Math.max((Math.log10(Math.max(value, 1e-9)) - low) / (high - low), 0), 1), marks };
}

const known = (points) => points.filter((one) => one[1] !== null);

export class Chart {
  // lines: [{label, colour: "a".."d", area, dots, ring, optional: not in the legend without a value}]; format: number -> text; max: the most that y can be
  constructor(figure, title, lines, { format, max = null, log = false }) {
    Object.assign(this, { title, lines, format, max, log, data: lines.map(() => []), other: null, cursor: null, axis: { name: "step", at: String, whole: true } });
    this.svg = shape("svg", { role: "img", tabindex: 0, "aria-label": title });
    this.values = lines.map(() => element("b", {}, "–"));
    this.others = lines.map(() => element("i"));
    this.keys = lines.map((line, i) => element("span", {}, element("span", { class: `swatch fill-${line.colour}${line.ring ? " ring" : ""}` }), `${line.label} `, this.values[i], this.others[i]));
    this.place = element("span");
    this.legend = element("div", { class: "legend" }, ...this.keys, this.place);
    figure.append(element("figcaption", {}, title), this.legend, this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    this.svg.addEventListener("keydown", (event) => this.press(event));
    this.svg.addEventListener("blur", () => this.point(null));
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  // data, other: for each line, its points [x, value] in order; a null value breaks the line. other: a second run's, dashed, or null.
  // axis: {name, at: x -> words, whole: only whole numbers are marked}
  show(data, other, axis) {
    Object.assign(this, { data, other, axis });
    this.draw();
  }

  point(x) {
    this.cursor = x;
    this.draw();
  }

  // Arrow keys go from point to point, read out by the legend; Escape leaves.
  press(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") this.point(null);
    if (!move || !this.x) return;
    event.preventDefault();
    this.legend.setAttribute("aria-live", "polite");
    const places = [...new Set(this.data.flatMap((points) => known(points).map((one) => this.x(one[0]))))].sort((a, b) => a - b);
    const from = this.cursor ?? Infinity, at = places.findIndex((place) => place >= from - 0.01);
    const next = this.cursor === null ? places.length - 1 : (at < 0 ? places.length - 1 : at) + move;
    if (places.length) this.point(places[Math.min(Math.max(next, 0), places.length - 1)]);
  }

  draw() {
    const width = this.svg.clientWidth, height = this.svg.clientHeight;
    if (!width) return;
    const all = [...this.data, ...(this.other ?? [])].flatMap(known), values = all.map((one) => one[1]);
    const x0 = Math.min(...all.map((one) => one[0])), most = Math.max(...all.map((one) => one[0]));
    const x1 = most > x0 ? most : x0 + 1;
    const scale = this.log ? logarithmic(values) : linear(values, this.max);
    const x = (at) => LEFT + ((at - x0) / (x1 - x0)) * (width - LEFT - RIGHT);
    const y = (value) => height - BOTTOM - scale.place(value) * (height - TOP - BOTTOM);
    this.x = values.length ? x : null;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren();
    for (const at of scale.marks) {
      this.svg.append(shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(at), y2: y(at) }));
      this.svg.append(shape("text", { x: LEFT - 7, y: y(at) + 4, "text-anchor": "end" }, this.format(at)));
    }
    if (!values.length) {
      this.svg.append(shape("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "nothing yet"));
      return;
    }
    for (const at of ticks(x0, x1, Math.max(width / 110, 2)).filter((one) => x(one) > LEFT + 14 && (!this.axis.whole || Number.isInteger(one)))) {
      this.svg.append(shape("text", { class: "tick", x: x(at), y: height - 5, "text-anchor": "middle" }, at.toLocaleString("en", { maximumFractionDigits: 2 })));
    }
    this.svg.append(shape("text", { class: "axis", x: LEFT - 7, y: height - 5, "text-anchor": "end" }, this.axis.name));
    this.lines.forEach((line, i) => this.other && this.trace(line, this.other[i], x, y, " other"));
    this.lines.forEach((line, i) => this.trace(line, this.data[i], x, y, ""));
    this.drawLegend(x, height);
  }

  trace(line, points, x, y, kind) {
    let path = "", pen = "M";
    for (const [at, value] of points) {
      if (value === null) pen = "M";
      else path += `${pen}${x(at).toFixed(1)},${y(value).toFixed(1)}`, pen = "L";
    }
    const there = known(points);
    if (line.area && !kind && there.length > 1) this.svg.append(shape("path", { class: `area fill-${line.colour}`, d: `${path.replace(/(?!^)M/g, "L")}L${x(there.at(-1)[0])},${y(0)}L${x(there[0][0])},${y(0)}Z` }));
    if (!line.ring) this.svg.append(shape("path", { class: `stroke-${line.colour}${kind}`, d: path }));
    const dot = line.ring ? { class: `best stroke-${line.colour}`, r: 6 } : { class: `fill-${line.colour}${kind}`, r: 3 };
    if (line.dots || line.ring || there.length === 1) for (const [at, value] of there) this.svg.append(shape("circle", { ...dot, cx: x(at), cy: y(value) }));
  }

  // The values at the cursor, else the newest, of each line; the other run's in brackets.
  drawLegend(x, height) {
    const away = (one) => Math.abs(x(one[0]) - this.cursor);
    const nearest = (points) => known(points).reduce((best, one) => (!best || away(one) < away(best) ? one : best), null);
    const pick = (points) => (this.cursor === null ? points.findLast((one) => one[1] !== null) : nearest(points));
    const chosen = this.data.map(pick), others = this.other?.map(pick) ?? [];
    chosen.forEach((one, i) => (this.values[i].textContent = one ? this.format(one[1]) : "–"));
    this.keys.forEach((key, i) => (key.hidden = Boolean(this.lines[i].optional) && !chosen[i] && !others[i]));
    this.others.forEach((node, i) => (node.textContent = others[i] ? ` (${this.format(others[i][1])})` : ""));
    const first = this.cursor === null ? null : chosen.find((one) => one);
    this.place.textContent = first ? this.axis.at(first[0]) : "";
    if (first) this.svg.append(shape("line", { class: "cursor", x1: x(first[0]), x2: x(first[0]), y1: TOP, y2: height - BOTTOM }));
    this.svg.setAttribute("aria-label", `${this.title}: ${this.lines.map((line, i) => `${line.label} ${this.values[i].textContent}`).join(", ")}`);
  }
}
