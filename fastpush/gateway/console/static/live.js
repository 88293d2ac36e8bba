// Times in the reader's zone, and pages that stay current: when the server says that something changed, the page is
// fetched again and the parts marked data-live take the place of the old ones. Without this script all works as well.
"use strict";

(() => {
  const short = new Intl.DateTimeFormat([], { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const day = new Intl.DateTimeFormat([], { year: "numeric", month: "2-digit", day: "2-digit" });
  const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });

  function localise(root) {
    for (const time of root.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      if (!Number.isNaN(at.valueOf())) time.textContent = (time.dataset.form === "date" ? day : short).format(at);
    }
    for (const mark of root.querySelectorAll("text[data-time]")) mark.textContent = clock.format(new Date(mark.dataset.time));
  }

  // Fields for times have UTC from the server, and give it UTC; between, they show the reader's zone.
  function localiseFields() {
    for (const field of document.querySelectorAll("input[data-utc]")) {
      const at = new Date(`${field.defaultValue}Z`);
      if (!Number.isNaN(at.valueOf())) field.value = new Date(at - at.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
      field.form.addEventListener("formdata", ({ formData }) => {
        const meant = new Date(field.value);
        if (!Number.isNaN(meant.valueOf())) formData.set(field.name, meant.toISOString().slice(0, 19));
      });
    }
    for (const zone of document.querySelectorAll("[data-zone]")) {
      zone.textContent = "your time";
      zone.title = Intl.DateTimeFormat().resolvedOptions().timeZone;
    }
  }

  async function refresh() {
    const answer = await fetch(location.href, { credentials: "same-origin", headers: { Accept: "text/html" } });
    if (answer.redirected) return location.reload();
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of document.querySelectorAll("[data-live]")) {
      const fresh = page.getElementById(part.id);
      if (!fresh) continue;
      localise(fresh);
      if (fresh.innerHTML === part.innerHTML || part.contains(document.activeElement)) continue;
      const known = new Set([...part.querySelectorAll("[data-key]")].map((row) => row.dataset.key));
      part.replaceChildren(...fresh.childNodes);
      for (const row of part.querySelectorAll("[data-key]")) if (!known.has(row.dataset.key)) row.classList.add("fresh");
    }
  }

  localise(document);
  localiseFields();
  if (!document.querySelector("[data-live]") || !window.EventSource) return;
  let waiting = false;
  let busy = false;
  async function look() {
    if (busy || document.hidden) { waiting = true; return; }
    busy = true;
    waiting = false;
    try { await refresh(); } catch { /* the next event tries again */ }
    busy = false;
    if (waiting) look();
  }

  // Figures that stand still look like a gateway at rest: whoever watches is told when nothing comes any more.
  const old = document.createElement("p");
  old.className = "wrong";
  old.setAttribute("role", "status");
  let events, late;
  function lost() {
    if (old.isConnected) return;
    old.textContent = `Not live since ${clock.format(new Date())}: the gateway does not answer, or too many watch it. What is shown may be old.`;
    document.getElementById("content").prepend(old);
  }
  function watch() {
    events?.close();
    events = new EventSource("/live");
    events.addEventListener("change", look);
    events.addEventListener("open", () => {
      clearTimeout(late);
      late = undefined;
      if (old.isConnected) { old.remove(); look(); }
    });
    events.addEventListener("error", () => {
      late ??= setTimeout(lost, 4000);
      if (events.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
      setTimeout(watch, 5000);
      look(); // leads to the login where the session has ended
    });
  }
  watch();
  document.addEventListener("visibilitychange", () => { if (!document.hidden && waiting) look(); });
  window.addEventListener("pagehide", () => events.close());
  window.addEventListener("pageshow", (event) => { if (event.persisted) watch(); });
})();
