// Copying, watching an enrolment, refreshing pages that show a state, and the "/" key. Everything
// works without this file, one reload at a time.

// What this script asks by itself says so: it keeps no session alive. When the session is over, the page goes, too.
const byItself = { headers: { "x-scrinium-refresh": "1" } };

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy).textContent;
    await navigator.clipboard.writeText(text);
    const before = button.textContent;
    button.textContent = button.dataset.done;
    setTimeout(() => { button.textContent = before; }, 2000);
  });
}

for (const watch of document.querySelectorAll("[data-watch]")) {
  const look = async () => {
    try {
      const response = await fetch(watch.dataset.watch, byItself);
      if (response.status === 401) return location.reload();
      if (response.ok) {
        const state = await response.json();
        watch.dataset.state = state.state;
        watch.querySelector(".words").textContent = state.text;
        if (state.state === "receiving") return;
      }
    } catch { /* the server restarts: look again */ }
    setTimeout(look, 1000);
  };
  look();
}

const region = document.querySelector("[data-refresh]");
if (region) {
  const seconds = Number(region.dataset.refresh);
  setInterval(async () => {
    // Nothing moves under a reader who selects text or has the page in the background.
    if (document.hidden || !document.getSelection().isCollapsed) return;
    try {
      const response = await fetch(location.href, byItself);
      if (response.redirected) return location.reload();
      if (!response.ok) return;
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      const fresh = page.querySelector("[data-refresh]");
      if (fresh) region.replaceChildren(...fresh.childNodes);
    } catch { /* the server restarts: try again */ }
  }, seconds * 1000);
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, select, textarea")) return;
  event.preventDefault();
  const query = document.getElementById("q");
  if (query) query.focus(); else location.href = "/search";
});
