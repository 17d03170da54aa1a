// Calls to the server, with a token if it requires one; and its stream of events.
"use strict";

function authorization() {
  const token = sessionStorage.getItem("token");
  return token ? { authorization: `Bearer ${token}` } : {};
}

function askForToken() {
  const dialog = byId("ask-token");
  if (dialog.open) return new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      sessionStorage.setItem("token", byId("token").value.trim());
      byId("token").value = "";
      done();
    }, { once: true });
    dialog.showModal();
  });
}

// The answer's JSON; throws an Error that says what is wrong, in the server's words if it has any.
async function call(path, body) {
  const options = { headers: authorization() };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options).catch(() => { throw new Error("The server does not answer."); });
  if (answer.status === 401) {
    await askForToken();
    return call(path, body);
  }
  const told = await answer.json().catch(() => null);
  if (told === null) throw new Error(`Not an answer of the server, but of something in front of it: status ${answer.status}.`);
  if (!answer.ok) throw new Error(told.detail.map((each) => each.do || each.expected).join("; "));
  return told;
}

// Follow /events for ever. With fetch, because EventSource cannot send a token.
async function follow(onEvent, onLost) {
  for (let wait = 500; ; wait = Math.min(wait * 2, 8000)) {
    let why = "lost";
    try {
      const answer = await fetch("/events", { headers: authorization() });
      if (answer.status === 401) await askForToken();
      else if (answer.status === 503) why = "full";
      else if (answer.ok) {
        wait = 500;
        await readEvents(answer.body.getReader(), onEvent);
      }
    } catch (error) {
      // The server is away: reported and retried below.
    }
    onLost(why);
    await new Promise((done) => setTimeout(done, wait));
  }
}

async function readEvents(reader, onEvent) {
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += decoder.decode(value, { stream: true });
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const block = text.slice(0, end);
      text = text.slice(end + 2);
      const name = /^event: (.*)$/m.exec(block);
      const data = /^data: (.*)$/m.exec(block);
      if (name && data) onEvent(name[1], JSON.parse(data[1]));
    }
  }
}
