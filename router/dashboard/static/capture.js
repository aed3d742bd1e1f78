// Runs on the audio thread: the microphone as pieces of 40 ms, 16 bit, 24 kHz, one channel.

const RATE = 24_000;
const PIECE = 960;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(PIECE);
    this.filled = 0;
    this.step = sampleRate / RATE;
    // Each sample that goes out is the mean of what came in during its time: enough of a filter for speech.
    this.sum = 0;
    this.weight = 0;
  }

  process([[channel]]) {
    if (channel) for (const sample of channel) this.take(sample);
    return true;
  }

  take(sample) {
    let rest = 1;
    while (rest > 0) {
      const part = Math.min(rest, this.step - this.weight);
      this.sum += sample * part;
      this.weight += part;
      rest -= part;
      if (this.weight >= this.step - 1e-9) {
        this.put(this.sum / this.weight);
        this.sum = 0;
        this.weight = 0;
      }
    }
  }

  put(value) {
    this.piece[this.filled] = Math.max(-32768, Math.min(32767, Math.round(value * 32767)));
    this.filled += 1;
    if (this.filled < PIECE) return;
    this.port.postMessage(this.piece.buffer, [this.piece.buffer]);
    this.piece = new Int16Array(PIECE);
    this.filled = 0;
  }
}

registerProcessor("capture", Capture);
