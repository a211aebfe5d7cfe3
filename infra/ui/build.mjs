// Bundles the page into a folder that has nothing else: `node build.mjs FOLDER`. Names with a hash are of one content.
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";

const folder = process.argv[2];
mkdirSync(folder, { recursive: true });
const { metafile } = await build({
  entryPoints: { main: "src/main.tsx", reference: "src/reference.ts" },
  outdir: folder,
  entryNames: "[name].[hash]",
  chunkNames: "[name].[hash]",
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  minify: true,
  legalComments: "none", // licences are in a file of their own
  metafile: true,
  logLevel: "warning",
});

const made = Object.keys(metafile.outputs).map((path) => path.slice(path.lastIndexOf("/") + 1));
const hashed = (_, name, ending) => made.find((each) => each.startsWith(`${name}.`) && each.endsWith(`.${ending}`));
for (const page of ["index.html", "api.html"]) {
  const html = readFileSync(join("src", page), "utf8").replace(/\b(main|reference)\.(js|css)\b/g, hashed);
  writeFileSync(join(folder, page), html);
}
writeFileSync(join(folder, "icon.svg"), readFileSync("src/icon.svg"));
writeFileSync(join(folder, "licences.txt"), licences(Object.keys(metafile.inputs)));

function licences(inputs) {
  const packages = new Set(inputs.map((path) => /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1]).filter(Boolean));
  const texts = [...packages].sort().map((name) => {
    const home = join("node_modules", name);
    const { version, license } = JSON.parse(readFileSync(join(home, "package.json"), "utf8"));
    const contained = inputs.filter((path) => path.startsWith(home)).map((path) => `${path}.LICENSE.txt`);
    const files = [licenceFile(home), ...[join(home, "NOTICE"), ...contained].filter(existsSync)];
    return `${name} ${version}, ${license}\n\n${files.map((file) => readFileSync(file, "utf8").trim()).join("\n\n")}\n`;
  });
  return ["The page of Slipway (Apache-2.0) contains these packages.\n", ...texts].join(`\n${"-".repeat(72)}\n\n`);
}

function licenceFile(home) {
  const name = readdirSync(home).find((each) => /^licen[cs]e/i.test(each));
  if (!name) throw new Error(`${home} has no licence file`);
  return join(home, name);
}
