// The three charts, drawn by uPlot and described in words for screen readers.
"use strict";

const STROKES = ["--s1", "--s2", "--s3", "--s4", "--s5", "--s6"];
const STAGES = { ingest: "actions", sequence: "sequences", train: "trainer", publish: "weights", serve: "serving" };
const RANKERS = {
  model: "model", popular: "most popular", popular_unseen: "most popular unseen", network: "network only",
  counts: "counts only", frozen: "frozen copy",
};
const MAX_TICKS = 120;

class Chart {
  constructor(id, { swaps = false, floor = 0 } = {}) {
    this.box = byId(id);
    this.swaps = swaps;
    this.floor = floor;
    this.names = null;
    this.plot = null;
    this.swapTimes = [];
    new ResizeObserver(() => this.resize()).observe(this.box);
  }

  resize() {
    const width = Math.floor(this.box.clientWidth);
    if (this.plot && width > 0) this.plot.setSize({ width, height: this.box.clientHeight });
  }

  // times: seconds; lines: [name, values]. The plot is created again when the lines or the colours change.
  draw(times, lines, say, swapTimes = []) {
    this.swapTimes = swapTimes.slice(-MAX_TICKS);
    const names = lines.map(([name]) => name).join() + document.documentElement.dataset.theme;
    const data = [times, ...lines.map(([, values]) => values)];
    if (names === this.names) this.plot.setData(data);
    else this.make(names, lines, data);
    this.box.setAttribute("aria-label", say);
  }

  make(names, lines, data) {
    if (this.plot) this.plot.destroy();
    this.names = names;
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false },
      font: "12px ui-sans-serif, system-ui, sans-serif" };
    this.plot = new uPlot({
      width: Math.max(200, Math.floor(this.box.clientWidth)), height: this.box.clientHeight,
      legend: { show: false }, cursor: { show: false }, padding: [8, 30, 0, 0], // the last time is centred on its tick
      scales: { y: { range: (_plot, _low, high) => [0, Math.max(this.floor, (high || 0) * 1.15)] } },
      axes: [{ ...axis, grid: { show: false }, size: 28, space: 90, values: (_plot, at) => at.map(clock) }, { ...axis, size: 44 }],
      series: [{}, ...lines.map(([name], index) => ({
        label: name, stroke: colour(STROKES[index % STROKES.length]), width: 2, points: { show: false }, spanGaps: true,
      }))],
      hooks: { draw: [(plot) => this.tick(plot)] },
    }, data, this.box);
  }

  // Swaps as ticks on the time axis.
  tick(plot) {
    if (!this.swaps) return;
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = colour("--water");
    ctx.lineWidth = 2 * devicePixelRatio;
    ctx.globalAlpha = 0.55;
    for (const time of this.swapTimes) {
      const x = plot.valToPos(time, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top + bbox.height);
      ctx.lineTo(x, bbox.top + bbox.height - 9 * devicePixelRatio);
      ctx.stroke();
    }
    ctx.restore();
  }
}

function clock(time) {
  return new Date(time * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

function legend(id, lines, write) {
  byId(id).replaceChildren(...lines.map(([name, values], index) => {
    const line = element("i");
    line.style.borderColor = `var(${STROKES[index % STROKES.length]})`;
    const last = values.findLast((value) => value !== null && value !== undefined);
    return element("li", {}, line, `${name} `, element("b", { text: last === undefined ? "–" : write(last) }));
  }));
}

function swapTimesOf(points) {
  const times = [];
  for (const point of points) if (point.swapped_ms > 0 && times.at(-1) !== point.swapped_ms) times.push(point.swapped_ms);
  return times.map((time) => time / 1000);
}
