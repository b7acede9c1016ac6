export interface ProgressBar {
  /** Draws the bar for a share between 0 and 1; between redraws pass at least 100 ms, except for the last. */
  draw(share: number, text: string): void;
  /** Leaves the last state on the terminal, on a line of its own. */
  close(): void;
}

const cells = 24;
const redrawMs = 100;

/** A bar on the terminal's current line: `label ████░░░░ 50%  text`. Nothing may write to the terminal until it is closed. */
export function openProgressBar(terminal: NodeJS.WriteStream, label: string): ProgressBar {
  let line: string | null = null;
  let drawnAt = Number.NEGATIVE_INFINITY;
  const write = (): void => {
    drawnAt = performance.now();
    // To the start of the line, and what was there is cleared. A line that wrapped could not be drawn over.
    terminal.write(`\r\x1b[K${line?.slice(0, (terminal.columns ?? 80) - 1)}`);
  };
  return {
    draw(share, text) {
      const full = Math.min(cells, Math.floor(share * cells));
      line = `${label} ${"█".repeat(full)}${"░".repeat(cells - full)} ${Math.floor(share * 100)}%  ${text}`;
      if (performance.now() - drawnAt >= redrawMs) write();
    },
    close() {
      if (line === null) return;
      write();
      terminal.write("\n");
    },
  };
}
