// The strip: actions → sequences → trainer → weights → serving.
"use strict";

const STRIP = [
  { stage: "ingest", key: "actions", name: "Actions", unit: "actions/s", waiting: ["action to read", "actions to read"] },
  { stage: "sequence", key: "sequences", name: "Sequences", unit: "examples/s", waiting: ["example to deliver", "examples to deliver"] },
  { stage: "train", key: "trainer", name: "Trainer", unit: "interactions/s", waiting: ["example to learn", "examples to learn"] },
  { stage: "publish", key: "weights", name: "Weights", unit: "versions/s", waiting: ["example to publish", "examples to publish"] },
  { stage: "serve", key: "serving", name: "Serving", unit: "requests/s", waiting: ["version to swap in", "versions to swap in"] },
];

function buildPipeline() {
  for (const part of STRIP) {
    part.tag = element("span", { class: "tag", text: "bottleneck" });
    part.tag.hidden = true;
    part.rate = element("span", { text: "–" });
    part.behind = element("p", { class: "behind", text: "–" });
    part.box = element("li", { class: "stage" },
      element("p", { class: "name" }, part.name, part.tag),
      element("p", { class: "rate" }, part.rate, " ", element("small", { text: part.unit })), part.behind);
  }
  byId("pipeline").replaceChildren(...STRIP.map((part) => part.box));
}

function showPipeline(point) {
  for (const part of STRIP) {
    const { records, seconds: age } = point.stages[part.stage];
    const isBottleneck = point.bottleneck === part.stage;
    part.box.classList.toggle("bottleneck", isBottleneck);
    part.box.classList.toggle("flows", point.rates[part.key] > 0);
    part.tag.hidden = !isBottleneck;
    part.rate.textContent = rate(point.rates[part.key]);
    part.behind.textContent = records ? `${count(records, ...part.waiting)}, ${seconds(age).replace(" ", "\u00a0")} behind` : "nothing waits";
  }
}
