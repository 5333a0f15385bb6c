// A line chart in SVG: axes from round numbers, linear or logarithmic in y, a legend that follows the pointer, redrawn when its box changes.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 52, RIGHT = 10, TOP = 10, BOTTOM = 22;

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

export class Chart {
  // lines: [{label, colour: "a".."d", area, dots}]; format: number -> text; max: the most that y can be
  constructor(figure, title, lines, { format, max = null, log = false }) {
    Object.assign(this, { lines, format, max, log, data: lines.map(() => []), cursor: null });
    this.svg = shape("svg", { role: "img", "aria-label": title });
    this.values = lines.map(() => element("b", {}, "–"));
    const keys = lines.map((line, i) => element("span", {}, element("span", { class: `swatch fill-${line.colour}` }), `${line.label} `, this.values[i]));
    this.place = element("span");
    figure.append(element("figcaption", {}, title), element("div", { class: "legend" }, ...keys, this.place), this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  // data: for each line, its points [step, value] by step; a null value breaks the line
  show(data) {
    this.data = data;
    this.draw();
  }

  point(x) {
    this.cursor = x;
    this.draw();
  }

  draw() {
    const width = this.svg.clientWidth, height = this.svg.clientHeight;
    if (!width) return;
    const all = this.data.flat(), values = all.map((one) => one[1]).filter((value) => value !== null);
    const x0 = Math.min(...all.map((one) => one[0])), x1 = Math.max(...all.map((one) => one[0]), x0 + 1);
    const scale = this.log ? logarithmic(values) : linear(values, this.max);
    const x = (step) => LEFT + ((step - x0) / (x1 - x0)) * (width - LEFT - RIGHT);
    const y = (value) => height - BOTTOM - scale.place(value) * (height - TOP - BOTTOM);
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
    for (const at of ticks(x0, x1, Math.max(width / 110, 2)).filter(Number.isInteger)) {
      this.svg.append(shape("text", { x: x(at), y: height - 5, "text-anchor": "middle" }, at.toLocaleString("en")));
    }
    this.svg.append(shape("text", { x: LEFT - 7, y: height - 5, "text-anchor": "end" }, "step"));
    this.lines.forEach((line, i) => this.trace(line, this.data[i], x, y));
    this.drawLegend(x, width, height);
  }

  trace(line, points, x, y) {
    let path = "", pen = "M";
    for (const [step, value] of points) {
      if (value === null) pen = "M";
      else path += `${pen}${x(step).toFixed(1)},${y(value).toFixed(1)}`, pen = "L";
    }
    const known = points.filter((one) => one[1] !== null);
    if (line.area && known.length > 1) this.svg.append(shape("path", { class: `area fill-${line.colour}`, d: `${path.replace(/(?!^)M/g, "L")}L${x(known.at(-1)[0])},${y(0)}L${x(known[0][0])},${y(0)}Z` }));
    this.svg.append(shape("path", { class: `stroke-${line.colour}`, d: path }));
    if (line.dots || known.length === 1) for (const [step, value] of known) this.svg.append(shape("circle", { class: `fill-${line.colour}`, cx: x(step), cy: y(value), r: 3 }));
  }

  drawLegend(x, width, height) {
    const nearest = (points) => points.reduce((best, one) => (one[1] !== null && (!best || Math.abs(x(one[0]) - this.cursor) < Math.abs(x(best[0]) - this.cursor)) ? one : best), null);
    const chosen = this.data.map((points) => (this.cursor === null ? points.findLast((one) => one[1] !== null) : nearest(points)));
    chosen.forEach((one, i) => (this.values[i].textContent = one ? this.format(one[1]) : "–"));
    const first = this.cursor === null ? null : chosen.find((one) => one);
    this.place.textContent = first ? `at step ${first[0].toLocaleString("en")}` : "";
    if (first) this.svg.append(shape("line", { class: "cursor", x1: x(first[0]), x2: x(first[0]), y1: TOP, y2: height - BOTTOM }));
  }
}
