// Runs before SAQ's app.js, which expects `root_path` and knows its first page by the slash at its end alone.
const root_path = document.currentScript.dataset.rootPath

{
  const trimmed = window.location.pathname.replace(/\/+$/, "")
  const path = trimmed === root_path ? root_path + "/" : trimmed
  if (path !== window.location.pathname) {
    window.history.replaceState(null, null, path)
  }
}
