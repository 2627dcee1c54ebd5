"use strict";
/* The page of a labelling study. All text from the server is inserted as text, never as HTML. */

const $ = (id) => document.getElementById(id);
const RETRY_MS = [300, 600, 1200, 2500, 5000];
let view = null;       // what the server said last
let players = [];      // of the trial on the page
let chosen = {};       // field -> value, or list of values
let shownAt = 0;       // when the trial came on the page, in ms
let waiting = false;   // for the server
let onKey = null;      // (key) -> whether it was used

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") { if (value) node.setAttribute(name, ""); }
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/* Sends until the server has answered: a killed server loses no click. Returns {status, body}. */
async function send(action, content) {
  for (let tries = 0; ; tries++) {
    try {
      const response = await fetch("api/" + action, {
        method: "POST",
        headers: {"Content-Type": "application/json"},
        body: JSON.stringify(content),
      });
      if (response.status < 500) {
        if (tries) notice("");
        const isJson = (response.headers.get("Content-Type") || "").includes("json");
        const body = isJson ? await response.json() : {error: await response.text()};
        return {status: response.status, body};
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;  // TypeError: no connection
    }
    notice("The server does not answer. Nothing is lost: this page tries again by itself.");
    await pause(RETRY_MS[Math.min(tries, RETRY_MS.length - 1)]);
  }
}

function identifier() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function question(text, yes, no) {
  $("ask-text").textContent = text;
  $("ask-yes").textContent = yes;
  $("ask-no").textContent = no;
  $("ask").showModal();
  return new Promise((resolve) => {
    const close = (answer) => { $("ask").close(); resolve(answer); };
    $("ask-yes").onclick = () => close(true);
    $("ask-no").onclick = () => close(false);
    $("ask").oncancel = () => resolve(false);
  });
}

/* One sound: it is fetched as a whole, cannot be moved, and tells the server when it has ended. */
class Player {
  constructor(source, side, name, heard, key, changed) {
    Object.assign(this, {side, name, heard, key, changed, broken: false, started: null});
    this.audio = new Audio();
    this.button = make("button", {type: "button", disabled: true, onclick: () => this.toggle()}, "▶");
    this.button.setAttribute("aria-label", name ? `play ${name}` : "play");
    this.fill = make("div");
    this.state = make("span", {class: "state"}, "loading");
    this.node = make("div", {class: "player"},
      ...(name ? [make("span", {class: "side"}, name)] : []),
      this.button, make("div", {class: "track"}, this.fill), this.state);
    this.audio.addEventListener("ended", () => this.ended());
    this.audio.addEventListener("play", () => this.draw());
    this.audio.addEventListener("pause", () => this.draw());
    this.load(source);
  }

  async load(source) {
    try {
      const response = await fetch(source);
      if (!response.ok) throw new Error(String(response.status));
      this.url = URL.createObjectURL(await response.blob());
      this.audio.src = this.url;
      this.button.disabled = false;
    } catch (error) {
      await pause(500);
      this.broken = true;
    }
    this.draw();
    this.changed();
  }

  async toggle() {
    if (this.button.disabled) return;
    if (!this.audio.paused) { this.audio.pause(); return; }
    players.forEach((other) => { if (other !== this) other.stop(); });
    if (this.key && this.audio.currentTime === 0) {
      this.started = send("play", {key: this.key, side: this.side});
      await this.started;  // the server's clock starts before the sound
    }
    try { await this.audio.play(); } catch (error) { notice("The browser did not play the sound."); }
    this.tick();
  }

  stop() {
    this.audio.pause();
    this.audio.currentTime = 0;
    this.draw();
  }

  async ended() {
    const started = this.started && await this.started;
    this.audio.currentTime = 0;
    if (started && started.status === 200) {
      const answer = await send("heard", {play: started.body.play});
      this.heard = this.heard || answer.body.heard === true;
    } else if (!this.key) {
      this.heard = true;
    }
    this.draw();
    this.changed();
  }

  tick() {
    this.draw();
    if (!this.audio.paused) requestAnimationFrame(() => this.tick());
  }

  draw() {
    const length = this.audio.duration || 0;
    const isPlaying = !this.audio.paused;
    this.button.textContent = isPlaying ? "❚❚" : "▶";
    this.fill.style.width = length ? `${100 * this.audio.currentTime / length}%` : "0";
    this.node.classList.toggle("heard", this.heard);
    this.node.classList.toggle("broken", this.broken);
    const seconds = this.audio.currentTime ? this.audio.currentTime.toFixed(1) + " s" : "";
    this.state.textContent = this.broken ? "gone" : seconds || (this.heard ? "✓ heard" : "not yet");
  }

  close() {
    this.audio.pause();
    if (this.url) URL.revokeObjectURL(this.url);
  }
}

function clear(...children) {
  players.forEach((player) => player.close());
  players = [];
  onKey = null;
  $("stage").replaceChildren(...children);
  window.scrollTo(0, 0);
}

function show(next) {
  view = next;
  waiting = false;
  const rater = view && view.rater;
  $("top").hidden = !rater;
  if (rater) {
    const total = view.total || 0;
    $("rater").textContent = rater;
    $("progress").textContent = total ? `${view.done} of ${total} answered` : "";
    $("fill").style.width = total ? `${100 * view.done / total}%` : "0";
    $("bar").setAttribute("aria-valuemax", total);
    $("bar").setAttribute("aria-valuenow", view.done || 0);
    $("restart").hidden = !view.done;
  }
  ({headphones: showHeadphones, trial: showTrial, questions: showQuestions, done: showDone,
    refused: showRefused}[view.stage])();
  document.body.dataset.stage = view.stage;
}

async function act(action, content) {
  if (waiting) return false;
  waiting = true;
  const {status, body} = await send(action, content);
  waiting = false;
  if (status === 200) { notice(""); show(body); return true; }
  notice(body.error || "The server refused this.");
  return false;
}

/* ---- the door ---- */

function showDoor() {
  document.body.dataset.stage = "door";
  $("top").hidden = true;
  const given = new URLSearchParams(location.search).get("rater") || localStorage.rater || "";
  const name = make("input", {id: "name", maxlength: "64", autocomplete: "off", value: given});
  const enter = async (event) => {
    event.preventDefault();
    if (waiting) return;
    waiting = true;
    let {status, body} = await send("join", {rater: name.value});
    if (body.taken) {
      const again = await question(`${name.value.trim()} has already started here. Is that you?`,
        "Yes, continue", "No, another name");
      if (again) ({status, body} = await send("join", {rater: name.value, resume: true}));
      else { waiting = false; name.focus(); return; }
    }
    waiting = false;
    if (status !== 200) { notice(body.error); return; }
    notice("");
    localStorage.rater = body.rater;
    show(body);
  };
  clear(make("form", {class: "card", onsubmit: enter},
    make("h1", {}, "Listening study"),
    make("p", {}, "You will hear short sounds and answer one question about each. Listen in a " +
      "quiet place, with headphones if you can, and set a comfortable volume before you begin."),
    make("p", {class: "note"}, "Every answer is saved at once. You may stop at any time and " +
      "continue later under the same name."),
    make("label", {for: "name"}, "Your name, or a code that you were given"),
    name,
    make("button", {class: "primary", type: "submit", id: "start"}, "Start")));
  name.focus();
}

/* ---- headphones ---- */

function showHeadphones() {
  const answers = [];
  const step = () => {
    const number = answers.length;
    if (number === view.sounds.length) {
      act("headphones", {rater: view.rater, attempt: view.attempt, answers});
      return;
    }
    const buttons = ["first", "second", "third"].map((word, place) =>
      make("button", {class: "option", type: "button", disabled: true,
        onclick: () => { answers.push(place); step(); }},
        make("kbd", {}, String(place + 1)), `The ${word}`));
    const player = new Player(view.sounds[number], 0, "", false, null,
      () => buttons.forEach((button) => { button.disabled = !player.heard; }));
    const again = view.attempt ? "That was not reliable. Put on headphones, turn the volume up " +
      "a little, and try once more. " : "";
    clear(make("section", {class: "card"},
      make("h1", {}, "Are you wearing headphones?"),
      make("p", {}, again + "You will hear three tones. Which one is the quietest?"),
      make("div", {class: "players"}, player.node),
      make("div", {class: "options"}, ...buttons),
      make("p", {class: "note"}, `${number + 1} of ${view.sounds.length}`)));
    players = [player];
    onKey = (key) => {
      if (key === " ") { player.toggle(); return true; }
      const button = buttons[Number(key) - 1];
      if (button && !button.disabled) { button.click(); return true; }
      return false;
    };
  };
  step();
}

function showRefused() {
  clear(make("section", {class: "card"}, make("h1", {}, "This study needs headphones"),
    make("p", {}, "The check did not find any. Thank you for your time; you may close this page.")));
}

/* ---- trials ---- */

/* The fieldsets of a question; changed(isClick) is called after every change. press(key) clicks an
   option of the active field: the first one, and after an answer the one that follows. */
function fieldsets(fields, changed) {
  const buttons = [];
  let active = 0;
  const sets = fields.map((field, i) => {
    const own = Object.entries(field.options).map(([value, words], j) => {
      const key = j < 9 ? String(j + 1) : "";
      const button = make("button", {
        class: "option", type: "button", role: field.many ? "checkbox" : "radio",
        "aria-checked": "false", "data-field": field.name, "data-value": value, "data-key": key,
        onclick: () => {
          const list = chosen[field.name];
          if (!field.many) chosen[field.name] = value;
          else if (list.includes(value)) list.splice(list.indexOf(value), 1);
          else list.push(value);
          if (!field.many) active = (i + 1) % fields.length;
          paint();
          changed(true);
        }},
        ...(key ? [make("kbd", {}, key)] : []), make("span", {}, words));
      buttons.push(button);
      return button;
    });
    return make("fieldset", {role: field.many ? "group" : "radiogroup"},
      ...(field.text ? [make("legend", {}, field.text)] : []),
      make("div", {class: field.scale ? "options scale" : `options of${own.length}`}, ...own));
  });
  const paint = () => {
    for (const button of buttons) {
      const value = chosen[button.dataset.field];
      const on = Array.isArray(value) ? value.includes(button.dataset.value)
        : value === button.dataset.value;
      button.setAttribute("aria-checked", String(on));
    }
    sets.forEach((set, i) => set.classList.toggle("active", fields.length > 1 && i === active));
  };
  const press = (key) => {
    if (key === "ArrowDown" || key === "ArrowUp") {
      active = (active + (key === "ArrowDown" ? 1 : fields.length - 1)) % fields.length;
      paint();
      return fields.length > 1;
    }
    const own = buttons.filter((one) => one.dataset.field === fields[active].name);
    const button = own.find((one) => one.dataset.key === key);
    if (!button || button.disabled) return false;
    button.click();
    return true;
  };
  for (const field of fields) if (field.many && !chosen[field.name]) chosen[field.name] = [];
  paint();
  return {sets, buttons, press};
}

function showTrial() {
  const trial = view;
  chosen = structuredClone(trial.answer || {});
  shownAt = performance.now();
  const isPair = trial.sounds.length > 1;
  /* one choice is saved at once; ticks and several scales need a click on Next */
  const atOnce = trial.fields.length === 1 && !trial.fields[0].many;
  const next = make("button", {class: "primary", type: "button", id: "next"}, "Next ↵");
  const back = make("button", {class: "plain", type: "button", id: "back",
    onclick: () => act("view", {rater: trial.rater, at: trial.at - 1})}, "← Back");
  const hint = make("span", {class: "hint"});
  let click = null;  // the same until it is saved, so that it counts once

  const isHeard = () => own.every((player) => player.heard);
  const isWhole = () => trial.fields.every((field) => chosen[field.name] !== undefined);
  const save = () => {
    if (!isHeard() || !isWhole() || waiting) return;
    click = click || identifier();
    const time_ms = Math.round(performance.now() - shownAt);
    act("vote", {key: trial.key, click, answer: chosen, time_ms}).then((saved) => {
      if (!saved) click = null;
    });
  };
  const update = (isClick) => {
    const heard = isHeard();
    const broken = own.some((player) => player.broken);
    for (const button of buttons) button.disabled = !heard && button.getAttribute("role") === "radio";
    next.disabled = !heard || !isWhole();
    hint.textContent = broken ? "" : heard ? ""
      : isPair ? "Listen to both sounds to the end, then answer." : "Listen to the end, then answer.";
    if (broken && !waiting) act("view", {rater: trial.rater});  // the server leaves it out
    else if (isClick && atOnce) save();
  };
  const {sets, buttons, press} = fieldsets(trial.fields, update);
  const own = [];
  trial.sounds.forEach((source, side) => own.push(new Player(source, side, isPair ? "AB"[side] : "",
    trial.heard[side], trial.key, () => update(false))));
  next.addEventListener("click", save);
  back.hidden = trial.at === 0;
  next.hidden = atOnce && !trial.answer;
  const row = make("div", {class: "row"}, back, hint, next);
  const keys = [["Space", isPair ? "play the next one" : "play or pause"],
    ...(isPair ? [["A", "play A"], ["B", "play B"]] : []),
    ["1 ...", "answer"], ...(atOnce ? [] : [["Enter", "next"]]), ["←", "back"]];
  clear(make("section", {class: "card"},
    make("h1", {}, trial.question),
    make("blockquote", {}, trial.text),
    ...(trial.events.length > 1
      ? [make("ol", {class: "steps"}, ...trial.events.map((event) => make("li", {}, event)))] : []),
    make("div", {class: "players"}, ...own.map((player) => player.node)),
    ...sets, row),
  make("p", {class: "keys"}, ...keys.map(([key, what]) => make("span", {}, make("kbd", {}, key), what))));
  players = own;
  own.forEach((player) => player.draw());
  update(false);
  onKey = (key) => {
    if (key === " ") {
      const playing = own.find((player) => !player.audio.paused);
      (playing || own.find((player) => !player.heard) || own[0]).toggle();
      return true;
    }
    if (isPair && "ab".includes(key.toLowerCase())) {
      own["ab".indexOf(key.toLowerCase())].toggle();
      return true;
    }
    if (key === "Enter") { save(); return true; }
    if (key === "ArrowLeft" && !back.hidden) { back.click(); return true; }
    return press(key);
  };
}

/* ---- the end ---- */

function showQuestions() {
  chosen = {};
  const finish = make("button", {class: "primary", type: "button", id: "next", disabled: true,
    onclick: () => act("questions", {rater: view.rater, answer: chosen})}, "Finish");
  const {sets, press} = fieldsets(view.fields, () => {
    finish.disabled = !view.fields.every((field) => chosen[field.name] !== undefined);
  });
  clear(make("section", {class: "card"}, make("h1", {}, "Three last questions"), ...sets,
    make("div", {class: "row"}, finish)));
  onKey = press;
}

function showDone() {
  const missing = view.missing
    ? `${view.missing} sounds could not be played and were left out. ` : "";
  clear(make("section", {class: "card"}, make("h1", {}, "Thank you!"),
    make("p", {}, missing + "All your answers are saved. This is your completion code:"),
    make("div", {class: "code", id: "code"}, view.code),
    make("p", {class: "note"}, "You may close this page."),
    ...(view.total ? [make("button", {class: "plain", type: "button",
      onclick: () => act("view", {rater: view.rater, at: view.total - 1})},
    "← Look at my last answer again")] : [])));
}

$("restart").addEventListener("click", async () => {
  if (await question("Withdraw all your answers and start again from the first sound?",
    "Yes, start over", "No")) act("restart", {rater: view.rater});
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("ask").open) return;
  if (event.target instanceof HTMLInputElement || !onKey) return;
  /* a focused button would take Space and Enter as clicks, too; a held key counts once */
  const isAnswer = event.key === " " || event.key === "Enter";
  if (event.repeat ? isAnswer : onKey(event.key)) event.preventDefault();
});

showDoor();
