import type { Reporter, TestModule } from "vitest/node";

/** Prints `N passed, N failed, N skipped` as the last line of stdout. A test file that could not run counts as one failure. */
export class CountReporter implements Reporter {
  private line = "0 passed, 1 failed, 0 skipped";

  onInit(): void {
    // On exit, because other reporters and the tear-down still print after the last test has ended.
    process.once("exit", () => process.stdout.write(`${this.line}\n`));
  }

  onTestRunEnd(modules: readonly TestModule[], unhandledErrors: readonly unknown[]): void {
    const count = { passed: 0, failed: unhandledErrors.length, skipped: 0 };
    for (const module of modules) {
      const before = count.failed;
      for (const test of module.children.allTests()) {
        const { state } = test.result();
        count[state === "pending" ? "skipped" : state] += 1;
      }
      if (module.state() === "failed" && count.failed === before) count.failed += 1;
    }
    this.line = `${count.passed} passed, ${count.failed} failed, ${count.skipped} skipped`;
  }
}
