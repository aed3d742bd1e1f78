// Requests to the router. All addresses are relative to the page's, so that a path prefix of a proxy does not matter.

export const page = new URL(".", document.baseURI);
// What /dashboard/login says: is a login needed, is there one, and the token that every request carries.
export const access = { login: "key", logged_in: false, csrf: null, version: "" };

/** What the router answered, or that it did not. `status` is 0 when there was no answer. */
export class Refused extends Error {
  constructor(status, message, document) {
    super(message);
    this.status = status;
    this.document = document;
  }
}

/** Make a request; return the JSON of its answer. */
export async function request(method, path, { query, body, timeout = 10_000 } = {}) {
  const url = new URL(path, page);
  for (const [name, value] of Object.entries(query ?? {})) if (value) url.searchParams.set(name, value);
  const headers = { accept: "application/json" };
  if (access.csrf) headers["x-router-csrf"] = access.csrf;
  if (body !== undefined) headers["content-type"] = "application/json";
  let answer;
  let document = null;
  try {
    const signal = AbortSignal.timeout(timeout);
    answer = await fetch(url, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal, cache: "no-store", redirect: "error" });
    document = await answer.json();
  } catch (error) {
    if (!answer) throw new Refused(0, error.name === "TimeoutError" ? "The router did not answer in time." : "The router cannot be reached.");
  }
  if (!answer.ok) throw new Refused(answer.status, document?.error?.message ?? `The router answered ${answer.status}.`, document);
  if (document === null || typeof document !== "object") throw new Refused(answer.status, "The router's answer cannot be read.");
  return document;
}

export const get = (path, query) => request("GET", path, { query });
export const post = (path, body = {}) => request("POST", path, { body });

/** Ask whether there is a login. */
export async function refreshAccess() {
  Object.assign(access, await get("dashboard/login"));
}

export async function login(key) {
  Object.assign(access, await post("dashboard/login", { key }));
}

export async function logout() {
  await post("dashboard/logout");
  Object.assign(access, { logged_in: false, csrf: null });
}

/** The address of a playground session. */
export function sessionUrl(group) {
  const url = new URL("dashboard/realtime", page);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.searchParams.set("model", group);
  return url;
}
