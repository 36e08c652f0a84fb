// Reads every shader of a folder with Tint, the compiler in Chromium, on Dawn's null device: what naga accepts and browsers do not
// (uniformity of control flow above all) shows here.
//
//     node tools/tint.mjs MODULE FOLDER     MODULE: the npm package `webgpu`, unpacked
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [unpacked, folder] = process.argv.slice(2);
const { create } = await import(pathToFileURL(path.resolve(unpacked, "index.js")));
const gpu = create(["backend=null"]); // kept: its adapters do not outlive it
const adapter = await gpu.requestAdapter();
const device = await adapter.requestDevice({ requiredFeatures: ["shader-f16", "subgroups"] });
device.onuncapturederror = () => {};
const files = fs.readdirSync(folder).filter((f) => f.endsWith(".wgsl"));
let read = 0;
let wrong = 0;
for (const file of files) {
  let code = fs.readFileSync(path.join(folder, file), "utf8");
  if (code.includes("coop_mat")) continue; // naga's own extension
  if (code.includes("subgroup")) code = "enable subgroups;\n" + code; // naga wants it left out
  read++;
  const info = await device.createShaderModule({ code }).getCompilationInfo();
  const errors = info.messages.filter((m) => m.type === "error");
  if (errors.length && wrong++ < 20) {
    console.log(`${file}: ${errors.slice(0, 2).map((e) => `${e.lineNum}:${e.linePos} ${e.message}`).join(" | ")}`);
  }
}
console.log(`${read} of ${files.length} shaders read by Tint, ${wrong} refused`);
process.exit(gpu && read > 0 && wrong === 0 ? 0 : 1);
