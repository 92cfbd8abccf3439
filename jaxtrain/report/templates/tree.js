/* Draws one tree from the JSON in the page, and lets it be walked, searched and replayed. Steps are
   hostile text: they reach the page through textContent alone. */
"use strict";
(() => {
  const nodes = JSON.parse(document.getElementById("tree-data").textContent);
  const viewer = document.querySelector(".viewer");
  const part = (name) => viewer.querySelector(name);
  const input = part("input[type=search]");
  const slider = part("input[type=range]");
  const list = part(".tree");
  const tops = [];
  const last = Math.max(0, ...nodes.map((node) => (node.born ?? -1) + 1)); // expansions there are
  let chosen = null; // the node that keys move from
  let found = []; // nodes that are looked for
  let timer = null; // of a replay that goes on by itself

  function make(tag, name, text) {
    const element = document.createElement(tag);
    element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function tell(number) {
    return number === null ? "–" : number.toFixed(3);
  }

  // Drawing. A parent stands before its children.

  function draw(node) {
    node.above = node.parent < 0 ? null : nodes[node.parent];
    node.depth = node.above ? node.above.depth + 1 : 1;
    node.below = [];
    node.item = make("li", `node ${node.kind}${node.is_best ? " best" : ""}`);
    node.item.tabIndex = -1;
    node.item.setAttribute("role", "treeitem");
    node.item.setAttribute("aria-level", node.depth);
    node.item.setAttribute("aria-selected", "false");
    node.line = drawLine(node);
    node.item.append(node.line);
    if (!node.above) {
      tops.push(node);
      list.append(node.item);
      return;
    }
    if (!node.above.group) {
      node.above.group = make("ul", "group");
      node.above.group.setAttribute("role", "group");
      node.above.item.append(node.above.group);
    }
    node.above.below.push(node);
    node.above.group.append(node.item);
  }

  function drawLine(node) {
    const line = make("div", "row");
    const value = make("span", "value", tell(node.value));
    value.style.setProperty("--share", Math.min(1, Math.max(0, node.value ?? 0)));
    const text = make("span", "text", node.text || "(empty)");
    const mark = make("span", "mark");
    if (node.kind !== "candidate") mark.append(make("i", "kind", node.kind));
    if (node.verdict) mark.append(make("span", `badge ${node.verdict}`, node.verdict));
    if (node.is_answer) mark.append(make("b", "answer", "answer"));
    line.append(make("span", "toggle"), value, text, mark);
    const numbers = { visits: node.visits, PRM: tell(node.score), label: tell(node.label), tokens: node.tokens };
    for (const [name, number] of Object.entries(numbers)) {
      const cell = make("span", "number", number);
      cell.dataset.name = name;
      line.append(cell);
    }
    line.addEventListener("click", (event) => {
      choose(node);
      if (event.target.className === "toggle") setOpen(node, !isOpen(node));
    });
    line.addEventListener("dblclick", () => setOpen(node, !isOpen(node)));
    return line;
  }

  // Opening and closing.

  function isOpen(node) {
    return Boolean(node.group) && !node.group.hidden;
  }

  function setOpen(node, isToOpen) {
    if (!node.group) return;
    node.group.hidden = !isToOpen;
    node.item.setAttribute("aria-expanded", isToOpen);
  }

  function reveal(node) {
    for (let above = node.above; above; above = above.above) setOpen(above, true);
  }

  function closeAll() {
    for (const node of nodes) setOpen(node, false);
    let top = chosen;
    while (top?.above) top = top.above;
    if (top) choose(top);
  }

  function showBest() {
    for (const node of nodes) setOpen(node, node.is_best);
    const answer = nodes.find((node) => node.is_answer) ?? nodes[0];
    if (answer) choose(answer);
  }

  // The chosen node, and all that is known of it.

  function choose(node, isToFocus = true) {
    if (chosen) {
      chosen.item.setAttribute("aria-selected", "false");
      chosen.item.tabIndex = -1;
    }
    chosen = node;
    reveal(node);
    node.item.setAttribute("aria-selected", "true");
    node.item.tabIndex = 0;
    describe(node);
    if (!isToFocus) return;
    node.item.focus({ preventScroll: true });
    node.line.scrollIntoView({ block: "nearest" });
  }

  function describe(node) {
    const path = [];
    for (let step = node; step; step = step.above) path.unshift(step);
    const steps = make("ol", "path");
    for (const step of path) {
      const item = make("li", "", "");
      const button = make("button", "", step.text || "(empty)");
      button.addEventListener("click", () => choose(step));
      item.append(button, make("small", "", `value ${tell(step.value)}`));
      steps.append(item);
    }
    const facts = {
      verdict: node.verdict ?? "none, no finished trace ends here",
      value: node.value,
      "PRM score": node.score,
      label: node.label ?? "none",
      visits: node.visits,
      tokens: node.tokens,
      "log-probability": node.log_prob,
      kind: `${node.kind}, ${node.end}`,
      expansion: node.born === null ? "not told" : node.born + 1,
      row: node.row,
    };
    const told = make("dl", "");
    for (const [name, fact] of Object.entries(facts)) {
      const text = Number.isInteger(fact) || typeof fact === "string" ? fact : tell(fact);
      told.append(make("dt", "", name), make("dd", "", text));
    }
    part("summary").textContent = `Step ${node.depth}: all that is known`;
    part(".known").replaceChildren(steps, told);
  }

  // Walking with keys.

  function walk(some, seen = []) {
    for (const node of some) {
      if (node.item.hidden) continue;
      seen.push(node);
      if (isOpen(node)) walk(node.below, seen);
    }
    return seen;
  }

  function move(by) {
    const seen = walk(tops);
    const at = seen.indexOf(chosen) + by;
    const to = seen[Math.min(seen.length - 1, Math.max(0, at))];
    if (to) choose(to);
  }

  function turnLeft() {
    if (isOpen(chosen)) setOpen(chosen, false);
    else if (chosen.above) choose(chosen.above);
  }

  function turnRight() {
    if (!isOpen(chosen)) setOpen(chosen, true);
    else move(1);
  }

  const keys = {
    ArrowDown: () => move(1),
    ArrowUp: () => move(-1),
    ArrowLeft: turnLeft,
    ArrowRight: turnRight,
    Home: () => move(-nodes.length),
    End: () => move(nodes.length),
    Enter: () => setOpen(chosen, !isOpen(chosen)),
    b: showBest,
    ",": () => show(Number(slider.value) - 1),
    ".": () => show(Number(slider.value) + 1),
  };

  list.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (!act || !chosen || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });

  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.target.tagName === "INPUT") return;
    event.preventDefault();
    input.focus();
  });

  // Finding: what matches stands out, and its path is opened.

  function find() {
    const word = input.value.trim().toLowerCase();
    const matches = (node) => `${node.text} ${node.verdict ?? ""} ${node.kind}`.toLowerCase().includes(word);
    found = word ? nodes.filter((node) => !node.item.hidden && matches(node)) : [];
    for (const node of nodes) node.item.classList.remove("found");
    for (const node of found) {
      node.item.classList.add("found");
      reveal(node);
    }
    list.classList.toggle("finding", word !== "");
    part(".found").textContent = word ? `${found.length} of ${nodes.length}` : "";
  }

  input.addEventListener("input", find);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      input.value = "";
      find();
      if (chosen) choose(chosen);
    } else if (event.key === "Enter" && found.length) {
      const at = found.indexOf(chosen) + (event.shiftKey ? -1 : 1);
      choose(found[(at + found.length) % found.length]);
      input.focus();
    }
  });

  // Replaying: a node is there from the expansion that drew it.

  function show(number) {
    if (last < 2) return;
    const now = Math.min(last, Math.max(0, number));
    slider.value = now;
    let count = 0;
    for (const node of nodes) {
      const isNew = now > 0 && node.born === now - 1;
      node.item.hidden = node.born >= now;
      node.item.classList.toggle("new", isNew && (timer !== null || now < last));
      if (isNew) reveal(node);
      count += isNew;
    }
    part(".when").textContent = now ? `expansion ${now} of ${last}: ${count} new` : "the problem alone";
    if (now === last) stop();
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    part("[data-do=play]").textContent = "Replay";
  }

  function play() {
    if (timer !== null) return stop();
    part("[data-do=play]").textContent = "Stop";
    timer = setInterval(() => show(Number(slider.value) + 1), 700);
    show(Number(slider.value) < last ? Number(slider.value) + 1 : 0);
  }

  slider.addEventListener("input", () => show(Number(slider.value)));
  const acts = {
    best: showBest,
    open: () => nodes.forEach((node) => setOpen(node, true)),
    close: closeAll,
    play,
    back: keys[","],
    on: keys["."],
  };
  for (const [name, act] of Object.entries(acts)) {
    part(`[data-do=${name}]`).addEventListener("click", act);
  }

  // At first: a small tree whole, of a large one the best path.
  nodes.forEach(draw);
  for (const node of nodes) setOpen(node, nodes.length <= 100 || node.is_best);
  part("details").open = window.innerWidth > 640;
  const first = nodes.find((node) => node.is_answer) ?? nodes[0];
  if (first) choose(first, false);
  if (last > 1) {
    part(".replay").hidden = false;
    slider.max = last;
    slider.value = last;
  }
})();
