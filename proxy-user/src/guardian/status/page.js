// Fetches the page again and takes over its main part; everything is made and escaped by the server.
"use strict";
const every = 1000;
async function refresh() {
  try {
    const answer = await fetch("/", { cache: "no-store", signal: AbortSignal.timeout(3000) });
    if (!answer.ok) throw new Error(String(answer.status));
    const next = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(document.adoptNode(next.querySelector("main")));
    document.title = next.title;
    document.body.classList.remove("lost");
  } catch (error) {
    document.body.classList.add("lost");
  }
  setTimeout(refresh, every);
}
setTimeout(refresh, every);
