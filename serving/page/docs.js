// /openapi.json in readable form, with a form to try each operation.
"use strict";

let described = null;

function resolve(schema) {
  return schema && schema.$ref ? described.components.schemas[schema.$ref.split("/").pop()] : schema;
}

function nameOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  const parts = schema.anyOf || schema.oneOf;
  if (parts && !schema.type) return [...new Set(parts.map(nameOf))].join(" | ");
  if (schema.type === "array") return `list of ${nameOf(schema.items)}`;
  if (schema.const !== undefined || schema.enum) return JSON.stringify(schema.const ?? schema.enum);
  return schema.type || "anything";
}

function bounds(schema) {
  const parts = [schema, ...(schema.anyOf || [])];
  const found = [];
  for (const [key, word] of [["minimum", "≥"], ["maximum", "≤"], ["minItems", "at least"], ["maxItems", "at most"]]) {
    const value = parts.map((part) => part[key]).find((each) => each !== undefined && Math.abs(each) < 1e12);
    if (value !== undefined) found.push(`${word} ${whole.format(value)}`);
  }
  if ("default" in schema && schema.default !== null) found.push(`default ${JSON.stringify(schema.default)}`);
  return found.join(", ");
}

function fields(schema) {
  const full = resolve(schema);
  if (!full || !full.properties) return element("p", { class: "muted", text: full?.type === "string" ? "text" : "" });
  const required = new Set(full.required || []);
  return element("table", {},
    element("thead", {}, element("tr", {}, ...["Field", "Type", "What"].map((text) => element("th", { scope: "col", text })))),
    element("tbody", {}, ...Object.entries(full.properties).map(([name, each]) => element("tr", {},
      element("td", {}, element("code", { text: name }), required.has(name) ? "" : " (optional)"),
      element("td", { text: nameOf(each) }),
      element("td", {}, ...prose([each.description || resolve(each)?.description, bounds(each)].filter(Boolean).join("; ")))))));
}

function tryForm(path, method, operation) {
  const content = operation.requestBody?.content["application/json"];
  const text = element("textarea", { "aria-label": `Body for ${path}`, spellcheck: "false" });
  text.value = content ? JSON.stringify(content.example || {}, null, 2) : "";
  const parameter = operation.parameters?.[0];
  const query = element("input", { "aria-label": parameter?.name, placeholder: parameter?.name });
  const out = element("pre", { tabindex: "0" });
  out.hidden = true;
  const send = element("button", { type: "button", text: "Send" });
  send.addEventListener("click", async () => {
    const url = parameter ? `${path}?${parameter.name}=${encodeURIComponent(query.value)}` : path;
    const options = { method: method.toUpperCase(), headers: authorization() };
    if (content) {
      options.headers["content-type"] = "application/json";
      options.body = text.value;
    }
    let answer = await fetch(url, options);
    if (answer.status === 401) {
      await askForToken();
      options.headers = { ...options.headers, ...authorization() };
      answer = await fetch(url, options);
    }
    const body = await answer.text();
    let shown = body;
    try {
      shown = JSON.stringify(JSON.parse(body), null, 2);
    } catch (error) {
      // Not JSON: shown as it is.
    }
    out.textContent = `${answer.status}\n${shown.slice(0, 20000)}`;
    out.hidden = false;
  });
  return element("div", {}, element("h3", { text: "Try it" }), ...(content ? [text] : []), ...(parameter ? [query, " "] : []), send, out);
}

function operationBox(path, method, operation) {
  const content = operation.requestBody?.content["application/json"];
  const answers = Object.entries(operation.responses);
  const streams = Object.keys(operation.responses["200"].content)[0] === "text/event-stream";
  return element("section", { class: "operation" }, element("details", {},
    element("summary", {}, element("span", { class: "verb", text: method.toUpperCase() }), element("code", { text: path }), element("span", { text: operation.summary })),
    element("p", { class: "muted" }, ...prose(operation.description || "")),
    ...(content ? [element("h3", { text: `Request: ${nameOf(content.schema)}` }), fields(content.schema)] : []),
    element("h3", { text: "Answer" }), fields(Object.values(answers[0][1].content)[0].schema),
    element("h3", { text: "Otherwise" }), element("ul", {}, ...answers.slice(1).map(([status, each]) => element("li", { text: `${status}: ${each.description}` }))),
    ...(streams ? [] : [tryForm(path, method, operation)])));
}

async function start() {
  described = await (await fetch("/openapi.json")).json();
  byId("about").replaceChildren(...prose(described.info.description.replaceAll("\n", " ")));
  const boxes = [];
  for (const { name } of described.tags) {
    boxes.push(element("h2", { text: name }));
    for (const [path, methods] of Object.entries(described.paths)) {
      for (const [method, operation] of Object.entries(methods)) {
        if (operation.tags[0] === name) boxes.push(operationBox(path, method, operation));
      }
    }
  }
  byId("operations").replaceChildren(...boxes);
}

start();
