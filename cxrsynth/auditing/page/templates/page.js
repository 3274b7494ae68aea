"use strict";
(() => {
  const get = (id) => document.getElementById(id);
  const list = get("cards");
  const films = JSON.parse(get("films").textContent);
  films.forEach((film, place) => {
    film.place = place;
    film.card = list.children[place];
  });

  const fill = (id, values) => {
    for (const value of [...new Set(values)].sort()) {
      get(id).append(new Option(value, value));
    }
  };
  fill("reason", films.flatMap((film) => film.reasons));
  fill("finding", films.flatMap((film) => film.findings));
  fill("view", films.map((film) => film.view).filter((view) => view !== ""));

  const valueOf = (film, by) => {
    if (by === "place" || by === "key") return film[by];
    return film.numbers[by] ?? null;
  };

  // What was not measured comes last in either order; equal films stay in the order of the set.
  const compare = (by, sign) => (one, other) => {
    const [a, b] = [valueOf(one, by), valueOf(other, by)];
    if (a === b) return one.place - other.place;
    if (a === null) return 1;
    if (b === null) return -1;
    return a < b ? -sign : sign;
  };

  const wanted = () => {
    const [decision, reason, finding, view] = ["decision", "reason", "finding", "view"].map((id) => get(id).value);
    const text = get("search").value.toLowerCase();
    return (film) =>
      (decision === "" || film.kept === (decision === "kept")) &&
      (reason === "" || film.reasons.includes(reason)) &&
      (finding === "" || film.findings.includes(finding)) &&
      (view === "" || film.view === view) &&
      film.key.toLowerCase().includes(text);
  };

  let shown = films;
  const update = () => {
    const matches = wanted();
    const ordered = [...films].sort(compare(get("sort").value, get("direction").value === "up" ? 1 : -1));
    shown = ordered.filter(matches);
    const visible = new Set(shown);
    for (const film of films) film.card.hidden = !visible.has(film);
    list.append(...ordered.map((film) => film.card));
    get("shown").textContent = `${shown.length} of ${films.length} films of the gallery shown`;
    get("none").hidden = shown.length > 0 || films.length === 0;
  };

  const viewer = get("viewer");
  let current = 0;
  const show = (place) => {
    current = place;
    const film = shown[place];
    const picture = film.card.querySelector(".enlarge").firstElementChild.cloneNode(true);
    get("viewer-title").textContent = film.key;
    get("viewer-picture").replaceChildren(picture);
    get("viewer-told").replaceChildren(film.card.querySelector(".told").cloneNode(true));
    // A disabled button would lose the focus, and with it the arrow keys.
    get("before").ariaDisabled = String(place === 0);
    get("after").ariaDisabled = String(place === shown.length - 1);
  };
  const step = (by) => {
    const place = current + by;
    if (place >= 0 && place < shown.length) show(place);
  };

  list.addEventListener("click", (event) => {
    const button = event.target.closest(".enlarge");
    if (!button) return;
    show(shown.findIndex((film) => film.card === button.parentElement));
    viewer.showModal();
    get("close").focus();
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  // A click beside the box lands on the dialog itself.
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close();
  });
  viewer.addEventListener("close", () => shown[current].card.querySelector(".enlarge").focus());
  get("before").addEventListener("click", () => step(-1));
  get("after").addEventListener("click", () => step(1));
  get("close").addEventListener("click", () => viewer.close());

  const controls = document.querySelector(".controls");
  controls.addEventListener("input", update);
  get("reset").addEventListener("click", () => {
    for (const select of controls.querySelectorAll("select")) select.selectedIndex = 0;
    get("search").value = "";
    update();
  });
  controls.hidden = false;
  update();
})();
