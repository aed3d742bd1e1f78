// Sound in and out: 16 bit, 24 kHz, one channel, as the providers speak it.

const RATE = 24_000;
// Ahead of the clock at the beginning of an answer, so that the network's unevenness is not heard.
const LEAD_S = 0.06;

const toBase64 = (buffer) => {
  let text = "";
  for (const byte of new Uint8Array(buffer)) text += String.fromCharCode(byte);
  return btoa(text);
};

/** Samples of a piece in base64; null when it is none. */
function samplesOf(base64) {
  let text;
  try {
    text = atob(base64);
  } catch {
    return null;
  }
  const samples = new Float32Array(text.length >> 1);
  for (let index = 0; index < samples.length; index += 1) {
    const value = text.charCodeAt(2 * index) | (text.charCodeAt(2 * index + 1) << 8);
    samples[index] = (value >= 0x8000 ? value - 0x10000 : value) / 0x8000;
  }
  return samples;
}

/** Plays pieces one after the other, without a gap between them. */
export class Player {
  constructor() {
    // At the pieces' own rate, so that none is resampled by itself and clicks at its edges.
    this.context = new AudioContext({ sampleRate: RATE });
    this.meter = this.context.createAnalyser();
    this.meter.fftSize = 2048;
    this.meter.connect(this.context.destination);
    this.window = new Float32Array(this.meter.fftSize);
    this.next = 0; // the moment when what is scheduled ends
    this.scheduled = []; // {source, item, index, start, end}, in order
    this.finished = 0; // seconds played of pieces that are over
    this.peak = 0;
  }

  /** Schedule a piece of an item's content. */
  play(base64, item, index) {
    const samples = samplesOf(base64);
    if (samples === null || !samples.length) return;
    if (this.context.state === "suspended") this.context.resume();
    const buffer = this.context.createBuffer(1, samples.length, RATE);
    buffer.copyToChannel(samples, 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.meter);
    const start = Math.max(this.next, this.context.currentTime + (this.scheduled.length ? 0 : LEAD_S));
    this.next = start + buffer.duration;
    const piece = { source, item, index, start, end: this.next, heardBefore: this.heardOf(item) };
    this.scheduled.push(piece);
    source.onended = () => {
      const at = this.scheduled.indexOf(piece);
      if (at < 0) return; // it was stopped
      this.scheduled.splice(at, 1);
      this.finished += piece.end - piece.start;
    };
    source.start(start);
  }

  /** Seconds scheduled of an item so far, which is what has been heard when the next piece begins. */
  heardOf(item) {
    if (this.item !== item) {
      this.item = item;
      this.ofItem = 0;
      return 0;
    }
    const last = this.scheduled.at(-1);
    this.ofItem = last && last.item === item ? last.heardBefore + last.end - last.start : this.ofItem;
    return this.ofItem;
  }

  /** Fall silent at once. Returns what was heard of the item that was interrupted, or null when nothing was to be heard. */
  stop() {
    const now = this.context.currentTime;
    const playing = this.scheduled.find((piece) => piece.end > now);
    const heard = playing ? { item: playing.item, index: playing.index, ms: Math.round(1000 * (playing.heardBefore + Math.max(0, now - playing.start))) } : null;
    for (const piece of this.scheduled.splice(0)) {
      this.finished += Math.max(0, Math.min(now, piece.end) - piece.start);
      piece.source.stop();
      piece.source.disconnect();
    }
    this.next = 0;
    return heard;
  }

  get playing() {
    return this.scheduled.length > 0;
  }

  /** Seconds that were played since the beginning. */
  get played() {
    const now = this.context.currentTime;
    return this.scheduled.reduce((sum, piece) => sum + Math.max(0, Math.min(now, piece.end) - piece.start), this.finished);
  }

  /** How loud it is now, 0 to 1. */
  get level() {
    this.meter.getFloatTimeDomainData(this.window);
    const level = this.window.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    this.peak = Math.max(this.peak, level);
    return level;
  }

  close() {
    this.stop();
    this.context.close();
  }
}

/** Why there can be no microphone here; empty when there can. */
export function noMicrophone() {
  if (!isSecureContext) return "A microphone needs https or localhost: browsers give it to no other page. Text works.";
  return navigator.mediaDevices?.getUserMedia ? "" : "This browser gives no page a microphone. Text works.";
}

/** The microphone, piece by piece, as base64. */
export class Microphone {
  static async open(take) {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true } });
    const context = new AudioContext();
    try {
      await context.audioWorklet.addModule(new URL("./capture.js", import.meta.url));
    } catch (error) {
      for (const track of stream.getTracks()) track.stop();
      context.close();
      throw error;
    }
    return new Microphone(stream, context, take);
  }

  constructor(stream, context, take) {
    this.stream = stream;
    this.context = context;
    this.node = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
    this.node.port.onmessage = ({ data }) => take(toBase64(data));
    context.createMediaStreamSource(stream).connect(this.node);
  }

  close() {
    this.node.port.onmessage = null;
    for (const track of this.stream.getTracks()) track.stop();
    this.context.close();
  }
}
