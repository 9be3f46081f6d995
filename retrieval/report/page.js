"use strict";
// Shows the queries of one kind. The kind is kept in the address (report.html#missed), so that a view can be linked.
(function () {
  const cards = Array.from(document.querySelectorAll(".query"));
  const buttons = Array.from(document.querySelectorAll(".filters button"));
  const output = document.querySelector(".filters output");

  function show(kind) {
    let shown = 0;
    for (const card of cards) {
      card.hidden = kind !== "all" && !card.dataset.kinds.split(" ").includes(kind);
      shown += card.hidden ? 0 : 1;
    }
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
    output.textContent = shown + " of " + cards.length + " queries";
    document.body.dataset.shown = String(shown);
  }

  for (const button of buttons) {
    button.addEventListener("click", function () {
      history.replaceState(null, "", "#" + button.dataset.kind);
      show(button.dataset.kind);
    });
  }
  const wanted = location.hash.slice(1);
  if (buttons.length) show(buttons.some((button) => button.dataset.kind === wanted) ? wanted : "all");
})();
