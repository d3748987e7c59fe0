//! The crates that also run in a browser, checked for `wasm32-unknown-unknown`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::machine;
use crate::process::{cargo, command, output, run, succeeds};

const TARGET: &str = "wasm32-unknown-unknown";

/// Debian's current compiler and cargo, which come with the source of the standard library.
const DISTRO_RUSTC: &str = "/usr/bin/rustc";
const DISTRO_CARGO: &str = "/usr/bin/cargo";

/// Checks the crates with warnings as errors, after seeing to a standard library for the target.
pub(crate) fn check() -> Result<()> {
    let mut cargo =
        cargo(&["check", "--package", "tread-core", "--package", "tread-shaders", "--target", TARGET])?;
    let mut flags = vec!["-Dwarnings".to_owned()];
    if let Some(sysroot) = standard_library()? {
        cargo.env("RUSTC", DISTRO_RUSTC);
        flags.push(format!("--sysroot={}", sysroot.display()));
    }
    run(cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")))
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

/// Builds the standard library from the distribution's source, once for each version of it.
fn distro_sysroot() -> Result<PathBuf> {
    let sysroot = machine::cache()?.join("wasm-sysroot");
    let stamp = sysroot.join("stamp");
    let version = output(&mut command(DISTRO_RUSTC, ["-vV"]))?;
    if fs::read_to_string(&stamp).is_ok_and(|built| built == version) {
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
        .env_remove("RUSTFLAGS")
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
