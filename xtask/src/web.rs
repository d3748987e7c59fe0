//! `cargo xtask web`: the page, as files that any web server can serve and that `tread` contains.

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::catalog;
use crate::process::{command, output, root, run, succeeds};
use crate::wasm;

/// The modules: binary and the name of what is made of it.
const MODULES: [(&str, &str); 2] = [("tread-page", "page"), ("tread-engine", "engine")];

/// Most bytes of all that a browser loads for page and engine, compressed.
const BUDGET: u64 = 2_500_000;

/// Builds `web/dist`: the files themselves and, beside each, its Brotli form.
pub(crate) fn build() -> Result<()> {
    let web = root()?.join("web");
    let dist = web.join("dist");
    let mut cargo = wasm::cargo(
        &["build", "--package", "tread-web", "--bins", "--profile", "web"],
        &["-Dwarnings", "-Ctarget-feature=+simd128"],
    )?;
    run(&mut cargo)?;
    // What is written anew is compiled into `tread` anew.
    let inputs = inputs()?;
    if fs::read_to_string(dist.join(STAMP)).is_ok_and(|stamp| stamp == inputs) {
        return Ok(());
    }
    clear(&dist)?;
    copy(&web.join("static"), &dist)?;
    for (binary, name) in MODULES {
        bindgen(&module(binary)?, &dist, name)?;
    }
    catalog::write(&root()?.join("app/models"), &dist.join("models"))?;
    let compressed = compress(&dist)?;
    eprintln!("{}: {compressed} bytes compressed, of at most {BUDGET}", dist.display());
    if compressed > BUDGET {
        bail!("the page has grown beyond its budget");
    }
    fs::write(dist.join(STAMP), inputs)?;
    Ok(())
}

/// Says from what `web/dist` was made.
const STAMP: &str = ".stamp";

/// Stands for all that the page is made of, this program included.
fn inputs() -> Result<String> {
    let mut files = vec![env::current_exe()?];
    for (binary, _) in MODULES {
        files.push(module(binary)?);
    }
    for folder in ["web/static", "app/models"] {
        list(&root()?.join(folder), &mut files)?;
    }
    let mut hasher = Sha256::new();
    for file in files {
        hasher.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hasher.update(fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Adds all files of a folder, in an order that is always the same.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let mut paths = vec![];
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        paths.push(entry?.path());
    }
    paths.sort();
    for path in paths {
        if path.is_dir() { list(&path, files)? } else { files.push(path) }
    }
    Ok(())
}

/// A module as the compiler leaves it, where cargo puts what it builds.
fn module(binary: &str) -> Result<PathBuf> {
    // Cargo runs in the root, and takes a relative folder from there.
    let target = root()?.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()));
    Ok(target.join(wasm::TARGET).join("web").join(format!("{binary}.wasm")))
}

/// Makes `NAME.js` and `NAME_bg.wasm` of a module.
fn bindgen(module: &Path, dist: &Path, name: &str) -> Result<()> {
    wasm_bindgen_cli_support::Bindgen::new()
        .input_path(module)
        .out_name(name)
        .remove_name_section(true)
        .remove_producers_section(true)
        .typescript(false)
        .omit_default_module_path(false)
        .web(true)?
        .generate(dist)
        .with_context(|| format!("making JavaScript for {}", module.display()))?;
    let wasm = dist.join(format!("{name}_bg.wasm"));
    if binaryen().is_some_and(|version| version >= MIN_BINARYEN) {
        optimise(&wasm)?;
    }
    Ok(())
}

/// Older ones take the table of JavaScript's objects for that of functions: the module is valid and does not start (seen
/// with 108, which Debian 12 has).
const MIN_BINARYEN: u32 = 116;

/// The version of binaryen that is installed.
fn binaryen() -> Option<u32> {
    let text = output(&mut command("wasm-opt", ["--version"])).ok()?;
    text.split_whitespace().find_map(|word| word.parse().ok())
}

/// Features that rustc's modules use, and that every browser with WebGPU has.
const FEATURES: [&str; 6] = [
    "--enable-bulk-memory",
    "--enable-reference-types",
    "--enable-mutable-globals",
    "--enable-sign-ext",
    "--enable-nontrapping-float-to-int",
    "--enable-multivalue",
];

/// Lets binaryen make the module smaller; an old one that does not know the module leaves it as it is.
fn optimise(wasm: &Path) -> Result<()> {
    let small = wasm.with_extension("small");
    let mut opt = command("wasm-opt", ["-Os"]);
    opt.args(FEATURES).arg(wasm).arg("-o").arg(&small);
    if succeeds(&mut opt) {
        fs::rename(small, wasm)?;
    } else {
        eprintln!("wasm-opt failed; {} stays as it is", wasm.display());
    }
    Ok(())
}

/// Empties the folder, but for what git keeps there.
fn clear(dist: &Path) -> Result<()> {
    for entry in fs::read_dir(dist).with_context(|| format!("cannot read {}", dist.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(path)?;
        } else if path.file_name().is_some_and(|name| name != ".gitignore") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        if path.is_dir() {
            copy(&path, &to.join(name))?;
        } else {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// Writes `FILE.br` beside each of the page's files; returns the bytes of all of them. Models are not part of the page.
fn compress(dist: &Path) -> Result<u64> {
    let mut total = 0;
    let mut folders = vec![dist.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                if path != dist.join("models") {
                    folders.push(path);
                }
            } else if path.file_name().is_some_and(|name| name != ".gitignore") {
                let mut small = path.clone().into_os_string();
                small.push(".br");
                let mut writer = brotli::CompressorWriter::new(fs::File::create(&small)?, 1 << 16, 9, 22);
                writer.write_all(&fs::read(&path)?)?;
                writer.flush()?;
                drop(writer);
                total += fs::metadata(&small)?.len();
            }
        }
    }
    Ok(total)
}
