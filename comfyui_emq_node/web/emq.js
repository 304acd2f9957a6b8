// EMQ in ComfyUI's page: a sidebar tab with this worker's state, and the command "Queue on fleet".
// It asks only this ComfyUI (/emq/…), which asks the broker. Text from elsewhere goes into textContent alone.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const STATUS_MS = 2000;
const JOB_MS = 1000;
const OVER = ["completed", "failed", "cancelled"];
const STYLE = `
.emq { padding: 12px; font-size: 13px; color: var(--fg-color); overflow-y: auto; height: 100%; box-sizing: border-box; }
.emq dl { display: grid; grid-template-columns: auto 1fr; gap: 4px 12px; margin: 8px 0; }
.emq dt { opacity: 0.7; }
.emq dd { margin: 0; overflow-wrap: anywhere; }
.emq button { margin: 0 6px 6px 0; padding: 4px 10px; border: 1px solid var(--border-color); border-radius: 4px;
  background: var(--comfy-input-bg); color: var(--fg-color); cursor: pointer; }
.emq button:disabled { opacity: 0.4; cursor: default; }
.emq button.emq-main { width: 100%; padding: 8px; font-weight: 600; }
.emq article { border-top: 1px solid var(--border-color); padding: 8px 0; }
.emq progress { width: 100%; }
.emq img, .emq video, .emq audio { max-width: 100%; display: block; margin: 4px 0; }
.emq .emq-error { color: var(--error-text, #f66); }
.emq code { font-size: 11px; opacity: 0.7; }
`;

const jobs = new Map(); // by id: {record, error}, the latest first when shown
let panel = null; // what the tab shows, while it is open
let status = null;
let looking = false;

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const answer = await api.fetchApi(path, options);
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.error || `HTTP ${answer.status}`);
  return told;
}

function element(tag, text, options = {}) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = String(text);
  return Object.assign(made, options);
}

function button(label, act, options = {}) {
  return element("button", label, { type: "button", onclick: () => act().catch(tell), ...options });
}

function tell(error) {
  app.extensionManager?.toast?.add({ severity: "error", summary: "EMQ", detail: error.message, life: 8000 });
}

// -- the worker -----------------------------------------------------------------------------------------------------

async function steer(word) {
  status = { ...status, ...(await ask(`/emq/${word}`, {})) };
  show();
}

function stateText() {
  if (!status) return "asking…";
  if (status.error) return status.error;
  const pools = Object.entries(status.connected ?? {});
  if (!pools.length || !pools.every(([, there]) => there)) return "not connected to the queue";
  if (status.draining) return "draining: finishes what it has, takes nothing new";
  if (status.paused) return "paused: takes no jobs";
  return status.state;
}

function workerPart() {
  const list = element("dl");
  const add = (name, value) => list.append(element("dt", name), element("dd", value));
  add("Worker", status?.worker_id ?? "–");
  add("State", stateText());
  const current = status?.jobs?.find((job) => job.phase === "running" || job.phase === "starting");
  add("Job", current ? `${current.job_id.slice(0, 12)} · ${current.progress ?? 0} %` : "none");
  add("Queue", status?.queue ? `${status.queue.queued} waiting, ${status.queue.running} running` : "not told");
  list.querySelectorAll("dd").forEach((each, index) => { each.dataset.emq = ["worker", "state", "job", "queue"][index]; });
  const held = status?.paused || status?.draining;
  const gone = !status || Boolean(status.error);
  const buttons = element("div");
  buttons.append(
    button("Pause", () => steer("pause"), { disabled: gone || held }),
    button("Resume", () => steer("resume"), { disabled: gone || !held }),
    button("Drain", () => steer("drain"), { disabled: gone || Boolean(status?.draining) }),
  );
  return [list, buttons];
}

async function look() {
  looking = panel !== null;
  if (!looking) return;
  try {
    status = await ask("/emq/status");
  } catch (error) {
    status = { error: error.message };
  }
  show();
  setTimeout(look, STATUS_MS);
}

// -- jobs sent from here ----------------------------------------------------------------------------------------------

function outputPart(output) {
  const url = api.apiURL(output.url);
  if (output.kind === "image") return element("img", null, { src: url, alt: output.filename, loading: "lazy" });
  if (output.kind === "video" || output.kind === "audio") return element(output.kind, null, { src: url, controls: true });
  if (output.kind === "text" && output.text) return element("pre", output.text);
  return element("a", output.filename, { href: url, target: "_blank", rel: "noopener" });
}

function jobPart(id, { record, error, preview }) {
  const part = element("article");
  part.dataset.job = id;
  part.dataset.status = record?.status ?? "";
  const where = record?.worker_id ? ` on ${record.worker_id}` : "";
  part.append(element("div", `${record?.status ?? "…"}${where}`), element("code", id.slice(0, 12)));
  if (record && !OVER.includes(record.status)) {
    part.append(element("progress", null, { max: 100, value: record.progress ?? 0 }));
    if (preview) part.append(element("img", null, { src: preview, alt: "preview" }));
    part.append(button("Cancel", () => ask(`/emq/jobs/${id}/cancel`, {})));
  }
  const trouble = error ?? record?.error?.message ?? record?.waiting_for?.map((each) => each.detail).join(", ");
  if (trouble) part.append(element("div", trouble, { className: "emq-error" }));
  part.append(...(record?.result?.outputs ?? []).map(outputPart));
  return part;
}

// Asking for a preview is watching: previews are made only while the tab is open and the job runs.
async function lookAt(id, job) {
  const before = job.preview;
  if (!panel || job.record?.status !== "processing") {
    job.preview = undefined;
  } else {
    const answer = await api.fetchApi(`/emq/jobs/${id}/preview`);
    const isPicture = answer.status === 200 && answer.headers.get("Content-Type")?.startsWith("image/");
    if (!isPicture) return;
    job.preview = URL.createObjectURL(await answer.blob());
  }
  if (before) URL.revokeObjectURL(before);
}

async function follow(id) {
  while (jobs.has(id)) {
    const job = jobs.get(id);
    try {
      job.record = await ask(`/emq/jobs/${id}`);
      job.error = undefined;
      await lookAt(id, job);
    } catch (error) {
      job.error = error.message;
    }
    show();
    if (OVER.includes(job.record?.status)) return;
    await new Promise((done) => setTimeout(done, JOB_MS));
  }
}

// The page draws new seeds after it has queued a prompt itself; here it has not.
function afterQueued() {
  for (const node of app.graph?.nodes ?? []) {
    for (const widget of node.widgets ?? []) widget.afterQueued?.();
  }
  app.canvas?.draw?.(true, true);
}

async function queueOnFleet() {
  const { output, workflow } = await app.graphToPrompt();
  const answer = await ask("/emq/queue", { prompt: output, workflow });
  afterQueued();
  jobs.set(answer.job_id, {});
  app.extensionManager?.toast?.add({ severity: "info", summary: "Queued on the fleet", detail: answer.job_id.slice(0, 12), life: 3000 });
  show();
  follow(answer.job_id);
}

// -- the tab ----------------------------------------------------------------------------------------------------------

function show() {
  if (!panel) return;
  const [list, buttons] = workerPart();
  panel.worker.replaceChildren(list, buttons);
  for (const [id, job] of jobs) {
    const now = JSON.stringify(job);
    if (job.shown?.text === now && job.shown.part.isConnected) continue; // a video that plays is left alone
    const part = jobPart(id, job);
    if (job.shown?.part.isConnected) job.shown.part.replaceWith(part);
    else panel.jobs.prepend(part);
    Object.defineProperty(job, "shown", { value: { text: now, part }, writable: true, configurable: true });
  }
}

function render(host) {
  const root = element("div", null, { className: "emq" });
  const worker = element("section");
  const sent = element("section");
  root.append(worker, button("Queue on fleet", queueOnFleet, { className: "emq-main" }), sent);
  host.replaceChildren(root);
  panel = { worker, jobs: sent };
  show();
  if (!looking) look();
}

app.registerExtension({
  name: "emq",
  commands: [{ id: "emq.queueOnFleet", label: "Queue on fleet", icon: "pi pi-send", function: () => queueOnFleet().catch(tell) }],
  menuCommands: [{ path: ["Extensions", "EMQ"], commands: ["emq.queueOnFleet"] }],
  async setup() {
    document.head.append(element("style", STYLE));
    app.extensionManager?.registerSidebarTab?.({
      id: "emq", icon: "pi pi-server", title: "EMQ", tooltip: "EMQ: this worker and the fleet", type: "custom",
      render, destroy: () => { panel = null; },
    });
  },
});
