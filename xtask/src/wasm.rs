//! A compiler for `wasm32-unknown-unknown`: rustup's, or the distribution's.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::machine;
use crate::process::{self, command, output, run, succeeds};

/// What the page is compiled for.
pub(crate) const TARGET: &str = "wasm32-unknown-unknown";

/// The standard library takes part in link-time optimisation, like the one that rustup installs.
const SYSROOT_FLAGS: &str = "-Cembed-bitcode=yes";

/// Debian's current compiler and cargo, which come with the source of the standard library.
const DISTRO_RUSTC: &str = "/usr/bin/rustc";
const DISTRO_CARGO: &str = "/usr/bin/cargo";

/// A cargo command for the target, after seeing to a standard library for it; `flags` go to the compiler.
pub(crate) fn cargo(args: &[&str], flags: &[&str]) -> Result<Command> {
    let mut cargo = process::cargo(args)?;
    cargo.args(["--target", TARGET]);
    let mut flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
    if let Some(sysroot) = standard_library()? {
        cargo.env("RUSTC", DISTRO_RUSTC);
        flags.push(format!("-Clinker={}", linker()?.display()));
        flags.push(format!("--sysroot={}", sysroot.display()));
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    Ok(cargo)
}

/// Sees to a standard library for the target; returns its sysroot unless the toolchain has one of its own.
fn standard_library() -> Result<Option<PathBuf>> {
    let library = output(&mut command("rustc", ["--print", "target-libdir", "--target", TARGET]))?;
    if Path::new(library.trim()).exists() {
        return Ok(None);
    }
    // CI machines may not reach rustup's downloads: there, and on request, the distribution's compiler serves.
    let distro = env::var_os("CI").is_some() || env::var("TREAD_WASM").is_ok_and(|choice| choice == "distro");
    if !distro && succeeds(&mut command("rustup", ["--version"])) {
        run(&mut command("rustup", ["target", "add", TARGET]))
            .context("set TREAD_WASM=distro to use Debian's packages instead")?;
        return Ok(None);
    }
    machine::apt(&["rustc-web", "cargo-web", "rust-web-src"])?;
    distro_sysroot().map(Some)
}

/// A linker for the target, which the distribution's compiler comes without: that of the toolchain that runs us, else
/// LLVM's.
fn linker() -> Result<PathBuf> {
    let library = output(&mut command("rustc", ["--print", "target-libdir"]))?;
    let linker = Path::new(library.trim()).with_file_name("bin").join("rust-lld");
    if linker.exists() {
        return Ok(linker);
    }
    machine::apt(&["lld"])?;
    Ok("wasm-ld".into())
}

/// Builds the standard library from the distribution's source, once for each version of it.
fn distro_sysroot() -> Result<PathBuf> {
    let version = format!("{}{SYSROOT_FLAGS}", output(&mut command(DISTRO_RUSTC, ["-vV"]))?);
    // Cargo looks at the flags, which name the folder, and not into it: another library needs another name.
    let digest: String = Sha256::digest(&version).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let sysroot = machine::cache()?.join(format!("wasm-sysroot-{digest}"));
    let stamp = sysroot.join("stamp");
    if stamp.exists() {
        return Ok(sysroot);
    }
    eprintln!("Building the standard library for {TARGET}");
    let seed = machine::cache()?.join("wasm-sysroot-build");
    fs::create_dir_all(seed.join("src"))?;
    fs::write(
        seed.join("Cargo.toml"),
        "[package]\nname = \"seed\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n",
    )?;
    fs::write(seed.join("src/lib.rs"), "#![no_std]\n")?;
    // A stable compiler builds its own standard library only when told that this is a bootstrap.
    run(command(DISTRO_CARGO, ["build", "--release", "-Zbuild-std=std,panic_abort", "--target", TARGET])
        .current_dir(&seed)
        .env("RUSTC", DISTRO_RUSTC)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", seed.join("target"))
        .env("RUSTFLAGS", SYSROOT_FLAGS)
        .env_remove("RUSTC_WRAPPER"))?;

    let library = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    if sysroot.exists() {
        fs::remove_dir_all(&sysroot)?;
    }
    fs::create_dir_all(&library)?;
    for entry in fs::read_dir(seed.join("target").join(TARGET).join("release/deps"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".rlib") && !name.starts_with("libseed-") {
            fs::copy(&path, library.join(name))?;
        }
    }
    fs::remove_dir_all(&seed)?;
    fs::write(stamp, version)?;
    Ok(sysroot)
}
