// Holds every state of an edit, for undo and redo. States are never changed, only replaced.

const MOST = 200;

export class History {
  constructor(first) {
    this.states = [first];
    this.at = 0;
  }

  get state() {
    return this.states[this.at];
  }

  get canUndo() {
    return this.at > 0;
  }

  get canRedo() {
    return this.at < this.states.length - 1;
  }

  push(state) {
    this.states = [...this.states.slice(Math.max(0, this.at + 1 - MOST), this.at + 1), state];
    this.at = this.states.length - 1;
  }

  undo() {
    this.at = Math.max(0, this.at - 1);
  }

  redo() {
    this.at = Math.min(this.states.length - 1, this.at + 1);
  }
}
