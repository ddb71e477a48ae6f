// Paints the stream of one camera: a message has the picture and the answer of the same frame, so both change at once.
const AHEAD = 3; // frames asked for before the last has come: hides the way there and back
const STALE_S = 2.5, AGAIN_MS = 1000;

const said = (words, key, values = {}) =>
  Object.entries(values).reduce((text, [name, value]) => text.replaceAll(`{${name}}`, value), words[key]);
const percent = (share) => `${Math.round(100 * share)} %`;

function bars(parent, names, pair) {
  // Rows for these classes; they are made anew only when the classes change.
  const key = JSON.stringify(names);
  if (parent.dataset.names === key) return [...parent.children];
  parent.dataset.names = key;
  parent.replaceChildren(...names.map((name) => {
    const row = document.createElement("div"), label = document.createElement("span"), share = document.createElement("span");
    row.className = "row"; label.className = "name"; share.className = "share"; label.textContent = name;
    const both = document.createElement("div");
    both.className = "pair";
    for (const kind of pair ? ["student", "teacher"] : ["student"]) {
      const bar = document.createElement("div"), fill = document.createElement("div");
      bar.className = `bar ${kind}`; fill.className = "fill"; bar.append(fill);
      if (!pair) { const line = document.createElement("div"); line.className = "line"; bar.append(line); }
      both.append(bar);
    }
    row.append(label, both, share);
    return row;
  }));
  return [...parent.children];
}

function order(...shares) {
  // The likeliest first, so that what matters is seen without scrolling.
  return shares[0].map((_, place) => place).sort((a, b) => shares[0][b] - shares[0][a]);
}

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".live"), words = data.words;
  const find = (query) => root.querySelector(query);
  const canvas = find("canvas"), pen = canvas.getContext("2d"), state = find(".state");
  const named = (name) => data.labels[name] ?? name;
  let socket, timer, seen = 0, shown = null, shots = 0, ended = false, second = 0, retry;

  canvas.setAttribute("aria-label", words["live.picture"]);
  find(".student h2").textContent = words["live.student"];
  find(".second h2").textContent = words["live.second"];
  find(".second .of").textContent = words["live.second_none"];
  find(".freeze").textContent = words["live.freeze"];
  find(".freeze").hidden = !data.may_label;
  find(".freeze").onclick = () => shown && setTriggerValue("frozen", { frame: shown.frame, classes: shown.classes });

  function verdict(frame) {
    const own = frame.student;
    if (frame.quality.length) return ["", said(words, "live.quality", { words: frame.quality.join(", ") })];
    if (!own) return [words["live.no_model"], ""];
    const name = named(frame.classes[own.top]), share = percent(own.probabilities[own.top]);
    if (own.unknown) return [words["live.not_a_plant"], ""];
    const names = own.candidates.map((place) => named(frame.classes[place])).join(words["live.or"]);
    const set = own.candidates.length > 1 ? said(words, "live.set", { names }) : "";
    return own.unsure ? [words["live.unsure"], set] : [`${name}, ${share}`, set];
  }

  function put(query, text) {
    const place = find(query);
    if (place.textContent !== text) place.textContent = text;
  }

  function show(frame) {
    const [first, more] = verdict(frame);
    put(".student .verdict", first);
    put(".student .more", more);
    find(".student .bars").hidden = !frame.student; // bars of another frame would not be of this picture
    if (frame.student) {
      const exact = frame.student.probabilities, smooth = frame.smoothed;
      const rows = bars(find(".student .bars"), frame.classes.map(named), false);
      rows.forEach((row, place) => {
        row.querySelector(".fill").style.transform = `scaleX(${smooth[place]})`;
        row.querySelector(".line").style.left = `calc(${100 * exact[place]}% - 1.5px)`;
        row.querySelector(".share").textContent = percent(smooth[place]);
      });
      put(".student .note", words["live.smoothed"]);
    }
    if (frame.second && frame.second.frame !== second) showSecond(frame.second);
    put(".second .of", frame.second
      ? said(words, "live.second_of", { seconds: Math.max(0, Math.round(frame.t - frame.second.t)) })
      : words["live.second_none"]);
  }

  function showSecond(both) {
    second = both.frame;
    const picture = find(".second img");
    picture.src = `${data.frames}${both.frame}.jpg`;
    picture.alt = words["live.second"];
    picture.hidden = false;
    const teacher = both.teacher, student = both.student, ofTeacher = named(both.classes[teacher.top]);
    const rank = order(teacher.probabilities).slice(0, 6);
    const own = (name) => student ? student.probabilities[both.student_classes.indexOf(name)] ?? 0 : 0;
    const rows = bars(find(".second .bars"), rank.map((place) => named(both.classes[place])), true);
    rows.forEach((row, at) => {
      const place = rank[at], mine = own(both.classes[place]), its = teacher.probabilities[place];
      row.querySelector(".student .fill").style.transform = `scaleX(${mine})`;
      row.querySelector(".teacher .fill").style.transform = `scaleX(${its})`;
      row.querySelector(".share").textContent = `${percent(mine)} ${percent(its)}`;
      row.title = `${words["live.of_student"]} ${percent(mine)}, ${words["live.of_teacher"]} ${percent(its)}`;
    });
    if (!student) return put(".second .verdict", ofTeacher);
    const ofStudent = named(both.student_classes[student.top]);
    put(".second .verdict", ofStudent === ofTeacher
      ? said(words, "live.agree", { name: ofTeacher })
      : said(words, "live.differ", { student: ofStudent, teacher: ofTeacher }));
  }

  async function paint(message) {
    const length = new DataView(message).getUint32(0);
    const frame = JSON.parse(new TextDecoder().decode(new Uint8Array(message, 4, length)));
    const picture = await createImageBitmap(new Blob([new Uint8Array(message, 4 + length)], { type: "image/jpeg" }));
    if (ended) return;
    if (canvas.width !== picture.width || canvas.height !== picture.height) {
      canvas.width = picture.width;
      canvas.height = picture.height;
    }
    pen.drawImage(picture, 0, 0);
    picture.close();
    shown = frame;
    seen = performance.now();
    shots += 1;
    show(frame);
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
    socket.onopen = () => { for (let n = 0; n < AHEAD; n += 1) socket.send("next"); };
    socket.onmessage = async (message) => {
      const from = socket;
      try { await paint(message.data); } finally { if (from.readyState === WebSocket.OPEN) from.send("next"); }
    };
    socket.onclose = () => { clearTimeout(retry); retry = setTimeout(open, AGAIN_MS); };
  }

  function close() {
    clearTimeout(retry);
    if (socket) { socket.onclose = null; socket.close(); socket = null; }
  }

  function tick() {
    const age = (performance.now() - seen) / 1000, stale = !seen || age > STALE_S;
    root.classList.toggle("stale", stale);
    const text = !seen ? words["live.waiting"] : stale ? said(words, "live.stale", { seconds: Math.floor(age) }) : words["live.live"];
    put(".state", text);
    put(".when", shown ? new Date(1000 * shown.t).toLocaleTimeString() : "");
  }

  // A tab that nobody looks at costs the device nothing.
  const turned = () => (document.hidden ? close() : socket || open());
  document.addEventListener("visibilitychange", turned);
  timer = setInterval(tick, 500);
  tick();
  open();
  return () => {
    ended = true;
    clearInterval(timer);
    document.removeEventListener("visibilitychange", turned);
    close();
  };
}
