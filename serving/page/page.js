// The page: theme, headline, and updates on each event.
"use strict";

const KEPT = 900;
const WORDS = {
  waiting: "waiting for the first version", away: "broker away: answering from the last version", silent: "trainer silent",
  idle: "idle: everything is learned", fresh: "fresh", behind: "behind", stale: "stale", lost: "server away",
  full: "too many pages are open: close one",
};
const state = { points: [], theme: null, ready: false };

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").setAttribute("aria-pressed", String(theme === "dark"));
  if (state.points.length) drawCharts();
}

function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(localStorage.getItem("theme") || (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", () => { if (!localStorage.getItem("theme")) setTheme(dark.matches ? "dark" : "light"); });
  byId("theme").addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    localStorage.setItem("theme", theme);
    setTheme(theme);
  });
}

function setStatus(status) {
  const pill = byId("status");
  document.body.classList.toggle("lost", status === "lost" || status === "full");
  if (pill.dataset.status !== status || pill.textContent === "connecting") {
    pill.dataset.status = status;
    pill.textContent = WORDS[status] || status;
  }
}

// Between events the newest learned action keeps growing older: show its present age.
function tickHeadline() {
  const last = state.points.at(-1);
  if (!last || last.newest_record_ms <= 0) return;
  const sinceEvent = (performance.now() - state.heard) / 1000;
  byId("fresh").textContent = seconds(last.freshness_s + sinceEvent);
}

function showPoint(point) {
  setStatus(point.status);
  byId("version").textContent = point.epoch < 0 ? "no version yet" :
    `version ${point.epoch}/${point.number}${point.line && ` of line ${point.line}`} · ${count(point.num_interactions, "interaction", "interactions")} learned · ` +
    count(point.num_servers, "server", "servers") +
    (point.unheld && ` · no server for users of partitions ${point.unheld}`);
  tickHeadline();
  showPipeline(point);
  showVocabulary(point);
  showLetters(point);
  drawCharts();
}

function showVocabulary(point) {
  const earlier = state.points.find((each) => each.time_ms >= point.time_ms - 60000 && each.num_items > 0) || point;
  const evicted = Math.max(0, point.num_evicted - earlier.num_evicted); // the count begins anew with each trainer
  const facts = [["items", whole.format(point.num_items)],
    ["new in the last minute", whole.format(Math.max(0, point.num_items - earlier.num_items + evicted))],
    ["evicted in the last minute", whole.format(evicted)],
    ["normalised entropy (NE)", point.entropy === null ? "–" : point.entropy.toFixed(3)]];
  byId("vocabulary").replaceChildren(...facts.map(([term, value]) => element("div", {},
    element("dt", { text: term }), element("dd", { text: value }))));
}

function showLetters(point) {
  const box = byId("letters");
  if (!point.dead_letters) {
    box.replaceChildren(element("p", { class: "muted", text: "None: every action was accepted." }));
    return;
  }
  const rows = Object.entries(point.reasons).sort((a, b) => b[1] - a[1]);
  box.replaceChildren(element("table", {},
    element("thead", {}, element("tr", {}, element("th", { scope: "col", text: "Reason" }), element("th", { scope: "col", text: "Newest" }))),
    element("tbody", {}, ...rows.map(([reason, num]) => element("tr", {},
      element("td", { text: reason.replaceAll("_", " ") }), element("td", { text: whole.format(num) }))))),
  element("p", { class: "muted", text: `${whole.format(point.dead_letters)} in total` }));
}

// What the copy is, and the fresh weights on the very choices that it was asked about: it is not asked about all.
function showFrozen(frozen) {
  byId("frozen").hidden = !frozen;
  if (!frozen) return;
  byId("frozen").textContent = `The frozen copy stopped learning at ${clock(frozen.newest_record_ms / 1000)}, after ` +
    `${count(frozen.num_interactions, "interaction", "interactions")}. On the choices that both predicted: ` +
    `fresh ${frozen.fresh_hr10.toFixed(3)}, frozen ${frozen.hr10.toFixed(3)}.`;
}

let charts = null;

function drawCharts() {
  charts ||= { fresh: new Chart("fresh-chart", { floor: 2 }), quality: new Chart("quality-chart", { swaps: true, floor: 0.05 }),
    lag: new Chart("lag-chart", { floor: 2 }) };
  const points = state.points, times = points.map((point) => point.time_ms / 1000);
  const fresh = points.map((point) => point.freshness_s);
  charts.fresh.draw(times, [["freshness", fresh]], `Freshness now ${seconds(fresh.at(-1))}`);
  const hits = points.map((point) => ({ ...point.quality, frozen: point.frozen?.hr10 }));
  const rankers = Object.keys(RANKERS).filter((name) => hits.some((each) => each[name] !== undefined));
  const others = [...new Set(hits.flatMap(Object.keys))].filter((name) => !(name in RANKERS));
  const quality = [...rankers, ...others].map((name) => [RANKERS[name] || name, hits.map((each) => each[name] ?? null)]);
  charts.quality.draw(times, quality, "HR@10 now: " + quality.map(([name, values]) => `${name} ${values.at(-1)}`).join(", "),
    swapTimesOf(points));
  legend("quality-legend", quality, (value) => value.toFixed(3));
  showFrozen(points.at(-1).frozen);
  const lags = Object.entries(STAGES).map(([stage, name]) => [name, points.map((point) => point.stages[stage].seconds)]);
  charts.lag.draw(times, lags, "Lag now: " + lags.map(([name, values]) => `${name} ${seconds(values.at(-1))}`).join(", "));
  legend("lag-legend", lags, seconds);
}

function onEvent(event, data) {
  const wasReady = state.ready;
  state.heard = performance.now();
  if (event === "points") state.points = data;
  else state.points = [...state.points, data].slice(-KEPT);
  if (state.points.length) showPoint(state.points.at(-1));
  state.ready = state.points.length > 0 && state.points.at(-1).epoch >= 0;
  if (state.ready && !wasReady && byId("told").classList.contains("wrong") && trying.user) showUser(trying.user);
}

startTheme();
buildPipeline();
setInterval(tickHeadline, 200);
follow(onEvent, (why) => {
  state.ready = false;
  setStatus(why);
});
startTrying();
