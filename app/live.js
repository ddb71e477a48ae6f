// Paints the stream of one camera: a message has the picture and the answer of the same frame, so both change at once.
const AHEAD = 3; // frames asked for before the last has come: hides the way there and back
const STALE_S = 2.5, AGAIN_MS = 1000, SILENT_S = 10, PICTURE_MS = 20000, TICK_MS = 250;

const said = (words, key, values = {}) =>
  Object.entries(values).reduce((text, [name, value]) => text.replaceAll(`{${name}}`, value), words[key]);
const percent = (share) => `${Math.round(100 * share)} %`;
const figure = (value, scale) => `${Number(value.toPrecision(3))} ${scale.unit}`.trim();
const when = (moment) => (moment.toDateString() === new Date().toDateString()
  ? moment.toLocaleTimeString()
  : moment.toLocaleString());
const since = (then) => (performance.now() - then) / 1000;

function bars(parent, names, kinds) {
  // Rows for these classes, with a bar of each kind; they are made anew only when these change.
  const key = JSON.stringify([names, kinds]);
  if (parent.dataset.names === key) return [...parent.children];
  parent.dataset.names = key;
  const made = (parent, kind) => parent.appendChild(Object.assign(document.createElement("div"), { className: kind }));
  parent.replaceChildren();
  for (const name of names) {
    const row = made(parent, "row");
    made(row, "name").textContent = name;
    for (const kind of kinds) {
      const bar = made(row, `bar ${kind}`);
      made(bar, "fill");
      if (kinds.length === 1) made(bar, "line");
      made(row, "share");
    }
  }
  return [...parent.children];
}

function fill(row, at, share, text) {
  row.querySelectorAll(".fill")[at].style.setProperty("--share", share);
  row.querySelectorAll(".share")[at].textContent = text;
}

const likeliest = (shares) => shares.map((_, place) => place).sort((a, b) => shares[b] - shares[a]);

async function fetched(address) {
  // A picture that is ready to be painted; none where the device has it no more.
  const answer = await fetch(address, { cache: "no-store", signal: AbortSignal.timeout(PICTURE_MS) });
  return answer.ok ? createImageBitmap(await answer.blob()) : null;
}

function draw(canvas, picture) {
  if (canvas.width !== picture.width || canvas.height !== picture.height) {
    canvas.width = picture.width;
    canvas.height = picture.height;
  }
  canvas.getContext("2d").drawImage(picture, 0, 0);
  picture.close(); // a picture that waits for the collector keeps its megabyte for long
}

function live(root) {
  const find = (query) => root.querySelector(query);
  const canvas = find("figure canvas"), small = find(".second canvas");
  let data, words, socket, timer, retry, ended = false;
  let shown = null, seen = 0, heard = 0, opened = 0, arrived = 0, newest = 0, shots = 0, opinion = null, loading = false;
  const named = (name) => data.labels[name] ?? name;
  const word = (one, classes, scale) => (one.unknown ? words["live.not_a_plant"]
    : scale ? figure(one.value, scale) : named(classes[one.top]));
  const silent = (seconds) => (seconds < 120
    ? said(words, "live.stale", { seconds: Math.floor(seconds) })
    : said(words, "live.stale_older", { minutes: Math.round(seconds / 60) }));
  const ago = (seconds) => (seconds < 120
    ? said(words, "live.second_of", { seconds })
    : said(words, "live.second_older", { minutes: Math.round(seconds / 60) }));

  function put(query, text) {
    const place = find(query);
    if (place.textContent !== text) place.textContent = text;
  }

  function take(given, setTriggerValue) {
    // What the page says: at first, and again in another language.
    data = given;
    words = data.words;
    for (const one of [canvas, small]) one.setAttribute("aria-label", words["live.picture"]);
    put(".student h2", words["live.student"]);
    put(".second h2", words["live.second"]);
    put(".freeze", words["live.freeze"]);
    find(".freeze").onclick = () => shown && setTriggerValue("frozen", { frame: shown.frame, classes: shown.classes });
    if (shown) show(shown);
    if (opinion) weigh(opinion);
    tick();
  }

  function verdict(frame) {
    const own = frame.student;
    if (frame.quality.length) {
      const faults = frame.quality.map((fault) => data.faults[fault] ?? fault).join(", ");
      return ["", said(words, "live.quality", { words: faults })];
    }
    if (!own) return [words["live.no_model"], ""];
    const first = word(own, frame.classes, frame.scale), share = percent(frame.coverage ?? 0);
    if (own.unknown) return [first, ""];
    if (frame.scale) {
      const [low, high] = own.interval ? own.interval.map((end) => figure(end, frame.scale)) : [];
      return [first, own.interval ? said(words, "live.interval", { low, high, share }) : ""];
    }
    const names = own.candidates.map((place) => named(frame.classes[place])).join(words["live.or"]);
    const set = own.candidates.length > 1 ? said(words, "live.set", { names, share }) : "";
    return own.unsure ? [words["live.unsure"], set] : [`${first}, ${percent(own.probabilities[own.top])}`, set];
  }

  function show(frame) {
    const [first, more] = verdict(frame);
    put(".student .verdict", first);
    put(".student .more", more);
    const weighs = frame.student && !frame.scale; // a number's bins are no classes to choose from
    find(".freeze").hidden = !data.may_label || frame.scale;
    find(".student .bars").hidden = !weighs; // bars of another frame would not be of this picture
    put(".student .note", weighs ? words["live.smoothed"] : "");
    if (!weighs) return;
    const exact = frame.student.probabilities, smooth = frame.smoothed;
    const rows = bars(find(".student .bars"), frame.classes.map(named), ["student"]);
    rows.forEach((row, place) => {
      fill(row, 0, smooth[place], percent(smooth[place]));
      row.querySelector(".line").style.setProperty("--share", exact[place]);
    });
  }

  async function hear(both) {
    // One picture at a time, and its answer with it; each frame brings the newest answer, so none is missed.
    if (loading || !both || both.frame <= (opinion?.frame ?? -1)) return;
    loading = true;
    const picture = await fetched(`${data.frames}${both.frame}.jpg?t=${both.t}`).catch(() => undefined);
    if (picture === undefined) await new Promise((again) => setTimeout(again, AGAIN_MS)); // then the next frame asks
    loading = false;
    if (picture === undefined || ended || both.frame > shown.frame) return; // a later one: the device counts anew
    if (picture) draw(small, picture);
    small.hidden = !picture;
    opinion = both;
    weigh(both);
    tick();
  }

  function weigh(both) {
    const teacher = both.teacher, student = both.student, ofTeacher = word(teacher, both.classes, both.scale);
    const rank = both.scale ? [] : likeliest(teacher.probabilities).slice(0, 6);
    const own = (name) => student ? student.probabilities[both.student_classes.indexOf(name)] ?? 0 : 0;
    const rows = bars(find(".second .bars"), rank.map((place) => named(both.classes[place])), ["student", "teacher"]);
    rows.forEach((row, at) => {
      const mine = own(both.classes[rank[at]]), its = teacher.probabilities[rank[at]];
      fill(row, 0, mine, `${percent(mine)} ${words["live.of_student"]}`);
      fill(row, 1, its, `${percent(its)} ${words["live.of_teacher"]}`);
    });
    const ofStudent = student && word(student, both.student_classes, both.scale);
    put(".second .verdict", !student ? ofTeacher : ofStudent === ofTeacher
      ? said(words, "live.agree", { name: ofTeacher })
      : said(words, "live.differ", { student: ofStudent, teacher: ofTeacher }));
    root.dataset.second = both.frame;
  }

  function forget() {
    opinion = null;
    small.hidden = true;
    find(".second .bars").replaceChildren();
    delete find(".second .bars").dataset.names;
    put(".second .verdict", "");
    delete root.dataset.second;
  }

  async function paint(message) {
    const number = arrived += 1, length = new DataView(message).getUint32(0);
    const frame = JSON.parse(new TextDecoder().decode(new Uint8Array(message, 4, length)));
    const picture = await createImageBitmap(new Blob([new Uint8Array(message, 4 + length)], { type: "image/jpeg" }));
    if (ended || number < newest) return picture.close(); // another was unpacked faster
    newest = number;
    draw(canvas, picture);
    if (frame.frame < shown?.frame) forget(); // the device counts anew
    shown = frame;
    heard = performance.now();
    seen = heard - 1000 * frame.age_s; // who comes late gets the last picture of a camera that is away
    shots += 1;
    show(frame);
    hear(frame.second);
    root.dataset.frame = frame.frame;
    root.dataset.painted = shots;
    if (shots === 1) tick();
  }

  function open() {
    if (ended || document.hidden) return;
    const address = new URL(data.socket, location.href);
    address.protocol = address.protocol.replace("http", "ws");
    socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    opened = performance.now();
    socket.onopen = () => { for (let n = 0; n < AHEAD; n += 1) socket.send("next"); };
    socket.onmessage = async (message) => {
      const from = socket;
      try { await paint(message.data); } finally { if (from.readyState === WebSocket.OPEN) from.send("next"); }
    };
    socket.onclose = () => { clearTimeout(retry); retry = setTimeout(open, AGAIN_MS); };
  }

  function close() {
    clearTimeout(retry);
    if (socket) { socket.onopen = socket.onmessage = socket.onclose = null; socket.close(); socket = null; }
  }

  function tick() {
    const age = since(seen), stale = !shown || age > STALE_S;
    root.classList.toggle("stale", stale);
    put(".state", !shown ? words["live.waiting"] : stale ? silent(age) : words["live.live"]);
    put(".when", shown ? when(new Date(1000 * shown.t)) : "");
    put(".second .of", opinion
      ? ago(Math.max(0, Math.round(shown.t - opinion.t + age)))
      : words["live.second_none"]);
    if (socket && since(Math.max(heard, opened)) > SILENT_S) { close(); open(); } // a link may die without a word
  }

  // A tab that nobody looks at costs the device nothing.
  const turned = () => (document.hidden ? close() : socket || open());

  function begin(given, setTriggerValue) {
    take(given, setTriggerValue);
    document.addEventListener("visibilitychange", turned);
    timer = setInterval(tick, TICK_MS);
    open();
  }

  function end() {
    ended = true;
    clearInterval(timer);
    document.removeEventListener("visibilitychange", turned);
    close();
  }

  return { root, begin, take, end };
}

const views = new WeakMap();

export default function ({ data, parentElement, setTriggerValue }) {
  // Called at each run of the page, but only the end of the last call is ever heeded: one view serves all of them.
  const root = parentElement.querySelector(".live"), view = views.get(parentElement);
  if (view?.root === root) {
    view.take(data, setTriggerValue);
    return view.end;
  }
  view?.end();
  const made = live(root);
  views.set(parentElement, made);
  made.begin(data, setTriggerValue);
  return made.end;
}
