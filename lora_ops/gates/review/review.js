// The desk of one reviewer. Texts of rows and answers only ever become `textContent`: none of them is HTML.

const RATINGS = ["accuracy", "helpfulness", "experience", "expertise", "authority", "trust"];
const SIDES = ["left", "right"];
const VOTES = { left: "\u2190 left is better", same: "\u2193 the same", right: "right is better \u2192" };
const KEYS = { ArrowLeft: "left", ArrowDown: "same", ArrowRight: "right" };
const CELLS = RATINGS.flatMap((name) => SIDES.map((side) => [side, name]));
const HELP = "\u2190 \u2193 \u2192 vote \u00b7 Enter next or skip \u00b7 Backspace back \u00b7 1\u20135 rate the "
  + "marked cell, 0 leaves it out \u00b7 B / N policy breach left / right \u00b7 C comment \u00b7 E corrected "
  + "answer \u00b7 G guidelines \u00b7 Esc leaves a field";
const TYPED_AFTER_MS = 400; // a field is saved this long after the last letter, and when it is left

function element(tag, classes, text, parent) {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  if (text) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

// Headings, lists and paragraphs of Markdown; whatever else it has stays as it is written.
function page(text, parent) {
  for (const block of text.trim().split(/\n\s*\n/)) {
    const heading = /^#+ (.*)$/.exec(block);
    if (heading) element("h4", "", heading[1], parent);
    else if (!/^- /.test(block)) element("p", "", block.replace(/\s*\n\s*/g, " "), parent);
    else {
      const list = element("ul", "", "", parent);
      for (const item of block.split(/\n(?=- )/)) {
        element("li", "", item.slice(2).replace(/\s*\n\s*/g, " "), list);
      }
    }
  }
}

function button(text, classes, parent, act) {
  const made = element("button", classes, text, parent);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

function render({ model, el }) {
  const root = element("div", "lora-review", "", el);
  root.tabIndex = 0;
  // Jupyter's own shortcuts would take the keys: B adds a cell, and D twice deletes one.
  root.dataset.lmSuppressShortcuts = "true";
  let said = {}, shown = null, active = 0, typing = null, parts = {};

  const state = () => model.get("state");
  const send = (what) => model.send({ ...what, place: state().place });
  const save = () => {
    clearTimeout(typing);
    typing = null;
    send({ do: "say", said });
  };
  const saveTyped = () => { if (typing !== null) save(); };
  const go = (where) => { saveTyped(); send({ do: where }); };

  function vote(name) {
    said.vote = name;
    mark();
    save();
  }

  function rate(side, name, stars) {
    said.ratings[side] = { ...said.ratings[side], [name]: stars };
    active = Math.min(CELLS.findIndex(([s, n]) => s === side && n === name) + 1, CELLS.length - 1);
    mark();
    save();
  }

  function breach(side, on) {
    if (on) said.breach[side] = said.breach[side] ?? "";
    else delete said.breach[side];
    mark();
    save();
    if (on) parts.what[side].focus();
  }

  function type(write) {
    return (event) => {
      write(event.target.value);
      clearTimeout(typing);
      typing = setTimeout(save, TYPED_AFTER_MS);
    };
  }

  function mark() {
    for (const [name, made] of Object.entries(parts.votes)) {
      made.setAttribute("aria-pressed", String(said.vote === name));
    }
    CELLS.forEach(([side, name], place) => {
      parts.cells[place].classList.toggle("active", place === active);
      [...parts.cells[place].children].forEach((star, at) => {
        star.setAttribute("aria-pressed", String(said.ratings[side]?.[name] === at + 1));
      });
    });
    for (const side of SIDES) {
      const on = side in said.breach;
      parts.breach[side].checked = on;
      parts.what[side].hidden = !on;
    }
  }

  function answer(side, text, parent) {
    const column = element("section", `answer ${side}`, "", parent);
    element("h4", "", side === "left" ? "Left answer" : "Right answer", column);
    element("div", text ? "text" : "text nothing", text || "(an empty answer)", column);
    const table = element("div", "ratings", "", column);
    for (const name of RATINGS) {
      element("span", "name", name, table);
      const cell = element("span", "stars", "", table);
      for (let stars = 1; stars <= 5; stars++) {
        const star = button(String(stars), "", cell, () => rate(side, name, stars));
        star.setAttribute("aria-label", `${side} ${name} ${stars} of 5`);
      }
      parts.cells[CELLS.findIndex(([s, n]) => s === side && n === name)] = cell;
    }
    const label = element("label", "breach", "", column);
    const box = element("input", "", "", label);
    box.type = "checkbox";
    box.addEventListener("change", () => breach(side, box.checked));
    label.append(" breaches a policy");
    const what = element("input", "what", "", column);
    what.type = "text";
    what.placeholder = "what does it breach?";
    what.value = said.breach[side] ?? "";
    what.addEventListener("input", type((value) => { said.breach[side] = value; }));
    what.addEventListener("blur", saveTyped);
    parts.breach[side] = box;
    parts.what[side] = what;
  }

  function field(name, title, rows, parent) {
    const label = element("label", "field", title, parent);
    const made = element("textarea", name, "", label);
    made.rows = rows;
    made.value = said[name] ?? "";
    made.addEventListener("input", type((value) => { said[name] = value; }));
    made.addEventListener("blur", saveTyped);
    parts[name] = made;
  }

  function draw() {
    const now = state();
    const hadFocus = root.contains(document.activeElement);
    shown = [now.place, now.load];
    said = structuredClone(now.said);
    active = Math.max(0, CELLS.findIndex(([side, name]) => !said.ratings[side]?.[name]));
    parts = { votes: {}, cells: [], breach: {}, what: {} };
    const open = root.querySelector("details")?.open ?? now.judged === 0;
    root.replaceChildren();
    const head = element("header", "", "", root);
    element("strong", "", now.title, head);
    parts.place = element("span", "place", "", head);
    parts.bar = element("progress", "", "", head);
    parts.status = element("div", "status", "", root);
    parts.status.setAttribute("role", "status");
    if (now.guidelines) {
      parts.guidelines = element("details", "guidelines", "", root);
      parts.guidelines.open = open;
      element("summary", "", "Guidelines", parts.guidelines);
      page(now.guidelines, element("div", "text", "", parts.guidelines));
    }
    element("h4", "", "What was asked", root);
    element("div", "asked text", now.text, root);
    const columns = element("div", "columns", "", root);
    for (const side of SIDES) answer(side, now[side], columns);
    const votes = element("div", "votes", "", root);
    for (const [name, title] of Object.entries(VOTES)) {
      parts.votes[name] = button(title, `vote ${name}`, votes, () => vote(name));
    }
    const fields = element("div", "fields", "", root);
    field("comment", "Comment", 2, fields);
    field("corrected", "The answer as it should be (only if both are wrong)", 2, fields);
    const ways = element("div", "ways", "", root);
    parts.back = button("Back", "back", ways, () => go("back"));
    parts.next = button("Next", "next", ways, () => go("next"));
    element("div", "help", HELP, root);
    mark();
    tell();
    if (hadFocus) root.focus({ preventScroll: true });
  }

  function tell() {
    const now = state();
    parts.place.textContent = `pair ${now.place} of ${now.total}, ${now.judged} judged`;
    parts.bar.max = now.total;
    parts.bar.value = now.judged;
    parts.status.textContent = now.problem || now.message;
    parts.status.classList.toggle("problem", Boolean(now.problem));
    parts.back.disabled = now.place === 1;
    root.dataset.place = now.place;
    root.dataset.judged = now.judged;
    root.dataset.saved = now.saved;
  }

  root.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isField = event.target.matches("textarea, input[type=text]");
    if (event.key === "Escape") {
      saveTyped();
      root.focus();
      return;
    }
    if (isField) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const isButton = event.target.matches("button, input, summary");
    if (key in KEYS) vote(KEYS[key]);
    else if (key === "Enter" && !isButton) go("next");
    else if (key === "Backspace") go("back");
    else if (/^[1-5]$/.test(key)) rate(...CELLS[active], Number(key));
    else if (key === "0") { active = (active + 1) % CELLS.length; mark(); }
    else if (key === "b") breach("left", !("left" in said.breach));
    else if (key === "n") breach("right", !("right" in said.breach));
    else if (key === "c") parts.comment.focus();
    else if (key === "e") parts.corrected.focus();
    else if (key === "g" && parts.guidelines) parts.guidelines.open = !parts.guidelines.open;
    else return;
    event.preventDefault();
  });
  root.addEventListener("click", (event) => {
    if (!event.target.closest("textarea, input, summary, label")) root.focus({ preventScroll: true });
  });

  model.on("change:state", () => {
    const now = state();
    if (shown[0] === now.place && shown[1] === now.load) tell();
    else draw();
  });
  draw();
}

export default { render };
