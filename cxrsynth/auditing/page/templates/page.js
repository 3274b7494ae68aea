"use strict";
(() => {
  const get = (id) => document.getElementById(id);
  const list = get("cards");
  const images = JSON.parse(get("images").textContent);
  images.forEach((image, place) => {
    image.place = place;
    image.card = list.children[place];
  });

  const fill = (id, values) => {
    for (const value of [...new Set(values)].sort()) {
      get(id).append(new Option(value, value));
    }
  };
  fill("reason", images.flatMap((image) => image.reasons));
  fill("finding", images.flatMap((image) => image.findings));
  fill("view", images.map((image) => image.view).filter((view) => view !== ""));

  const valueOf = (image, by) => {
    if (by === "place" || by === "key") return image[by];
    return image.numbers[by] ?? null;
  };

  // Images without the number come last in either order; equal ones stay in the order of the set.
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
    return (image) =>
      (decision === "" || image.kept === (decision === "kept")) &&
      (reason === "" || image.reasons.includes(reason)) &&
      (finding === "" || image.findings.includes(finding)) &&
      (view === "" || image.view === view) &&
      image.key.toLowerCase().includes(text);
  };

  // A phone does not lay out hundreds of pictures at once.
  const PER_PAGE = 60;
  let shown = images;
  let limit = PER_PAGE;
  const update = () => {
    const matches = wanted();
    const ordered = [...images].sort(compare(get("sort").value, get("direction").value === "up" ? 1 : -1));
    shown = ordered.filter(matches);
    const visible = new Set(shown.slice(0, limit));
    for (const image of images) image.card.hidden = !visible.has(image);
    list.append(...ordered.map((image) => image.card));
    const matching = visible.size < shown.length ? `, ${shown.length} match` : "";
    get("shown").textContent = `${visible.size} of ${images.length} images of the gallery shown${matching}`;
    get("more").hidden = visible.size === shown.length;
    get("none").hidden = shown.length > 0 || images.length === 0;
  };

  const viewer = get("viewer");
  let current = 0;
  const show = (place) => {
    current = place;
    const image = shown[place];
    const picture = image.card.querySelector(".enlarge").firstElementChild.cloneNode(true);
    get("viewer-title").textContent = image.key;
    get("viewer-picture").replaceChildren(picture);
    get("viewer-details").replaceChildren(image.card.querySelector(".details").cloneNode(true));
    // A disabled button would lose the focus, and the arrow keys with it.
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
    show(shown.findIndex((image) => image.card === button.parentElement));
    viewer.showModal();
    get("close").focus();
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  // A click outside the box hits the dialog itself.
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close();
  });
  viewer.addEventListener("close", () => {
    if (current >= limit) {
      limit = current + 1;
      update();
    }
    shown[current].card.querySelector(".enlarge").focus();
  });
  get("before").addEventListener("click", () => step(-1));
  get("after").addEventListener("click", () => step(1));
  get("close").addEventListener("click", () => viewer.close());

  const controls = document.querySelector(".controls");
  const startAgain = () => {
    limit = PER_PAGE;
    update();
  };
  controls.addEventListener("input", startAgain);
  get("more").addEventListener("click", () => {
    const first = limit;
    limit += PER_PAGE;
    update();
    shown[first].card.querySelector(".enlarge").focus();
  });
  get("reset").addEventListener("click", () => {
    for (const select of controls.querySelectorAll("select")) select.selectedIndex = 0;
    get("search").value = "";
    startAgain();
  });
  controls.hidden = false;
  update();

  // Paper has no folds to open: all are open while the page is printed.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const one of folded) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of folded) one.open = false;
  });
})();
