"use strict";
const at = (id) => document.getElementById(id);
const facts = JSON.parse(at("facts").textContent);
const SIDES = ["left", "top", "right", "bottom"];
let file = null; // the chosen picture
let picture = null; // it, decoded
let box = null; // [left, top, right, bottom] as shares, or null for the whole picture
let asked = 0; // number of the newest search: late answers to older ones are not shown

function know(columns) {
  at("columns").textContent = columns.length ? `Columns: ${columns.join(", ")}.` : "";
  for (const name of columns) at("group").append(new Option(name, name));
}
know(facts.columns);
at("keyrow").hidden = !facts.key;
at("key").value = sessionStorage.getItem("key") || "";

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

async function choose(chosen) {
  if (!chosen) return;
  try {
    picture = await createImageBitmap(chosen);
  } catch {
    say("This file is no picture that the browser can show.", true);
    return;
  }
  file = chosen;
  setBox(null);
  at("hint").hidden = true;
  at("canvas").hidden = at("how").hidden = at("sides").hidden = false;
  at("drop").classList.add("filled");
  at("go").disabled = false;
  draw();
  say("");
}

function draw() {
  const canvas = at("canvas");
  const scale = Math.min(1, 520 / picture.width, 380 / picture.height);
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  const pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  if (!box) return;
  const [left, top, right, bottom] = [box[0] * canvas.width, box[1] * canvas.height, box[2] * canvas.width, box[3] * canvas.height];
  pen.fillStyle = "rgb(0 0 0 / 50%)";
  pen.fillRect(0, 0, canvas.width, top);
  pen.fillRect(0, bottom, canvas.width, canvas.height - bottom);
  pen.fillRect(0, top, left, bottom - top);
  pen.fillRect(right, top, canvas.width - right, bottom - top);
  pen.strokeStyle = "#fff";
  pen.lineWidth = 2;
  pen.strokeRect(left, top, right - left, bottom - top);
}

function setBox(sides) {
  box = sides;
  SIDES.forEach((name, place) => (at(name).value = Math.round(100 * (sides ? sides[place] : Number(place > 1)))));
}

function numbersChanged() {
  const sides = SIDES.map((name) => Number(at(name).value) / 100);
  if (!(sides[0] >= 0 && sides[1] >= 0 && sides[2] <= 1 && sides[3] <= 1 && sides[0] < sides[2] && sides[1] < sides[3])) {
    say("The box must lie in the picture, left before right and top before bottom.", true);
    return;
  }
  box = sides.join() === "0,0,1,1" ? null : sides;
  say("");
  draw();
}

let start = null;
const place = (event) => {
  const frame = at("canvas").getBoundingClientRect();
  const share = (value, from, length) => Math.min(1, Math.max(0, (value - from) / length));
  return [share(event.clientX, frame.left, frame.width), share(event.clientY, frame.top, frame.height)];
};
at("canvas").addEventListener("pointerdown", (event) => {
  event.preventDefault();
  start = place(event);
  at("canvas").setPointerCapture(event.pointerId);
});
at("canvas").addEventListener("pointermove", (event) => {
  if (!start) return;
  const end = place(event);
  const sides = [Math.min(start[0], end[0]), Math.min(start[1], end[1]), Math.max(start[0], end[0]), Math.max(start[1], end[1])];
  if (sides[2] - sides[0] > 0.03 && sides[3] - sides[1] > 0.03) setBox(sides);
  draw();
});
at("canvas").addEventListener("pointerup", () => {
  if (start && box) search();
  start = null;
});
at("canvas").addEventListener("click", (event) => event.preventDefault()); // the label would open the file dialogue
at("whole").addEventListener("click", () => {
  setBox(null);
  draw();
});
for (const name of SIDES) at(name).addEventListener("change", numbersChanged);

at("file").addEventListener("change", () => choose(at("file").files[0]));
at("drop").addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
at("drop").addEventListener("dragleave", () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  choose(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => choose([...event.clipboardData.files][0]));
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
at("looked").addEventListener("change", () => {
  for (const map of document.querySelectorAll(".shown canvas")) map.hidden = !at("looked").checked;
});

async function search() {
  if (!file) return;
  const number = ++asked;
  const body = new FormData();
  body.append("image", file);
  body.append("k", at("k").value || "12");
  body.append("where", at("where").value);
  body.append("group_by", at("group").value);
  body.append("details", "true");
  if (box) body.append("box", box.map((side) => side.toFixed(4)).join(","));
  const headers = {};
  if (at("key").value) {
    headers["X-API-Key"] = at("key").value;
    sessionStorage.setItem("key", at("key").value);
  }
  say("Searching ...");
  const started = performance.now();
  let found;
  try {
    const response = await fetch("/search", { method: "POST", body, headers });
    found = await response.json();
  } catch {
    found = { error: { message: "The service does not answer." } };
  }
  if (number !== asked) return;
  if (found.error) {
    say(found.error.message, true);
    return;
  }
  if (at("group").options.length === 1 && found.answers.length) know(["doc_id", "text", "leaf", ...Object.keys(found.answers[0].fields)]);
  const seconds = ((performance.now() - started) / 1000).toFixed(2);
  const none = found.answers.length ? "" : " No document fits the condition.";
  say(`${found.answers.length} answers of ${found.documents.toLocaleString()} documents in ${seconds} s.${none}`);
  at("answers").replaceChildren(...found.answers.map((answer) => card(answer, found.grid)));
}

function made(name, text, kind) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function card(answer, grid) {
  const item = made("li");
  const shown = made("div", undefined, "shown");
  if (answer.thumbnail) {
    const image = made("img");
    image.src = `data:image/webp;base64,${answer.thumbnail}`;
    image.alt = answer.text || answer.doc_id;
    shown.append(image);
  } else {
    shown.append(made("span", "no picture", "none"));
  }
  if (answer.attention) shown.append(heat(answer.attention, grid));
  const about = made("div", undefined, "about");
  about.append(made("span", `${answer.rank}  ·  ${answer.score.toFixed(3)}`, "rank"));
  about.append(made("b", answer.text || answer.doc_id));
  const fields = made("dl");
  const rows = { id: answer.doc_id, ...(answer.leaf === null ? {} : { leaf: answer.leaf }), ...answer.fields };
  for (const [name, value] of Object.entries(rows)) {
    if (value !== null) fields.append(made("dt", name), made("dd", typeof value === "object" ? JSON.stringify(value) : String(value)));
  }
  about.append(fields);
  item.append(shown, about);
  return item;
}

function heat(values, [rows, columns]) {
  const map = made("canvas");
  map.width = columns;
  map.height = rows;
  map.hidden = !at("looked").checked;
  map.setAttribute("aria-hidden", "true");
  const pen = map.getContext("2d");
  const pixels = pen.createImageData(columns, rows);
  values.forEach((value, cell) => pixels.data.set([255, 255 - value, 255 - value, 215], 4 * cell));
  pen.putImageData(pixels, 0, 0);
  return map;
}
