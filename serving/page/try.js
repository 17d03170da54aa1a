// Try it: a user's history beside the top 10; a click sends an action through Kafka, and the list is updated.
"use strict";

const NUM = 10;
const LOOK_EVERY_MS = 250;
const GIVE_UP_MS = 90000;
const AGAIN_MS = 2000;
const NUM_REASONS = 2;
const titles = new Map();
const trying = { user: "", items: [], about: null, sent: null, why: new Map() };

function say(text, kind = "") {
  const told = byId("told");
  if (told.textContent !== text) told.textContent = text; // a screen reader speaks whenever it is set
  told.className = `told ${kind}`;
}

const UNNAMED = "?"; // the server's name for an item that no version has learned yet

function titleOf(item) {
  return titles.get(String(item)) || (item === UNNAMED ? "a new item" : String(item));
}

async function learnTitles(items) {
  const unknown = items.filter((item) => !titles.has(String(item)));
  if (!unknown.length) return;
  const told = await call("/items", { items: unknown });
  for (const each of told.items) titles.set(String(each.item), each.title || "");
}

async function showUser(user) {
  trying.user = user;
  trying.items = [];
  trying.sent = null;
  trying.why = new Map();
  byId("user").value = user;
  say("");
  try {
    await refresh();
    await explain();
  } catch (error) {
    say(error.message, "wrong");
  }
}

async function refresh() {
  const user = trying.user;
  const [answer, history] = await Promise.all([
    call("/recommend", { user, k: NUM }), call(`/history?user=${encodeURIComponent(user)}`),
  ]);
  await learnTitles(answer.items.map((each) => each.item));
  if (user !== trying.user) return null;
  showRecommended(answer);
  showHistory(history);
  return { answer, history };
}

// Why: the parts of each score, requested once the list no longer changes.
async function explain() {
  const user = trying.user;
  const answer = await call("/explain", { user, k: NUM, reasons: NUM_REASONS });
  if (user !== trying.user) return;
  trying.why = new Map(answer.items.map((each) => [String(each.item), whyOf(each)]));
  for (const why of document.querySelectorAll("#recommended .why")) showWhy(why);
}

function showWhy(why) {
  const known = trying.why.get(why.dataset.item);
  why.textContent = known ? known.short : "";
  why.title = known ? known.long : "";
}

// A one-line reason: the interactions with the largest effect, or that the item is popular; the parts as a tooltip.
function whyOf(each) {
  const named = each.reasons.filter((reason) => reason.memory + (reason.network || 0) > 0)
    .map((reason) => reason.title || titleOf(reason.item));
  const parts = [["popular", each.standing], ["history", each.memory], ["category", each.groups], ["network", each.network], ["reranking", each.reranking]];
  const long = parts.filter(([, share]) => share !== null).map(([part, share]) => `${part} ${signed(share)}`).join(" · ");
  const short = named.length ? `because of ${named.join(" and ")}` : "popular recently";
  return { short, long: `${signed(each.score)} = ${long}` };
}

function signed(number) {
  return (number < 0 ? "−" : "+") + Math.abs(number).toFixed(2);
}

function showRecommended(answer) {
  const before = trying.items.map(String);
  const list = byId("recommended");
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.item : null;
  const scores = answer.items.map((each) => each.score);
  const low = Math.min(...scores), span = Math.max(...scores) - low || 1;
  list.replaceChildren(...answer.items.map((each, index) => {
    const was = before.indexOf(String(each.item));
    const moved = !before.length || was === index ? null : was < 0 ? ["new", "new"]
      : was > index ? ["up", `↑${was - index}`] : ["down", `↓${index - was}`];
    return element("li", {}, recommendedItem(each, index, moved, 0.12 + 0.88 * (each.score - low) / span));
  }));
  if (focused !== null) list.querySelector(`[data-item="${CSS.escape(focused)}"]`)?.focus();
  byId("cold").hidden = !answer.cold;
  trying.items = answer.items.map((each) => each.item);
  trying.version = answer.version;
}

function recommendedItem(each, index, moved, share) {
  const bar = element("span", { class: "bar", "aria-hidden": "true" });
  bar.style.transform = `scaleX(${share.toFixed(3)})`;
  const title = titleOf(each.item);
  const parts = [
    element("span", { class: "place", text: String(index + 1) }), element("span", { class: "title", text: title, title }),
    element("span", { class: "score" }, ...(moved ? [element("span", { class: `move ${moved[0]}`, text: moved[1] }), " "] : []),
      each.score.toFixed(2)), element("span", { class: "why", "data-item": String(each.item) }), bar,
  ];
  showWhy(parts[3]);
  if (!trying.about?.allow_actions) return element("div", { class: "item" }, ...parts);
  const button = element("button", { class: "item", type: "button", "data-item": String(each.item) }, ...parts);
  button.addEventListener("click", () => act(each.item));
  return button;
}

function showHistory(history) {
  byId("num-history").textContent = history.num_history ? count(history.num_history, "interaction", "interactions") : "none yet";
  byId("history").replaceChildren(...history.interactions.map((each) => {
    const title = each.title || titleOf(each.item);
    const mine = trying.sent !== null && String(each.item) === String(trying.sent.item);
    return element("li", {}, element("div", { class: mine ? "item fresh" : "item" },
      element("span", { class: "title", text: title, title }),
      element("span", {}, ...each.actions.map((kind) => element("span", { class: "tag", text: kind })))));
  }));
}

// Send the action, then poll until the history has it, and until a version answers that has learned from it.
async function act(item) {
  const user = trying.user, kind = byId("kind").value, began = performance.now();
  const since = () => ((performance.now() - began) / 1000).toFixed(1);
  try {
    say(`Sending ${kind} on ${titleOf(item)} …`);
    const sent = await call("/actions", { user, item, action: kind });
    trying.sent = { item };
    let inHistory = "", words = `Kafka has it (partition ${sent.partition}, offset ${sent.offset}); waiting for the history …`;
    say(words);
    while (performance.now() - began < GIVE_UP_MS && user === trying.user) {
      await new Promise((done) => setTimeout(done, LOOK_EVERY_MS));
      let version, seen;
      try {
        version = await call("/version");
        seen = await refresh();
      } catch (error) { // the server is away or busy, but the action is in Kafka: go on looking
        if (user === trying.user) say(`${words} ${error.message}`, "wrong");
        continue;
      }
      if (seen === null) return;
      const there = seen.history.interactions.some((each) => String(each.item) === String(item) && each.actions.includes(kind));
      if (there && !inHistory) {
        inHistory = since();
        words = `In the history after ${inHistory} s; waiting for a version that has learned it …`;
      }
      say(words, inHistory ? "news" : "");
      if (there && version.newest_record_ms >= sent.record_ms) {
        say(`In the history after ${inHistory} s; version ${name(version.version)} has learned it and answers after ${since()} s.`, "news");
        await explain();
        return;
      }
    }
    if (user === trying.user) say(`Not learned after ${since()} s: see which stage is behind, above.`);
  } catch (error) {
    say(error.message, "wrong");
  }
}

function name(version) {
  return `${version.epoch}/${version.number}`;
}

async function loadUsers() {
  const { users } = await call("/users");
  byId("users").replaceChildren(...users.map((user) => element("option", { value: user })));
  return users;
}

async function startTrying() {
  byId("who").addEventListener("submit", (event) => {
    event.preventDefault();
    if (byId("user").value.trim()) showUser(byId("user").value.trim());
  });
  let next = 0;
  byId("another").addEventListener("click", async () => {
    try {
      const users = await loadUsers();
      if (users.length) await showUser(users[++next % users.length]);
    } catch (error) {
      say(error.message, "wrong");
    }
  });
  while (!(await hasFirstUser())) await new Promise((done) => setTimeout(done, AGAIN_MS));
}

// Show a user as soon as the server answers and has a version; whether it did.
async function hasFirstUser() {
  try {
    trying.about = await call("/about");
    const kinds = trying.about.kinds;
    if (!kinds.length) {
      say("Waiting for the first version of the weights.");
      return false;
    }
    byId("kind").replaceChildren(...kinds.map((kind) => element("option", { value: kind, text: kind })));
    byId("kind").value = kinds.includes("click") ? "click" : kinds.at(-1);
    byId("kind-row").hidden = !trying.about.allow_actions;
    const users = await loadUsers();
    await showUser(users[0] || "new user");
    return true;
  } catch (error) {
    say(error.message, "wrong");
    return false;
  }
}
